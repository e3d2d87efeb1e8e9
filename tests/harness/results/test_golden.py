"""Results that the first version of the schema wrote: still read, still under the same names, still comparable."""

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
    """A copy: reading may set files aside."""
    shutil.copytree(GOLDEN, tmp_path / "old")
    return RunFolder.open(tmp_path / "old")


def test_old_results_load(old: RunFolder) -> None:
    """All of them, nothing set aside; what was not kept then has the value that says so."""
    results = old.results()
    assert [result.cell.method for result in results] == ["bert", "geep", "geep"]
    assert old.broken == []
    assert all(result.speed.round_seconds == [] and result.latency == [] for result in results)
    assert all((result.cell.compute, result.cell.batch_tokens) == ("eager", 0) for result in results)


def test_old_results_keep_their_names(old: RunFolder) -> None:
    """Coordinates that are younger than a file do not change what it is called, so that a run can be gone on with."""
    written = {path.stem for path in (old.path / "results").glob("*.json")}
    assert {stem(result.cell) for result in old.results()} == written


def test_old_results_are_written_as_they_were(old: RunFolder) -> None:
    """Reading and writing loses nothing of what the file held."""
    for result in old.results():
        before = json.loads(old.result_path(result.cell).read_text(encoding="utf-8"))
        after = result.model_dump(mode="json", by_alias=True)
        for key, value in before.items():
            if isinstance(value, dict) and key != "fingerprint":
                assert value.items() <= after[key].items(), key
            else:
                assert after[key] == value, key


def test_old_failures_name_their_cell(old: RunFolder) -> None:
    """A failure record without the younger coordinates is that of the cell which was measured since."""
    (record,) = old.failures()
    assert "compute" not in record["cell"]
    assert failed_cell(record) in {result.cell for result in old.results()}
    assert pack(old.path).failed == []


def test_old_results_can_be_packed_and_compared(old: RunFolder, tmp_path: Path) -> None:
    """Counts and accuracies are there; per-sample rows and passes are not, and that is told."""
    write(pack(old.path), tmp_path / "old.json")
    found = compare(load(tmp_path / "old.json"), load(old.path))
    assert len(found.changes) == 3
    assert not found.alarms
    told = " ".join(found.remarks)
    assert "3 of 3 cells of old have no usable per-sample rows" in told
    assert "the single passes were not stored" in told
