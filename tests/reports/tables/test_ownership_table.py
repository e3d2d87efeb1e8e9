"""Cost of ownership."""

from __future__ import annotations

import pytest

from reports.analysis.view import build_view
from reports.figures.exit_figures import draw_exit_histograms
from reports.tables.ownership_table import loyalty_table, ownership_table
from reports.tables.result_tables import NO_LAYERS, results_table, summary_tables


def table_of(run):
    view = build_view(run.path)
    return ownership_table(view, view.groups[0])


def by_heading(table):
    return dict(zip([column.heading for column in table.columns], table.cells[0], strict=True))


def test_every_cost_has_a_column(fabricate):
    """Latencies in milliseconds, sizes in MiB, energy, parameters and training are shown if recorded."""
    run = fabricate()
    run.cell(
        "bert",
        latency=[(1, 300, 0.010, 0.011, 0.015), (8, 300, 0.020, 0.022, 0.03), (64, 300, 0.4, 0.41, 0.42)],
        footprint={"disk_bytes": 3 * 2**20, "host_peak_bytes": 2**30, "joules_per_1000": 12.5},
        speed={"tokens_per_s": 4321.0},
    )
    shown = by_heading(table_of(run))
    assert [shown[f"Batch of 1, ms: {q}"] for q in ("p50", "p90", "p99")] == ["10.0", "11.0", "15.0"]
    # 8 / 0.020 s beats both 1 / 0.010 s and 64 / 0.4 s.
    assert [shown[f"Best batch, ms: {q}"] for q in ("size", "p50", "p90", "p99")] == ["8", "20.0", "22.0", "30.0"]
    assert shown["Samples/s"] == "100" and shown["Tokens/s"] == "4,321"
    assert shown["Host peak MiB"] == "1,024" and shown["On disk MiB"] == "3.00"
    assert shown["J per 1,000 samples"] == "12.5" and shown["Parameters M"] == "1.00"
    assert shown["Training s"] == "12.5" and shown["Layer passes vs fine-tuning"] == "1.50×"
    assert shown["Training GFLOPs"] == "7.50"


def test_missing_costs_are_a_dash_with_a_reason(fabricate):
    """Older results and machines without counters give dashes, each explained in a footnote."""
    run = fabricate()
    run.cell("control-random", "speed=0.5", kind="control")
    table = table_of(run)
    shown = by_heading(table)
    reasons = {
        "Batch of 1, ms: p50": "latency was not measured",
        "CUDA peak MiB": "on CUDA only",
        "J per 1,000 samples": "no energy counter",
        "On disk MiB": "stores nothing of its own",
        "Training s": "nothing was trained",
    }
    for heading, reason in reasons.items():
        assert shown[heading] == "—"
        assert any(f"“{heading}”" in note and reason in note for note in table.notes), heading


def test_few_batches_are_noted(fabricate):
    """A note says if the 99th percentile comes from few batches."""
    run = fabricate()
    run.cell("bert", latency=[(1, 12, 0.01, 0.011, 0.012)])
    assert any("as few as 12 batches" in note for note in table_of(run).notes)


def test_seeds_are_averaged(fabricate):
    """Quantiles are means over seeds."""
    run = fabricate()
    for seed in (0, 1):
        run.cell("bert", seed=seed, latency=[(1, 200, 0.01 * (seed + 1), 0.03, 0.04)])
    table = table_of(run)
    assert [table.raw(row, "single_p50") for row in table.rows] == [pytest.approx(0.015)]


def test_speed_from_raw_text_stands_beside_speed_from_ids(fabricate):
    """200 samples in 2 s from ids and 0.5 s of tokenising are 80 samples/s from text; older rows have a dash and its reason."""
    run = fabricate()
    run.cell("bert", tokenising=0.5)
    run.cell("fastbert", samples_per_s=200.0)
    view = build_view(run.path)
    for table in (ownership_table(view, view.groups[0]), results_table(view, view.groups[0])):
        headings = [column.heading for column in table.columns]
        place = headings.index("From text, samples/s")
        assert headings[place - 1] == "Samples/s"
        shown = {row[0]: row[place] for row in table.cells}
        assert shown == {"bert": "80.0", "fastbert": "—"}
        assert any("with tokenising before every pass" in note for note in table.notes)
        assert any("measured by an older version" in note for note in table.notes)


def test_runs_that_did_not_time_tokenising_have_no_such_column(fabricate):
    """Tables of published results stay as they are."""
    run = fabricate()
    run.cell("bert")
    table = table_of(run)
    assert not [column for column in table.columns if "text" in column.heading]
    assert not [note for note in table.notes if "tokenising" in note]


def test_loyalty_parameters_and_carbon(fabricate):
    """Loyalty in percent, parameters split, and CO2 of the measured energy: 20 J a thousand are 5.56 Wh a million, 2.64 g."""
    run = fabricate()
    run.cell("bert", loyal=(1.0, 1.0), looked_up=400_000, footprint={"joules_per_1000": 20.0})
    run.cell("other", loyal=(0.9, 0.75))
    view = build_view(run.path)
    table = loyalty_table(view, view.groups[0])
    assert table is not None
    first, second = (dict(zip([one.heading for one in table.columns], cells, strict=True)) for cells in table.cells)
    assert first["Label loyalty %"] == "100.0" and second["Probability loyalty %"] == "75.0"
    assert (first["Parameters M: multiplied"], first["Parameters M: looked up"]) == ("0.600", "0.400")
    assert second["Parameters M: multiplied"] == "—" and first["g CO2e per million"] == "2.64"
    assert second["g CO2e per million"] == "—" and any("475 g per kWh" in note for note in table.notes)


def test_without_measured_energy_there_is_no_carbon(fabricate):
    """No column and no note estimate it."""
    run = fabricate()
    run.cell("bert", loyal=(1.0, 1.0))
    view = build_view(run.path)
    table = loyalty_table(view, view.groups[0])
    assert table is not None
    assert not any("CO2" in one.heading for one in table.columns) and not any("CO2" in note for note in table.notes)


def test_a_model_without_layers_has_dashes(fabricate):
    """Layers, heads and exits are no numbers of such a row, with a reason, and it is in no figure of exits."""
    run = fabricate()
    run.cell("bert", n=50)
    run.cell("dan", depth=0, layers=0, exits=[0] * 50, n=50, flops=1000.0, heads=0.0, training={"passes_ratio": None})
    view = build_view(run.path)
    for table in (summary_tables(view)[0], results_table(view, view.groups[0])):
        cells = [cells for row, cells in zip(table.rows, table.cells, strict=True) if row.method == "dan"][0]
        shown = dict(zip([one.heading for one in table.columns], cells, strict=True))
        assert shown["Mean layers"] == shown["Heads a sample"] == "—" and "Before layer 1 %" not in shown
        assert any("“Mean layers”" in note and NO_LAYERS in note for note in table.notes)
    assert draw_exit_histograms(view, view.groups[0], {}) is None


def test_older_results_have_no_table_of_loyalty(fabricate):
    """Where neither loyalty nor looked-up parameters were recorded, there is nothing to show."""
    run = fabricate()
    run.cell("bert")
    view = build_view(run.path)
    assert loyalty_table(view, view.groups[0]) is None
