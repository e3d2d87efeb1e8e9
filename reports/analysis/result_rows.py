"""From results to rows: one row per dataset, method, operating point and setting, averaged over seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from statistics import fmean
from typing import Any

from harness.measure.statistics import Spread, spread
from harness.results.schema import Cell, Checks, Latency, Overlaps, Result, SpeedupFactors, Training
from harness.results.training_doubts import collapsed_exits, kept_the_last_epoch
from reports.analysis.cell_settings import SAME_REFERENCE, SETTING, grouped, values_of
from reports.analysis.roles import role_of
from reports.analysis.time_ratios import Noise, mean_over_seeds, noise_band, slow_rows
from reports.notation.numbers import percent, ratio

FALLBACK_REFERENCE = "bert"
SAME_NOISE = ("slug", "device", "conditions")  # what rows must share for the noise of their times to be one
# What rows must share for passes of their reference to take the same time.
SAME_PACE = ("slug", "device", "protocol", "order", "batch_size", "batch_tokens", "dtype", "conditions")


@dataclass(frozen=True, kw_only=True)
class SeedMeans:
    """Means over the seeds of a row, of finite values only; None where there are none. Units are those of the result schema."""

    accuracy: float | None
    accuracy_low: float | None
    accuracy_high: float | None
    macro_f1: float | None
    calibration_error: float | None
    flops_linear: float | None
    flops_full: float | None
    params: float | None
    params_looked_up: float | None
    label_loyalty: float | None
    probability_loyalty: float | None
    mean_layers: float | None
    mean_heads: float | None
    depth: float | None
    valid_token_ratio: float | None
    samples_per_s: float | None
    samples_per_s_from_text: float | None
    seconds: float | None
    speedup: float | None
    train_seconds: float | None
    steps: float | None
    passes_ratio: float | None
    dev_accuracy: float | None
    peak_memory_bytes: float | None
    tokens_per_s: float | None
    layer_passes: float | None
    train_flops: float | None
    disk_bytes: float | None
    host_peak_bytes: float | None
    joules_per_1000: float | None
    unseen_tokens: float | None


MEANS = tuple(one.name for one in fields(SeedMeans))


@dataclass(frozen=True, kw_only=True)
class ResultRow(SeedMeans):
    """One row of a report; rows of tests and comparisons extend it.

    Attributes:
        dataset, synthetic, language, kind, role, method, point: what was measured.
        source, ..., compute: the settings of the cells (:data:`reports.analysis.cell_settings.SETTING`).
        conditions: name of the cells of this dataset that it belongs to; empty if all of them belong together.
        cells: the cells behind the row, one per seed.
        accuracy_sd, samples_per_s_sd, speedup_sd: standard deviations over seeds; None below two.
        accuracy_seeds_low, accuracy_seeds_high: 95 % interval of the mean accuracy over seeds, cut at 0 and 1.
        speedup_p10, speedup_p90: the envelope over seeds, so that an average never looks steadier than its parts.
        timed: seeds that were timed; times, speed-ups and latency are means over these, all others over all seeds.
        n, rounds, rounds_agree, ..., engine_difference, overlaps: the worst over seeds; None where not checked.
        left_out, factors: whether a mean leaves out values that are not finite; of the speed-up, geometric means over seeds.
        latency: batch size -> quantiles in seconds, means over seeds, and the fewest batches behind them.
        round_seconds, reference_seconds: single passes, one list per seed.
        together: most cells that were timed beside the same passes of the reference, 1 for none.
        point_params, seed_layers, seed_accuracies: parameters of the operating point, mean layers and accuracy, one per seed.
        histogram: samples that exit at layer 1, 2, ..., over all seeds.
        answered_before: share of samples that were answered before layer 1, 0..1; None where none was, or without layers.
        phases: shares of a pass, means over seeds.
        slug, label: of the dataset, for file names and for readers.
        is_reference, ratio_reference, reference_depth: the reference of the same run, if there is one.
        ratio_linear, ratio_full, ratio_layers: cost of the reference over the row's; kept: speed-up over ``ratio_linear``.
        noise: A/A band of the dataset on this device.
        trained_in, fit_threads: precision (with torch) and threads of training, as text; empty if nothing was trained or recorded.
        threads: CPU threads while measuring; None where not recorded.
        kept_epoch: epoch that was kept, of those allowed, e.g. ``3 of 5``; empty where the last one is kept by rule.
        last_epoch: whether the best epoch of a seed is the last one allowed.
        collapsed: a phrase for every head that collapsed (:mod:`harness.results.training_doubts`).
        classes, max_length: of the dataset, and tokens per sample; 0 where not recorded.
        slow: the machine was slower than for other rows while a seed was timed (:func:`reports.analysis.time_ratios.slow_rows`).
        samples_missing, partial, marks: what a reader must know (:mod:`reports.notation.marks`).
    """

    dataset: str
    synthetic: bool
    language: str
    kind: str
    role: str | None
    method: str
    point: str
    source: str
    backbone: str
    protocol: str
    order: str
    executor: str
    batch_size: int
    batch_tokens: int
    device: str
    dtype: str
    compute: str
    engine: str | None
    conditions: str
    cells: tuple[Cell, ...]
    accuracy_sd: float | None
    samples_per_s_sd: float | None
    speedup_sd: float | None
    accuracy_seeds_low: float | None
    accuracy_seeds_high: float | None
    speedup_p10: float | None
    speedup_p90: float | None
    n: int
    seeds: int
    timed: int
    rounds: int | None
    rounds_agree: float | None
    batches_agree: float | None
    state_unchanged: bool | None
    syncs: int | None
    engine_agrees: float | None
    engine_exits: float | None
    engine_difference: float | None
    overlaps: Overlaps | None
    left_out: bool
    factors: SpeedupFactors | None
    latency: dict[int, Latency]
    round_seconds: list[list[float]]
    reference_seconds: list[list[float]]
    together: int
    point_params: list[dict[str, Any]]
    seed_layers: list[float]
    seed_accuracies: list[float]
    reference: str | None
    histogram: list[int]
    answered_before: float | None
    phases: dict[str, float | None]
    notes: list[str]
    trained_in: str = ""
    fit_threads: str = ""
    threads: int | None = None
    kept_epoch: str = ""
    last_epoch: bool = False
    collapsed: tuple[str, ...] = ()
    classes: int = 0
    max_length: int = 0
    slug: str = ""
    label: str = ""
    is_reference: bool = False
    ratio_reference: str | None = None
    reference_depth: float | None = None
    ratio_linear: float | None = None
    ratio_full: float | None = None
    ratio_layers: float | None = None
    kept: float | None = None
    noise: Noise | None = None
    slow: bool = False
    samples_missing: bool = False
    partial: bool = False
    marks: str = ""

    @property
    def data(self) -> str:
        return "synthetic" if self.synthetic else "real"

    @property
    def base(self) -> str:
        """The operating point without its variant: ``speed=0.5`` of ``speed=0.5/once``."""
        return self.point.partition("/")[0]

    @property
    def variant(self) -> str:
        """The variant of the operating point: ``once`` of ``speed=0.5/once``; empty where there is none."""
        return self.point.partition("/")[2]

    @property
    def seed_list(self) -> str:
        return " ".join(str(seed) for seed in sorted(cell.seed for cell in self.cells))

    @property
    def noise_high(self) -> float | None:
        return self.noise.high if self.noise else None


def _numbers(result: Result) -> dict[str, float | None]:
    """Return one result's value of everything in :data:`MEANS`."""
    found: dict[str, float | None] = dict.fromkeys(MEANS)
    for part in (result, result.quality, result.cost, result.speed, result.resources, result.loyalty):
        found.update({name: getattr(part, name) for name in MEANS if hasattr(part, name)})
    if not result.cost.depth:  # a model without layers
        found.update(dict.fromkeys(("depth", "mean_layers", "mean_heads")))
    if (training := result.training) is not None:
        found.update(train_seconds=training.seconds, train_flops=training.flops, layer_passes=training.layer_passes)
        found.update(passes_ratio=training.passes_ratio, dev_accuracy=training.dev_accuracy, steps=training.steps)
    return found


def _finite(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]


def _worst(pick: Callable[..., Any], checks: Sequence[Checks], name: str) -> Any:
    return pick((value for one in checks if (value := getattr(one, name)) is not None), default=None)


def _mean(values: Sequence[float | None]) -> float | None:
    good = _finite(values)
    return fmean(good) if good else None


def _spread(values: Sequence[float | None]) -> Spread:
    good = _finite(values)
    return spread(good) if good else Spread(math.nan, None, None, None, 0)


def average_over_seeds(results: Sequence[Result], conditions: Mapping[Cell, str]) -> list[ResultRow]:
    """Return one row for all cells that differ in nothing but the seed, and belong together.

    Args:
        results: of a run.
        conditions: cell -> name of what it belongs to in its dataset (:mod:`reports.analysis.conditions`).
    """
    names = ("dataset", "method", "point", *SETTING)
    together = grouped(results, lambda one: (one.synthetic, conditions[one.cell], values_of(one.cell, names)))
    return [_row(same, name) for (_, name, _), same in together.items()]


def _row(same: Sequence[Result], conditions: str) -> ResultRow:
    first = same[0]
    every = [_numbers(result) for result in same]
    of_seeds = _spread([one["accuracy"] for one in every])
    low, high = (None if end is None else min(1.0, max(0.0, end)) for end in (of_seeds.low, of_seeds.high))
    speeds, checks = [one.speed for one in same if one.speed is not None], [result.checks for result in same]
    unchanged = [one.state_unchanged for one in checks if one.state_unchanged is not None]
    histograms = [result.exit_histogram for result in same]
    fits = [result.training for result in same if result.training is not None]
    about = first.cell.model_dump(exclude={"seed"}) | {name: _mean([one[name] for one in every]) for name in MEANS}
    return ResultRow(
        synthetic=first.synthetic,
        language=first.language,
        kind=first.kind,
        role=role_of(first),
        conditions=conditions,
        cells=tuple(result.cell for result in same),
        accuracy_sd=of_seeds.sd,
        samples_per_s_sd=_spread([one["samples_per_s"] for one in every]).sd,
        speedup_sd=_spread([one["speedup"] for one in every]).sd,
        accuracy_seeds_low=low,
        accuracy_seeds_high=high,
        speedup_p10=min(_finite([one.speedup_p10 for one in speeds]), default=None),
        speedup_p90=max(_finite([one.speedup_p90 for one in speeds]), default=None),
        n=min(result.quality.n for result in same),
        seeds=len(same),
        timed=len(speeds),
        rounds=min((one.rounds for one in speeds), default=None),
        rounds_agree=_worst(min, checks, "rounds_agree"),
        batches_agree=_worst(min, checks, "batches_agree"),
        state_unchanged=all(unchanged) if unchanged else None,
        syncs=_worst(max, checks, "syncs"),
        engine_agrees=_worst(min, checks, "engine_agrees"),
        engine_exits=_worst(min, checks, "engine_exits"),
        engine_difference=_worst(max, checks, "engine_difference"),
        overlaps=_most([result.overlaps for result in same if result.overlaps is not None]),
        left_out=any(value is not None and not math.isfinite(value) for one in every for value in one.values()),
        factors=mean_over_seeds([result.speedup_factors for result in same if result.speedup_factors is not None]),
        latency=_latency([one for result in same for one in result.latency]),
        round_seconds=[one.speed.round_seconds if one.speed else [] for one in same],
        reference_seconds=[one.speed.reference_seconds if one.speed else [] for one in same],
        together=max((one.together for one in speeds), default=1),
        point_params=[result.params for result in same],
        seed_layers=[result.cost.mean_layers for result in same],
        seed_accuracies=[result.quality.accuracy for result in same],
        reference=next((one.reference for one in speeds if one.reference), None),
        histogram=[sum(one[i] for one in histograms if i < len(one)) for i in range(max(map(len, histograms)))],
        answered_before=first.cost.depth
        and fmean(result.answered_before / result.quality.n for result in same)
        or None,
        phases={
            name: _mean([one.phases.get(name) for one in speeds])
            for name in sorted({name for one in speeds for name in one.phases})
        },
        notes=sorted({note for result in same for note in result.notes}),
        trained_in=_listed(one.precision and one.precision + f" (torch {one.torch})" * bool(one.torch) for one in fits),
        fit_threads=_listed(one.threads for one in fits),
        threads=first.fingerprint.get("torch_threads"),
        kept_epoch=_kept_epochs(fits),
        last_epoch=any(map(kept_the_last_epoch, fits)),
        collapsed=tuple(
            f"head {one.exit} has {percent(one.accuracy)} % on dev, head {one.better} {percent(one.better_accuracy)} %"
            for fit in fits
            for one in collapsed_exits(fit)
        ),
        classes=len(first.label_names),
        max_length=first.binding.max_length if first.binding else 0,
        **about,
    )


def _listed(values: Iterable[object]) -> str:
    """Return the distinct known values as text, in order of appearance."""
    return ", ".join(dict.fromkeys(str(value) for value in values if value is not None))


def _kept_epochs(fits: Sequence[Training]) -> str:
    """Return the kept epochs of the seeds, of those allowed; empty where the last one is always kept."""
    kept = _listed(one.best_epoch for one in fits)
    allowed = _listed(one.epochs for one in fits)
    return f"{kept} of {allowed}" if kept and allowed else kept


def _most(every: Sequence[Overlaps]) -> Overlaps | None:
    names = Overlaps.model_fields
    return Overlaps(**{name: max(getattr(one, name) for one in every) for name in names}) if every else None


def _latency(every: Sequence[Latency]) -> dict[int, Latency]:
    found = grouped(every, lambda one: one.batch_size)
    return {
        size: Latency(
            batch_size=size,
            n=min(one.n for one in same),
            **{name: fmean(getattr(one, name) for one in same) for name in ("p50", "p90", "p99")},
        )
        for size, same in sorted(found.items())
    }


def with_ratios(rows: Sequence[ResultRow]) -> list[ResultRow]:
    """Return the rows with FLOPs and layer ratios to the reference of the same run, matched on :data:`SAME_REFERENCE`."""
    found = []
    named = {(row.slug, row.conditions): row.reference for row in rows if row.reference}  # by rows that were timed
    for row in rows:
        name = row.reference or named.get((row.slug, row.conditions), FALLBACK_REFERENCE)
        # Nearest setting first; among a reference's own points, its full depth.
        best = max(
            (
                other
                for other in rows
                if (other.method, other.slug) == (name, row.slug)
                and values_of(other, SAME_REFERENCE) == values_of(row, SAME_REFERENCE)
            ),
            key=lambda o: (o.order == row.order, o.batch_size == row.batch_size, o.mean_layers or 0.0),
            default=None,
        )
        row = replace(row, is_reference=row.method == name)
        if best is not None:
            linear = ratio(best.flops_linear, row.flops_linear)
            row = replace(
                row,
                ratio_reference=name,
                reference_depth=best.depth,
                ratio_linear=linear,
                ratio_full=ratio(best.flops_full, row.flops_full),
                ratio_layers=ratio(best.mean_layers, row.mean_layers),
                kept=ratio(row.speedup, linear),
            )
        found.append(row)
    return found


def reference_passes(rows: Sequence[ResultRow]) -> dict[tuple[Hashable, ...], list[list[float]]]:
    """Return :data:`SAME_NOISE` of a row -> the reference seconds of each cell; those that cells share are there once."""
    found = {}
    for key, some in grouped(rows, lambda row: values_of(row, SAME_NOISE)).items():
        shared = dict.fromkeys(tuple(passes) for row in some if row.together > 1 for passes in row.reference_seconds)
        own = [passes for row in some if row.together == 1 for passes in row.reference_seconds]
        found[key] = [*own, *map(list, shared)]
    return found


def with_noise(rows: Sequence[ResultRow]) -> list[ResultRow]:
    """Return the rows with the A/A band of their dataset and device."""
    bands = {key: noise_band(passes) for key, passes in reference_passes(rows).items()}
    return [replace(row, noise=bands[values_of(row, SAME_NOISE)]) for row in rows]


def with_pace(rows: Sequence[ResultRow]) -> list[ResultRow]:
    """Return the rows with whether the machine was slower than usual while they were timed."""
    alike = grouped(range(len(rows)), lambda at: values_of(rows[at], SAME_PACE)).values()
    slow = {
        at: found
        for some in alike
        for at, found in zip(some, slow_rows([rows[i].reference_seconds for i in some]), strict=True)
    }
    return [replace(row, slow=slow[at]) for at, row in enumerate(rows)]
