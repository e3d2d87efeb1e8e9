"""Does prediction beat its controls? Paired tests on the same samples, and what they say in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from harness.measure.statistics import holm, paired
from harness.results.schema import Cell
from reports.notation.numbers import fixed, p_value, plain, points, times

SEQUENTIAL = "control-sequential"
ALPHA = 0.05
# Layer ratios inside this band count as the same cost.
SAME_COST = (0.95, 1.05)
# A verified exit is meant to keep up with the sequential one: at most this much less accurate, at most 5 % more layers.
CLOSE_ACCURACY = 0.002
# What must be the same for a pair to be comparable; the executor belongs to the method.
SAME = ("slug", "source", "backbone", "protocol", "order", "batch_size", "batch_tokens", "device", "dtype", "compute")

Reader = Callable[[Cell], "pd.DataFrame | None"]


def is_predictive(row: Mapping[str, Any]) -> bool:
    """Whether a row's method claims that predicting exits pays: the family of ``geep``."""
    name = row["method"]
    return row["kind"] == "method" and (name == "geep" or name.startswith("geep-"))


def is_verified(row: Mapping[str, Any]) -> bool:
    """Whether a predictive row checks its exits with a head, so that its one rival is the sequential exit."""
    return "verified" in str(row["method"])


def _matching(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Control name -> index of its row at the same point, or at its base (``speed=0.5`` of ``speed=0.5/once``)."""
    base = row["point"].partition("/")[0]
    found: dict[str, tuple[tuple[bool, bool], int]] = {}
    for index, other in enumerate(rows):
        if other["kind"] != "control" or any(other[name] != row[name] for name in SAME):
            continue
        if other["point"] not in (row["point"], base) or (is_verified(row) and other["method"] != SEQUENTIAL):
            continue
        rank = (other["point"] == row["point"], other["executor"] == row["executor"])
        if other["method"] not in found or rank > found[other["method"]][0]:
            found[other["method"]] = (rank, index)
    return {name: index for name, (_, index) in sorted(found.items())}


def compare_with_controls(
    rows: Sequence[Mapping[str, Any]], members: Sequence[Sequence[Cell]], read: Reader
) -> list[dict[str, Any]]:
    """Every predictive row against every control that mirrors it.

    Args:
        rows: rows of the view.
        members: the cells (one per seed) behind each row.
        read: per-sample rows of a cell.
    """
    verdicts: list[dict[str, Any]] = []
    for index, row in enumerate(rows):
        if not is_predictive(row):
            continue
        for name, other_index in _matching(row, rows).items():
            other = rows[other_index]
            ours, theirs, seeds = series_of(members[index], members[other_index], read)
            verdict = {
                **{key: row[key] for key in ("label", "dataset", "data", "method", "point", "executor", *SAME)},
                "kind": row["kind"],
                "control": name,
                "control_point": other["point"],
                "verified": is_verified(row),
                "seeds": len(seeds),
                **paired(ours, theirs),
                "accuracy": row["accuracy"],
                "control_accuracy": other["accuracy"],
                "mean_layers": row["mean_layers"],
                "control_layers": other["mean_layers"],
                "layer_ratio": _ratio(row["mean_layers"], other["mean_layers"]),
                "mean_heads": row["mean_heads"],
                "control_heads": other["mean_heads"],
                "speed_ratio": _ratio(row["samples_per_s"], other["samples_per_s"]),
            }
            verdicts.append(verdict)
    _judge(verdicts)
    return verdicts


def _ratio(ours: float | None, theirs: float | None) -> float | None:
    """``ours / theirs``; None where either is missing."""
    return ours / theirs if ours is not None and theirs else None


def series_of(
    ours: Sequence[Cell], theirs: Sequence[Cell], read: Reader
) -> tuple[list[pd.Series], list[pd.Series], list[int]]:
    """Correctness of both sides for every seed that both have and can be read, and these seeds."""
    by_seed = {cell.seed: cell for cell in theirs}
    left, right, seeds = [], [], []
    for cell in ours:
        if cell.seed not in by_seed:
            continue
        a, b = read(cell), read(by_seed[cell.seed])
        if a is not None and b is not None:
            left.append(a["correct"])
            right.append(b["correct"])
            seeds.append(cell.seed)
    return left, right, seeds


def _judge(verdicts: list[dict[str, Any]]) -> None:
    """Add ``p_holm`` (family: the comparisons of one dataset), ``verdict`` and ``sentence``."""
    for slug in dict.fromkeys(v["slug"] for v in verdicts):
        tested = [v for v in verdicts if v["slug"] == slug and v["p"] is not None]
        for verdict, adjusted in zip(tested, holm([v["p"] for v in tested]), strict=True):
            verdict["p_holm"] = adjusted
    for verdict in verdicts:
        verdict.setdefault("p_holm", None)
        verdict["verdict"] = _word(verdict)
        verdict["close"] = bool(
            verdict["difference"] is not None
            and verdict["difference"] >= -CLOSE_ACCURACY - 1e-12
            and verdict["layer_ratio"] is not None
            and verdict["layer_ratio"] <= SAME_COST[1]
        )
        verdict["sentence"] = sentence(verdict)


def _word(verdict: Mapping[str, Any]) -> str:
    if verdict["p_holm"] is None:
        return "cannot be compared with"
    if verdict["p_holm"] >= ALPHA or verdict["difference"] == 0:
        return "no better than"
    if verdict["difference"] < 0:
        return "worse than"
    ratio = verdict["layer_ratio"]
    return "beats, with more layers," if ratio is not None and ratio > SAME_COST[1] else "beats"


def sentence(verdict: Mapping[str, Any]) -> str:
    """One comparison in words."""
    word = verdict["verdict"]
    verb = word if word.startswith(("beats", "cannot")) else f"is {word}"
    if word.startswith("cannot"):
        return (
            f"{verdict['method']} at {verdict['point']} {verb} {verdict['control']}: its per-sample rows are missing."
        )
    text = (
        f"{verdict['method']} at {verdict['point']} {verb} {verdict['control']}: {points(verdict['difference'], 2)} "
        f"points of accuracy (adjusted p {p_value(verdict['p_holm'])}) at {times(verdict['layer_ratio'])} its layers"
    )
    if verdict["verified"]:
        text += (
            f" and {plain(verdict['mean_heads'])} heads a sample instead of {plain(verdict['control_heads'])}; "
            f"{'keeps up' if verdict['close'] else 'does not keep up'} ({_tolerance()})"
        )
    return text + "."


def headlines(verdicts: pd.DataFrame) -> list[str]:
    """One sentence per dataset and method: which controls it beats, and at how many of its points."""
    lines: list[str] = []
    if not len(verdicts):
        return lines
    for (label, method), part in verdicts.groupby(["label", "method"], sort=False):
        won, lost = _count(part, "beats"), _count(part, "worse than")
        dearer, unknown = _count(part, "beats, with more layers,"), _count(part, "cannot be compared with")
        if part["verified"].all():
            clauses = [
                f"keeps up with {SEQUENTIAL} ({_tolerance()}) at {int(part['close'].sum())} of {len(part)} points"
            ]
            clauses += [f"beats {won}"] if won else []
        else:
            clauses = [f"beats {won}" if won else "beats none of its controls"]
        clauses += [f"is worse than {lost}"] if lost else []
        clauses += [f"beats, but with more layers, {dearer}"] if dearer else []
        clauses += [f"cannot be compared with {unknown}"] if unknown else []
        rest = int(part["verdict"].eq("no better than").sum())
        clauses += [f"is no better in {rest} of {len(part)} comparisons"] if rest and not part["verified"].all() else []
        lines.append(f"{label}: {method} {'; '.join(clauses)}.")
    return lines


def _tolerance() -> str:
    return f"at most {fixed(100 * CLOSE_ACCURACY, 1)} points less accurate and 5 % more layers"


def _count(part: pd.DataFrame, verdict: str) -> str:
    """``control-a at 2 of 3 points, control-b at 1 of 3 points`` for one verdict; empty where there is none."""
    told = []
    for control, mine in part.groupby("control", sort=True):
        if count := int(mine["verdict"].eq(verdict).sum()):
            told.append(f"{control} at {count} of {len(mine)} points")
    return ", ".join(told)
