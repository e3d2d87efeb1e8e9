"""A published run has the rows of all cells in one file, which are those that were measured, or none."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.core.errors import ResultError
from harness.results.published_run import publish
from harness.results.rows.row_archive import NAME
from harness.results.rows.sample_columns import BEFORE_BIT
from harness.results.run_folder import RunFolder
from harness.results.schema import Result
from tests.harness.results.conftest import files, make_cell, make_result, make_rows

FULL = 1 << 3  # the bit of the last of four layers


def answers(draw: int, *, deep: bool = False) -> pd.DataFrame:
    """Rows of one right and one wrong answer, those of a cell that knows all exits with the bits of layers."""
    rng = np.random.default_rng(draw)
    rows = make_rows().assign(
        index=np.sort(rng.choice(1000, 2, replace=False)),
        length=np.array([7, 9], dtype="int32"),
        prediction=[0, 1],
        correct=[True, False],
        confidence=rng.random(2, dtype=np.float32),
        exit_layer=np.array([4, 4], dtype="int16"),
        predicted_exit=np.array([-1, 2], dtype="int16"),
        difficulty=np.array([-1, -1], dtype="int8"),
    )
    masks = np.array([FULL | 1 << BEFORE_BIT, 0]), np.array([FULL | 1 << BEFORE_BIT, FULL])
    return rows.assign(right_layers=masks[0], agreeing_layers=masks[1]) if deep else rows


@pytest.fixture
def measured(run: RunFolder) -> dict[str, Result]:
    """A run with a cell of each kind, a plan and a report."""
    found = {}
    for number, (name, deep) in enumerate({"bert": False, "oracle": True, "geep": False}.items()):
        found[name] = make_result(make_cell(method=name))
        run.save(found[name], answers(number, deep=deep))
    for name in ("run.json", "plan/one.json", "report/index.html"):
        (run.path / name).parent.mkdir(exist_ok=True)
        (run.path / name).write_text("{}")
    return found


def test_a_copy_is_complete(run: RunFolder, measured: dict[str, Result], tmp_path: Path) -> None:
    """Results, plans, report and rows are those of the run: the same values in the same types, bits of layers included."""
    made = publish(run.path, tmp_path / "copy")
    assert (made.cells, made.with_rows) == (3, 3)
    copy = RunFolder.open(tmp_path / "copy")
    assert copy.results() == run.results() and not copy.without_rows and not copy.broken
    for result in measured.values():
        assert copy.has_rows(result.cell)
        pd.testing.assert_frame_equal(copy.samples(result.cell), run.samples(result.cell))
        pd.testing.assert_frame_equal(RunFolder.open(copy.path).samples(result.cell), run.samples(result.cell))
    rest = [name for name in files(run.path) if not name.startswith("samples/")]
    assert files(copy.path) == sorted([*rest, NAME])
    assert made.bytes == sum((copy.path / name).stat().st_size for name in files(copy.path))


def test_a_copy_of_a_copy_is_the_same(run: RunFolder, measured: dict[str, Result], tmp_path: Path) -> None:
    """Rows pass from archive to archive unchanged."""
    publish(run.path, tmp_path / "copy")
    publish(tmp_path / "copy", tmp_path / "again")
    assert (tmp_path / "again" / NAME).read_bytes() == (tmp_path / "copy" / NAME).read_bytes()


def test_a_cell_measured_again_has_its_own_rows(run: RunFolder, measured: dict[str, Result], tmp_path: Path) -> None:
    """Rows in the archive count for the measurement that they come from only."""
    publish(run.path, tmp_path / "copy")
    copy, result = RunFolder.open(tmp_path / "copy"), measured["bert"]
    copy.results()
    copy.save(result, answers(9))
    again = RunFolder.open(copy.path)
    assert again.results() == run.results() and not again.without_rows
    pd.testing.assert_frame_equal(again.samples(result.cell), answers(9))
    again.samples_path(result.cell).unlink()
    again.results()
    assert list(again.without_rows) == [result.cell]
    with pytest.raises(ResultError, match="is missing"):
        again.samples(result.cell)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_changed_byte_never_changes_a_row(
    run: RunFolder, measured: dict[str, Result], tmp_path: Path, place: float, bit: int
) -> None:
    """Rows of a damaged file are those that were written, or are refused with its name."""
    copy = RunFolder(tmp_path / "copy")
    shutil.rmtree(copy.path, ignore_errors=True)
    publish(run.path, copy.path)
    content = bytearray((copy.path / NAME).read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    (copy.path / NAME).write_bytes(content)
    assert copy.results() == run.results()
    for result in measured.values():
        if result.cell in copy.without_rows:
            assert NAME in copy.without_rows[result.cell] or "is missing" in copy.without_rows[result.cell]
        else:
            pd.testing.assert_frame_equal(copy.samples(result.cell), run.samples(result.cell))


def test_cells_without_rows_are_counted(run: RunFolder, measured: dict[str, Result], tmp_path: Path) -> None:
    """A cell whose rows are lost is published without them."""
    run.samples_path(measured["geep"].cell).unlink()
    made = publish(run.path, tmp_path / "copy")
    assert (made.cells, made.with_rows) == (3, 2)
    copy = RunFolder.open(tmp_path / "copy")
    copy.results()
    assert list(copy.without_rows) == [measured["geep"].cell]


def test_nothing_is_overwritten(run: RunFolder, save: Callable[..., Result], tmp_path: Path) -> None:
    """A folder with content, and a run without results, are refused."""
    with pytest.raises(ResultError, match="no results"):
        publish(run.path, tmp_path / "copy")
    save()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ResultError, match="not an empty folder"):
        publish(run.path, tmp_path / "full")
    assert files(tmp_path / "full") == ["notes.txt"] and not (tmp_path / "copy").exists()
