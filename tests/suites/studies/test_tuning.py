"""The search for training settings: the same candidates for every method, scored on dev."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from suites.studies import tuning


def test_every_method_gets_every_candidate(
    mini_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every method and combination has one line and one JSON row, and the best settings are candidates."""
    tries = ["--try", "learning_rate=1e-9,3e-3", "--try", "epochs=1,2", "--json", str(tmp_path / "scores.json")]
    assert tuning.main([*tries, "--methods", "bert,fastbert", *mini_options]) == 0
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


def test_test_labels_have_no_effect(
    mini_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scores do not depend on test labels."""
    arguments = ["--try", "learning_rate=3e-3", "--methods", "bert", *mini_options, "--fresh"]
    assert tuning.main(arguments) == 0
    first = capsys.readouterr().out.split("epoch")[0]
    path = tmp_path / "data" / "toy" / "test.csv"
    frame = pd.read_csv(path)
    frame["label"] = 1 - frame["label"]
    frame.to_csv(path, index=False)
    assert tuning.main(arguments) == 0
    assert capsys.readouterr().out.split("epoch")[0] == first


def test_a_teacher_keeps_its_own_settings(mini_options: list[str]) -> None:
    """Candidates change the method itself, not its teacher."""
    from harness.cli.main import parser, settings_of

    settings = settings_of(parser().parse_args(["run", *mini_options]))
    changed = tuning.with_settings(settings, "tinybert", {"learning_rate": 7e-4})
    assert changed.profile.config("tinybert")["learning_rate"] == 7e-4
    assert changed.profile.config("bert") == settings.profile.config("bert")


def test_bad_input_is_one_line(mini_options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown setting and a method without training give one line and exit code 2."""
    assert tuning.main(["--try", "learning_rat=1e-4", "--methods", "bert", *mini_options]) == 2
    assert "learning_rate" in capsys.readouterr().err
    assert tuning.main(["--try", "epochs=1", "--methods", "control-constant", *mini_options]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("tuning: method 'control-constant'")
    assert tuning.main(["--try", "epochs", *mini_options]) == 2
    assert "'epochs' is not SETTING=value,value" in capsys.readouterr().err


def test_borrowed_weights_are_refused(mini_options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A method with another method's weights is refused, because all candidates would have the same score."""
    assert tuning.main(["--try", "epochs=1,2", "--methods", "fastbert-faithful", *mini_options]) == 2
    assert "trains no model of its own" in capsys.readouterr().err
