"""Cells that were measured for accuracy and work only: no time is made up for them, and the rest of their row counts."""

from __future__ import annotations

import pytest

from reports.analysis.view import View, build_view
from reports.build import write_report
from reports.figures.pareto import points_of
from reports.notation.table_formats import to_csv, to_latex, to_markdown
from reports.tables.catalogue import Contents
from reports.terminal import summary

PASSES = [1.0, 1.01, 0.99, 1.02]


def make(fabricate, losses=(0, 0, 0)):
    """``geep`` is timed in the first of three seeds, ``control-random`` never; ``losses``: wrong answers of each seed."""
    run = fabricate()
    for seed, wrong in enumerate(losses):
        timed = {"seed": seed, "timed": seed == 0, "reference_seconds": PASSES}
        own = {"round_seconds": [0.5] * 4}
        run.cell("bert", correct=[True] * 900, speed={"round_seconds": PASSES}, **timed)
        run.cell(
            "geep", "speed=0.5", correct=[i >= wrong for i in range(900)], speedup=2.0, speed=own, layers=3, **timed
        )
        run.cell("control-random", "speed=0.5", kind="control", correct=[True] * 900, **{**timed, "timed": False})
    return run


def rows(view: View):
    return {row.method: row for row in view.rows}


def shown(table, method: str) -> dict[str, str]:
    """Return heading -> text of a method's row."""
    (i,) = [i for i, row in enumerate(table.rows) if row.method == method]
    return {column.heading: text for column, text in zip(table.columns, table.cells[i], strict=True)}


def test_times_are_means_over_timed_seeds_and_accuracy_over_all(fabricate):
    """Accuracy is the mean of three seeds and the speed-up that of the one that was timed; the row says so, with no mark."""
    view = build_view(make(fabricate, losses=(0, 90, 180)).path)
    geep = rows(view)["geep"]
    assert geep.accuracy == pytest.approx(0.9)
    assert (geep.seeds, geep.timed, geep.speedup, geep.rounds, geep.marks) == (3, 1, 2.0, 3, "")
    for table in (*Contents(view).named("summary"), *Contents(view).named("results-ag_news-synthetic")):
        cells = shown(table, "geep")
        assert cells["Seeds timed"] == "1 of 3" and "(3;" in cells["± (seeds; 95 % of their mean)"]
        assert any("means over the seeds that were timed" in note for note in table.notes)


def test_a_row_without_times_shows_dashes_and_why(fabricate):
    """A control that was never timed has accuracy and layers, dashes for times, and takes no part in the plot of throughput."""
    run = make(fabricate)
    view = build_view(run.path)
    (table,) = Contents(view).named("summary")
    cells = shown(table, "control-random")
    assert (cells["Samples/s"], cells["Speed-up (p10–p90)"], cells["Seeds timed"]) == ("—", "—", "0 of 3")
    assert cells["Mean layers"] == "6.00" and cells["Accuracy % (95 % interval)"].startswith("100.0")
    assert any("not timed" in note for note in table.notes)
    assert "control-random" not in {point.row.method for point in points_of(view.rows, "samples_per_s")}
    assert "control-random" in {point.row.method for point in points_of(view.rows, "flops_linear")}
    (caveat,) = [caveat for caveat in view.caveats if caveat.startswith("Not timed")]
    assert "seeds 1, 2 of every method and all seeds of control-random" in caveat
    assert write_report(run.path).is_file() and "control-random" not in summary(run.path)
    for every in Contents(view).all:
        assert "nan" not in to_markdown(every) + to_csv(every) + to_latex(every), every.name


def test_faster_is_judged_by_timed_seeds_and_not_worse_by_all(fabricate):
    """A loss in a seed without times counts; times are those of the seeds that have some."""
    for losses, passed in (((0, 0, 0), True), ((0, 0, 60), False)):
        run = fabricate(f"lost-{losses[2]}")
        make(lambda run=run: run, losses)
        (test,) = [one for one in build_view(run.path).rivals if (one.method, one.rival) == ("geep", "bert")]
        assert (test.judgement.faster, test.passed) == (True, passed)
        assert test.judgement.lowest_speedup > 1.5


def test_a_run_in_which_all_is_timed_has_no_word_of_it(fabricate):
    """Tables of an ordinary run have neither the column nor the notes."""
    run = fabricate()
    run.cell("bert", reference_seconds=PASSES)
    view = build_view(run.path)
    assert not any("timed" in to_markdown(table) for table in Contents(view).named("summary"))
    assert not any("Not timed" in caveat for caveat in view.caveats)


def test_shared_passes_of_the_reference_are_noise_once(fabricate):
    """Cells that were timed beside the same passes give as many A/A pairs as one cell."""
    run = fabricate()
    for point in ("speed=0.1", "speed=0.5", "speed=0.8"):
        run.cell("geep", point, reference_seconds=[*PASSES, 1.0, 1.1], speed={"together": 3})
    (group,) = build_view(run.path).groups
    row = build_view(run.path).of(group)[0]
    assert row.noise is not None and row.noise.pairs == 5


def test_rows_of_a_slower_machine_are_marked(fabricate):
    """If the machine loses half of its speed for one method, its row is marked in every table; the others are not."""
    run = fabricate()
    for method in ("bert", "fastbert", "tinybert"):
        run.cell(method, reference_seconds=PASSES)
    run.cell("geep", "speed=0.5", reference_seconds=[2.0, 2.1, 1.9])
    view = build_view(run.path)
    assert {name: row.marks for name, row in rows(view).items()} == {
        "bert": "",
        "fastbert": "",
        "tinybert": "",
        "geep": "≈",
    }
    (table,) = Contents(view).named("summary")
    assert shown(table, "geep")["Method"] == "geep ≈"
    assert any(note.startswith("≈ The machine was slower") for note in table.notes)
    assert to_latex(table).isascii()


def test_a_row_without_times_has_the_reference_of_its_neighbours(fabricate):
    """Its ratios refer to the reference of the run, also if that is not bert and bert was measured, too."""
    run = fabricate()
    run.cell("bert", reference="slim")
    for method, layers in (("slim", 3), ("geep", 2)):
        run.cell(method, layers=layers, reference="slim")

    run.cell("control-random", kind="control", layers=1.5, timed=False)
    found = rows(build_view(run.path))
    assert found["control-random"].ratio_reference == "slim"
    assert found["control-random"].ratio_linear == pytest.approx(2)
