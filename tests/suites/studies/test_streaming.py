"""The study of windows of arrival."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from suites.studies import streaming
from suites.studies.shared import study


def main(options: list[str], out: Path, *more: str) -> int:
    return streaming.main([*options, "--fixed", "4", "--windows", "8,10,24,4096,0", "--out", str(out), *more])


def test_every_window_is_measured_once(
    toy_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only full windows run, windows that hold all samples share one row, and waits are given per rate."""
    out = tmp_path / "streaming.json"
    assert main(toy_options, out, "--rates", "0.5,1e9") == 0
    said = capsys.readouterr().out
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
    labels = ["bert", "geep speed=0.5 ladder", "geep speed=0.5 exact-k"]
    assert [(row["label"], row["window"]) for row in rows] == [(m, w) for m in labels for w in (8, 10, 24)]
    for row in rows:
        assert len(row["service_seconds"]) == 2 * (24 // row["window"])  # rounds
        assert row["labels_agree"] == 1
        slow, fast = row["waits"]
        assert slow["collecting_mean"] == row["window"] - 1
        assert slow["stable"] and slow["latency_p50"] < slow["latency_p99"]
        assert slow["latency_p99"] >= slow["collecting_p99"] - 3
        assert not fast["stable"] and fast["latency_p50"] is None
    assert "all (24)" in said and streaming.CANNOT in said
    for window in ("24", "4,096"):
        assert f"a window of {window} holds all 24 samples" in said
    assert (tmp_path / "streaming.md").read_text(encoding="utf-8").startswith("# Windows of arrival")


def test_other_rates_need_no_new_passes(
    toy_options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Waits follow from stored service times; other windows are refused as other settings."""
    out = tmp_path / "streaming.json"
    assert main(toy_options, out, "--methods", "bert", "--rates", "1") == 0
    monkeypatch.setattr(study, "Session", None)
    assert main(toy_options, out, "--methods", "bert", "--rates", "2,3") == 0
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert [wait["rate"] for wait in rows[0]["waits"]] == [2, 3]
    assert main(toy_options, out, "--methods", "bert", "--windows", "5") == 2
    assert "other settings (windows)" in capsys.readouterr().err


def test_a_stopped_run_resumes(toy_options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped run keeps its finished rounds."""
    out = tmp_path / "streaming.json"
    whole, left = streaming.calls, [0]

    def stops(*args: object) -> object:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return whole(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(streaming, "calls", stops)
    left[0] = 3 + 3 + 2  # warm-up of three windows, a round, half of another
    assert main(toy_options, out, "--methods", "bert") == 130
    kept = json.loads(out.read_text(encoding="utf-8"))["parts"]
    assert list(kept) == ["toy/seed0/round0"]
    left[0] = 0
    assert main(toy_options, out, "--methods", "bert") == 0
    assert left[0] == -(3 + 3)
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert rows[0]["service_seconds"][:3] == kept["toy/seed0/round0"]["bert | 8"]["seconds"]


def test_an_unstable_server_has_no_latency() -> None:
    """An overloaded server has no latency; a nearly overloaded one is marked as unsettled."""
    over, near, fine = (streaming.waits(10, rate, [1.0, 1.0]) for rate in (10.0, 9.7, 5.0))
    assert (over["utilisation"], over["stable"], over["latency_p99"]) == (1.0, False, None)
    assert (near["stable"], near["settled"]) == (True, False)
    assert (fine["stable"], fine["settled"]) == (True, True)
    assert fine["latency_p50"] == pytest.approx(fine["collecting_p50"] + 1, abs=0.15)
    assert np.isfinite(near["queueing_mean"]) and near["queueing_mean"] > fine["queueing_mean"]


def test_windows_that_hold_everything_are_one() -> None:
    """Windows above the number of samples are one window, with a note."""
    assert streaming.distinct([256, 1024, 4096, 0], 1000) == (
        [256, 1000],
        [f"a window of {w} holds all 1,000 samples: its row is that of 'all'" for w in ("1,024", "4,096")],
    )
    assert streaming.distinct([0], 7) == ([7], [])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--rates", "0"], "'0' is not a number above 0"),
        (["--rates", "10,nan"], "above 0"),
        (["--rates", "fast"], "above 0"),
        (["--windows", "-1"], "at least 0"),
        (["--methods", "gep"], "did you mean geep"),
    ],
)
def test_bad_input_is_one_line(
    toy_options: list[str], wrong: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bad input gives one line and exit code 2."""
    assert main(toy_options, tmp_path / "streaming.json", *wrong) == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert said in error and error.startswith("streaming: ")
