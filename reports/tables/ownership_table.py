"""Cost of ownership of a method: latency, throughput, memory, energy, size, training."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from harness.results.schema import Latency
from reports.analysis.result_rows import ResultRow
from reports.analysis.view import Group, View
from reports.notation.numbers import finite, flops_unit, plain, times, whole
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
)
