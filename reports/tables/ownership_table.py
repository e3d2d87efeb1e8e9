"""Cost of ownership of a method: latency, throughput, memory, energy, size, training; and its loyalty to the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from harness.results.schema import Latency
from reports.analysis.result_rows import ResultRow
from reports.analysis.view import Group, View
from reports.notation.numbers import finite, flops_unit, percent, plain, times, whole
from reports.notation.table_formats import Column, Table
from reports.tables.catalogue import DatasetTable
from reports.tables.shared_columns import (
    IDENTITY,
    UNTIMED,
    UNTRAINED,
    dataset_table,
    from_text_column,
    from_text_note,
    identity_columns,
)

NO_LATENCY = "latency was not measured"
_QUANTILES = ("p50", "p90", "p99")
# With fewer batches the 99th percentile is one of the slowest, or lies between them.
_ENOUGH = 100
# Grams of CO2 equivalent a kWh: the mean of the world's electricity (IEA, Global Energy & CO2 Status Report 2019).
GRAMS = 475
Value = Callable[[ResultRow], object]


def ownership_table(view: View, group: Group) -> Table[ResultRow]:
    """Return the cost of ownership of every row of a dataset."""
    rows = view.of(group)
    values: dict[str, Value] = {
        f"{which}_{name}": _of_latency(choose, name)
        for which, choose in (("single", _single), ("best", _best))
        for name in (*_QUANTILES, "n")
    }
    values["best_batch"] = _of_latency(_best, "batch_size")
    divisor, unit = flops_unit(max((row.train_flops or 0.0 for row in rows), default=0.0))

    def latency(which: str, above: str) -> list[Column[ResultRow]]:
        form = _per(1e-3)
        return [Column(f"{which}_{q}", q, missing=NO_LATENCY, group=above, form=form) for q in _QUANTILES]

    best, mib = "Best batch, ms:", _per(2**20)
    uncounted = f"{UNTRAINED}, or an older version did not count them"
    no_counter = "this machine has no energy counter that the run could read"
    columns = [
        *identity_columns(view),
        *latency("single", "Batch of 1, ms:"),
        Column("best_batch", "size", missing=NO_LATENCY, group=best, form=whole),
        *latency("best", best),
        Column("samples_per_s", "Samples/s", missing=UNTIMED, form=plain),
        *from_text_column(rows),
        Column("tokens_per_s", "Tokens/s", missing="not timed, or not recorded by an older version", form=plain),
        Column("host_peak_bytes", "Host peak MiB", missing="the run did not record it", form=mib),
        Column("peak_memory_bytes", "CUDA peak MiB", missing="measured on CUDA only", form=mib),
        Column("joules_per_1000", "J per 1,000 samples", missing=no_counter, form=plain),
        Column("params", "Parameters M", form=_per(1e6)),
        Column("disk_bytes", "On disk MiB", missing="the method stores nothing of its own", form=mib),
        Column("train_seconds", "Training s", missing=UNTRAINED, form=plain),
        Column("passes_ratio", "Layer passes vs fine-tuning", missing=UNTRAINED, form=times),
        Column("train_flops", f"Training {unit}FLOPs", missing=uncounted, form=_per(divisor)),
    ]
    csv = (
        *IDENTITY,
        *(name for name in values if name != "best_batch"),
        *(
            "best_batch",
            "samples_per_s",
            "samples_per_s_from_text",
            "tokens_per_s",
            "host_peak_bytes",
            "peak_memory_bytes",
            "joules_per_1000",
        ),
        *("params", "disk_bytes", "train_seconds", "layer_passes", "passes_ratio", "train_flops", "marks"),
    )
    return dataset_table("ownership", "Cost of ownership", group, rows, columns, csv, _notes(rows), values=values)


def loyalty_table(view: View, group: Group) -> Table[ResultRow] | None:
    """Return how loyal every row of a dataset is to the reference, and what it takes: columns by which small models are chosen.

    None for results of older versions, which have nothing of it.
    """
    rows = view.of(group)
    if not any(finite(row.label_loyalty) or finite(row.params_looked_up) for row in rows):
        return None
    mib, millions = _per(2**20), _per(1e6)
    unsaid = "the method does not say it, or an older version did not record it"
    alone = "not timed beside a reference, or an older version did not record it"
    above = "Parameters M:"
    divisor, unit = flops_unit(max((row.train_flops or 0.0 for row in rows), default=0.0))
    values: dict[str, Value] = {"params_multiplied": _multiplied, "co2_grams": _co2}
    energy = [Column[ResultRow]("co2_grams", "g CO2e per million", missing="energy was not measured", form=plain)]
    columns = [
        *identity_columns(view),
        Column("accuracy", "Accuracy %", form=percent),
        Column("label_loyalty", "Label loyalty %", missing=alone, form=percent),
        Column("probability_loyalty", "Probability loyalty %", missing=alone, form=percent),
        Column("samples_per_s", "Samples/s", missing=UNTIMED, form=plain),
        Column("params_multiplied", "multiplied", missing=unsaid, group=above, form=millions),
        Column("params_looked_up", "looked up", missing=unsaid, group=above, form=millions),
        Column("disk_bytes", "On disk MiB", missing="the method stores nothing of its own", form=mib),
        Column("host_peak_bytes", "Host peak MiB", missing="the run did not record it", form=mib),
        Column("train_seconds", "Training s", missing=UNTRAINED, form=plain),
        Column("train_flops", f"Training {unit}FLOPs", missing=UNTRAINED, form=_per(divisor)),
        *(energy if any(finite(row.joules_per_1000) for row in rows) else []),
    ]
    notes = [
        "Label loyalty: share of test samples with the reference's label, right or wrong. Probability loyalty: mean of "
        "1 - sqrt(JS) between both distributions, base 2. Looked-up parameters are in tables of which an answer reads single "
        "rows; all others are multiplied. Training includes that of a teacher."
    ]
    if any(finite(row.joules_per_1000) for row in rows):
        notes.append(f"CO2: the measured energy at {GRAMS} g per kWh, the world mean (IEA 2019), without training.")
    csv = (*IDENTITY, *(column.key for column in columns[len(identity_columns(view)) :]), "marks")
    return dataset_table("loyalty", "Loyalty and size", group, rows, columns, csv, notes, values=values)


def _multiplied(row: ResultRow) -> float | None:
    return row.params - row.params_looked_up if finite(row.params) and finite(row.params_looked_up) else None


def _co2(row: ResultRow) -> float | None:
    """Return the grams of CO2 equivalent for a million samples."""
    return row.joules_per_1000 * 1000 / 3.6e6 * GRAMS if finite(row.joules_per_1000) else None


def _single(row: ResultRow) -> Latency | None:
    return row.latency.get(1)


def _best(row: ResultRow) -> Latency | None:
    """Return the latencies of the batch size with most samples per second, by its median; None where none was measured."""
    known = [one for one in row.latency.values() if finite(one.p50) and one.p50 > 0]
    return max(known, key=lambda one: one.batch_size / one.p50, default=None)


def _of_latency(choose: Callable[[ResultRow], Latency | None], name: str) -> Value:
    return lambda row: getattr(choose(row), name, None)


def _per(divisor: float) -> Callable[[object], str]:
    """Return the form of a value in units of ``divisor``."""
    return lambda value: plain(value / divisor if finite(value) else None)


def _notes(rows: Sequence[ResultRow]) -> list[str]:
    notes = from_text_note(rows)
    counts = [one.n for row in rows for one in (_single(row), _best(row)) if one is not None]
    if counts:
        text = (
            "Latency of a batch from ids to answers, in milliseconds; best batch: the size with most samples per second"
        )
        if min(counts) < _ENOUGH:
            text += f"; quantiles of as few as {whole(min(counts))} batches, whose 99th percentile is among the slowest"
        notes.append(text + ".")
    if any(finite(row.host_peak_bytes) or finite(row.peak_memory_bytes) for row in rows):
        notes.append(
            "Peaks are those of the whole process during passes of the row (in older results, of the reference, too). Weights of "
            "other methods that it holds count, so that a small model may have a large peak: compare sizes on disk."
        )
    if any(finite(row.train_flops) for row in rows):
        notes.append(
            "Training FLOPs are those of the layers, forward and backward, counted while fitting (linear convention). They include "
            "the fine-tuning of the model that a method starts or learns from, and the passes of that model beside a student."
        )
    return notes


TABLES = (
    DatasetTable(
        "ownership", 50, "Cost of ownership: latency, throughput, memory, energy, size, training", ownership_table
    ),
    DatasetTable("loyalty", 55, "Loyalty to the reference, size and training", loyalty_table),
)
