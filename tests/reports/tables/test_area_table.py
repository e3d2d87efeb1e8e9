"""The table of areas: who is ranked, on which sets, and that it is pooled as stated."""

from __future__ import annotations

import numpy as np
import pytest

from reports.analysis.view import build_view
from reports.tables.area_table import area_tables
from tests.reports.conftest import DEPTH

N = 200


def right(share: float) -> list[bool]:
    return (np.arange(N) < round(share * N)).tolist()


@pytest.fixture
def run(fabricate):
    """Two sets, two early exits with points at 2 and 6 of 6 layers; "early" is ahead at 2 layers on both."""
    made = fabricate()
    for dataset, gap in (("ag_news", 0.1), ("yahoo", 0.2)):
        made.cell("bert", dataset=dataset, correct=right(0.9))
        for method, cheap in (("early", 0.8), ("late", 0.8 - gap)):
            made.cell(method, "budget=0.25", dataset=dataset, layers=2, correct=right(cheap))
            made.cell(method, "budget=0.75", dataset=dataset, layers=DEPTH, correct=right(0.9))
    return made


def areas(run):
    return {row.name: row for row in build_view(run.path).areas}


def test_areas_are_means_over_sets(run):
    """From 1.5 to 4.5 of 6 layers: 1/48 guesses of two classes, the rest on the line from 2 to 6 layers."""
    found = areas(run)
    # Below 2 layers an eighth is guessed on average; above, the deep point has 5/16 on average.
    guess = (0.5 / 3) * (0.125)
    deep = (2.5 / 3) * (2.5 / 4 / 2)
    expected = guess * 0.5 + deep * 0.9 + (1 - guess - deep) * 0.8
    assert found["early"].area == pytest.approx(expected)
    behind = -(1 - guess - deep) * 0.15
    assert found["late"].behind == pytest.approx(behind)
    assert (found["early"].rank, found["late"].rank) == (1, 2)
    assert found["early"].behind is None
    assert found["early"].sets == ("ag_news (synthetic)", "yahoo (synthetic)")


def test_methods_of_one_depth_are_no_early_exits(run):
    """The reference, and a method that answers at full depth at all of its points, are not in the table."""
    for dataset in ("ag_news", "yahoo"):
        for point in ("budget=0.25", "budget=0.75"):
            run.cell("stubborn", point, dataset=dataset, correct=right(0.9))
    assert set(areas(run)) == {"early", "late"}


def test_a_method_that_misses_a_set_has_no_rank(run):
    """Its area is shown with its own sets, and the ranks of the others do not count it."""
    for point, layers in (("budget=0.25", 2), ("budget=0.75", 6)):
        run.cell("partial", point, dataset="yahoo", layers=layers, correct=right(0.99))
    found = areas(run)
    assert found["partial"].rank is None
    assert found["partial"].missing == ("ag_news (synthetic)",)
    assert found["early"].rank == 1
    (table,) = area_tables(build_view(run.path))
    assert "1 of 2" in table.cells[-1]


def test_no_table_without_two_methods(fabricate):
    """A run of one early exit has nothing to rank."""
    made = fabricate()
    for point, layers in (("budget=0.25", 2), ("budget=0.75", 6)):
        made.cell("early", point, layers=layers, correct=right(0.9))
    assert area_tables(build_view(made.path)) == []


def test_two_variants_of_a_point_are_two_rows(run):
    """Points of a variant make a curve of their own."""
    for dataset in ("ag_news", "yahoo"):
        for point, layers in (("budget=0.25/once", 1), ("budget=0.75/once", 6)):
            run.cell("early", point, dataset=dataset, layers=layers, correct=right(0.8))
    assert {"early", "early (once)", "late"} == set(areas(run))


def test_methods_without_budgets_are_named_and_not_compared(run):
    """Two points at speeds say where these lie, not how good a method is at a budget; a note names it."""
    for dataset in ("ag_news", "yahoo"):
        for point, layers in (("speed=0.9", 5), ("speed=0.1", 6)):
            run.cell("by speed", point, dataset=dataset, layers=layers, correct=right(0.99))
    assert set(areas(run)) == {"early", "late"}
    (table,) = area_tables(build_view(run.path))
    assert any(note.startswith("Not compared") and note.endswith(": by speed.") for note in table.notes)


def test_points_at_speeds_change_no_area(run):
    """A method that has points at speeds in addition is judged by its points at budgets, as all others are."""
    before = areas(run)
    for dataset in ("ag_news", "yahoo"):
        run.cell("late", "speed=0.5", dataset=dataset, layers=3, correct=right(0.99))
    after = areas(run)
    assert {name: (row.area, row.points) for name, row in after.items()} == {
        name: (row.area, row.points) for name, row in before.items()
    }
