"""Two runs, cell by cell: what changed, and is any of it a regression?

What a cell has, is judged by what it is. **FLOPs and layers** are counts: one fit costs what it costs, so any rise has a cause in
the code that runs it and is an alarm. Another fit, with other weights, has its tuned exits elsewhere, also after the best of
changes: there a rise is an alarm beyond :attr:`Limits.dearer_refitted`, except where every sample leaves after the same layer in
both runs, whose cost no weight can change. On one CPU training repeats bit for bit, so that fits are the same as long as nothing
that trains was changed; whether they are, the confidences say (``same_fit``). **Accuracy** is a sample: the
exact one-sided McNemar test on the same test rows, over all cells together (``holm_testable``), *and* a loss
above a margin. **Times** are in :mod:`harness.regression.times`.

The accuracy test asks whether *these two fits* differ on rows like these. It knows nothing of seeds: after retraining with other
rounding, two equally good fits do differ. That is what the wider margin elsewhere is for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from harness.core.errors import ResultError
from harness.measure.statistics import bootstrap_difference, holm_testable, mcnemar
from harness.regression.times import MethodTime, TimeChange, Timed, judge_times
from harness.results.packed_run import PackedCell, PackedRun, same_fit
from harness.results.schema import Cell

# Coordinates that follow from the machine: cells that differ in nothing else are compared, but not their times.
_MACHINE = ("device", "dtype", "compute", "executor")
_ROUNDING = 1e-9  # relative; of a mean written to JSON and read again


@dataclass(frozen=True)
class Limits:
    """From where on a change for the worse is an alarm.

    Attributes:
        margin: accuracy that may be lost (0..1), on one machine.
        margin_elsewhere: the same between machines. Retraining with other rounding moved cells of ``quick`` by up to 0.017.
        slower: time that may be added relative to the reference (0.05: 5 %). Two processes that measured
            the same fits were up to 0.03 apart over all cells.
        dearer_refitted: FLOPs or layers that may be added with other weights (0.3: 30 %). Retraining moved exits by up to 23 %.
            A constant depth that is tuned moves in whole layers: one of them may be added there.
        alpha: chance of any false alarm about accuracy in one comparison, and again about times.
    """

    margin: float = 0.005
    margin_elsewhere: float = 0.03
    slower: float = 0.05
    dearer_refitted: float = 0.3
    alpha: float = 0.01


@dataclass
class Change:
    """One cell in both runs; the seeds that both have count as one.

    Pairs are (base, new). Accuracy and costs are means over seeds.

    Attributes:
        cell: coordinates, of the first seed in the new run.
        repeats: both runs are of one kind of machine, on which training repeats bit for bit: a CPU. CUDA adds in any order.
        same_fit: both runs answered with the same weights; None where nobody can tell.
        exact: counts have to agree exactly.
        constant: in each of the runs, all samples leave after one layer.
        wins, losses: samples that are more often right in new, or in base, over the seeds; None without per-sample rows.
        interval: 95 % bootstrap interval of the difference in accuracy.
        p: one-sided, of "new is not worse"; ``p_adjusted`` over all cells, None where it could not become significant.
        alarms: what the gate objects to, one sentence each.
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
        """For people."""
        cell = self.cell
        return f"{cell.dataset}{' (synthetic)' * self.synthetic} {cell.method} {cell.point}"

    @property
    def difference(self) -> float:
        return self.accuracy[1] - self.accuracy[0]

    @property
    def moved(self) -> bool:
        """Whether any answer or any count is not what it was; times aside."""
        counts = (self.flops, self.flops_linear, self.layers, self.accuracy)
        return bool(self.wins or self.losses) or any(base != new for base, new in counts)


@dataclass
class Comparison:
    """Everything that two runs say about each other.

    Attributes:
        remarks: what could not be compared and why, and what else a reader has to know; one line each.
        methods: times per method over all of its cells.
        alarms: of all cells and methods; the gate is open where there are none.
    """

    base: PackedRun
    new: PackedRun
    limits: Limits
    changes: list[Change]
    methods: list[MethodTime]
    only_base: list[Cell]
    only_new: list[Cell]
    remarks: list[str]
    alarms: list[str]


def compare(base: PackedRun, new: PackedRun, limits: Limits | None = None) -> Comparison:
    """Compare a new run with an old one.

    Raises:
        ResultError: they share no cell that can be compared.
    """
    limits = limits or Limits()
    twins, only_base, only_new = _match(base.cells, new.cells)
    if not twins:
        raise ResultError(
            f"nothing to compare: {base.name} ({len(base.cells)} cells) and {new.name} ({len(new.cells)} cells) have no cell in "
            "common: compare runs of the same methods, datasets, backbone and batch size"
        )
    remarks = [*base.problems, *new.problems]
    usable = [twin for twin in twins if not any(_other_rows(old, young) for old, young in zip(*twin, strict=True))]
    if len(usable) < len(twins):
        remarks.append(f"{len(twins) - len(usable)} cells were measured on other test rows and are not compared")
    if not usable:
        raise ResultError(
            f"nothing to compare: {base.name} and {new.name} were measured on other test rows: use the same data and --max-test"
        )
    changes = [_change(base, new, *twin) for twin in usable]
    _judge_costs(changes, limits)
    _judge_accuracy(changes, limits)
    timed = [Timed(base, new, *twin) for twin in usable]
    methods, about_times = judge_times(timed, limits.slower, limits.alpha)
    for change, one in zip(changes, timed, strict=True):
        change.time = one.change
        if one.change is not None and one.change.alarm:
            change.alarms.append(f"{change.name}: {one.change.alarm}")
    remarks += _remarks(base, new, limits, changes, usable) + about_times
    alarms = [alarm for change in changes for alarm in change.alarms]
    alarms += [f"{method.name} over {method.cells} cells: {method.alarm}" for method in methods if method.alarm]
    return Comparison(base, new, limits, changes, methods, only_base, only_new, remarks, alarms + _failures(base, new))


def _match(
    base: Sequence[PackedCell], new: Sequence[PackedCell]
) -> tuple[list[tuple[list[PackedCell], list[PackedCell]]], list[Cell], list[Cell]]:
    """Cells of both runs that are the same measurement, one list entry per seed; and those that have no partner.

    First by all coordinates, then, where that leaves one on each side, without those that follow from the machine.
    """
    found: dict[tuple[str, ...], tuple[list[PackedCell], list[PackedCell]]] = {}
    left, right = list(base), list(new)
    for ignored in (("seed",), ("seed", *_MACHINE)):

        def key(cell: Cell, ignored: Iterable[str] = ignored, with_seed: bool = False) -> tuple[str, ...]:
            facts = cell.model_dump(exclude=set(ignored))
            return (*(str(value) for value in facts.values()), *([str(cell.seed)] if with_seed else []))

        ours = Counter(key(one.cell, with_seed=True) for one in left)
        theirs: dict[tuple[str, ...], list[PackedCell]] = {}
        for one in right:
            theirs.setdefault(key(one.cell, with_seed=True), []).append(one)
        for old in list(left):
            same = theirs.get(key(old.cell, with_seed=True), [])
            if len(same) == 1 and ours[key(old.cell, with_seed=True)] == 1:
                # The pass of the loop keeps seeds of one match apart from those of the other.
                both = found.setdefault((str(len(ignored)), *key(old.cell)), ([], []))
                both[0].append(old)
                both[1].append(same[0])
                left.remove(old)
                right.remove(same[0])
    return list(found.values()), [one.cell for one in left], [one.cell for one in right]


def _other_rows(old: PackedCell, young: PackedCell) -> bool:
    return old.n != young.n or (None not in (old.rows, young.rows) and old.rows != young.rows)


def _repeats(base: PackedRun, new: PackedRun, old: PackedCell, young: PackedCell) -> bool:
    machine = base.machine(old)
    same_way = all(getattr(old.cell, name) == getattr(young.cell, name) for name in _MACHINE)
    return machine.known and machine == new.machine(young) and same_way and old.cell.device == "cpu"


def _change(base: PackedRun, new: PackedRun, olds: Sequence[PackedCell], youngs: Sequence[PackedCell]) -> Change:
    twins = list(zip(olds, youngs, strict=True))

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
        constant=all(len(_depths(cell)) == 1 for cell in (*olds, *youngs)),
    )
    everyone = (*olds, *youngs)
    if all(cell.correct is not None for cell in everyone) and len({(cell.n, cell.rows) for cell in everyone}) == 1:
        right = [np.stack([cell.correct for cell in side if cell.correct is not None]) for side in (olds, youngs)]
        gained = (right[1].astype(np.int64) - right[0]).sum(0)
        change.wins, change.losses = int((gained > 0).sum()), int((gained < 0).sum())
        change.p = mcnemar(change.wins, change.losses, "worse")
        change.interval = bootstrap_difference(right[1], right[0])
    return change


def _depths(cell: PackedCell) -> list[int]:
    """The layers that samples leave after, from 1; where that is one and the same in both runs, no weight can change the cost."""
    return [layer for layer, samples in enumerate(cell.exits, start=1) if samples]


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
            than = "" if change.exact else f" (beyond the {100 * allowed:.0f} % allowed to another fit)"
            change.alarms.append(f"{change.name}: {', '.join(risen)}{than}")


def _judge_accuracy(changes: Sequence[Change], limits: Limits) -> None:
    """Significant over all cells together, and more than a margin; a loss that chance explains is no alarm at any size."""
    tested = [change for change in changes if change.p is not None]
    p_values = [change.p for change in tested if change.p is not None]
    discordant = [(change.wins or 0) + (change.losses or 0) for change in tested]
    for change, adjusted in zip(tested, holm_testable(p_values, discordant, limits.alpha), strict=True):
        change.p_adjusted = adjusted
        margin = limits.margin if change.repeats else limits.margin_elsewhere
        if adjusted is not None and adjusted <= limits.alpha and -change.difference > margin + _ROUNDING:
            change.alarms.append(
                f"{change.name}: accuracy down by {-100 * change.difference:.2f} points ({change.losses} samples lost, "
                f"{change.wins} won, adjusted p {adjusted:.2g}; {100 * margin:g} may be lost)"
            )


def _failures(base: PackedRun, new: PackedRun) -> list[str]:
    """Methods that raise now in cells that were measured before; a failed fit takes all of its cells along."""
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
    twins: Sequence[tuple[list[PackedCell], list[PackedCell]]],
) -> list[str]:
    remarks = []
    if len(new.commits) > 1:
        remarks.append(
            f"{new.name} holds cells of several versions of the code ({', '.join(new.commits)}): if it was meant to test one, run "
            "again with --fresh"
        )
    if untested := sum(change.p is None for change in changes):
        remarks.append(f"accuracy of {untested} cells is shown but not tested: no per-sample rows in one of the runs")
    if abroad := sum(not change.repeats for change in changes):
        remarks.append(
            f"{abroad} cells come from machines that differ, are unknown or do not repeat bit for bit (CUDA): "
            f"{100 * limits.margin_elsewhere:g} points of accuracy may be lost there"
        )
    if refitted := sum(not change.exact for change in changes):
        remarks.append(
            f"{refitted} cells have, or may have, other weights: something that trains was changed, or the machine, or a cache was "
            f"made with other settings; their FLOPs and layers may rise by {100 * limits.dearer_refitted:g} %"
        )
    if any(
        old.tokens != young.tokens
        for twin in twins
        for old, young in zip(*twin, strict=True)
        if old.tokens and young.tokens
    ):
        remarks.append(
            "the same test rows have other numbers of tokens in some cells: their FLOPs differ for that reason, too"
        )
    return remarks
