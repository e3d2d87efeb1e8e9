"""The cell to deploy, for the terminal: ``geep-bench choose``."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from harness.core.errors import ResultError
from harness.core.terminal_table import terminal_table
from harness.results.run_folder import stem
from reports.analysis.decision.deciding import Decision, Requirements
from reports.analysis.decision.decision_words import ALL_SETS, allowed, basis_text, cells_of, headline
from reports.analysis.view import View, build_view
from reports.notation.numbers import DASH, points

WIDTH = 120
_LISTED = 6
_HEADS = ("speed-up", "p99 ms", "MB", "dev", "at worst", "chance", "test", "at worst")


class Choice(NamedTuple):
    """What ``choose`` prints, and whether it recommends a cell for every set."""

    text: str
    complete: bool


def choose(
    run_path: Path | str,
    *,
    max_loss: float = 0.01,
    confidence: float = 0.95,
    max_p99: float | None = None,
    max_bytes: float | None = None,
) -> Choice:
    """Return the recommendation for every dataset of a run and, of two or more, for all together, with its evidence.

    Args:
        max_loss: accuracy that may be lost against the reference, 0..1.
        confidence: that less is lost, 0.5..1.
        max_p99: seconds; max_bytes: bytes on disk; None: any.

    Raises:
        ResultError: no run, no results, no times, or no timed reference.
    """
    asked = Requirements(max_loss, confidence, max_p99, max_bytes)
    view = build_view(run_path, samples=False, asked=asked)
    decisions = view.decisions
    if not decisions:
        raise ResultError(_why_none(run_path, view))
    parts = [f"Asked for: {allowed(asked)}.", ""]
    for one in decisions:
        parts += [headline(one), *_evidence(one), ""]
    named = {label for one in decisions for label in one.sets}
    parts += [
        f"{group.label}: no timed reference, so nothing is chosen." for group in view.groups if group.label not in named
    ]
    parts.append("\n".join(dict.fromkeys(basis_text(one) for one in decisions)))
    return Choice("\n".join(parts) + "\n", all(one.recommended is not None for one in decisions))


def _why_none(run_path: Path | str, view: View) -> str:
    methods = [row for row in view.rows if row.kind == "method"]
    if not any(row.timed for row in methods):
        return f"{run_path} has no times, which 'choose' needs: run again without timing.untimed for the methods in question"
    return f"{run_path} has no timed cell of its reference: add it to --methods (usually 'bert') and run again"


def _evidence(one: Decision) -> list[str]:
    """Return the table of the most promising cells, the reference last, and the file of the recommended cell."""
    rows = []
    listed = list(one.ranking[:_LISTED])
    if one.chosen is not None and one.chosen not in listed:
        listed.append(one.chosen)
    for candidate in listed:
        test = one.test if candidate is one.chosen else None
        sign = ">" if candidate is one.chosen else " "
        on_test = [points(test.difference), points(test.worst)] if test else [DASH, DASH]
        rows.append([f"{sign} {candidate.name}", *cells_of(candidate, one.asked), *on_test])
    rows.append([f"  {one.reference.name} (reference)", *cells_of(one.reference, one.asked)[:3], *[DASH] * 5])
    notes = []
    if len(one.ranking) > len(listed):
        notes.append(f"  {len(one.ranking) - len(listed)} more cells are less promising.")
    if one.left_out:
        notes.append(f"  {one.left_out} cells have no answers for dev: measure them again with --fresh.")
    if one.recommended is not None:
        files = [stem(row.cells[0]) for row in one.recommended.rows.values()]
        notes += [f"  cell: {name}" for name in files]
    title = one.label or ALL_SETS
    return [terminal_table([title, *_HEADS], rows, notes=notes, width=WIDTH).rstrip("\n")]
