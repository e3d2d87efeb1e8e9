"""Run folders: written atomically, and broken files are reported."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from harness.core.errors import ResultError
from harness.core.files import write_atomic, write_json
from harness.results import run_folder
from harness.results.run_folder import RunFolder, stem
from harness.results.sample_columns import SAMPLE_COLUMNS
from harness.results.schema import SCHEMA, Cell, Checks, Cost, Quality, Result, Speed


def make_cell(**change: object) -> Cell:
    facts: dict = {
        "method": "bert",
        "dataset": "ag_news",
        "source": "local",
        "backbone": "tiny",
        "seed": 0,
        "point": "full",
        "protocol": "modern",
        "order": "length",
        "executor": "own",
        "batch_size": 8,
        "device": "cpu",
        "dtype": "float32",
    }
    return Cell(**{**facts, **change})


def make_result(cell: Cell) -> Result:
    return Result(
        cell=cell,
        kind="method",
        synthetic=False,
        language="en",
        params={},
        quality=Quality(accuracy=0.5, accuracy_low=0.4, accuracy_high=0.6, macro_f1=0.5, n=2),
        cost=Cost(
            flops_linear=1.0, flops_full=2.0, params=3, mean_layers=4.0, mean_heads=1.0, depth=4, valid_token_ratio=1.0
        ),
        speed=Speed(samples_per_s=1.0, seconds=2.0, seconds_p10=2.0, seconds_p90=2.0, rounds=1),
        training=None,
        checks=Checks(rounds_agree=1.0),
        exit_histogram=[0, 0, 0, 2],
        fingerprint={},
    )


def make_rows() -> pd.DataFrame:
    return pd.DataFrame({name: np.zeros(2, dtype=bool if name == "correct" else "int64") for name in SAMPLE_COLUMNS})


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run")


@pytest.fixture
def save(run: RunFolder) -> Callable[..., Result]:
    def one(**change: object) -> Result:
        result = make_result(make_cell(**change))
        run.save(result, make_rows())
        return result

    return one


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


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


@pytest.mark.parametrize(
    "change",
    [
        {"method": "../x"},
        {"dataset": "."},
        {"dataset": "a\\b"},
        {"point": "a\x1b[2J"},
        {"backbone": "a\nb"},
        {"method": ""},
    ],
)
def test_a_result_with_a_hostile_name_is_set_aside(
    run: RunFolder, save: Callable[..., Result], change: dict[str, str]
) -> None:
    """A name that could leave a folder, or a control character, makes a stored result unusable."""
    path = run.result_path(save().cell)
    facts = json.loads(path.read_text())
    del facts["checksums"]
    path.write_text(json.dumps({**facts, "cell": {**facts["cell"], **change}}))
    assert run.results() == []
    assert [file.name for file in (run.path / "set-aside").glob("*.json")] == [path.name]
    (message,) = run.broken
    assert f"cell.{next(iter(change))}" in message and "\x1b" not in message


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


@pytest.mark.parametrize("content", ["", "{half", "[1, 2]", '"text"', '{"schema": 1}', "\udcff", '{"schema": "one"}'])
def test_broken_results_are_set_aside_and_reported(run: RunFolder, save: Callable[..., Result], content: str) -> None:
    """Broken files are moved and reported with their new place; the other results are read."""
    good, bad = save(), save(seed=1)
    path = run.result_path(bad.cell)
    path.write_bytes(content.encode(errors="surrogateescape"))
    assert run.results() == [good]
    (message,) = run.broken
    assert str(path) in message
    assert "measured again" in message
    assert "\n" not in message
    assert not path.exists()
    assert (run.path / "set-aside" / path.name).is_file()


def test_a_result_with_unknown_keys_is_broken(run: RunFolder, save: Callable[..., Result]) -> None:
    """A result with an unknown key is not valid."""
    path = run.result_path(save().cell)
    path.write_text(json.dumps({**json.loads(path.read_text()), "colour": "red"}))
    assert run.results() == []
    assert "colour" in run.broken[0] or "1 validation error" in run.broken[0]


def test_results_of_another_schema_are_refused_and_kept(run: RunFolder, save: Callable[..., Result]) -> None:
    """The error for another schema names both versions, and the file stays."""
    path = run.result_path(save().cell)
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": SCHEMA + 1}))
    with pytest.raises(ResultError, match=rf"schema {SCHEMA + 1}, this program reads {SCHEMA}"):
        run.results()
    assert path.is_file()


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


@pytest.mark.parametrize("content", [None, b"", b"PAR1 but no more"])
def test_unreadable_rows_are_reported(run: RunFolder, save: Callable[..., Result], content: bytes | None) -> None:
    """The error for missing or broken rows says which result to delete."""
    cell = save().cell
    run.samples_path(cell).unlink()
    if content is not None:
        run.samples_path(cell).write_bytes(content)
    with pytest.raises(ResultError, match="delete .* and run again"):
        run.samples(cell)


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


def change_rows(run: RunFolder, cell: Cell, **columns: object) -> None:
    """Overwrite the rows of a cell with some columns changed."""
    run.samples(cell).assign(**columns).to_parquet(run.samples_path(cell), index=False)


@pytest.mark.parametrize("content", [None, b"", b"PAR1 but no more"])
def test_results_without_intact_rows_are_listed(
    run: RunFolder, save: Callable[..., Result], content: bytes | None
) -> None:
    """A result whose rows are missing or unreadable is read, and listed with the reason."""
    kept, other = save(), save(seed=1)
    path = run.samples_path(other.cell)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert run.results() == [kept, other]
    assert list(run.without_rows) == [other.cell] and str(path) in run.without_rows[other.cell]
    run.save(other, make_rows())
    assert run.without_rows == {}


def test_any_flipped_byte_of_the_rows_is_found(run: RunFolder, save: Callable[..., Result]) -> None:
    """The checksum covers the whole file, also bytes that Parquet does not read."""
    cell = save().cell
    path = run.samples_path(cell)
    raw = path.read_bytes()
    for place in range(0, len(raw), 97):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 4]) + raw[place + 1 :])
        assert run.results() == [] or cell in run.without_rows
        run.save(make_result(cell), make_rows())
        assert len(run.results()) == 1 and not run.without_rows


def test_any_flipped_byte_of_a_result_is_found(run: RunFolder, save: Callable[..., Result]) -> None:
    """A result file with one other byte is set aside, or says the same as before."""
    saved = save()
    path = run.result_path(saved.cell)
    raw = path.read_bytes()
    for place in range(0, len(raw), 31):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 4]) + raw[place + 1 :])
        found: list[Result] = []
        with suppress(ResultError):  # the byte was in the number of the schema
            found = run.results()
        assert found in ([], [saved])
        run.save(saved, make_rows())


def test_a_contradictory_result_is_set_aside_with_its_reason(run: RunFolder, save: Callable[..., Result]) -> None:
    """The reason is kept beside the file, for later reports, until the cell is measured again."""
    saved = save()
    change_rows(run, saved.cell, index=[0, 1], correct=True, prediction=0)
    assert run.results() == []
    assert "gives an accuracy of 1.0000, but the result says 0.5000" in run.broken[0]
    (sentence,) = RunFolder.open(run.path).lost()
    assert "gives an accuracy of 1.0000" in sentence
    run.save(saved, make_rows())
    assert run.lost() == [] and run.results() == [saved]


# The four layers of the result; rows are those of make_rows, both right.
DEPTHS = {"right_layers": [0b1001, 0b0010], "agreeing_layers": [0b1001, 0b1001]}


def test_answers_of_all_layers_are_read_as_they_were_written(run: RunFolder, save: Callable[..., Result]) -> None:
    """Rows may have the bit masks of all layers; rows without them are complete, too."""
    with_depths, without = save(), save(seed=1)
    run.save(with_depths, make_rows().assign(**DEPTHS))
    assert run.results() == [with_depths, without] and not run.without_rows
    found = run.samples(with_depths.cell)
    assert found["right_layers"].tolist() == DEPTHS["right_layers"]
    assert found["agreeing_layers"].tolist() == DEPTHS["agreeing_layers"]
    assert "right_layers" not in run.samples(without.cell)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"agreeing_layers": [0b11001, 0b1001]}, "other layers than 1 to 4"),
        ({"right_layers": [1 << 61, 0b0010]}, "other layers than 1 to 4"),
        (
            {"right_layers": [0b1001 | 1 << 62, 0b0010]},
            "same answer",
        ),  # right before layer 1, but not as the last layer says
        ({"exit_layer": [0, 4]}, "other exit layers than the histogram"),
        ({"right_layers": [-1, 0b0010]}, "other layers than 1 to 4"),
        ({"agreeing_layers": [0b0001, 0b1001]}, "does not agree with itself"),
        ({"right_layers": [0b1011, 0b0010]}, "same answer"),  # the last layer is right, and layer 2 says something else
        ({"right_layers": [0b1001, 0b0001]}, "same answer"),  # the last layer is wrong, and layer 1 says the same
        ({"right_layers": [9.0, 2.0]}, "not integers in column right_layers"),
    ],
)
def test_answers_of_all_layers_that_contradict_each_other_are_found(
    run: RunFolder, save: Callable[..., Result], change: dict[str, list[float]], reason: str
) -> None:
    """Masks that no model can have are damage, whoever wrote them."""
    result = save()
    run.save(result, make_rows().assign(index=[0, 1], exit_layer=4, **DEPTHS))
    path = run.result_path(result.cell)
    stored = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in stored.items() if key != "checksums"}))
    change_rows(run, result.cell, correct=[True, False], prediction=[0, 1], **change)
    found = run.results()
    assert reason in (run.broken[0] if not found else run.without_rows[result.cell])


def test_one_mask_alone_is_refused(run: RunFolder, save: Callable[..., Result]) -> None:
    """The two columns belong together, on writing and on reading."""
    result = save()
    rows = make_rows().assign(index=[0, 1], right_layers=[9, 2])
    with pytest.raises(ValueError, match="sample columns"):
        run.save(result, rows)
    rows.to_parquet(run.samples_path(result.cell), index=False)
    run.results()
    assert "no column agreeing_layers" in run.without_rows[result.cell]
