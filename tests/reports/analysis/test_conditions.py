"""Cells that do not belong together are in rows of their own, and never paired or averaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from harness.results.run_folder import RunFolder
from reports.analysis.conditions import find_conditions
from reports.analysis.view import build_view
from reports.build import write_report
from reports.terminal import summary

# What is changed between two commands that measure into one run folder, and the words that name it.
CHANGES = {
    "test rows corrected": ({"test_rows": "corrected"}, "test rows"),
    "other train rows": ({"train_rows": "fewer"}, "rows of train and dev"),
    "other weights": ({"backbone": "other"}, "content of the backbone"),
    "max_length": ({"max_length": 32}, "max_length (64 and 32)"),
    "training.epochs": ({"training": {"epochs": "9"}}, "training.epochs (3 and 9)"),
    "a setting more": ({"training": {"epochs": "3", "clip": "2.0"}}, "training.clip (not set and 2.0)"),
    "another teacher": ({"fits": {"bert": "tuned"}}, "settings of bert"),
    "other code": ({"versions": {"bert": "1.2"}}, "version of bert"),
    "another precision": ({"precision": "bfloat16"}, "precision of training (float32 and bfloat16)"),
    "more threads per fit": ({"fit_threads": 4}, "threads per fit (1 and 4)"),
    "an unknown precision": ({"precision": None}, "precision of training (float32 and not recorded)"),
}
ALLOWED = {
    "a setting of its own": {"training": {}, "own": ["epochs"]},
    "another fit beside the same reference": {"fits": {"bert": "as in the profile", "geep": "with its own rate"}},
}


def one_run(fabricate, change, **more):
    """Write a run whose reference has 180 of 200 samples right, and ``geep``, measured later, none of them."""
    run = fabricate()
    wrong = [False] * 200
    run.cell("bert")
    run.cell("fastbert", "speed=0.5")
    run.cell("geep", "speed=0.5", correct=wrong, binding=change, **more)
    return run


@pytest.mark.parametrize("change", ALLOWED)
def test_cells_that_belong_together_are_tested(fabricate, change):
    """Methods may differ in settings of their own: they are paired, and no column for conditions is shown."""
    view = build_view(one_run(fabricate, ALLOWED[change]).path)
    assert [test.pairs for test in view.rivals if test.method == "geep"] == [200, 200]
    assert view.varying == [] and view.warnings == 0


@pytest.mark.parametrize("change", CHANGES)
def test_what_differs_is_never_paired(fabricate, change):
    """No test, ratio or noise is shared between the two; a caveat and the terminal say what differs."""
    changed, words = CHANGES[change]
    run = one_run(fabricate, changed)
    view = build_view(run.path)
    assert not [test for test in view.rivals if test.method == "geep" and test.pairs]
    (geep,) = [row for row in view.rows if row.method == "geep"]
    assert (geep.ratio_linear, geep.kept, geep.conditions) == (None, None, "B")
    assert [test.pairs for test in view.rivals if test.method == "fastbert"] == [200]
    line = view.caveats[0]
    assert view.warnings == 1 and words in line
    assert "A has bert, fastbert (seed 0); B has geep (seed 0); B differs from A in" in line
    assert line in summary(run.path).splitlines()
    assert "geep speed=0.5 [B]" in summary(run.path)
    if change == "test rows corrected":  # a report takes a second
        page = write_report(run.path).read_text(encoding="utf-8")
        assert line.partition(":")[2] in page and "<td>B</td>" in page


def test_cells_measured_on_other_threads_stand_apart(fabricate):
    """Passes on two threads are not paired with passes on one, and seeds of both are not averaged; a caveat says why."""
    run = fabricate()
    one, two = ({"cpu": "a test CPU", "torch_threads": count, "versions": {"torch": "2.13.0"}} for count in (1, 2))
    run.cell("bert", fingerprint=one)
    run.cell("fastbert", "speed=0.5", fingerprint=one)
    run.cell("geep", "speed=0.5", fingerprint=two)
    run.cell("fastbert", "speed=0.5", seed=1, fingerprint=two)
    view = build_view(run.path)
    assert view.warnings == 1 and "B differs from A in threads while measuring (1 and 2)" in view.caveats[0]
    assert {(row.method, row.conditions, row.seeds) for row in view.rows} == {
        *(("bert", "A", 1), ("fastbert", "A", 1), ("fastbert", "B", 1), ("geep", "B", 1))
    }
    assert not [test for test in view.rivals if test.method == "geep" and test.rival == "bert" and test.pairs]


def test_seeds_on_other_rows_are_not_averaged(fabricate):
    """Seeds measured on another number of rows are rows of their own; a mean holds the seeds of one kind."""
    run = fabricate()
    for seed in (0, 1):
        run.cell("bert", seed=seed)
    run.cell("bert", seed=2, n=100, accuracy=0.5, binding={"test_rows": "100 rows"})
    rows = build_view(run.path).rows
    assert sorted((row.conditions, row.seeds, row.n, row.accuracy) for row in rows) == [
        ("A", 2, 200, 0.9),
        ("B", 1, 100, 0.5),
    ]


def test_controls_and_predictors_are_paired_by_the_same_rule(fabricate):
    """A predicted exit is not compared with the sequential control of other conditions."""
    exits = [1, 2, 3, 4] * 50
    for changed, compared in (({}, 1), ({"test_rows": "corrected"}, 0)):
        run = fabricate(f"run-{compared}")
        run.cell("geep", "speed=0.5", role="predicts-exits", exits=exits, predicted=exits)
        run.cell(
            "control-sequential", "speed=0.5", kind="control", role="sequential-exits", exits=exits, binding=changed
        )
        view = build_view(run.path)
        measured = [test for test in view.verdicts if test.control_row and test.measure == "accuracy"]
        assert (len(measured), len(view.predictors)) == (compared, compared)


def old(run):
    """Make a run one of an older version: results without binding and checksums."""
    for result in run.run.results():
        run.edit(result, lambda data: data.pop("binding"))


def test_old_cells_are_not_paired_with_newer_ones(fabricate):
    """Cells from before fingerprints are shown, and apart from newer cells."""
    run = one_run(fabricate, {})
    bert = next(result for result in run.run.results() if result.cell.method == "bert")
    run.edit(bert, lambda data: data.pop("binding"))
    view = build_view(run.path)
    assert not [test for test in view.rivals if test.rival == "bert" and test.pairs]
    assert len(view.rows) == 3
    assert "measured before results had fingerprints" in view.caveats[0]


def test_a_run_of_old_cells_is_compared_by_what_is_there(fabricate):
    """Old cells with the same number, labels and lengths of rows are paired, with a caveat; with other labels they are not."""
    run = one_run(fabricate, {})
    old(run)
    view = build_view(run.path)
    assert [test.pairs for test in view.rivals if test.method == "geep"] == [200, 200]
    assert view.warnings == 0 and "3 of 3 cells were measured before" in view.caveats[-1]
    geep = next(result for result in run.run.results() if result.cell.method == "geep")
    path = run.run.samples_path(geep.cell)
    run.run.samples(geep.cell).assign(label=2, prediction=3).to_parquet(path, index=False)
    view = build_view(run.path)
    assert not [test for test in view.rivals if test.method == "geep" and test.pairs]
    assert "labels or lengths of the test rows" in view.caveats[0]


def test_an_old_run_without_samples_is_shown(fabricate):
    """Published runs of older versions have no rows: their cells are together if they have equal numbers of test rows."""
    run = one_run(fabricate, {}, n=200)
    old(run)
    shutil.rmtree(run.path / "samples")
    view = build_view(run.path)
    assert view.warnings == 0 and {row.ratio_reference for row in view.rows} == {"bert"}


PUBLISHED = sorted(
    place.parent for place in (Path(__file__).parents[3] / "reports" / "published").glob("*/results") if place.is_dir()
)


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda path: path.name)
def test_published_runs_stay_whole(published, tmp_path):
    """Every published run is read completely, nothing is set aside, and its cells stay together."""
    run = RunFolder.open(shutil.copytree(published / "results", tmp_path / "run" / "results").parent)
    results = run.results()
    assert len(results) == len(list((published / "results").iterdir())) and not run.broken
    assert find_conditions(run, results).apart == []


UNLIKE = {
    "other settings": ({"settings": {"geep": "other"}}, "differ in settings of geep."),
    "other code": ({"versions": {"bert": "1.2"}}, "differ in version of bert."),
    "another precision": ({"precision": "bfloat16"}, "differ in precision of bert, precision of geep."),
    "training settings of older results": ({"settings": None, "training": {"epochs": "9"}}, "training.epochs of bert"),
}
ALIKE = {
    "rows and lengths": {"train_rows": "fewer", "max_length": 32, "backbone": "of another language"},
    "rows without labels": {"fits": {"bert": "as in the profile", "geep": "with other rows"}},
}


def two_sets(fabricate, change):
    """Write two sets that are each measured in one way; ``change`` is that of the second one."""
    run = fabricate()
    given = {} if "settings" in change and change["settings"] is None else {"settings": {"geep": "as in the profile"}}
    for dataset, own in (("ag_news", given), ("yahoo", given | change)):
        run.cell("bert", dataset=dataset, binding=own)
        run.cell("geep", "speed=0.5", dataset=dataset, layers=3, binding=own)
    return build_view(run.path)


@pytest.mark.parametrize("case", UNLIKE)
def test_sets_measured_in_different_ways_are_named(fabricate, case):
    """Each set belongs together, so means over sets are made; a caveat that must not be missed says what they mix."""
    change, words = UNLIKE[case]
    view = two_sets(fabricate, change)
    assert [one.counted for one in view.set_means] == [("ag_news (synthetic)", "yahoo (synthetic)")]
    assert view.warnings == 1 and words in view.caveats[0] and "ag_news and yahoo differ in" in view.caveats[0]


@pytest.mark.parametrize("case", ALIKE)
def test_sets_may_differ_in_their_rows(fabricate, case):
    """Rows, lengths, backbones and texts without labels are those of each set."""
    assert two_sets(fabricate, ALIKE[case]).warnings == 0


def test_a_set_under_other_conditions_is_named_where_it_does_not_count(fabricate):
    """One stray cell gives all rows of its set conditions of their own; tables over sets say that the set is missing."""
    run = fabricate()
    for dataset in ("ag_news", "yahoo", "lcqmc"):
        run.cell("bert", dataset=dataset)
        run.cell("fastbert", "speed=0.5", dataset=dataset, layers=3)
    run.cell("geep", "speed=0.5", dataset="yahoo", layers=3, binding={"max_length": 32})
    view = build_view(run.path)
    assert [one.absent for one in (*view.set_means, *view.ranks)] == [("yahoo",)] * 2
