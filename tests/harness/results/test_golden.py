"""Results of the first version of the schema: readable, under the same names, and comparable."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from harness.regression.compare import compare
from harness.results.packed_run import load, pack, write
from harness.results.run_folder import RunFolder, failed_cell, stem

GOLDEN = Path(__file__).parents[2] / "golden" / "first-schema"


@pytest.fixture
def old(tmp_path: Path) -> RunFolder:
    """A copy, because reading may move files."""
    shutil.copytree(GOLDEN, tmp_path / "old")
    return RunFolder.open(tmp_path / "old")


def test_old_results_load(old: RunFolder) -> None:
    """Old results load completely, and fields added later have their defaults."""
    results = old.results()
    assert [result.cell.method for result in results] == ["bert", "geep", "geep"]
    assert old.broken == []
    assert all(result.speed.round_seconds == [] and result.latency == [] for result in results)
    assert all((result.cell.compute, result.cell.batch_tokens) == ("eager", 0) for result in results)


def test_old_results_keep_their_names(old: RunFolder) -> None:
    """Coordinates added later do not change file names, so that old runs can be resumed."""
    written = {path.stem for path in (old.path / "results").glob("*.json")}
    assert {stem(result.cell) for result in old.results()} == written


def test_old_results_are_rewritten_unchanged(old: RunFolder) -> None:
    """Reading and writing an old result keeps its whole content."""
    for result in old.results():
        before = json.loads(old.result_path(result.cell).read_text(encoding="utf-8"))
        after = result.model_dump(mode="json", by_alias=True)
        for key, value in before.items():
            if isinstance(value, dict) and key != "fingerprint":
                assert value.items() <= after[key].items(), key
            else:
                assert after[key] == value, key


def test_old_failures_name_their_cell(old: RunFolder) -> None:
    """A failure record without later coordinates belongs to the cell that was measured since."""
    (record,) = old.failures()
    assert "compute" not in record["cell"]
    assert failed_cell(record) in {result.cell for result in old.results()}
    assert pack(old.path).failed == []


def test_old_results_can_be_packed_and_compared(old: RunFolder, tmp_path: Path) -> None:
    """Counts and accuracies are compared; missing rows and passes are reported."""
    write(pack(old.path), tmp_path / "old.json")
    found = compare(load(tmp_path / "old.json"), load(old.path))
    assert len(found.changes) == 3
    assert not found.alarms
    message = " ".join(found.remarks)
    assert "3 of 3 cells of old have no usable per-sample rows" in message
    assert "the single passes were not stored" in message
