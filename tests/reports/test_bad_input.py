"""Damaged run folders: each fault is one line, the rest is reported, and missing values are marked."""

from __future__ import annotations

import re
import shutil

import pandas as pd
import pytest

import reports.build
from reports.analysis.view import build_view
from reports.build import write_report
from reports.tables.result_tables import results_table
from reports.terminal import summary


@pytest.fixture(autouse=True)
def _figures(request):
    """Draw figures only where a number that is not finite could break them."""
    if request.node.originalname != "test_not_a_number":
        request.getfixturevalue("without_figures")


def make(fabricate):
    run = fabricate()
    run.cell("bert")
    run.cell("control-sequential", "speed=0.5", kind="control")
    return run, run.cell("geep", "speed=0.5", predicted=[3] * 200)


def message(run):
    """Write a report; return its caveats, each one line, and the page."""
    views = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reports.build, "build_view", lambda path: views.append(build_view(path)) or views[0])
        page = write_report(run.path).read_text(encoding="utf-8")
    caveats = views[0].caveats
    assert all("\n" not in caveat for caveat in caveats)
    for method in ("bert", "control-sequential"):
        assert f"<td>{method}" in page
    return caveats, page


def one_line(caveats, *words):
    found = [caveat for caveat in caveats if all(word in caveat for word in words)]
    assert len(found) == 1, caveats
    return found[0]


def test_truncated_json(fabricate):
    """Half a result is set aside and named; the other rows are reported."""
    run, geep = make(fabricate)
    path = run.run.result_path(geep.cell)
    path.write_text(path.read_text(encoding="utf-8")[:300], encoding="utf-8")
    caveats, page = message(run)
    one_line(caveats, path.name, "Set aside")
    assert "<td>geep" not in page
    # The tables that should have the row say that it is missing until it is measured again.
    missing = "Missing from this table: {}geep speed=0.5, seed0 (broken, set aside)."
    assert missing.format("ag_news ") in page and missing.format("") in page
    make(fabricate)
    assert "Missing from this table" not in message(run)[1]


def test_a_lost_seed_marks_the_mean(fabricate):
    """If one of two seeds is lost, the row has a mark for a mean over fewer seeds."""
    run, _ = make(fabricate)
    for method, point in (("bert", "full"), ("geep", "speed=0.5")):
        lost = run.cell(method, point, seed=1)
    run.run.result_path(lost.cell).write_text("{", encoding="utf-8")
    caveats, page = message(run)
    one_line(caveats, "seed1")
    assert "<td>geep #" in page and "# A mean over fewer seeds" in page and "<td>bert #" not in page


def test_a_failed_cell_is_reported_in_its_tables(fabricate):
    """A failed cell gives a caveat and a footnote in the tables of its dataset, not in others."""
    run, _ = make(fabricate)
    other = run.cell("bert", dataset="other")
    run.run.fail(other.cell.model_copy(update={"method": "tinybert"}), "Traceback\nValueError: no such layer")
    caveats, _ = message(run)
    one_line(caveats, "Failed and missing", "other / tinybert / full")
    view = build_view(run.path)
    notes = {group.dataset: results_table(view, group).notes for group in view.groups}
    assert any("tinybert full, seed0 (failed)" in note for note in notes["other"])
    assert not any("Missing" in note for note in notes["ag_news"])


def test_missing_samples(fabricate):
    """A result without its per-sample rows keeps its numbers and gets a mark and a caveat."""
    run, geep = make(fabricate)
    run.run.samples_path(geep.cell).unlink()
    caveats, page = message(run)
    one_line(caveats, "No per-sample rows", run.run.samples_path(geep.cell).name)
    assert "<td>geep °" in page and "cannot be computed" in page


def test_a_run_stripped_of_its_samples(fabricate):
    """If no cell has rows, as in published runs, one line states it and no row is marked."""
    run, _ = make(fabricate)
    shutil.rmtree(run.path / "samples")
    caveats, page = message(run)
    one_line(caveats, "No per-sample rows", "removed")
    assert "°</td>" not in page and "cannot be computed" in page


CONTRADICTIONS = {
    "has 150 rows, but the result counts 200 test samples": lambda frame: frame.iloc[:150],
    "gives an accuracy of 0.0000, but the result says 0.9000": lambda frame: frame.assign(correct=False, prediction=1),
    "counts other predictions as correct": lambda frame: frame.assign(correct=~frame["correct"]),
    "has other exit layers than the histogram": lambda frame: frame.assign(exit_layer=3),
}
FAULTS = {
    "has several rows for the same test sample": lambda frame: frame.assign(index=0),
    "has no column exit_layer": lambda frame: frame.drop(columns="exit_layer"),
    "has empty values in column exit_layer": lambda frame: frame.assign(
        exit_layer=frame["exit_layer"].astype("Int16").where(frame["index"] > 3)
    ),
    "has values that are not numbers in column exit_layer": lambda frame: frame.assign(exit_layer="x"),
    "does not match the checksum in its result": lambda frame: frame.assign(confidence=0.5),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_damaged_samples_are_not_used(fabricate, fault):
    """Per-sample rows that are incomplete, doubled or changed are named and not used; the result is shown with a mark."""
    run, geep = make(fabricate)
    path = run.run.samples_path(geep.cell)
    FAULTS[fault](pd.read_parquet(path)).to_parquet(path, index=False)
    caveats, page = message(run)
    assert fault in one_line(caveats, "No per-sample rows", path.name)
    assert "<td>geep °" in page


@pytest.mark.parametrize(
    ("fault", "old"), [*((fault, False) for fault in CONTRADICTIONS), (next(iter(CONTRADICTIONS)), True)]
)
def test_a_result_that_contradicts_its_samples_is_set_aside(fabricate, fault, old):
    """Its numbers are not shown, and the line says what differs; a result of an older version, without checksums, as well."""
    run, geep = make(fabricate)
    path = run.run.samples_path(geep.cell)
    CONTRADICTIONS[fault](pd.read_parquet(path)).to_parquet(path, index=False)
    if old:
        run.edit(geep, lambda data: None)
    caveats, page = message(run)
    line = one_line(caveats, "contradicts its own per-sample rows", path.name)
    assert fault in line and "its cell is missing until it is measured again" in line
    assert line in summary(run.path).splitlines()
    assert "<td>geep" not in page
    assert "geep speed=0.5, seed0 (broken, set aside)" in page


def test_an_edited_result_is_set_aside(fabricate):
    """A number that was changed in a result file does not match the checksum, whatever the number."""
    run, geep = make(fabricate)
    path = run.run.result_path(geep.cell)
    path.write_text(
        path.read_text(encoding="utf-8").replace('"mean_heads": 1.0', '"mean_heads": 0.5'), encoding="utf-8"
    )
    caveats, page = message(run)
    assert "checksum" in one_line(caveats, "Set aside", path.name)
    assert "<td>geep" not in page


def test_garbage_instead_of_samples(fabricate):
    """A file that is not Parquet is named."""
    run, geep = make(fabricate)
    run.run.samples_path(geep.cell).write_bytes(b"")
    one_line(message(run)[0], "No per-sample rows")


@pytest.mark.parametrize("differ", [True, False])
def test_two_cells_with_one_key(fabricate, differ):
    """A copied result does not count as another seed: the file named after the cell is used."""
    run, geep = make(fabricate)
    path = run.run.result_path(geep.cell)
    copy = path.with_name("a copy.json")
    copy.write_bytes(path.read_bytes())
    if differ:
        run.edit(geep, lambda data: data["quality"].update(macro_f1=0.1))
    caveats, _ = message(run)
    line = one_line(caveats, "2 results", "geep speed=0.5 on ag_news, seed 0")
    assert path.name in line and ("differ" in line) == differ
    (row,) = [row for row in build_view(run.path).rows if row.method == "geep"]
    assert (row.seeds, row.accuracy, row.macro_f1) == (1, 0.9, 0.1 if differ else 0.9)


def test_two_cells_with_one_key_and_no_file_of_that_name(fabricate):
    """If no file has the name of the cell, the first is used, and the line states it."""
    run, geep = make(fabricate)
    path = run.run.result_path(geep.cell)
    for name in ("one.json", "two.json"):
        path.with_name(name).write_bytes(path.read_bytes())
    path.unlink()
    assert "the first by name is used" in one_line(message(run)[0], "2 results")


def test_mixed_machines(fabricate):
    """Cells of two machines are reported with a line that names what differs."""
    run, _ = make(fabricate)
    run.cell("fastbert", "speed=0.5", fingerprint={"machine": {"cpu": "another", "cores": 2}})
    one_line(message(run)[0], "not all measured on the same machine", "machine.cpu")


def test_mixed_code(fabricate):
    """Cells measured by different code are counted per version."""
    run = fabricate()
    same = {"machine": {"cpu": "x"}, "versions": {"geep-bench": "0.1.0"}}
    run.cell("bert", fingerprint={**same, "commit": "aaa"})
    run.cell("control-sequential", "speed=0.5", kind="control", fingerprint={**same, "commit": "bbb"})
    run.cell("geep", "speed=0.5", fingerprint={**same, "commit": "bbb"})
    caveats, _ = message(run)
    line = one_line(caveats, "different code")
    assert "version 0.1.0 bbb (2 cells: ag_news)" in line and "version 0.1.0 aaa (1 cell: ag_news)" in line
    assert not any("same machine" in caveat for caveat in caveats)


@pytest.mark.parametrize("part, name", [("quality", "accuracy"), ("cost", "flops_linear"), ("speed", "samples_per_s")])
def test_not_a_number(fabricate, part, name):
    """A metric that is not finite is a dash with a mark and a caveat; figures and other rows are unaffected."""
    run, geep = make(fabricate)
    run.edit(geep, lambda data: data[part].update({name: 1e999}))
    caveats, page = message(run)
    assert name in one_line(caveats, "Not a number in geep speed=0.5 on ag_news, seed 0")
    assert "<td>geep #" in page and not re.search(r"<td[^>]*>(nan|inf)", page)


def test_no_number_at_all(fabricate):
    """A result full of NaN gives a row of dashes."""
    run, geep = make(fabricate)
    run.edit(geep, lambda data: None)
    path = run.run.result_path(geep.cell)
    path.write_text(re.sub(r": -?\d+\.\d+", ": 1e999", path.read_text(encoding="utf-8")), encoding="utf-8")
    caveats, _ = message(run)
    one_line(caveats, "Not a number in geep")
    (row,) = [row for row in build_view(run.path).rows if row.method == "geep"]
    assert (row.accuracy, row.mean_layers, row.speedup) == (None, None, None)


def test_several_faults_at_once(fabricate):
    """Several faults are all reported."""
    run, geep = make(fabricate)
    second = run.cell("fastbert", "speed=0.5")
    third = run.cell("tinybert")
    run.edit(geep, lambda data: data["quality"].update(macro_f1=1e999))
    run.run.samples_path(second.cell).unlink()
    run.run.result_path(third.cell).write_text("", encoding="utf-8")
    run.run.result_path(second.cell).with_name("copy.json").write_bytes(run.run.result_path(second.cell).read_bytes())
    caveats, _ = message(run)
    for words in ("Not a number", "No per-sample rows", "Set aside", "2 results"):
        one_line(caveats, words)
