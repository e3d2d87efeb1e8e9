"""The short summary that the terminal shows after a run."""

from __future__ import annotations

from pathlib import Path

from rich.text import Text

from harness.core.terminal_table import terminal_table
from reports.analysis.result_rows import ResultRow
from reports.analysis.view import build_view
from reports.notation.marks import footnotes
from reports.notation.numbers import fixed, percent, plain, times
from reports.tables.shared_columns import method_name

WIDTH = 110
_HEADS = ("acc. %", "layers", "FLOPs", "samples/s", "speed-up")


def summary(run_path: Path | str) -> str:
    """Return accuracy, mean layers, FLOPs ratio, samples/s and speed-up per dataset and method; tables fit 110 columns.

    Raises:
        ResultError: there is no run or no result in it.
    """
    view = build_view(run_path, samples=False)
    parts: list[str] = []
    hidden = 0
    for group in view.groups:
        rows = view.of(group)
        shown = [row for row in rows if row.kind == "method"] or rows
        hidden += len(rows) - len(shown)
        facts = [group.facts]
        if noise := view.noise_of(group):
            facts.append(f"noise of a speed-up (A/A, reference over itself, 10th to 90th percentile): {noise}")
        cells = [_cells(row, view.setting_of(row)) for row in shown]
        parts.append(
            terminal_table([group.label, *_HEADS], cells, notes=[_cut(f"  {fact}") for fact in facts], width=WIDTH)
        )
    notes = [*view.caveats[: view.warnings], *(_cut(note) for note in footnotes(view.rows))]  # warnings are not cut
    if hidden:
        notes.append(f"{hidden} rows of controls and bounds are in the report.")
    others = view.caveats[view.warnings :]
    if others:
        notes.append(f"{len(others)} caveat(s), see the report; the first:")
        notes.append(_cut(f"  {others[0]}"))
    notes.append("FLOPs: how many times fewer (linear) than the reference; speed-up: wall time; — not measured.")
    return "\n".join([*parts, *notes]) + "\n"


def _cut(text: str) -> str:
    """Return ``text`` cut to the width of the summary."""
    line = Text(text)
    line.truncate(WIDTH, overflow="ellipsis")
    return line.plain


def _cells(row: ResultRow, setting: str) -> list[str]:
    return [
        f"{method_name(row)} {row.point}" + (f" [{setting}]" if setting else ""),
        percent(row.accuracy),
        fixed(row.mean_layers),
        times(row.ratio_linear),
        plain(row.samples_per_s),
        times(row.speedup),
    ]
