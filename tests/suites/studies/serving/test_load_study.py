"""The study of load: its search for the highest rate, what it stores and shows, and input that it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from suites.studies.serving import load_generator, load_study
from suites.studies.shared import study


@pytest.fixture(autouse=True)
def fake(loadgen: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Use the generator of the tests; servers keep up below 900 queries/s, and p99 is 10 ms below 500/s, then 200 ms."""
    loadgen.p99 = lambda rate: 0.01 if rate < 500 else 0.2
    monkeypatch.setattr(load_study, "load_generator", lambda: loadgen)
    monkeypatch.setattr(load_study, "keeps_up", lambda found: found.scheduled_per_s < 900)
    monkeypatch.setattr(load_study, "TURNS", 2)
    monkeypatch.setattr(load_generator, "_CAPACITY", 100)
    return loadgen


def main(options: list[str], out: Path, *more: str) -> int:
    given = ["--methods", "bert,geep", "--queries", "20", "--seconds", "0.01", "--at-most", "8", "--windows", "8"]
    return load_study.main([*options, *given, "--out", str(out), *more])


def test_the_highest_rate_is_searched_stored_and_shown(
    fake: Any,
    toy_options: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every method and rule has its curve up to a rate that is too high, halved twice; a second call measures nothing."""
    out = tmp_path / "serving.json"
    options = [*toy_options, "--rates", "100,400,1e6"]
    assert main(options, out) == 0
    printed = capsys.readouterr()
    assert "generates at most 80,000 queries/s; not measured: 1e+06" in printed.err
    data = json.loads(out.read_text(encoding="utf-8"))
    labels = ["bert", "geep speed=0.5 ladder", "geep speed=0.5 exact-k"]
    curves: dict[tuple[str, str], list[Any]] = {}
    for row in data["rows"]:
        if row["scenario"] == "Server":
            curves.setdefault((row["label"], row["rule"]), []).append(row)
    assert list(curves) == [(label, rule) for label in labels for rule in ("up to 8", "window 8")]
    for rows in curves.values():
        assert [row["rate"] for row in rows] == [100, 400, 490, 542, 600]
        assert [row["meets"] for row in rows] == [True, True, True, False, False]
        assert all(row["labels_agree"] == 1 and row["queries"] == 20 for row in rows)
    assert [row["scenario"] for row in data["rows"] if row["label"] == "bert"][:2] == ["SingleStream", "Offline"]
    assert fake.wrong == []
    said = printed.out
    assert "highest rate with p99 within 50.0 ms" in said and "490/s 1.00x" in said and "no MLPerf result" in said
    assert (tmp_path / "serving.md").read_text(encoding="utf-8").startswith("# Latency under load")
    assert (tmp_path / "serving-toy.svg").read_text(encoding="utf-8").count("window 8") == 2

    monkeypatch.setattr(study, "Session", None)
    before = len(fake.tests)
    assert main(options, out) == 0
    assert capsys.readouterr().out == said and len(fake.tests) == before
    # Another bound needs no new tests.
    assert main(options, out, "--windows", "0", "--p99-ms", "1", "--refine", "0") == 1
    found = capsys.readouterr().out
    assert "no method keeps p99 within 1.00 ms: the best is bert, up to 8, with 10.0 ms at 100/s" in found
    assert main(options, out, "--seconds", "9") == 2
    assert "other settings (seconds)" in capsys.readouterr().err


def test_default_rates_are_shares_of_the_references_offline_throughput(
    fake: Any, toy_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They begin at a quarter of it; a stopped run keeps its tests and goes on; a method that cannot keep up has no more rates."""
    out = tmp_path / "serving.json"
    options = ["--windows", "0", "--methods", "bert", "--refine", "0"]
    whole, left = load_study.run_test, [4]

    def stops(*args: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return whole(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load_study, "run_test", stops)
        assert main(toy_options, out, *options) == 130
    tests = len(fake.tests)
    assert main(toy_options, out, *options) == 0
    rates = [rate for scenario, rate in fake.tests if scenario == "Server" and rate < 1e6]
    assert rates == [100, 200, 300, 400, 600, 800] and tests == 5
    assert "600/s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--rates", "1e6"], "this machine generates at most 80,000 queries/s: give lower --rates"),
        (["--rates", "0"], "above 0"),
        (["--p99-ms", "-1"], "above 0"),
        (["--at-most", "0"], "at least 1"),
        (["--methods", "gep"], "did you mean geep"),
    ],
)
def test_bad_input_is_one_line(
    toy_options: list[str], wrong: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bad input gives one line and exit code 2."""
    assert main(toy_options, tmp_path / "serving.json", "--methods", "bert", *wrong) == 2
    error = [line for line in capsys.readouterr().err.strip().splitlines() if line.startswith("serving: ")]
    assert len(error) == 1 and said in error[0]


def test_without_the_extra_one_line_says_what_to_install(
    toy_options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is told before anything is loaded or fitted."""

    def missing(name: str) -> None:
        raise ImportError(f"No module named '{name}'")

    monkeypatch.setattr(load_study, "load_generator", load_generator.load_generator)
    monkeypatch.setattr(load_generator.importlib, "import_module", missing)
    assert main(toy_options, tmp_path / "serving.json") == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert "pip install 'geep-bench[load]'" in error
