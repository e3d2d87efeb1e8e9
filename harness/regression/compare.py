"""Compare two runs cell by cell, and find regressions.

**FLOPs and layers** are counts: the same fit always has the same cost, so that any rise comes from the code and is an alarm.
Another fit, with other weights, has other tuned exits: its rise is an alarm beyond :attr:`Limits.dearer_refitted`, or beyond
rounding if all samples exit after the same layer in both runs, because then no weight can change the cost. Training repeats bit for
bit on one CPU; the confidences show whether two fits are the same (``same_fit``). **Accuracy** is a sample: an alarm needs a
significant exact one-sided McNemar test on the same test rows, over all cells together (``holm_testable``), *and* a loss above
a margin. **Times** are in :mod:`harness.regression.times`.

Cells are compared only under equal conditions (:mod:`harness.results.comparability`); only the version of the code may differ. What
is missing, damaged or cannot be compared is a **gap**. A gate with gaps does not pass, because it cannot know what got worse.

The accuracy test asks whether *these two fits* differ on such rows. It does not cover seeds: after retraining with other
rounding, two equally good fits differ. The wider margin between machines allows for that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from harness.core.errors import ResultError
from harness.measure.many_tests import holm_testable, least_p
from harness.measure.paired_tests import bootstrap_difference, mcnemar
from harness.regression.matching import (
    MACHINE,
    Twin,
    cell_differences,
    grouped,
    lost_rows,
    match,
    missing_cells,
    several,
)
from harness.regression.times import MethodTime, TimeChange, Timed, judge_times
from harness.results.comparability import other_settings, training_differences
from harness.results.packed_run import PackedCell, PackedRun, same_fit
from harness.results.schema import Cell

_ROUNDING = 1e-9  # relative; of a mean that was written to JSON


@dataclass(frozen=True)
class Limits:
    """Limits beyond which a change for the worse is an alarm.

    Attributes:
        margin: accuracy that may be lost (0..1) on one machine.
        margin_elsewhere: the same between machines. Retraining with other rounding moved cells of ``quick`` by up to 0.017.
        slower: allowed increase of time relative to the reference (0.05: 5 %). Two processes that measured the same fits
            differed by up to 0.03 over all cells.
        dearer_refitted: allowed increase of FLOPs or layers with other weights (0.3: 30 %). Retraining moved exits by up to
            23 %. A tuned constant depth moves in whole layers, so that one layer is allowed there.
        alpha: probability of any false alarm about accuracy in one comparison, and again about times.
    """

    margin: float = 0.005
    margin_elsewhere: float = 0.03
    slower: float = 0.05
    dearer_refitted: float = 0.3
    alpha: float = 0.01


@dataclass
class Change:
    """One cell in both runs; the seeds of both count together.

    Pairs are (base, new). Accuracy and costs are means over seeds.

    Attributes:
        cell: coordinates of the first seed in the new run.
        repeats: both machines are equal and repeat training bit for bit: CPUs. CUDA adds in any order.
        same_fit: both runs have the same weights; None if unknown.
        exact: counts must be equal.
        constant: in each of the runs, all samples exit after one layer.
        wins, losses: samples that are more often correct in new, or in base, over the seeds; None without per-sample rows.
        interval: 95 % bootstrap interval of the difference in accuracy.
        p: one-sided, of "new is not worse"; ``p_adjusted`` over all cells, None if it could not become significant.
        alarms: regressions, one sentence each.
    """

    cell: Cell
    synthetic: bool
    seeds: tuple[int, ...]
    repeats: bool
    same_fit: bool | None
    accuracy: tuple[float, float]
    flops: tuple[float, float]
    flops_linear: tuple[float, float]
    layers: tuple[float, float]
    exact: bool
    constant: bool
    wins: int | None = None
    losses: int | None = None
    interval: tuple[float, float] | None = None
    p: float | None = None
    p_adjusted: float | None = None
    time: TimeChange | None = None
    alarms: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Dataset, method and operating point."""
        cell = self.cell
        return f"{cell.dataset}{' (synthetic)' * self.synthetic} {cell.method} {cell.point}"

    @property
    def difference(self) -> float:
        return self.accuracy[1] - self.accuracy[0]

    @property
    def moved(self) -> bool:
        """Whether any answer or any count changed; times do not count."""
        counts = (self.flops, self.flops_linear, self.layers, self.accuracy)
        return bool(self.wins or self.losses) or any(base != new for base, new in counts)


@dataclass
class Comparison:
    """The comparison of two runs.

    Attributes:
        remarks: what could not be compared and why, and other facts that readers need; one line each.
        methods: times per method over all of its cells.
        regressions: what got worse, of all cells and methods.
        gaps: what could not be compared although base has it.
    """

    base: PackedRun
    new: PackedRun
    limits: Limits
    changes: list[Change]
    methods: list[MethodTime]
    only_base: list[Cell]
    only_new: list[Cell]
    remarks: list[str]
    regressions: list[str]
    gaps: list[str]

    @property
    def alarms(self) -> list[str]:
        """Regressions and gaps; without any, the gate passes."""
        return [*self.regressions, *self.gaps]


def compare(base: PackedRun, new: PackedRun, limits: Limits | None = None) -> Comparison:
    """Compare a new run with an old one.

    Raises:
        ResultError: no cell of both runs can be compared.
    """
    limits = limits or Limits()
    twins, only_base, only_new = match(base, new)
    if not twins:
        raise ResultError(
            f"nothing to compare: {base.name} ({len(base.cells)} cells) and {new.name} ({len(new.cells)} cells) have no cell in "
            "common: compare runs of the same methods, datasets, backbone and batch size"
        )
    remarks = [*base.problems, *new.problems]
    usable, unlike = [], []
    for twin in twins:
        words = dict.fromkeys(word for pair in zip(*twin, strict=True) for word in cell_differences(base, new, *pair))
        if words:
            unlike.append((twin, ", ".join(words)))
        else:
            usable.append(twin)
    gaps = [*(f"{base.name}: {why}" for why in base.damaged), *(f"{new.name}: {why}" for why in new.damaged)]
    gaps += [
        f"{several(cells)}: not compared, because {base.name} and {new.name} differ in {words}"
        for words, cells in grouped((words, twin[1][0].cell) for twin, words in unlike).items()
    ]
    if not usable:
        every = [word for _, words in unlike for word in words.split(", ")]
        raise ResultError(
            f"nothing to compare: {base.name} and {new.name} differ in {', '.join(dict.fromkeys(every))}: use "
            "the same data and settings, or measure both again"
        )
    changes = [_change(base, new, *twin) for twin in usable]
    _judge_costs(changes, limits)
    _judge_accuracy(changes, limits)
    timed = [Timed.of(base, new, *twin) for twin in usable]
    methods, about_times = judge_times(timed, limits.slower, limits.alpha)
    for change, one in zip(changes, timed, strict=True):
        change.time = one.change
        if one.change is not None and one.change.alarm:
            change.alarms.append(f"{change.name}: {one.change.alarm}")
    remarks += _remarks(base, new, limits, changes, usable) + about_times
    alarms = [alarm for change in changes for alarm in change.alarms]
    alarms += [f"{method.name} over {method.cells} cells: {method.alarm}" for method in methods if method.alarm]
    alarms += _failures(base, new)
    gaps += missing_cells(new, only_base) + lost_rows(new, usable)
    return Comparison(base, new, limits, changes, methods, only_base, only_new, remarks, alarms, gaps)


def _repeats(base: PackedRun, new: PackedRun, old: PackedCell, young: PackedCell) -> bool:
    machine = base.machine(old)
    same_way = all(getattr(old.cell, name) == getattr(young.cell, name) for name in MACHINE)
    known = machine.known and machine == new.machine(young) and same_way and old.cell.device == "cpu"
    return known and not training_differences(base.binding(old), new.binding(young), known=True)


def _change(base: PackedRun, new: PackedRun, olds: Sequence[PackedCell], youngs: Sequence[PackedCell]) -> Change:
    twins, everyone = list(zip(olds, youngs, strict=True)), (*olds, *youngs)

    def means(name: str) -> tuple[float, float]:
        old, young = (float(np.mean([getattr(cell, name) for cell in side])) for side in (olds, youngs))
        return old, young

    repeats = all(_repeats(base, new, *twin) for twin in twins)
    fits = [same_fit(*twin) for twin in twins]
    fit = False if False in fits else None if None in fits else True
    constant = [len({*_depths(old), *_depths(young)}) == 1 for old, young in twins]
    change = Change(
        cell=youngs[0].cell,
        synthetic=youngs[0].synthetic,
        seeds=tuple(cell.cell.seed for cell in youngs),
        repeats=repeats,
        same_fit=fit,
        accuracy=means("accuracy"),
        flops=means("flops_full"),
        flops_linear=means("flops_linear"),
        layers=means("mean_layers"),
        exact=all(constant) or fit is True or (fit is None and repeats),
        constant=all(len(_depths(cell)) == 1 for cell in everyone),
    )
    if all(cell.correct is not None for cell in everyone):
        right = [np.stack([cell.correct for cell in side if cell.correct is not None]) for side in (olds, youngs)]
        gained = (right[1].astype(np.int64) - right[0]).sum(0)
        change.wins, change.losses = int((gained > 0).sum()), int((gained < 0).sum())
        change.p = mcnemar(change.wins, change.losses, "worse")
        change.interval = bootstrap_difference(right[1], right[0])
    return change


def _depths(cell: PackedCell) -> list[int]:
    """Return the layers after which samples exit, 0 before layer 1; if it is one in both runs, no weight can change the cost."""
    return [layer for layer, samples in enumerate([cell.answered_before, *cell.exits]) if samples]


def _judge_costs(changes: Sequence[Change], limits: Limits) -> None:
    for change in changes:
        allowed = limits.dearer_refitted
        if change.exact:
            allowed = _ROUNDING
        elif change.constant:
            allowed = max(allowed, 1 / max(change.layers[0], 1.0))
        kinds = {"FLOPs (all)": change.flops, "FLOPs (linear)": change.flops_linear, "layers": change.layers}
        risen = [
            f"{kind} up by {100 * (new / old - 1):.3g} %" if old > 0 else f"{kind} up from 0"
            for kind, (old, new) in kinds.items()
            if new > old * (1 + allowed)
        ]
        if risen:
            limit = "" if change.exact else f" (more than the {100 * allowed:.0f} % that another fit is allowed)"
            change.alarms.append(f"{change.name}: {', '.join(risen)}{limit}")


def _judge_accuracy(changes: Sequence[Change], limits: Limits) -> None:
    """Add alarms for losses that are significant over all cells together and above the margin.

    Without per-sample rows a loss above the margin is an alarm by itself: nothing shows that it is chance.
    """
    for change in changes:
        margin = limits.margin if change.repeats else limits.margin_elsewhere
        if change.p is None and -change.difference > margin + _ROUNDING:
            change.alarms.append(
                f"{change.name}: accuracy down by {-100 * change.difference:.2f} points, not tested without per-sample rows (the "
                f"limit is {100 * margin:g} points)"
            )
    tested = [change for change in changes if change.p is not None]
    p_values = [change.p for change in tested if change.p is not None]
    least = [least_p((change.wins or 0) + (change.losses or 0), two_sided=False) for change in tested]
    for change, adjusted in zip(tested, holm_testable(p_values, least, limits.alpha), strict=True):
        change.p_adjusted = adjusted
        margin = limits.margin if change.repeats else limits.margin_elsewhere
        if adjusted is not None and adjusted <= limits.alpha and -change.difference > margin + _ROUNDING:
            change.alarms.append(
                f"{change.name}: accuracy down by {-100 * change.difference:.2f} points ({change.losses} samples lost, "
                f"{change.wins} won, adjusted p {adjusted:.2g}; the limit is {100 * margin:g} points)"
            )


def _failures(base: PackedRun, new: PackedRun) -> list[str]:
    """Return a sentence per cell that fails now, for methods that were measured before. A failed fit has one record."""
    before = {(cell.cell.dataset, cell.cell.method, cell.cell.seed) for cell in base.cells}
    return [
        f"{cell.dataset} {cell.method} {cell.point}, seed {cell.seed}: failed, see the failures of {new.name}"
        for cell in new.failed
        if (cell.dataset, cell.method, cell.seed) in before
    ]


def _remarks(
    base: PackedRun,
    new: PackedRun,
    limits: Limits,
    changes: Sequence[Change],
    twins: Sequence[Twin],
) -> list[str]:
    remarks = []
    if len(new.commits) > 1:
        remarks.append(
            f"{new.name} has cells of several versions of the code ({', '.join(new.commits)}): to test a single version, run again "
            "with --fresh"
        )
    pairs = [pair for twin in twins for pair in zip(*twin, strict=True)]
    if old := sum(None in (base.binding(one), new.binding(other)) for one, other in pairs):
        names = [run.name for run in (base, new) if any(run.binding(cell) is None for cell in run.cells)]
        remarks.append(
            f"the test rows and settings of {old} cells could not be checked, because {' and '.join(dict.fromkeys(names))} has no "
            "fingerprints of them (it is of an older version): they are compared by number, labels and tokens of their rows"
        )
    settings = [name for one, other in pairs for name in other_settings(base.binding(one), new.binding(other))]
    for name in dict.fromkeys(settings):
        remarks.append(
            f"{name} has other settings in {new.name} than in {base.name}: cells that depend on it: {settings.count(name)}"
        )
    trained = Counter(
        words for one, other in pairs for words in training_differences(base.binding(one), new.binding(other))
    )
    remarks += [
        f"{count} cells of {base.name} and {new.name} differ in {words}, so their weights may differ"
        for words, count in trained.items()
    ]
    if untested := sum(change.p is None for change in changes):
        remarks.append(f"the accuracy of {untested} cells is not tested: one of the runs has no per-sample rows")
    if abroad := sum(not change.repeats for change in changes):
        remarks.append(
            f"{abroad} cells come from machines that differ, are unknown or do not repeat bit for bit (CUDA): their limit is "
            f"{100 * limits.margin_elsewhere:g} points of accuracy"
        )
    if refitted := sum(not change.exact for change in changes):
        remarks.append(
            f"{refitted} cells have, or may have, other weights: the training code, the machine or the settings of a cached fit "
            f"changed; their limit for FLOPs and layers is {100 * limits.dearer_refitted:g} %"
        )
    if any(one.tokens and other.tokens and one.tokens != other.tokens for one, other in pairs):
        remarks.append("the same test rows have other numbers of tokens in some cells, which also changes FLOPs")
    return remarks
