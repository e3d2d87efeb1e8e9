"""Cost of ownership."""

from __future__ import annotations

import pytest

from reports.analysis.view import build_view
from reports.tables.ownership_table import ownership_table


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
