"""Methods that predict exits against controls that ignore the text, on the same weights and at equal mean layers.

Every row is judged by accuracy and by agreement with full depth, against

* random exits with its own histogram, and the hull of constant depths (a mix of two depths, chosen on dev) with exactly its mean
  layers: both in exact expectation, from the answers of every head that an oracle cell stores;
* exits by length, measured, where its layers are equal;
* the sequential exit: does the row keep up, at no more layers? That is a bound on the loss, not a missing difference.

Runs of older versions have no answers of single heads: there, the measured random and constant controls take the place of the
expectations, where their layers are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from harness.measure.detectable import detectable_by_mcnemar, provable_margin
from harness.measure.paired_tests import mcnemar, mean_difference, worst_case
from reports.analysis.cell_settings import grouped, values_of
from reports.analysis.result_rows import ResultRow
from reports.analysis.roles import CONSTANT, ORACLE, PREDICTS, RANDOM, SEQUENTIAL, VERIFIES
from reports.analysis.run_contents import Reader, paired_samples
from reports.analysis.verdicts.layer_answers import (
    ACCURACY,
    AGREEMENT,
    MEASURES,
    LayerAnswers,
    Mix,
    layer_answers,
    mix_at,
    mix_of,
    with_before,
)
from reports.analysis.verdicts.paired_test import (
    ALPHA,
    FEWEST,
    MARGIN,
    SAME,
    PairedTest,
    standard_error,
    with_adjusted_p,
)
from reports.notation.marks import together
from reports.notation.numbers import ratio

# Layer ratios inside this band count as equal.
EQUAL_LAYERS = (0.95, 1.05)
# How the exact controls are called; measured ones are called by their method.
NAMES = {RANDOM: "random exits", CONSTANT: "hull of constant depths"}

AHEAD, BEHIND, NOT_FOUND, SAME_ANSWERS = "ahead", "behind", "no difference found", "same answers on all rows"
KEEPS_UP, NOT_SHOWN = "keeps up", "not shown to keep up"
UNEQUAL, UNKNOWN = "layers not equal", "cannot be computed"
NO_HEADS = (
    "the oracle has no answers of single layers (an older version, or its per-sample rows are missing): measure again"
)


@dataclass(frozen=True, kw_only=True)
class ControlTest(PairedTest):
    """A predicting row against one control, by one measure.

    Attributes:
        measure: ``accuracy``, or ``agreement`` with full depth.
        control_role: role of the control.
        control: how it is called.
        control_row: its measured row; None for an expectation.
        own_value, control_value: the measure of both sides, 0..1.
        control_layers: mean layers of the control.
        low, high: 95 % interval of the difference.
        worst: one-sided 95 % lower bound of the difference, of the worst seed (Tango); of measured controls only.
        deltas: the difference of each test row, mean over seeds, float [n]; for pooling.
        detectable: where the question is whether the row keeps up, the margin that would have been shown with 80 % power if both
            sides were equally good.
        reason: why nothing was computed; empty otherwise.
    """

    measure: str
    control_role: str | None
    control: str
    control_row: ResultRow | None
    own_value: float | None = None
    control_value: float | None = None
    control_layers: float | None = None
    low: float | None = None
    high: float | None = None
    worst: float | None = None
    deltas: np.ndarray | None = field(default=None, repr=False, compare=False)
    reason: str = ""

    @property
    def expected(self) -> bool:
        """Whether the control is an expectation."""
        return self.control_row is None

    @property
    def layer_ratio(self) -> float | None:
        return ratio(self.mean_layers, self.control_layers)

    @property
    def speed_ratio(self) -> float | None:
        return ratio(self.samples_per_s, self.control_row.samples_per_s) if self.control_row else None

    @property
    def asks_to_keep_up(self) -> bool:
        """Whether the question is "not worse" (the sequential exit) and not "better"."""
        return self.control_role == SEQUENTIAL

    @property
    def equal_layers(self) -> bool:
        """Whether layers are equal; for the sequential exit, whether the row runs no more."""
        low, high = EQUAL_LAYERS
        found = self.layer_ratio
        return found is not None and found <= high and (self.asks_to_keep_up or found >= low)

    @property
    def verdict(self) -> str:
        """What was shown, in words; :data:`NOT_FOUND` says nothing about what is true (see ``detectable``)."""
        if self.reason or self.difference is None:
            return UNKNOWN
        if not self.equal_layers:
            return UNEQUAL
        if self.asks_to_keep_up and self.worst is not None and self.worst > -MARGIN:
            return KEEPS_UP
        if self.significant:
            return AHEAD if self.difference > 0 else BEHIND
        if self.asks_to_keep_up:
            return NOT_SHOWN
        return NOT_FOUND if self.wins + self.losses else SAME_ANSWERS


@dataclass(frozen=True)
class _Judged:
    """A row with what judges it: seed -> its rows, the answers of all heads, and the labels that full depth gives."""

    row: ResultRow
    oracle: ResultRow | None
    rows: dict[int, pd.DataFrame]
    heads: dict[int, LayerAnswers]
    full: dict[int, pd.Series]


def compare_with_controls(rows: Sequence[ResultRow], read: Reader) -> list[ControlTest]:
    """Judge every row whose role is to predict or verify exits.

    Args:
        rows: rows of the view, with their marks and noise.
        read: per-sample rows of a cell.

    Returns:
        Tests with p-values adjusted over the points and controls of one method on one dataset by one measure.
    """
    tests: list[ControlTest] = []
    judging = [row for row in rows if row.kind == "method" and row.role in (PREDICTS, VERIFIES)]
    for (same, _), mine in grouped(judging, lambda row: (values_of(row, SAME), row.method)).items():
        alike = [other for other in rows if values_of(other, SAME) == same]
        oracles = [other for other in alike if other.role == ORACLE]
        # Of several oracles, the one on the weights of this method; its points need not all answer with single heads.
        known = [one for one in oracles if any(_judged(row, one, read).heads for row in mine)]
        likeness = [sum(_likeness(row, one, read) for row in mine) for one in known]
        own = [known[at] for at in np.argsort([-found for found in likeness], kind="stable") if likeness[at]]
        oracle = next(iter(own or ([] if known else oracles)), None)
        controls = [other for other in alike if other.kind == "control"]
        if own and oracle is not None:
            controls = [other for other in controls if _on_weights(other, oracle, known, read)]
        for row in mine:
            tests += _judge(_judged(row, oracle, read), controls, read)
    adjusted = with_adjusted_p(tests, lambda test: (test.slug, test.method, test.measure))
    return [_with_power(test) for test in adjusted]


def _with_power(test: ControlTest) -> ControlTest:
    """Return a test with what it could have found where its family does not say it.

    Where the question is whether the row keeps up, that is a margin; Tango's bound has a width without any difference. Too few
    differing rows for a test could have been more: what McNemar's test would have found.
    """
    if test.se is None or not test.equal_layers:
        return test
    if not test.asks_to_keep_up:
        differing = test.wins + test.losses
        return test if test.p is not None else replace(test, detectable=detectable_by_mcnemar(test.pairs, differing))
    return replace(test, detectable=max(provable_margin(test.se), -worst_case(0, 0, test.pairs, ALPHA)))


def _judged(row: ResultRow, oracle: ResultRow | None, read: Reader) -> _Judged:
    paired = paired_samples(row.cells, oracle.cells, read) if oracle else {}
    depth = int(oracle.depth or 0) if oracle else 0
    answers = {seed: layer_answers(theirs, depth) for seed, (_, theirs) in paired.items()}
    return _Judged(
        row,
        oracle,
        {seed: mine for seed, (mine, _) in paired.items()},
        {
            seed: with_before(one, layer_answers(paired[seed][0], depth))
            for seed, one in answers.items()
            if one is not None
        },
        {seed: theirs["prediction"] for seed, (_, theirs) in paired.items()},
    )


def _likeness(row: ResultRow, oracle: ResultRow, read: Reader) -> float:
    """Return how much a row answers as the heads of the oracle, the least of all seeds; 0 if they are others in any seed."""
    found = _judged(row, oracle, read)
    if not all(heads.belong_to(found.rows[seed]) for seed, heads in found.heads.items()):
        return 0.0
    return min((heads.likeness(found.rows[seed]) for seed, heads in found.heads.items()), default=0.0)


def _on_weights(row: ResultRow, oracle: ResultRow, oracles: Sequence[ResultRow], read: Reader) -> bool:
    """Return whether a row answers with the heads of the oracle, and with no others more."""
    found = _likeness(row, oracle, read)
    return found > 0 and all(_likeness(row, one, read) <= found for one in oracles)


def _judge(judged: _Judged, controls: Sequence[ResultRow], read: Reader) -> list[ControlTest]:
    """Return all tests of one row; none where the run has neither a control nor an oracle for it."""
    measured = _measured(judged.row, controls)
    if not measured and judged.oracle is None:
        return []
    tests = [_expected(judged, role, controls, measure) for role in NAMES for measure in MEASURES]
    if judged.heads:
        measured = [other for other in measured if other.role not in NAMES]
    return tests + [_against(judged, other, measure, read) for other in measured for measure in MEASURES]


def _measured(row: ResultRow, controls: Sequence[ResultRow]) -> list[ResultRow]:
    """Return, for each control, its row at the same point or at the base of the point, ordered by name.

    A method that verifies its exits has the sequential exit as its only measured control, because its layers differ from
    the predicted ones.
    """
    found: dict[str, tuple[tuple[bool, bool], ResultRow]] = {}
    for other in controls:
        if other.point not in (row.point, row.base):
            continue
        if row.role == VERIFIES and other.role != SEQUENTIAL:
            continue
        rank = (other.point == row.point, other.executor == row.executor)
        if other.method not in found or rank > found[other.method][0]:
            found[other.method] = (rank, other)
    return [other for _, (_, other) in sorted(found.items())]


def _expected(judged: _Judged, role: str, controls: Sequence[ResultRow], measure: str) -> ControlTest:
    """Test a row against exits by chance, in exact expectation."""
    row = judged.row
    about: dict[str, Any] = {"measure": measure, "control_role": role, "control": NAMES[role], "control_row": None}
    about |= {"control_layers": row.mean_layers}
    about["marks"] = together(row.marks, judged.oracle.marks if judged.oracle else "")
    if not judged.heads:
        return _unknown(row, about, NO_HEADS if judged.oracle else "no oracle was measured on its weights")
    layers = dict(zip((cell.seed for cell in row.cells), row.seed_layers, strict=True))
    own, theirs = [], []
    for seed, heads in judged.heads.items():
        mine = judged.rows[seed]
        if role == RANDOM:
            if not heads.belong_to(mine):
                return _unknown(row, about, "its answers are not those of the exit heads")
            expected = heads.at_random(measure, mine["exit_layer"])
        else:
            mix = mix_at(layers[seed], _mixes(row, controls, seed))
            if mix is None:
                return _unknown(row, about, "no measured mix of two depths can have its mean layers")
            expected = heads.at_mix(measure, mix, layers[seed])
        own.append(_values(mine, measure, judged.full[seed]))
        theirs.append(pd.Series(expected, mine.index))
    return _tested(row, about, own, theirs, exact=False)


def _mixes(row: ResultRow, controls: Sequence[ResultRow], seed: int) -> list[Mix]:
    """Return the two-depth mixes that were chosen on dev for a seed: that of the row's own point first."""
    constants = [other for other in controls if other.role == CONSTANT]
    near = sorted(constants, key=lambda other: other.point not in (row.point, row.base))
    given = [
        mix_of(params)
        for one in near
        for cell, params in zip(one.cells, one.point_params, strict=True)
        if cell.seed == seed
    ]
    return [mix for mix in given if mix is not None]


def _against(judged: _Judged, other: ResultRow, measure: str, read: Reader) -> ControlTest:
    """Test a row against a measured control."""
    row = judged.row
    name = other.method if other.point == row.point else f"{other.method} at {other.point}"
    about: dict[str, Any] = {"measure": measure, "control_role": other.role, "control": name, "control_row": other}
    about |= {"control_layers": other.mean_layers, "marks": together(row.marks, other.marks)}
    pairs = paired_samples(row.cells, other.cells, read)
    if not pairs:
        return _unknown(row, about, "per-sample rows are missing or share no seed")
    full = judged.full
    if measure == AGREEMENT:
        pairs = {seed: both for seed, both in pairs.items() if seed in full}
        if not pairs:
            return _unknown(row, about, "no oracle with per-sample rows says what full depth answers")
    own, theirs = ([_values(both[side], measure, full.get(seed)) for seed, both in pairs.items()] for side in (0, 1))
    return _tested(row, about, own, theirs, exact=True)


def _values(rows: pd.DataFrame, measure: str, full: pd.Series | None) -> pd.Series:
    """Return whether each test row is right, or gives the answer of full depth, as 0 or 1."""
    if measure == ACCURACY or full is None:
        return rows["correct"].astype(np.float64)
    common = rows.index.intersection(full.index)
    return (rows["prediction"].loc[common] == full.loc[common]).astype(np.float64)


def _unknown(row: ResultRow, about: dict[str, Any], reason: str) -> ControlTest:
    nothing = {"difference": None, "se": None, "wins": 0, "losses": 0, "pairs": 0, "p": None, "seeds": 0}
    return ControlTest(**{**vars(row), **about, **nothing}, reason=reason)


def _tested(
    row: ResultRow, about: dict[str, Any], own: Sequence[pd.Series], theirs: Sequence[pd.Series], *, exact: bool
) -> ControlTest:
    """Return the test of two sides, one Series over the same test rows per seed and side."""
    index = own[0].index
    for one in own[1:]:
        index = index if one.index.equals(index) else index.intersection(one.index)
    mine, other = (np.stack([one.loc[index].to_numpy() for one in side]) for side in (own, theirs))
    # An expectation is a sum of floating-point shares: what is 1e-12 off its exact value is no difference.
    by_seed = np.where(np.abs(mine - other) < 1e-12, 0.0, mine - other)  # [seeds, n]
    deltas = by_seed.mean(0)
    wins, losses = int((deltas > 0).sum()), int((deltas < 0).sum())
    found = mean_difference(deltas, 1 - ALPHA)
    test = ControlTest(
        **{**vars(row), **about, "seeds": len(own)},
        difference=float(deltas.mean()),
        se=standard_error(deltas),
        wins=wins,
        losses=losses,
        pairs=len(index),
        p=None,
        exact=exact,
        own_value=float(mine.mean()),
        control_value=float(other.mean()),
        low=found.low if found else None,
        high=found.high if found else None,
        deltas=deltas,
    )
    if not test.equal_layers:
        return test  # at other layers a difference has another meaning, so there is nothing to test
    if not exact:
        return replace(test, p=found.p if found and found.informative >= FEWEST else None)
    if test.asks_to_keep_up:
        counts = [(int((one > 0).sum()), int((one < 0).sum())) for one in by_seed]
        test = replace(test, worst=min(worst_case(*both, len(index), ALPHA) for both in counts))
    return replace(test, p=mcnemar(wins, losses))
