"""What is missing, damaged or measured under other conditions is a gap, and fails the gate."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from harness.core.errors import ResultError
from harness.regression.compare import compare
from harness.results.schema import Cell
from tests.harness.regression.conftest import HERE, RIGHT, Maker, Runner, alarmed, bind, worse


@pytest.mark.parametrize("known", [True, False], ids=["with fingerprints", "of an older version"])
def test_seeds_on_other_rows_are_not_averaged(make_cell: Maker, make_packed: Runner, known: bool) -> None:
    """Seeds on other test rows are changes of their own, each with its own accuracy and test."""
    bound = [{"binding": number} if known else {} for number in (0, 1)]
    cells = [make_cell(seed=0, **bound[0]), make_cell(worse(0)[:300], seed=1, rows="4567", **bound[1])]
    run = make_packed(*cells, bindings=[bind(), bind(test_rows="300 rows")] if known else [])
    found = compare(run, run)
    assert [change.seeds for change in found.changes] == [(0,), (1,)]
    assert [change.accuracy for change in found.changes] == [(0.9, 0.9), (260 / 300, 260 / 300)]
    assert all(change.p is not None for change in found.changes)


def test_two_settings_are_not_mixed(make_cell: Maker, make_packed: Runner) -> None:
    """Cells with two dtypes in both runs match by dtype; with two dtypes in one run they have no match."""
    both = make_packed(make_cell(), make_cell(dtype="bfloat16"))
    assert [change.cell.dtype for change in compare(both, both).changes] == ["float32", "bfloat16"]
    with pytest.raises(ResultError, match="no cell in common"):
        compare(both, make_packed(make_cell(dtype="float16")))


UNLIKE: dict[str, tuple[dict[str, Any], str]] = {
    "texts": ({"test_rows": "corrected"}, "test rows"),
    "training rows": ({"train_rows": "fewer"}, "rows of train and dev"),
    "weights": ({"backbone": "other"}, "content of the backbone"),
    "length": ({"max_length": 32}, "max_length (64 and 32)"),
    "training": ({"training": {"epochs": "5"}}, "training.epochs (3 and 5)"),
    "precision": ({"precision": "bfloat16"}, "precision of training (float32 and bfloat16)"),
}


def test_other_settings_of_one_method_are_compared(make_cell: Maker, make_packed: Runner) -> None:
    """What a change of a method's own settings does is a fair question: its cells are compared, and a remark names it."""
    base = make_packed(make_cell(binding=0), bindings=[bind()])
    new = make_packed(make_cell(worse(40), binding=0), bindings=[bind(fits={"bert": "tuned"})])
    found = compare(base, new)
    assert [change.losses for change in found.changes] == [40] and not found.gaps
    assert any(remark.startswith("bert has other settings in") and remark.endswith(": 1") for remark in found.remarks)


@pytest.mark.parametrize("change", UNLIKE)
def test_cells_that_do_not_belong_together_are_gaps(make_cell: Maker, make_packed: Runner, change: str) -> None:
    """What differs is not compared; it is named, and the gate does not pass, although labels and counts are equal."""
    changed, words = UNLIKE[change]
    base = make_packed(make_cell(binding=0), make_cell(method="bert", binding=0), bindings=[bind()])
    new = make_packed(
        make_cell(worse(40), binding=1), make_cell(method="bert", binding=0), bindings=[bind(), bind(**changed)]
    )
    found = compare(base, new)
    assert [change.cell.method for change in found.changes] == ["bert"]
    (gap,) = found.gaps
    assert gap.startswith("ag_news geep full, seed 0: not compared") and words in gap
    assert found.alarms == [gap]
    with pytest.raises(ResultError, match=r"nothing to compare: .* differ in .*: use the same data and settings"):
        compare(base, make_packed(make_cell(binding=0), bindings=[bind(**changed)]))


def test_other_code_is_compared(make_cell: Maker, make_packed: Runner) -> None:
    """Two versions of a method are what a comparison is for; two seeds of different code are not averaged."""
    old, young = bind(), bind(versions={"geep": "1.2"})
    base = make_packed(make_cell(binding=0), make_cell(binding=0, seed=1), bindings=[old])
    assert not compare(base, make_packed(make_cell(binding=0), make_cell(binding=0, seed=1), bindings=[young])).alarms
    mixed = make_packed(make_cell(binding=0), make_cell(binding=1, seed=1), bindings=[old, young])
    assert [change.seeds for change in compare(base, mixed).changes] == [(0,), (1,)]


@pytest.mark.parametrize(
    ("changed", "words", "repeats"),
    [
        ({"fit_threads": 1}, "threads per fit (2 and 1)", False),
        ({"precision": None}, "precision of training (float32 and not recorded)", True),
        ({}, "", True),
    ],
)
def test_other_threads_per_fit_are_compared_as_another_machine(
    make_cell: Maker, make_packed: Runner, changed: dict[str, Any], words: str, repeats: bool
) -> None:
    """Fits on other threads have other rounding, hence the wider limit; a remark names them, and what one run did not record."""
    base = make_packed(make_cell(binding=0), make_cell(method="bert", binding=0), bindings=[bind()])
    new = make_packed(make_cell(binding=0), make_cell(method="bert", binding=0), bindings=[bind(**changed)])
    found = compare(base, new)
    assert not found.gaps and [change.repeats for change in found.changes] == [repeats, repeats]
    said = [remark for remark in found.remarks if remark.startswith("2 cells of made-up and made-up differ in")]
    assert bool(said) == bool(words) and all(words in remark for remark in said)


def test_seeds_measured_on_other_threads_are_not_averaged(make_cell: Maker, make_packed: Runner) -> None:
    """Seeds of a cell that were measured on one and on two threads are changes of their own."""
    machines = [HERE, HERE.model_copy(update={"torch_threads": 1})]
    run = make_packed(make_cell(seed=0), make_cell(seed=1, machine=1), make_cell(seed=2), machines=machines)
    assert [change.seeds for change in compare(run, run).changes] == [(0, 2), (1,)]


def test_a_base_without_fingerprints_is_compared_by_what_it_has(make_cell: Maker, make_packed: Runner) -> None:
    """One line says that rows could not be checked; number, labels and tokens of the rows must be equal, and answers are tested."""
    base, bindings = make_packed(make_cell(), make_cell(method="bert")), [bind()]
    same = make_packed(make_cell(binding=0), make_cell(method="bert", binding=0), bindings=bindings)
    found = compare(base, same)
    assert not found.alarms
    (line,) = [remark for remark in found.remarks if "could not be checked" in remark]
    assert "2 cells" in line and "number, labels and tokens" in line
    worsened = compare(base, make_packed(make_cell(worse(12), binding=0), make_cell(method="bert"), bindings=bindings))
    assert "accuracy down by 3.00 points" in alarmed(worsened)
    for other, words in (
        ({"rows": "4567"}, "labels of the test rows"),
        ({"tokens": 5000}, "tokens of the test rows (4000 and 5000)"),
        ({"correct": RIGHT[:300]}, "number of test rows (400 and 300)"),
    ):
        new = make_packed(make_cell(binding=0, **other), make_cell(method="bert", binding=0), bindings=bindings)
        assert words in alarmed(compare(base, new))


@pytest.mark.parametrize(
    ("there", "gap"),
    [
        (
            lambda cell: cell.method != "fastbert",
            "weibo fastbert: missing in made-up: a seed 0, a seed 1, b seed 0, b seed 1",
        ),
        (
            lambda cell: cell.dataset != "lcqmc",
            "lcqmc bert: missing in made-up: a seed 0, a seed 1, b seed 0, b seed 1",
        ),
        (lambda cell: cell.point != "b", "weibo bert: missing in made-up: b seed 0, b seed 1"),
        (lambda cell: cell.seed != 1, "weibo bert: missing in made-up: a seed 1, b seed 1"),
    ],
    ids=["method", "dataset", "point", "seed"],
)
def test_what_vanished_is_a_gap(make_cell: Maker, make_packed: Runner, there: Callable[[Cell], bool], gap: str) -> None:
    """A method, dataset, operating point or seed that only base has does not pass the gate; a new one does."""
    parts = itertools.product(("weibo", "lcqmc"), ("bert", "fastbert"), "ab", (0, 1))
    cells = [make_cell(dataset=d, method=m, point=p, seed=s) for d, m, p, s in parts]
    base, new = make_packed(*cells), make_packed(*(cell for cell in cells if there(cell.cell)))
    found = compare(base, new)
    assert gap in found.gaps and not found.regressions
    assert not compare(new, base).alarms


def test_damaged_cells_are_gaps(make_cell: Maker, make_packed: Runner) -> None:
    """Damaged or contradictory cells of either run do not pass the gate."""
    run = make_packed(make_cell())
    for base, new in ((run, make_packed(make_cell(), damaged=["x"])), (make_packed(make_cell(), damaged=["x"]), run)):
        assert compare(base, new).alarms == ["made-up: x"]
