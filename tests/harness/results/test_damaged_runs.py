"""Damaged, contradictory and foreign files of a run folder are reported and set aside."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress

import pytest

from harness.api import Run
from harness.core.errors import ResultError
from harness.results.run_folder import RunFolder
from harness.results.schema import SCHEMA, Cell, Result
from tests.harness.results.conftest import make_result, make_rows


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


@pytest.mark.parametrize("content", [None, b"", b"PAR1 but no more"])
def test_unreadable_rows_are_reported(run: RunFolder, save: Callable[..., Result], content: bytes | None) -> None:
    """The error for missing or broken rows says which result to delete."""
    cell = save().cell
    run.samples_path(cell).unlink()
    if content is not None:
        run.samples_path(cell).write_bytes(content)
    with pytest.raises(ResultError, match="delete .* and run again"):
        run.samples(cell)


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


def test_rows_that_were_changed_later_are_not_read(run: RunFolder, save: Callable[..., Result]) -> None:
    """Other confidences contradict no number of the result, so nothing else would tell who reads the rows of a cell."""
    kept, other = save(), save(seed=1)
    right = {"index": [0, 1], "label": [0, 1], "correct": [True, False], "exit_layer": 4}
    for result in (kept, other):
        run.save(result, make_rows().assign(**right))
    change_rows(run, other.cell, confidence=0.123)
    with pytest.raises(ResultError, match="does not match the checksum in its result: .* measured again"):
        Run(run.path).samples()
    assert len(Run(run.path).samples(seed=kept.cell.seed)) == 2
    assert run.results() == [kept, other]
    with pytest.raises(ResultError, match="does not match the checksum"):
        run.samples(other.cell)


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
