"""The cell to deploy: chosen on dev, and confirmed once on test.

Of the cells that meet the limits on latency and size and are faster than the reference by more than noise, dev selects the one
with the largest expected saving: the time that it saves, times the chance that test will confirm it. Only this one is tested, so
no correction for several tests is needed: is less accuracy lost than allowed, with the stated confidence?

Results of older versions have no answers for dev. There, even test rows stand for dev and odd ones for test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp, log, sqrt
from statistics import fmean

import numpy as np

from harness.measure.detectable import chance_of_showing, times_as_many
from reports.analysis.cell_settings import ROW_SETTING, SAME_REFERENCE, grouped, values_of
from reports.analysis.decision.answer_loss import Answers, Loss, StoredAnswers, differences, loss_of
from reports.analysis.result_rows import ResultRow
from reports.notation.numbers import finite

# Bases of a decision.
DEV, HALVES, ACCURACIES = "dev and test", "halves of the test rows", "accuracies only"
# Settings of a row that differ from set to set, or that are chosen for every cell.
_FREE = ("source", "backbone", "batch_size", "batch_tokens", "conditions")
_SAME_WAY = tuple(name for name in ROW_SETTING if name not in _FREE)


@dataclass(frozen=True)
class Requirements:
    """Limits of a cell to deploy.

    Attributes:
        max_loss: accuracy that may be lost against the reference, 0..1.
        confidence: that less is lost, 0.5..1.
        max_p99: seconds that 99 % of calls with a single sample take at most; None: any.
        max_bytes: on disk, with borrowed weights; None: any.
    """

    max_loss: float = 0.01
    confidence: float = 0.95
    max_p99: float | None = None
    max_bytes: float | None = None

    @property
    def alpha(self) -> float:
        return 1 - self.confidence

    def meets(self, one: Deployable) -> bool:
        """Return whether a cell is known to meet the limits on latency and size."""
        return all(
            most is None or (value is not None and value <= most)
            for most, value in ((self.max_p99, one.p99), (self.max_bytes, one.size))
        )


@dataclass(frozen=True, kw_only=True)
class Deployable:
    """A method at an operating point, on one set or on several.

    Attributes:
        method, point, engine: which.
        rows: label of a set -> its row at its own best batch size.
        time: wall time over that of the reference, each at its own best batch size; geometric mean over sets.
        noise: the ratio below which a time differs from the reference's by more than noise; 1 where noise is not known.
        p99, size: seconds and bytes, the worst over sets; None where one is not known.
        dev: its loss on dev; None where dev answers are not stored.
        chance: that test confirms it, 0..1.
        saving: expected share of the reference's time that it saves.
    """

    method: str
    point: str
    engine: str | None
    rows: dict[str, ResultRow]
    time: float
    noise: float
    p99: float | None
    size: float | None
    dev: Loss | None = None
    chance: float = 0.0
    saving: float = 0.0

    @property
    def name(self) -> str:
        point = "" if self.point == "full" else f" {self.point}"
        return f"{self.method}{point}"

    @property
    def accuracy(self) -> float | None:
        """Accuracy of the rows; mean over sets."""
        values = [row.accuracy for row in self.rows.values() if finite(row.accuracy)]
        return fmean(values) if len(values) == len(self.rows) else None


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Which cell to deploy on one set, or on all sets of a run.

    Attributes:
        label: of the set; empty for all sets together.
        sets: their labels.
        asked: what was required.
        basis: what it rests on: :data:`DEV`, :data:`HALVES` or :data:`ACCURACIES`.
        reference: the method that losses are measured against; ``reference_meets``: whether it meets the limits itself.
        chosen: the cell that dev selects; None where dev rules all out, or none meets the limits.
        test: its loss on test; None where that is not known.
        confirmed: whether test confirms it.
        runner_up: the second on dev.
        ranking: the candidates, the largest expected saving first.
        nearest: the cell nearest to the limits, where no cell meets them.
        more_rows: additional test rows that would probably decide; None where nothing is open, or no number would.
        left_out: cells without answers for dev, although the reference has them.
    """

    label: str
    synthetic: bool
    sets: tuple[str, ...]
    asked: Requirements
    basis: str
    reference: Deployable
    reference_meets: bool
    chosen: Deployable | None = None
    test: Loss | None = None
    confirmed: bool = False
    runner_up: Deployable | None = None
    ranking: tuple[Deployable, ...] = ()
    nearest: Deployable | None = None
    more_rows: int | None = None
    left_out: int = 0

    @property
    def undecided(self) -> Deployable | None:
        """The cell that more evidence may confirm; None where the decision is final."""
        if self.confirmed or self.nearest is not None:
            return None
        if self.chosen is not None:
            return self.chosen if self.test is None or self.more_rows is not None else None
        return self.runner_up if self.basis == ACCURACIES else None

    @property
    def recommended(self) -> Deployable | None:
        """The cell to deploy: the confirmed one, else the reference; None where that does not meet the limits either."""
        if self.confirmed:
            return self.chosen
        return self.reference if self.reference_meets else None


def decide(rows: Sequence[ResultRow], stored: StoredAnswers, asked: Requirements) -> list[Decision]:
    """Return a decision for every set that has timed rows of its reference and, of two sets or more, one for all of them.

    Args:
        rows: of the view, with their ratios and noise.
    """
    found = []
    for synthetic in (False, True):
        sets = {}
        for label, same in grouped((r for r in rows if r.synthetic == synthetic), lambda row: row.label).items():
            if candidates := _candidates(label, same):
                sets[label] = candidates
        alone = [_decide(label, synthetic, [label], one, stored, asked) for label, one in sets.items()]
        if len(sets) > 1 and (everywhere := _over_sets(sets)):
            found.append(_decide("", synthetic, [*sets], everywhere, stored, asked))
        found += alone
    return found


def _seconds(row: ResultRow, references: Sequence[ResultRow]) -> float | None:
    """Return the median wall time of a row: the reference's at this batch size over the speed-up, whose passes alternate.

    Machines change their speed between cells; the time of the row itself is used where there is no such reference.
    """
    beside = [one for one in references if one.batch_size == row.batch_size and finite(one.seconds)]
    if finite(row.speedup) and row.speedup > 0 and beside and not row.is_reference:
        return min(one.seconds or 0.0 for one in beside) / row.speedup
    return row.seconds if finite(row.seconds) and row.seconds > 0 else None


def _candidates(label: str, rows: Sequence[ResultRow]) -> list[Deployable]:
    """Return the timed methods of a set, each at its best batch size, the reference first; none without a timed reference."""
    timed = [row for row in rows if row.kind == "method" and row.timed]
    full = max((row for row in timed if row.is_reference), key=lambda row: row.mean_layers or 0.0, default=None)
    if full is None:
        return []
    able = [row for row in timed if values_of(row, SAME_REFERENCE) == values_of(full, SAME_REFERENCE)]
    references = [row for row in able if row.is_reference]
    found: list[Deployable] = []
    unit = min((time for row in references if (time := _seconds(row, references))), default=None)
    if unit is None:
        return []
    for same in grouped(able, lambda row: (row.method, row.point, *values_of(row, _SAME_WAY))).values():
        times = [(seconds, i) for i, row in enumerate(same) if (seconds := _seconds(row, references))]
        if times:
            seconds, best = min(times)
            found.append(_candidate(label, same[best], seconds / unit))
    own = [one for one in found if one.rows[label].is_reference]
    first = min(own, key=lambda one: (one.point != full.point, one.time))
    return [replace(first, time=1.0), *(one for one in found if one not in own)]


def _candidate(label: str, row: ResultRow, time: float) -> Deployable:
    calls = row.latency[min(row.latency)] if row.latency else None
    return Deployable(
        method=row.method,
        point=row.point,
        engine=row.engine,
        rows={label: row},
        time=time,
        noise=1 / row.noise.high if row.noise else 1.0,
        p99=calls.p99 if calls and finite(calls.p99) else None,
        size=row.disk_bytes if finite(row.disk_bytes) else None,
    )


def _over_sets(sets: dict[str, list[Deployable]]) -> list[Deployable]:
    """Return the candidates that all sets have, the reference first; none where sets have different references."""

    def key(one: Deployable) -> tuple[object, ...]:
        row = next(iter(one.rows.values()))
        return (one.method, one.point, *values_of(row, _SAME_WAY))

    found = []
    for same in grouped((one for some in sets.values() for one in some), key).values():
        if len(same) == len(sets):
            p99, size = ([getattr(one, name) for one in same] for name in ("p99", "size"))
            found.append(
                replace(
                    same[0],
                    rows={label: row for one in same for label, row in one.rows.items()},
                    time=exp(fmean(log(one.time) for one in same)),
                    noise=exp(fmean(log(one.noise) for one in same)),
                    p99=None if None in p99 else max(p99),
                    size=None if None in size else max(size),
                )
            )
    leads = {key(some[0]) for some in sets.values()}
    first = [one for one in found if key(one) in leads]
    return [first[0], *(one for one in found if one is not first[0])] if len(leads) == 1 and first else []


def _strata(one: Deployable, reference: Deployable, answers: Answers) -> list[np.ndarray] | None:
    """Return the differences to the reference on every set; None where one is not known."""
    found = [differences(row, reference.rows[label], answers) for label, row in one.rows.items()]
    return None if any(rows is None for rows in found) else [rows for rows in found if rows is not None]


def _decide(
    label: str,
    synthetic: bool,
    sets: Sequence[str],
    candidates: Sequence[Deployable],
    stored: StoredAnswers,
    asked: Requirements,
) -> Decision:
    reference, *others = candidates
    basis, seen, unseen = _basis(reference, stored)
    about = Decision(
        label=label,
        synthetic=synthetic,
        sets=tuple(sets),
        asked=asked,
        basis=basis,
        reference=reference,
        reference_meets=asked.meets(reference),
    )
    able = [one for one in others if asked.meets(one)]
    if not able and not about.reference_meets:
        return replace(about, nearest=min(candidates, key=lambda one: _excess(one, asked)))
    if about.reference_meets:
        able = [one for one in able if one.time < min(one.noise, 1.0)]
    worst_time = 1.0 if about.reference_meets else max(one.time for one in candidates)
    if basis == ACCURACIES:
        gaps = [(one, _gap(one, reference)) for one in able]
        close = [one for one, gap in gaps if gap is not None and gap >= -asked.max_loss]
        ranked = sorted(close, key=lambda one: one.time)
        return replace(about, ranking=tuple(ranked), runner_up=ranked[0] if ranked else None)
    judged = [_judged(one, reference, seen, basis, asked, worst_time) for one in able]
    known = [one for one in judged if one.dev is not None]
    ranked = sorted(known, key=lambda one: (-one.saving, -one.chance, one.time))
    about = replace(about, ranking=tuple(ranked), left_out=len(judged) - len(known))
    likely = [one for one in ranked if one.chance >= asked.alpha]
    if not likely:
        return replace(about, runner_up=ranked[0] if ranked else None)
    chosen = likely[0]
    strata = _strata(chosen, reference, unseen)
    test = None if strata is None else loss_of(strata, asked.alpha)
    confirmed = test is not None and test.worst > -asked.max_loss
    more = None
    if test is not None and not confirmed:
        ratio = times_as_many(test.difference, test.se, asked.max_loss, asked.alpha)
        more = None if ratio is None else max(1, round((ratio - 1) * test.rows))
    runner_up = next((one for one in ranked if one is not chosen), None)
    return replace(about, chosen=chosen, test=test, confirmed=confirmed, runner_up=runner_up, more_rows=more)


def _basis(reference: Deployable, stored: StoredAnswers) -> tuple[str, Answers, Answers]:
    """Return what is known of the answers of the reference, and where to choose and where to confirm."""

    def known(answers: Answers) -> bool:
        return all(any(answers(cell) is not None for cell in row.cells) for row in reference.rows.values())

    if known(stored.dev) and known(stored.test):
        return DEV, stored.dev, stored.test
    return HALVES if known(stored.test) else ACCURACIES, stored.even, stored.odd


def _judged(
    one: Deployable,
    reference: Deployable,
    seen: Answers,
    basis: str,
    asked: Requirements,
    worst_time: float,
) -> Deployable:
    """Return a candidate with its loss on dev, the chance that test confirms it, and its expected saving."""
    strata = _strata(one, reference, seen)
    if strata is None:
        return one
    loss = loss_of(strata, asked.alpha)
    sizes = [row.n // 2 if basis == HALVES else row.n for row in one.rows.values()]
    alike = len(sizes) ** 2 / sum(1 / max(1, n) for n in sizes)
    chance = chance_of_showing(
        loss.difference, loss.se, loss.se * sqrt(loss.alike / alike), asked.max_loss, asked.alpha
    )
    return replace(one, dev=loss, chance=chance, saving=chance * (worst_time - one.time))


def _gap(one: Deployable, reference: Deployable) -> float | None:
    """Return the difference in accuracy on all test rows."""
    if one.accuracy is None or reference.accuracy is None:
        return None
    return one.accuracy - reference.accuracy


def _excess(one: Deployable, asked: Requirements) -> float:
    """Return the largest ratio of a cell's p99 or size to its limit; infinity where one is not known."""
    limits = ((asked.max_p99, one.p99), (asked.max_bytes, one.size))
    return max(float("inf") if value is None else value / most for most, value in limits if most is not None)
