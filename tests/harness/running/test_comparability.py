"""Every measured cell says what it shares with others, and cells whose files are not intact are measured again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.data import splits
from harness.data.splits import RawSplit
from harness.results.comparability import differences
from harness.results.run_folder import RunFolder
from harness.results.schema import Binding
from harness.running import session
from harness.running.run_settings import Settings
from harness.running.task import rows_digest
from tests.harness.running.conftest import change, counts, run


@pytest.fixture
def settings(grid_settings: Settings) -> Settings:
    """One dataset."""
    return change(grid_settings, datasets=["ag_news"])


def bindings(settings: Settings) -> dict[str, Binding]:
    """Return the binding of a cell of each method."""
    found = {result.cell.method: result.binding for result in RunFolder.open(settings.out).results()}
    return {name: binding for name, binding in found.items() if binding is not None}


def test_cells_of_one_command_belong_together(stage: Any, settings: Settings) -> None:
    """All methods and seeds of one command do, and the fits behind a cell are named."""
    run(change(settings, seeds=[0, 1]))
    results = RunFolder.open(settings.out).results()
    known = [result.binding for result in results if result.binding]
    assert len(known) == 12 and not any(differences(known[0], other) for other in known)
    assert set(bindings(settings)["three"].fits) == {"three", "one"}
    assert set(bindings(settings)["two"].fits) == {"two", "one"}  # the reference


APART: dict[str, tuple[dict[str, Any], str]] = {
    "training": ({"training": {"epochs": 2}}, "training.epochs (not set and 2)"),
    "max_test": ({"max_test": 8}, "test rows"),
    "max_train": ({"max_train": 20}, "rows of train and dev"),
    "max_length": ({"max_length": 12}, "max_length (16 and 12)"),
    "the reference": ({"method": {"one": {"epochs": 2}}}, "settings of one"),
}


@pytest.mark.parametrize("case", APART)
def test_cells_of_two_commands_may_not_belong_together(stage: Any, settings: Settings, case: str) -> None:
    """What was changed between two methods is named; when all is measured with it, the cells are together again."""
    update, words = APART[case]
    run(change(settings, methods=["one"]))
    later = change(settings, methods=["two"], **update)
    # The reference is fitted for the speed-up of "two", without a row of its own.
    run(change(later, methods=["two", "one"]))
    again = bindings(settings)
    assert not differences(again["one"], again["two"])
    run(change(settings, methods=["one"]))
    found = bindings(settings)
    assert words in differences(found["one"], found["two"])
    run(change(later, methods=["one", "two"]))
    found = bindings(settings)
    assert not differences(found["one"], found["two"])


@pytest.mark.parametrize(
    ("update", "words"),
    [
        ({"method": {"two": {"precision": "bfloat16"}}}, "precision of training (float32 and bfloat16)"),
        ({"fit_threads": 2}, "threads per fit (1 and 2)"),
    ],
)
def test_other_precision_or_threads_separate(stage: Any, settings: Settings, update: dict, words: str) -> None:
    """A fit in another precision, even by a method's own setting, or on other threads does not belong to the others."""
    fixed = change(settings, training={"precision": "float32"}, fit_threads=1)
    run(change(fixed, methods=["one"]))
    run(change(fixed, methods=["two"], **update))
    found = bindings(settings)
    assert differences(found["one"], found["two"]) == [words]


@pytest.mark.parametrize("update", [{"method": {"two": {"epochs": 2}}}, {"speeds": [0.3]}, {"rounds": 1}])
def test_what_belongs_to_one_method_does_not_separate(stage: Any, settings: Settings, update: dict) -> None:
    """A method's own settings may differ from others', and speeds only choose operating points."""
    run(change(settings, methods=["one"]))
    run(change(settings, methods=["one", "two"], **update))
    found = bindings(settings)
    assert not differences(found["one"], found["two"])


@pytest.mark.parametrize("place", ["training", "method"])
def test_other_budgets_are_measured_again(stage: Any, settings: Settings, place: str) -> None:
    """A point's name does not tell which thresholds it stands for, so a run with other budgets keeps none of its cells."""

    def measured_and_kept(*budgets: float) -> tuple[int, int, int]:
        own = {"budgets": list(budgets)}
        return counts(run(change(settings, methods=["one"], **{place: own if place == "training" else {"one": own}})))

    assert measured_and_kept(0.5) == measured_and_kept(0.5, 0.9) == (2, 0, 0)
    assert measured_and_kept(0.5, 0.9) == (0, 2, 0)


def test_cells_record_what_chooses_their_points(stage: Any, settings: Settings) -> None:
    """Speeds and budgets of the method and of those that it learns from, so that an export can compare them."""
    run(change(settings, speeds=[0.3], method={"three": {"budgets": [0.5, 0.9]}}))
    lists = {"one": '{"speeds": [0.3]}', "three": '{"budgets": [0.5, 0.9], "speeds": [0.3]}'}
    assert bindings(settings)["three"].points == lists


def test_settings_of_one_method_separate_its_seeds(stage: Any, settings: Settings) -> None:
    """Two seeds of one method with other settings of its own are not averaged."""
    run(change(settings, methods=["one"]))
    run(change(settings, methods=["one"], seeds=[1], method={"one": {"epochs": 2}}))
    one, other = [result.binding for result in RunFolder.open(settings.out).results() if result.cell.point == "a"]
    assert differences(one, other) == ["settings of one"]


def test_corrected_labels_separate_methods(stage: Any, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A label that was corrected between two commands is found by the fingerprint of the rows."""
    run(change(settings, methods=["one"]))
    load = session.load_raw

    def corrected(*args: Any, **options: Any) -> Any:
        raw = load(*args, **options)
        labels = raw.test.labels.copy()
        labels[3] = (labels[3] + 1) % raw.num_labels
        return replace(raw, test=replace(raw.test, labels=labels))

    monkeypatch.setattr(session, "load_raw", corrected)
    run(change(settings, methods=["two"]))
    found = bindings(settings)
    assert differences(found["one"], found["two"]) == ["test rows"]


def test_the_hash_of_rows_covers_all_of_them() -> None:
    """Texts, second texts, labels and order change it; how rows are split into files does not."""

    def digest(texts: list[str], pairs: list[str] | None, labels: list[int]) -> str:
        return rows_digest(RawSplit(texts, pairs, np.array(labels)))

    rows = (["a b", "c", "\ud800"], ["d", "e", "f"], [0, 1, 0])
    known = digest(*rows)
    assert digest(*rows) == known
    others = [
        (["a", "b c", "\ud800"], rows[1], rows[2]),
        (rows[0], ["d", "e", "F"], rows[2]),
        (rows[0], None, rows[2]),
        (rows[0], rows[1], [0, 1, 1]),
        (rows[0][::-1], rows[1][::-1], rows[2][::-1]),
    ]
    assert len({known, *(digest(*other) for other in others)}) == len(others) + 1
    long = RawSplit(["x"] * 25_000, None, np.zeros(25_000, dtype=np.int64))
    other = replace(long, texts=[*long.texts[:-1], "y"])
    assert rows_digest(long) != rows_digest(other)
    assert splits.limit(long, 25_000) is long


@pytest.mark.parametrize("content", [None, b"", b"PAR1 but no more"])
def test_cells_without_intact_rows_are_measured_again(
    stage: Any, settings: Settings, content: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Missing and damaged rows are named in one line each, only these cells are measured, and nothing is fitted."""
    run(settings)
    stored = RunFolder.open(settings.out)
    cell = next(result.cell for result in stored.results() if (result.cell.method, result.cell.point) == ("two", "b"))
    path = stored.samples_path(cell)
    expected = stored.samples(cell)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    stage.fits.clear()
    capsys.readouterr()
    outcome = run(settings)
    assert (outcome.measured, outcome.kept, outcome.failed, stage.fits) == (1, 5, 0, [])
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "measured again" in line]
    assert path.name in line
    assert stored.samples(cell).equals(expected)
    assert (run(settings).measured, stored.results() != []) == (0, True)
    assert stored.without_rows == {}


def test_a_contradictory_result_is_measured_again(
    stage: Any, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is set aside with a line, and its cell is measured again."""
    run(settings)
    stored = RunFolder.open(settings.out)
    cell = stored.results()[0].cell
    rows = stored.samples(cell)
    rows.assign(correct=~rows["correct"]).to_parquet(stored.samples_path(cell), index=False)
    capsys.readouterr()
    outcome = run(settings)
    assert (outcome.measured, outcome.kept) == (1, 5)
    assert "contradicts its own per-sample rows" in capsys.readouterr().err
    assert stored.samples(cell).equals(rows)
    assert len(list((Path(settings.out) / "set-aside").glob("*.json"))) == 1
