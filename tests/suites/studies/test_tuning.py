"""The search for training settings: same candidates for everybody, scored on dev."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from harness.pretraining.untrained import make_scratch
from suites.studies import tuning


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options for a local dataset of one easy word a class, with a test split that nobody can read."""
    texts = [f"{'good' if i % 2 else 'bad'} thing number {i}" for i in range(60)]
    (tmp_path / "data" / "toy").mkdir(parents=True)
    for name, rows in (("train", range(40)), ("dev", range(40, 50)), ("test", range(50, 60))):
        frame = pd.DataFrame({"text": [texts[i] for i in rows], "label": [i % 2 for i in rows]})
        frame.to_csv(tmp_path / "data" / "toy" / f"{name}.csv", index=False)
    make_scratch(texts, tmp_path / "backbone", layers=3, width=16, heads=2, vocab=200, seed=0)
    monkeypatch.setenv("GEEP_BENCH_CACHE", str(tmp_path / "cache"))
    return [
        *("--profile", "mini", "--datasets", "toy", "--data", str(tmp_path / "data"), "--device", "cpu"),
        *("--backbone", f"en={tmp_path / 'backbone'}"),
    ]


def test_every_method_gets_every_candidate(toy: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line and one JSON row per method and combination, and the best settings named from among the candidates."""
    tries = ["--try", "learning_rate=1e-9,3e-3", "--try", "epochs=1,2", "--json", str(tmp_path / "scores.json")]
    assert tuning.main([*tries, "--methods", "bert,fastbert", *toy]) == 0
    found = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    assert [(row["method"], row["settings"]["learning_rate"], row["settings"]["epochs"]) for row in found["rows"]] == [
        (method, rate, epochs) for method in ("bert", "fastbert") for rate in (1e-9, 3e-3) for epochs in (1, 2)
    ]
    for row in found["rows"]:
        assert row["dev_rows"] == 10
        assert row["score"] == pytest.approx(sum(row["accuracy"]) / len(row["accuracy"]))
        assert all(round(10 * value, 6) % 1 == 0 for value in row["accuracy"])
    for method, chosen in found["best"].items():
        scores = {json.dumps(row["settings"]): row["score"] for row in found["rows"] if row["method"] == method}
        assert scores[json.dumps(chosen)] == max(scores.values())
    assert len(capsys.readouterr().out.splitlines()) == 8 + 2


def test_test_labels_play_no_part(toy: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With other test labels the scores are the same."""
    arguments = ["--try", "learning_rate=3e-3", "--methods", "bert", *toy, "--fresh"]
    assert tuning.main(arguments) == 0
    first = capsys.readouterr().out.split("epoch")[0]
    path = tmp_path / "data" / "toy" / "test.csv"
    frame = pd.read_csv(path)
    frame["label"] = 1 - frame["label"]
    frame.to_csv(path, index=False)
    assert tuning.main(arguments) == 0
    assert capsys.readouterr().out.split("epoch")[0] == first


def test_a_teacher_keeps_its_own_settings(toy: list[str]) -> None:
    """Candidates change the method that is tried, not the one it learns from."""
    from harness.cli.main import parser, settings_of

    settings = settings_of(parser().parse_args(["run", *toy]))
    changed = tuning.with_settings(settings, "tinybert", {"learning_rate": 7e-4})
    assert changed.profile.config("tinybert")["learning_rate"] == 7e-4
    assert changed.profile.config("bert") == settings.profile.config("bert")


def test_bad_input_is_one_line(toy: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A setting that nobody reads and a method that trains nothing end in one line and exit code 2."""
    assert tuning.main(["--try", "learning_rat=1e-4", "--methods", "bert", *toy]) == 2
    assert "learning_rate" in capsys.readouterr().err
    assert tuning.main(["--try", "epochs=1", "--methods", "control-constant", *toy]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("tuning: method 'control-constant'")
    with pytest.raises(SystemExit) as ended:
        tuning.main(["--try", "epochs", *toy])
    assert ended.value.code == 2


def test_borrowed_weights_have_nothing_to_tune(toy: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """int8 carries bert's training report, and would score every candidate alike."""
    assert tuning.main(["--try", "epochs=1,2", "--methods", "bert-int8", *toy]) == 2
    assert "trains no model of its own" in capsys.readouterr().err
