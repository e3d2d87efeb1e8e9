"""What every exit head behind a row would answer, as an oracle on the same weights stored it, and exits by chance from that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from harness.measure.expected_exits import (
    expected_at_random,
    expected_at_two_depths,
    first_layer,
    share_of_deeper,
    unpack_layers,
)
from harness.results.rows.sample_columns import BEFORE_BIT, DEPTH_COLUMNS
from reports.analysis.result_rows import ResultRow
from reports.analysis.roles import ORACLE
from reports.analysis.run_contents import Reader
from reports.notation.numbers import finite

ACCURACY, AGREEMENT = "accuracy", "agreement"
MEASURES = (ACCURACY, AGREEMENT)
# Depths are chosen at the mean layers of dev; those of test may be up to this share of layers outside of them.
_BEYOND = 0.05
# Rounding may change single answers between batches; more than that, and the heads are others.
_SAME_HEADS = 0.99


@dataclass(frozen=True)
class LayerAnswers:
    """Answers of every head on some test rows.

    Attributes:
        good: measure -> bool [n, depth]: whether the head after layer 1, 2, ... is right, or agrees with full depth.
        before: measure -> bool [n]: the same of what answers before layer 1; empty if nothing does.
    """

    good: Mapping[str, np.ndarray]
    before: Mapping[str, np.ndarray] = field(default_factory=dict)

    def of(self, measure: str) -> np.ndarray:
        """Return ``good`` with what answers before layer 1 as column 0, bool [n, 1 + depth]; nothing there counts as wrong."""
        good = self.good[measure]
        return np.column_stack([self.before.get(measure, np.zeros(len(good), dtype=bool)), good])

    def belong_to(self, rows: pd.DataFrame) -> bool:
        """Return whether the answers of these rows (same test rows) are those of the heads at their exits."""
        return self.likeness(rows) >= _SAME_HEADS

    def likeness(self, rows: pd.DataFrame) -> float:
        """Return the share of these rows that are right or wrong as the heads at their exits are; 0 for exits without heads.

        Where nearly all answers are right, heads of other weights are alike, too: of several, the most alike are the row's.
        """
        layers = rows["exit_layer"].to_numpy().astype(np.int64)
        right = self.of(ACCURACY)
        if layers.min() < (0 if self.before else 1) or layers.max() >= right.shape[1]:
            return 0.0
        expected = right[np.arange(len(layers)), layers]
        return float((expected == rows["correct"].to_numpy()).mean())

    def at_random(self, measure: str, exits: pd.Series) -> np.ndarray:
        """Return the expectation per row if these exits are assigned at random, float [n]."""
        good = self.of(measure)
        return expected_at_random(good, np.bincount(exits.to_numpy(), minlength=good.shape[1]).tolist())

    def at_mix(self, measure: str, mix: Mix, mean_layers: float) -> np.ndarray:
        """Return the expectation per row of a two-depth mix with exactly these mean layers, float [n]."""
        return expected_at_two_depths(self.good[measure], *mix, share_of_deeper(mean_layers, *mix, _BEYOND) or 0.0)


def layer_answers(rows: pd.DataFrame, depth: int) -> LayerAnswers | None:
    """Return the answers that rows hold, such as those of an oracle; None for rows that have none."""
    if any(name not in rows for name in DEPTH_COLUMNS):
        return None
    masks = {measure: rows[name].to_numpy() for measure, name in zip(MEASURES, DEPTH_COLUMNS, strict=True)}
    found = LayerAnswers({measure: unpack_layers(mask, depth) for measure, mask in masks.items()})
    before = {measure: mask.astype(np.int64) >> BEFORE_BIT & 1 == 1 for measure, mask in masks.items()}
    return replace(found, before=before) if any(mask.any() for mask in before.values()) else found


def with_before(heads: LayerAnswers, own: LayerAnswers | None) -> LayerAnswers:
    """Return the answers of heads with those that a row's own samples have before layer 1."""
    return replace(heads, before=own.before) if own is not None and own.before else heads


Mix = tuple[int, int]  # shallow and deep layer, from 1


def mix_of(params: Mapping[str, Any]) -> Mix | None:
    """Return the two depths of a point of constant depth; None for one of an older version, which has a single rounded depth."""
    return (params["shallow"], params["deep"]) if {"shallow", "deep"} <= params.keys() else None


def mix_at(mean_layers: float, mixes: Sequence[Mix]) -> Mix | None:
    """Return the first of some mixes that can have these mean layers, else the first that nearly can; None if none can."""
    for beyond in (0.0, _BEYOND):
        for mix in mixes:
            if share_of_deeper(mean_layers, *mix, beyond) is not None:
                return mix
    return None


@dataclass(frozen=True)
class Reachable:
    """What a perfect predictor could reach on one dataset, means over seeds; accuracies 0..1, layers 1..depth.

    Attributes:
        full: accuracy of full depth.
        first: accuracy of the first head.
        agreeing_layers: mean first layer that agrees with full depth, whose accuracy is that of full depth.
        any_right: share of samples that any head gets right: the bound of accuracy.
        right_layers: mean first right layer; full depth for samples that none gets right.
        by_layer: layer from 1 that has a head -> its accuracy.
        marks: of the oracle's row.
    """

    data: str
    label: str
    dataset: str
    oracle: str
    depth: int
    seeds: int
    n: int
    full: float
    first: float
    agreeing_layers: float
    any_right: float
    right_layers: float
    by_layer: dict[int, float]
    marks: str

    @property
    def depth_worth(self) -> float:
        """Accuracy of full depth less that of the first head."""
        return self.full - self.first


def reachable(rows: Sequence[ResultRow], read: Reader) -> list[Reachable]:
    """Return the bounds of every oracle whose rows hold the answers of all heads, in the order of the rows."""
    found = []
    for row in rows:
        if row.role != ORACLE or not finite(row.depth):
            continue
        depth = int(row.depth)
        frames = [frame for cell in row.cells if (frame := read(cell)) is not None and len(frame)]
        every = [answers for frame in frames if (answers := layer_answers(frame, depth)) is not None]
        if not every:
            continue
        right = [one.good[ACCURACY] for one in every]
        agreeing = [one.good[AGREEMENT] for one in every]
        # Layers without a head have no bit in any row; the first head is the first layer that ever agrees.
        firsts = [int(one.any(0).argmax()) for one in agreeing]
        heads = [at for at in range(depth) if all(one[:, at].any() for one in agreeing)]
        found.append(
            Reachable(
                data=row.data,
                label=row.label,
                dataset=row.dataset,
                oracle=row.method,
                depth=depth,
                seeds=len(every),
                n=min(map(len, right)),
                full=float(np.mean([one[:, -1].mean() for one in right])),
                first=float(np.mean([one[:, at].mean() for one, at in zip(right, firsts, strict=True)])),
                agreeing_layers=float(np.mean([first_layer(one).mean() for one in agreeing])),
                any_right=float(np.mean([one.any(1).mean() for one in right])),
                right_layers=float(np.mean([first_layer(one).mean() for one in right])),
                by_layer={at + 1: float(np.mean([one[:, at].mean() for one in right])) for at in heads},
                marks=row.marks,
            )
        )
    return found
