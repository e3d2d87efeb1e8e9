"""The executors' figures at a given shape."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from suites import executors


def test_every_executor_is_measured_against_full_depth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line per executor, and JSON with fingerprint; layer ratios follow from the executed layers."""
    out = tmp_path / "executors.json"
    arguments = [
        "--backbone",
        "google/bert_uncased_L-4_H-256_A-4",
        "--samples",
        "12",
        "--rounds",
        "1",
        "--device",
        "cpu",
    ]
    assert executors.main([*arguments, "--out", str(out)]) == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    rows = found["executors"]
    assert set(rows) == {"bert", "ladder", "exact-k"}
    assert rows["bert"]["mean_layers"] == 4
    assert rows["ladder"]["mean_layers"] == rows["exact-k"]["mean_layers"] < 4
    assert rows["ladder"]["layer_ratio"] == pytest.approx(4 / rows["ladder"]["mean_layers"])
    assert found["fingerprint"]["versions"]["torch"]
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_an_unknown_backbone_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2 and no traceback."""
    assert executors.main(["--backbone", "bert-bas-uncased", "--samples", "2", "--rounds", "1"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
