"""The study of depth on local data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from suites.studies import depth


@pytest.mark.parametrize(("method", "layers"), [("fastbert", [1, 2, 3, 4]), ("geep", [1, 2, 4])])
def test_accuracy_of_every_head_on_local_data(
    method: str, layers: list[int], mini_options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is one row per dataset and one accuracy per head, with the options of a run."""
    assert depth.main(["--method", method, "--out", str(tmp_path / "d.json"), *mini_options, "--max-test", "8"]) == 0
    (row,) = json.loads((tmp_path / "d.json").read_text(encoding="utf-8"))["rows"]
    assert (row["dataset"], row["method"], row["backbone"], row["layers"]) == ("toy", method, "backbone", layers)
    assert (row["train_rows"], row["test_rows"]) == (40, 8)
    assert all(round(8 * value, 6) % 1 == 0 for value in row["accuracy"])
    assert row["gain_points"] == pytest.approx(100 * (row["accuracy"][-1] - row["accuracy"][0]))
    assert "toy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"), [(["--method", "bert"], "no heads at several depths"), (["--data", "nowhere"], "nowhere")]
)
def test_bad_input_is_one_line(
    options: list[str], said: str, mini_options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A method without early heads and missing data give one line."""
    assert depth.main([*mini_options, *options]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and len(error.splitlines()) == 1
