"""From results to rows: one row per (dataset, method, point, setting), averaged over seeds."""

from __future__ import annotations

import math
from statistics import fmean
from typing import Any

from harness.measure.statistics import Spread, spread
from harness.results.schema import Cell, Latency, Overlaps, Result
from reports.analysis.cell_settings import SAME_REFERENCE, SETTING
from reports.analysis.noise import noise_band
from reports.figures.waterfall import over_seeds

FALLBACK_REFERENCE = "bert"


def flat(result: Result) -> dict[str, Any]:
    """One result as one flat row."""
    data: dict[str, Any] = {**result.cell.model_dump(), "kind": result.kind, "synthetic": result.synthetic}
    data.update(language=result.language, **result.quality.model_dump(), **result.cost.model_dump())
    speed = result.speed.model_dump()
    phases = speed.pop("phases")
    data.update(speed, phases=phases, **result.checks.model_dump())
    training, resources = result.training, result.resources
    data.update(
        **{name: getattr(resources, name, None) for name in ("disk_bytes", "host_peak_bytes", "joules_per_1000")},
        layer_passes=training.layer_passes if training else None,
        train_flops=training.flops if training else None,
        unseen_tokens=result.unseen_tokens,
        latency=result.latency,
        waterfall=result.speedup_factors,
        overlaps=result.overlaps,
        train_seconds=training.seconds if training else None,
        passes_ratio=training.passes_ratio if training else None,
        dev_accuracy=training.dev_accuracy if training else None,
        peak_memory_bytes=result.peak_memory_bytes,
        histogram=result.exit_histogram,
        settings=result.params,
    )
    return data


_MEANS = (
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "macro_f1",
    "flops_linear",
    "flops_full",
    "params",
    "mean_layers",
    "mean_heads",
    "depth",
    "valid_token_ratio",
    "samples_per_s",
    "seconds",
    "speedup",
    "train_seconds",
    "passes_ratio",
    "dev_accuracy",
    "peak_memory_bytes",
    "tokens_per_s",
    "layer_passes",
    "train_flops",
    "disk_bytes",
    "host_peak_bytes",
    "joules_per_1000",
    "unseen_tokens",
)


def _mean(values: list[Any]) -> float | None:
    """Mean of the finite values; None where there are none."""
    good = [value for value in values if value is not None and math.isfinite(value)]
    return fmean(good) if good else None


def _spread(values: list[Any]) -> Spread:
    """Deviation and interval of the mean of the finite values; None each below two of them."""
    good = [value for value in values if value is not None and math.isfinite(value)]
    return spread(good) if good else Spread(math.nan, None, None, None, 0)


def averaged(results: list[Result]) -> tuple[list[dict[str, Any]], list[list[Cell]]]:
    """Average cells that differ in nothing but the seed. Returns rows and the cells behind each."""
    together: dict[tuple[Any, ...], list[Result]] = {}
    for result in results:
        cell = result.cell
        key = (cell.dataset, result.synthetic, cell.method, cell.point, *(getattr(cell, name) for name in SETTING))
        together.setdefault(key, []).append(result)
    rows, members = [], []
    for same in together.values():
        every = [flat(result) for result in same]
        row = {
            name: every[0][name] for name in ("dataset", "synthetic", "language", "kind", "method", "point", *SETTING)
        }
        row["data"] = "synthetic" if row["synthetic"] else "real"
        row.update(seeds=len(every), seed_list=" ".join(str(seed) for seed in sorted(f["seed"] for f in every)))
        row.update({name: _mean([f[name] for f in every]) for name in _MEANS})
        for name in ("accuracy", "samples_per_s", "speedup"):
            row[f"{name}_sd"] = _spread([f[name] for f in every]).sd
        of_seeds = _spread([f["accuracy"] for f in every])
        for end in ("low", "high"):  # of a share, so what lies beyond 0 and 1 is cut off
            limit = getattr(of_seeds, end)
            row[f"accuracy_seeds_{end}"] = None if limit is None else min(1.0, max(0.0, limit))
        # Over seeds: the envelope, so that an average never looks steadier than its parts.
        low, high = (
            [v for f in every if (v := f[n]) is not None and math.isfinite(v)] for n in ("speedup_p10", "speedup_p90")
        )
        row.update(speedup_p10=min(low, default=None), speedup_p90=max(high, default=None))
        row.update(n=min(f["n"] for f in every), rounds=min(f["rounds"] for f in every))
        row.update(rounds_agree=min(f["rounds_agree"] for f in every), **_checks(every))
        row["left_out"] = any(f[name] is not None and not math.isfinite(f[name]) for f in every for name in _MEANS)
        row["waterfall"] = over_seeds([f["waterfall"] for f in every if f["waterfall"] is not None])
        row["latency"] = _latency([f["latency"] for f in every])
        row["round_seconds"] = [f["round_seconds"] for f in every]
        row["reference_seconds"] = [f["reference_seconds"] for f in every]
        row["reference"] = next((f["reference"] for f in every if f["reference"]), None)
        layers = max(len(f["histogram"]) for f in every)
        row["histogram"] = [sum(f["histogram"][i] for f in every if i < len(f["histogram"])) for i in range(layers)]
        phases = sorted({name for f in every for name in f["phases"]})
        row["phases"] = {name: _mean([f["phases"].get(name) for f in every]) for name in phases}
        row["settings"] = every[0]["settings"]
        row["notes"] = sorted({note for result in same for note in result.notes})
        rows.append(row)
        members.append([result.cell for result in same])
    return rows, members


def _checks(every: list[dict[str, Any]]) -> dict[str, Any]:
    """The worst over seeds of what was looked at; None where nothing was."""
    agree = [f["batches_agree"] for f in every if f["batches_agree"] is not None]
    unchanged = [f["state_unchanged"] for f in every if f["state_unchanged"] is not None]
    syncs = [f["syncs"] for f in every if f["syncs"] is not None]
    overlaps: list[Overlaps] = [f["overlaps"] for f in every if f["overlaps"] is not None]
    return {
        "batches_agree": min(agree, default=None),
        "state_unchanged": all(unchanged) if unchanged else None,
        "syncs": max(syncs, default=None),
        **{
            f"overlap_{name}": max((getattr(one, name) for one in overlaps), default=None)
            for name in Overlaps.model_fields
        },
    }


def _latency(every: list[list[Latency]]) -> dict[int, dict[str, float]]:
    """Batch size -> quantiles in seconds, means over seeds, and the fewest batches behind them."""
    found: dict[int, list[Latency]] = {}
    for latencies in every:
        for one in latencies:
            found.setdefault(one.batch_size, []).append(one)
    return {
        size: {
            "n": min(one.n for one in same),
            **{name: fmean(getattr(one, name) for one in same) for name in ("p50", "p90", "p99")},
        }
        for size, same in sorted(found.items())
    }


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def add_ratios(rows: list[dict[str, Any]]) -> None:
    """FLOPs and layer ratios to the reference of the same run, matched on :data:`SAME_REFERENCE`."""
    for row in rows:
        name = row["reference"] or FALLBACK_REFERENCE
        candidates = [
            other
            for other in rows
            if other["method"] == name
            and other["slug"] == row["slug"]
            and all(other[k] == row[k] for k in SAME_REFERENCE)
        ]
        # Nearest setting first; among a reference's own points, its full depth.
        best = max(
            candidates,
            key=lambda o: (o["order"] == row["order"], o["batch_size"] == row["batch_size"], o["mean_layers"] or 0.0),
            default=None,
        )
        row["is_reference"] = row["method"] == name
        row["ratio_reference"] = name if best else None
        row["reference_depth"] = best["depth"] if best else None
        for ratio, cost in (
            ("ratio_linear", "flops_linear"),
            ("ratio_full", "flops_full"),
            ("ratio_layers", "mean_layers"),
        ):
            row[ratio] = _ratio(best[cost], row[cost]) if best else None
        row["kept"] = _ratio(row["speedup"], row["ratio_linear"])


def add_noise(rows: list[dict[str, Any]]) -> None:
    """The A/A band of a dataset on a device, beside every ratio of its rows."""
    series: dict[tuple[str, str], list[list[float]]] = {}
    for row in rows:
        series.setdefault((row["slug"], row["device"]), []).extend(row["reference_seconds"])
    bands = {key: noise_band(passes) for key, passes in series.items()}
    for row in rows:
        row["noise"] = band = bands[row["slug"], row["device"]]
        row["noise_high"] = band.high if band else None
