"""Every method against ``bert``, ``fastbert``, whom the profile names and, a variant, what it is like: paired tests, and whether it
is faster and not worse."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from harness.measure.statistics import bootstrap_difference, faster_and_not_worse, holm, paired, self_ratios
from harness.results.schema import Cell
from reports.analysis.control_tests import ALPHA, SAME, Reader, series_of
from reports.analysis.noise import FEWEST, usable
from reports.notation.marks import together
from reports.notation.numbers import finite

RIVALS = ("bert", "fastbert")
# Accuracy that a method may lose and still count as not worse.
MARGIN = 0.005
# Steady to about 0.02 points on a thousand rows, and quick enough for hundreds of comparisons.
RESAMPLES = 10_000
DRAWS = 4_000
MEASURED, RATIO = "measured", "ratio of speed-ups"

Record = Mapping[str, Any]


def compare_with_rivals(
    rows: Sequence[Record],
    members: Sequence[Sequence[Cell]],
    read: Reader,
    named: Mapping[str, Sequence[str]] | None = None,
) -> list[dict[str, Any]]:
    """Every row of kind method against every rival that its dataset has.

    The rival's row shares dataset and setting, how blocks are run aside. Its point is the same, or its base (``speed=0.5`` of
    ``speed=0.5/once``); where its points are of another kind (speeds against budgets), the nearest in mean layers; where one of
    the two has nothing to choose, the rival's most accurate one. ``rival_point`` is None where there is none.

    Args:
        rows: rows of the view, with their marks and noise.
        members: the cells (one per seed) behind each row.
        read: per-sample rows of a cell.
        named: method -> rivals beside :data:`RIVALS`.

    Returns:
        One record per (row, rival): ``difference`` (accuracy minus the rival's, 0..1) with its 95 % interval
        (``difference_low``, ``difference_high``), ``p``, ``p_holm`` (family: one method and one rival, over datasets and
        points, real and synthetic data apart), ``pairs`` (test rows), ``rival_speedup``, and of the worst seed what
        :func:`harness.measure.statistics.faster_and_not_worse` says.
    """
    pairs = _aa_pairs(rows)
    found: list[dict[str, Any]] = []
    for index, row in enumerate(rows):
        if row["kind"] != "method":
            continue
        for rival in dict.fromkeys((*RIVALS, *(named or {}).get(row["method"], ()))):
            if row["method"] == rival or not any(o["method"] == rival and o["slug"] == row["slug"] for o in rows):
                continue
            at = _rival_of(row, rival, rows)
            record = {
                key: row[key] for key in ("label", "data", "dataset", "kind", "method", "point", "executor", *SAME)
            }
            record.update(rival=rival, rival_point=None, accuracy=row["accuracy"], rival_accuracy=None)
            record.update(noise=row["noise"], noise_high=row["noise_high"], marks=row["marks"])
            if at is None:
                found.append({**record, "seeds": 0, **_accuracies([], []), **_speedup(row, {}), **_UNJUDGED})
                continue
            other = rows[at]
            left, right, seeds = series_of(members[index], members[at], read)
            record.update(rival_point=other["point"], rival_accuracy=other["accuracy"])
            record["marks"] = together(row["marks"], other["marks"])
            record.update(seeds=len(seeds), **_accuracies(left, right), **_speedup(row, other))
            times = _round_ratios(row, members[index], other, members[at])
            noise = pairs[row["slug"], row["device"]][record["speed_from"] or MEASURED]
            found.append({**record, **_judged(left, right, [times.get(seed) for seed in seeds], noise)})
    _adjust(found)
    return found


def _rival_of(row: Record, rival: str, rows: Sequence[Record]) -> int | None:
    """Index of the rival's row that ``row`` is held against."""
    base = row["point"].partition("/")[0]
    alike = [name for name in SAME if name != "compute"]
    able = [i for i, o in enumerate(rows) if o["method"] == rival and all(o[name] == row[name] for name in alike)]
    near = [i for i in able if rows[i]["point"] in (row["point"], base)]
    settings = [i for i in able if "=" in rows[i]["point"]]

    def same_way(i: int) -> tuple[bool, bool]:
        return rows[i]["compute"] == row["compute"], rows[i]["executor"] == row["executor"]

    def accuracy(i: int) -> float:
        return rows[i]["accuracy"] if finite(rows[i]["accuracy"]) else -1.0

    if near:
        return max(near, key=lambda i: (rows[i]["point"] == row["point"], same_way(i), accuracy(i)))
    if "=" not in base or not settings:
        return max(able, key=lambda i: (accuracy(i), same_way(i)), default=None)
    mean = row["mean_layers"]
    if any(rows[i]["point"].partition("=")[0] == base.partition("=")[0] for i in settings) or not mean:
        return None  # that very speed was not measured of the rival
    apart = {i: abs(math.log(layers / mean)) for i in settings if (layers := rows[i]["mean_layers"])}
    return min(apart, key=lambda i: (apart[i], *(not yes for yes in same_way(i))), default=None)


def _accuracies(left: Sequence[pd.Series], right: Sequence[pd.Series]) -> dict[str, Any]:
    """The paired test and the interval of the difference."""
    record: dict[str, Any] = {**paired(left, right), "difference_low": None, "difference_high": None}
    if record["p"] is None:
        return record
    index = left[0].index
    for one in (*left[1:], *right):
        index = index if one.index.equals(index) else index.intersection(one.index)
    if len(index):
        ours, theirs = (np.stack([one.loc[index].to_numpy() for one in side]) for side in (left, right))
        low, high = bootstrap_difference(ours, theirs, 1 - ALPHA, RESAMPLES)
        record.update(difference_low=low, difference_high=high)
    return record


def _speedup(row: Record, other: Record) -> dict[str, Any]:
    """The speed-up over the rival: measured where the rival is the reference, else by way of the common reference."""
    mine, name = row["speedup"], row["reference"]
    if other and name and finite(mine):
        if name == other["method"]:
            return {"rival_speedup": mine, "speed_from": MEASURED}
        if name == other["reference"] and finite(other["speedup"]) and other["speedup"] > 0:
            return {"rival_speedup": mine / other["speedup"], "speed_from": RATIO}
    return {"rival_speedup": None, "speed_from": None}


def _aa_pairs(rows: Sequence[Record]) -> dict[tuple[str, str], dict[str, np.ndarray]]:
    """A/A log ratios by (dataset, device): of one ratio, and of a quotient of two, whose noises add."""
    series: dict[tuple[str, str], list[Sequence[float]]] = {}
    for row in rows:
        series.setdefault((row["slug"], row["device"]), []).extend(row["reference_seconds"])
    found = {}
    for key, passes in series.items():
        logs = self_ratios(usable(passes))
        logs = logs if len(logs) >= FEWEST else np.empty(0)
        rng = np.random.default_rng(0)
        draws = (2, DRAWS if len(logs) else 0)
        both = (rng.choice(logs, size=draws) * rng.choice((-1.0, 1.0), size=draws)).sum(0) if len(logs) else logs
        found[key] = {MEASURED: logs, RATIO: both}
    return found


def _round_ratios(
    row: Record, cells: Sequence[Cell], other: Record, other_cells: Sequence[Cell]
) -> dict[int, np.ndarray]:
    """Seed -> rival's seconds over own seconds, round by round; seeds without single passes are left out."""
    mine, theirs = _against_reference(row, cells), _against_reference(other, other_cells)
    common = [cell.seed for cell in other_cells if cell.seed in mine]
    if row["reference"] == other["method"]:
        return {seed: mine[seed] for seed in common}
    if row["reference"] != other["reference"]:
        return {}
    found = {}
    for seed in (seed for seed in common if seed in theirs):
        rounds = min(len(mine[seed]), len(theirs[seed]))
        found[seed] = mine[seed][:rounds] / theirs[seed][:rounds]
    return found


def _against_reference(row: Record, cells: Sequence[Cell]) -> dict[int, np.ndarray]:
    """Seed -> reference seconds over own seconds of each round."""
    found = {}
    for cell, own, reference in zip(cells, row["round_seconds"], row["reference_seconds"], strict=True):
        if row["reference"] and len(own) == len(reference) and len(usable([own, reference])) == 2:
            found[cell.seed] = np.asarray(reference) / np.asarray(own)
    return found


_UNJUDGED: dict[str, Any] = dict.fromkeys(("not_worse", "faster", "passed", "lowest_difference", "lowest_speedup"))


def _judged(
    left: Sequence[pd.Series], right: Sequence[pd.Series], ratios: Sequence[np.ndarray | None], noise: np.ndarray
) -> dict[str, Any]:
    """Faster and not worse, held against every seed alone; nothing where a half cannot be told of one of them.

    Seeds are not pooled: the bound counts a test row once, and a row under several seeds has no single answer.
    """
    if not left or not len(noise):
        return _UNJUDGED
    found = []
    for a, b, rounds in zip(left, right, ratios, strict=True):
        a, b = (a, b) if a.index.equals(b.index) else a.align(b, join="inner")
        if rounds is None or not len(a):
            return _UNJUDGED
        delta = a.to_numpy().astype(np.int8) - b.to_numpy()
        counts = int((delta > 0).sum()), int((delta < 0).sum()), len(delta)
        found.append(faster_and_not_worse(*counts, rounds.tolist(), noise, margin=MARGIN, alpha=ALPHA, draws=DRAWS))
    not_worse, faster = all(v.not_worse for v in found), all(v.faster for v in found)
    return {
        "not_worse": not_worse,
        "faster": faster,
        "passed": not_worse and faster,
        "lowest_difference": min(v.lowest_difference for v in found),
        "lowest_speedup": min(v.lowest_speedup for v in found),
    }


def _adjust(records: Sequence[dict[str, Any]]) -> None:
    """Add ``p_holm``."""
    families: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for record in records:
        record["p_holm"] = None
        if record["p"] is not None:
            families.setdefault((record["data"], record["method"], record["rival"]), []).append(record)
    for family in families.values():
        for record, adjusted in zip(family, holm([record["p"] for record in family]), strict=True):
            record["p_holm"] = adjusted
