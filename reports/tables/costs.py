"""What a method costs to have and to run: latency, throughput, memory, energy, size, training."""

from __future__ import annotations

from typing import Any

from reports.analysis.view import Group, View
from reports.notation.marks import footnotes
from reports.notation.numbers import DASH, finite, flops_unit, plain, times, whole
from reports.tables.formats import Column, Row, Table
from reports.tables.summary import IDENTITY, UNTRAINED, caption, identity_columns

NO_LATENCY = "latency was not measured"
_QUANTILES = ("p50", "p90", "p99")
# The 99th percentile of fewer batches is one of the few slowest, or between them.
_ENOUGH = 100


def ownership_table(view: View, group: Group) -> Table:
    """Cost of ownership of every row of a dataset."""
    frame = view.of(group).copy()
    best = [_best(latency) for latency in frame["latency"]]
    for name in (*_QUANTILES, "n"):
        frame[f"single_{name}"] = [latency.get(1, {}).get(name) for latency in frame["latency"]]
        frame[f"best_{name}"] = [
            latency[size][name] if size else None for latency, size in zip(frame["latency"], best, strict=True)
        ]
    frame["best_batch"] = best
    divisor, unit = flops_unit(max((value for value in frame["train_flops"] if finite(value)), default=0.0))
    columns = [
        *identity_columns(view, dataset=False),
        *(_latency(f"single_{name}", name, "Batch of 1, ms:") for name in _QUANTILES),
        Column("best_batch", "size", lambda r: whole(r["best_batch"]), missing=NO_LATENCY, group="Best batch, ms:"),
        *(_latency(f"best_{name}", name, "Best batch, ms:") for name in _QUANTILES),
        Column("samples_per_s", "Samples/s", lambda r: plain(r["samples_per_s"])),
        Column(
            "tokens_per_s", "Tokens/s", lambda r: plain(r["tokens_per_s"]), missing="not recorded by an older version"
        ),
        Column(
            "host_peak_bytes",
            "Host peak MiB",
            lambda r: _mib(r, "host_peak_bytes"),
            missing="the run did not record it",
        ),
        Column(
            "peak_memory_bytes",
            "CUDA peak MiB",
            lambda r: _mib(r, "peak_memory_bytes"),
            missing="measured on CUDA only",
        ),
        Column(
            "joules_per_1000",
            "J per 1,000 samples",
            lambda r: plain(r["joules_per_1000"]),
            missing="this machine has no energy counter that the run could read",
        ),
        Column("params", "Parameters M", lambda r: plain(r["params"] / 1e6) if finite(r["params"]) else DASH),
        Column("disk_bytes", "On disk MiB", lambda r: _mib(r, "disk_bytes"), missing="nothing of its own is stored"),
        Column("train_seconds", "Training s", lambda r: plain(r["train_seconds"]), missing=UNTRAINED),
        Column("passes_ratio", "Layer passes vs fine-tuning", lambda r: times(r["passes_ratio"]), missing=UNTRAINED),
        Column(
            "train_flops",
            f"Training {unit}FLOPs",
            lambda r: plain(r["train_flops"] / divisor) if finite(r["train_flops"]) else DASH,
            missing=f"{UNTRAINED}, or an older version did not count them",
        ),
    ]
    csv = (
        *IDENTITY,
        *(f"{which}_{name}" for which in ("single", "best") for name in (*_QUANTILES, "n")),
        *("best_batch", "samples_per_s", "tokens_per_s", "host_peak_bytes", "peak_memory_bytes", "joules_per_1000"),
        *("params", "disk_bytes", "train_seconds", "layer_passes", "passes_ratio", "train_flops", "marks"),
    )
    return Table(
        f"ownership-{group.slug}",
        caption("Cost of ownership", group),
        frame,
        columns,
        csv,
        _notes(frame.to_dict("records")) + footnotes(frame),
        split="kind",
    )


def _best(latency: dict[int, dict[str, float]]) -> int | None:
    """The batch size with most samples a second, by its median; None where none was measured."""
    known = {size: size / one["p50"] for size, one in latency.items() if finite(one["p50"]) and one["p50"] > 0}
    return max(known, key=lambda size: known[size], default=None)


def _latency(key: str, label: str, group: str) -> Column:
    def show(row: Row) -> str:
        return plain(1000 * row[key]) if finite(row[key]) else DASH

    return Column(key, label, show, missing=NO_LATENCY, group=group)


def _mib(row: Row, key: str) -> str:
    return plain(row[key] / 2**20) if finite(row[key]) else DASH


def _notes(records: list[dict[Any, Any]]) -> list[str]:
    notes = []
    counts = [r[name] for r in records for name in ("single_n", "best_n") if finite(r[name])]
    if counts:
        text = (
            "Latency of a batch from ids to answers, in milliseconds; best batch: the size with most samples a second"
        )
        if min(counts) < _ENOUGH:
            text += f"; quantiles of as few as {whole(min(counts))} batches, whose 99th percentile is among the slowest"
        notes.append(text + ".")
    if any(finite(r["train_flops"]) for r in records):
        notes.append(
            "Training FLOPs are those of the layers, forward and backward, counted while fitting (linear convention), with the "
            "fine-tuning of the model that a method starts or learns from, and its passes beside a student."
        )
    return notes
