"""Run folders: written atomically, and broken files are reported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from harness.core.errors import ResultError
from harness.core.files import write_atomic, write_json
from harness.results import run_folder
from harness.results.run_folder import RunFolder, stem
from harness.results.schema import Result
from tests.harness.results.conftest import files, make_cell, make_result, make_rows


def test_saved_results_are_read(run: RunFolder, save: Callable[..., Result]) -> None:
    """Results and rows are read as they were written, ordered by name, and no other file remains."""
    saved = [save(method=name) for name in ("fastbert", "bert")]
    assert run.results() == saved[::-1]
    pd.testing.assert_frame_equal(RunFolder.open(run.path).samples(saved[0].cell), make_rows())
    assert run.broken == []
    assert len(files(run.path)) == 4


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"point": "a"}, {"batch_size": 9}, {"executor": "ladder"}, {"device": "cuda"}, {"backbone": "x"}],
)
def test_no_two_cells_share_a_file(change: dict) -> None:
    """Cells that differ in any coordinate have different names."""
    assert stem(make_cell(**change)) != stem(make_cell())


@pytest.mark.parametrize("name", ["书" * 85, "a b:e", "🙂" * 63, "a*?[b]", "x" * 252])
def test_any_name_makes_a_file_name(run: RunFolder, save: Callable[..., Result], name: str) -> None:
    """Names of 252 bytes, in Chinese or emoji, give file names of at most 255 bytes inside the folder."""
    result = save(dataset=name, method=name)
    path = run.result_path(result.cell)
    assert len(path.name.encode()) < 230  # leaves room for the name of a temporary file
    assert path.parent == run.path / "results"
    assert RunFolder.open(run.path).results() == [result]
    assert len(run.samples(result.cell)) == 2


@pytest.mark.parametrize("point", ["../../etc/passwd", "a b/c\\d:e", ".", "书" * 200])
def test_any_operating_point_makes_a_file_name(run: RunFolder, save: Callable[..., Result], point: str) -> None:
    """Operating points are labels, which may hold separators of paths: their files stay in the folder."""
    path = run.result_path(save(point=point).cell)
    assert len(path.name.encode()) < 230
    assert path.parent == run.path / "results"


def test_control_characters_in_texts_are_shown_as_escapes(run: RunFolder, save: Callable[..., Result]) -> None:
    """Notes, fingerprints and reasons of failures from a foreign run folder cannot control the terminal."""
    path = run.result_path(save().cell)
    data = json.loads(path.read_text())
    del data["checksums"]
    data["notes"], data["fingerprint"] = ["\x1b[2Jgone\x07\u202e"], {"cpu\x9b": "\x1b]0;title\x07"}
    path.write_text(json.dumps(data))
    (result,) = run.results()
    assert result.notes == [r"\x1b[2Jgone\x07\u202e"]
    assert result.fingerprint == {r"cpu\x9b": r"\x1b]0;title\x07"}
    run.fail(make_cell(seed=1), "trace\nback \x1b[2J", "why\x1b[2J")
    (record,) = run.failures()
    assert (record["traceback"], record["reason"]) == ("trace\nback \\x1b[2J", r"why\x1b[2J")


def test_writing_is_all_or_nothing(tmp_path: Path) -> None:
    """If writing fails, the old file stays as it was and no temporary file remains."""
    target = tmp_path / "deep" / "file.json"
    write_json(target, {"old": True})
    for problem in (OSError(28, "No space left on device"), ValueError("bug"), KeyboardInterrupt()):

        def half(place: Path, problem: BaseException = problem) -> None:
            place.write_text("{half")
            raise problem

        with pytest.raises((ResultError, ValueError, KeyboardInterrupt)):
            write_atomic(target, half)
        assert files(tmp_path) == ["deep/file.json"]
        assert json.loads(target.read_text()) == {"old": True}


def test_nan_is_refused(tmp_path: Path) -> None:
    """NaN is refused, because other programs could not read the file."""
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert files(tmp_path) == []


def test_a_cell_killed_between_rows_and_result_is_unfinished(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are written first: a cell without JSON is unfinished, and saving it again completes it."""
    result = make_result(make_cell())

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            run.save(result, make_rows())
    assert run.samples_path(result.cell).is_file()
    assert run.results() == []
    run.save(result, make_rows())
    assert run.results() == [result]


def test_rows_must_have_the_expected_columns(run: RunFolder) -> None:
    """Rows with other columns are refused, and nothing is written."""
    with pytest.raises(ValueError, match="sample columns"):
        run.save(make_result(make_cell()), make_rows().drop(columns="difficulty"))
    assert files(run.path) == []


@pytest.mark.parametrize("below", ["file", "file/run", "file/deep/run"])
def test_a_folder_that_cannot_be_written_is_reported(tmp_path: Path, below: str) -> None:
    """A run folder that cannot be written is reported before anything expensive starts."""
    (tmp_path / "file").write_text("I am no folder")
    with pytest.raises(ResultError, match=r"cannot write the run folder .*--out"):
        RunFolder.create(tmp_path / below)


def test_writing_below_a_file_is_reported(tmp_path: Path) -> None:
    """A file that cannot be written later is reported, too."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultError, match=r"cannot write .*a\.json"):
        write_json(tmp_path / "file" / "a.json", {})


def test_a_missing_run_is_reported(tmp_path: Path) -> None:
    """The error for a missing run says how to create one."""
    with pytest.raises(ResultError, match=r"no run at .*geep-bench run --out"):
        RunFolder.open(tmp_path)


def test_failures_are_kept_until_the_cell_is_measured(run: RunFolder) -> None:
    """A failure record has cell and traceback; a broken record is reported, and the record can be deleted."""
    cell = make_cell()
    path = run.fail(cell, "Traceback ...\nValueError: no")
    (record,) = run.failures()
    assert record == {"cell": cell.model_dump(), "traceback": "Traceback ...\nValueError: no"}
    (path.parent / "broken.json").write_text("{")
    assert len(run.failures()) == 1
    assert "broken failure record" in run.broken[0]
    run.forget_failure(cell)
    run.forget_failure(cell)
    assert not path.exists()


def test_deleting_a_result_deletes_its_rows(run: RunFolder, save: Callable[..., Result]) -> None:
    """A result is deleted with its rows; other results stay, and a second call does nothing."""
    kept, gone = save(), save(seed=1)
    for _ in range(2):
        run.forget_result(stem(gone.cell))
    assert run.results() == [kept]
    assert len(files(run.path)) == 2
