"""How each row was trained: steps beside the accuracy; epoch, precision and threads behind the results."""

from __future__ import annotations

from reports.analysis.view import build_view
from reports.notation.table_formats import to_csv
from reports.tables.catalogue import Contents

MACHINE = {"cpu": "a test CPU", "torch_threads": 2, "versions": {"torch": "2.13.0"}}


def column(table, heading):
    """Return method -> text in a column."""
    headings = [one.heading for one in table.columns]
    place, name = headings.index(heading), headings.index("Method")
    return {cells[name]: cells[place] for cells in table.cells}


def test_training_is_shown(fabricate):
    """Tables show means of steps over seeds, and the kept epochs; the caption has precision and threads, which all share."""
    run = fabricate()
    known = {"precision": "bfloat16", "threads": 1, "epochs": 5}
    for seed, best in ((0, 3), (1, 4)):
        run.cell("bert", seed=seed, fingerprint=MACHINE, training={**known, "steps": 1000 + seed, "best_epoch": best})
        run.cell("fastbert", seed=seed, fingerprint=MACHINE, training={**known, "steps": 2500})
        run.cell("control-random", kind="control", seed=seed, fingerprint=MACHINE)
    view = build_view(run.path)
    contents = Contents(view)
    (summary,), (details,) = contents.named("summary"), contents.named("details", view.groups[0])
    steps = {"bert": "1,000", "fastbert": "2,500", "control-random": "—"}
    assert column(summary, "Training steps") == column(details, "Training steps") == steps
    assert column(details, "Epoch kept") == {"bert": "3, 4 of 5", "fastbert": "—", "control-random": "—"}
    assert column(details, "Trained in") == {"bert": "bfloat16", "fastbert": "bfloat16", "control-random": "—"}
    assert column(details, "Threads a fit")["bert"] == "1"
    head, first, *_ = to_csv(details).splitlines()
    assert {"steps", "kept_epoch", "trained_in", "fit_threads", "threads"} <= set(head.split(","))
    assert "1000.5" in first and "bfloat16" in first
    assert view.groups[0].facts.endswith("trained in bfloat16, threads per fit 1, threads while measuring 2")


def test_the_version_that_trained_is_shown(fabricate):
    """Beside the precision: a cached fit may come from another torch than the one that measured it; older results have none."""
    run = fabricate()
    run.cell("bert", fingerprint=MACHINE, training={"precision": "float32", "torch": "2.11.0"})
    run.cell("fastbert", fingerprint=MACHINE, training={"precision": "float32", "torch": "2.13.0"})
    run.cell("geep", fingerprint=MACHINE, training={"precision": "float32"})
    view = build_view(run.path)
    (details,) = Contents(view).named("details", view.groups[0])
    said = {"bert": "float32 (torch 2.11.0)", "fastbert": "float32 (torch 2.13.0)", "geep": "float32"}
    assert column(details, "Trained in") == said


def test_older_results_show_what_they_have(fabricate):
    """A result that recorded neither epochs nor precision shows its steps, and a note says what is missing."""
    run = fabricate()
    run.cell("bert", training={"steps": 40})
    view = build_view(run.path)
    (details,) = Contents(view).named("details", view.groups[0])
    assert column(details, "Training steps") == {"bert": "40"}
    assert any("Trained in" in note and "did not record" in note for note in details.notes)
    assert "trained in" not in view.groups[0].facts
