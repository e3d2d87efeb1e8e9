"""Decisions as sentences."""

from __future__ import annotations

from reports.analysis.decision.answer_loss import Loss
from reports.analysis.decision.deciding import ACCURACIES, HALVES, Decision, Deployable, Requirements
from reports.notation.numbers import DASH, finite, fixed, plain, points, times, whole

ALL_SETS = "All sets together"


def faster(one: Deployable, reference: Deployable) -> str:
    """Return how fast a cell is beside the reference."""
    return f"{times(1 / one.time)} as fast as {reference.name}"


def loss_text(loss: Loss, asked: Requirements) -> str:
    """Return a difference in accuracy with its lower bound."""
    sure = f"{100 * asked.confidence:g} % confidence"
    return f"{points(loss.difference)} points of accuracy, at worst {points(loss.worst)} with {sure}"


def allowed(asked: Requirements) -> str:
    """Return what was required, as one phrase."""
    parts = [f"at most {100 * asked.max_loss:g} points of accuracy lost, with {100 * asked.confidence:g} % confidence"]
    if asked.max_p99 is not None:
        parts.append(f"p99 of single samples at most {1000 * asked.max_p99:g} ms")
    if asked.max_bytes is not None:
        parts.append(f"at most {asked.max_bytes / 1e6:g} MB on disk")
    return "; ".join(parts)


def verdict(one: Decision) -> str:
    """Return what to deploy, in a few words."""
    if one.confirmed and one.chosen:
        return f"use {one.chosen.name}"
    if one.undecided is not None and one.reference_meets:
        return f"not decided whether {one.undecided.name} may replace {one.reference.name}"
    return f"keep {one.reference.name}" if one.reference_meets else "nothing can be recommended"


def reasons(one: Decision) -> list[str]:
    """Return the evidence as sentences without a full stop, the most important one first."""
    if one.nearest is not None:
        return [f"no cell meets the limits; the nearest is {one.nearest.name}, with {_measured(one.nearest)}"]
    if one.chosen is not None and one.test is not None:
        found = (
            f"{faster(one.chosen, one.reference)}; on {whole(one.test.rows)} test rows {loss_text(one.test, one.asked)}"
        )
        if one.confirmed:
            return [found, *_runner_up(one)]
        return [f"test does not confirm {one.chosen.name} ({found})", _more(one), *_runner_up(one)]
    nearest = one.runner_up
    if nearest is None:
        close = " and within the allowed loss" if one.basis == ACCURACIES else ""
        return [f"no other cell is faster by more than noise{close}"]
    if one.basis == ACCURACIES:
        lost = _accuracies(nearest, one.reference)
        return [
            f"this run has no answers by row, which could decide. Nearest is {nearest.name}: "
            f"{faster(nearest, one.reference)}, {lost}"
        ]
    dev = f", {loss_text(nearest.dev, one.asked)}" if nearest.dev else ""
    out = "faster cell" if one.reference_meets else "cell that meets the limits"
    return [f"dev rules out every {out}; nearest is {nearest.name}: {faster(nearest, one.reference)}{dev}"]


def _measured(one: Deployable) -> str:
    p99 = f"p99 {plain(1000 * one.p99)} ms" if finite(one.p99) else "no known p99"
    return f"{p99} and {plain(one.size / 1e6)} MB" if finite(one.size) else f"{p99} and no known size"


def _accuracies(one: Deployable, reference: Deployable) -> str:
    gap = None if None in (one.accuracy, reference.accuracy) else (one.accuracy or 0.0) - (reference.accuracy or 0.0)
    return f"{points(gap)} points on test"


def _more(one: Decision) -> str:
    if one.more_rows is None:
        return "more rows would hardly help: it lost more on test than is allowed"
    until = f"; until then, {one.reference.name} is the safe choice" if one.reference_meets else ""
    return f"about {whole(one.more_rows)} more test rows would decide, if the loss stays as it is{until}"


def _runner_up(one: Decision) -> list[str]:
    second = one.runner_up
    if second is None or second.dev is None:
        return []
    dev = f"{points(second.dev.difference)} points on {'half of test' if one.basis == HALVES else 'dev'}"
    return [f"runner-up: {second.name}, {faster(second, one.reference)}, {dev}"]


def sentences(one: Decision) -> list[str]:
    """Return the evidence as sentences."""
    return [f"{text[0].upper()}{text[1:]}." for text in reasons(one)]


def headline(one: Decision) -> str:
    """Return a decision and its evidence as one line."""
    return f"{one.label or ALL_SETS}: {verdict(one)}. {' '.join(sentences(one))}"


def basis_text(one: Decision) -> str:
    """Return what a decision rests on."""
    if one.basis == ACCURACIES:
        return (
            "This run stores accuracies only, and no answers by row, so nothing can be shown to lose less than allowed."
        )
    if one.basis == HALVES:
        return (
            "This run was measured before results had answers for dev: even test rows choose, odd ones confirm. To use all of "
            "them, measure again with --fresh."
        )
    return "Chosen on dev, confirmed once on test."


def cells_of(one: Deployable, asked: Requirements) -> list[str]:
    """Return the numbers of a candidate for a table: speed, p99, MB, dev, its bound, and the chance to be confirmed."""
    dev = one.dev
    return [
        times(1 / one.time),
        plain(1000 * one.p99) if finite(one.p99) else DASH,
        plain(one.size / 1e6) if finite(one.size) else DASH,
        points(dev.difference) if dev else DASH,
        points(dev.worst) if dev else DASH,
        f"{fixed(100 * one.chance, 0)} %" if dev else DASH,
    ]
