"""The comparison of two runs as text, for the terminal and for a log."""

from __future__ import annotations

from itertools import groupby

from harness.core.terminal_table import terminal_table
from harness.regression.compare import Change, Comparison
from harness.results.packed_run import PackedRun
from reports.analysis.run_contents import first_few
from reports.notation.numbers import DASH, fixed, p_value, percent, points, times

WIDTH = 132
_LISTED = 8
_HEADS = ("acc. %", "change", "lost:won", "p adj.", "FLOPs", "layers", "speed-up", "ratio", "noise")


def render(comparison: Comparison) -> str:
    """Return both runs, a line per cell, a line per method, remarks, and the result of the gate; tables fit 132 columns."""
    parts = [f"base: {_run(comparison.base)}\nnew:  {_run(comparison.new)}\n"]
    for (dataset, synthetic), changes in groupby(comparison.changes, lambda one: (one.cell.dataset, one.synthetic)):
        rows = [[_name(change, comparison), *_columns(change)] for change in changes]
        parts.append(terminal_table([dataset + " (synthetic)" * synthetic, *_HEADS], rows, width=WIDTH))
    if comparison.methods:
        rows = [
            [_flag(one.alarm, one.name), f"{fixed(one.ratio)}×", str(one.cells), p_value(one.p_adjusted)]
            for one in comparison.methods
        ]
        parts.append(terminal_table(["method", "median time ratio", "cells", "p adj."], rows, notes=[_BELOW_ONE]))
    parts.append("\n".join(_conclusions(comparison)) + "\n")
    return "\n".join(parts)


_BELOW_ONE = "median time ratio: over the cells of the method; below 1: slower than in base"


def _flag(alarm: object, name: str) -> str:
    return f"{'!' if alarm else ' '} {name}"


def _run(packed: PackedRun) -> str:
    machines = ", ".join(dict.fromkeys(map(str, packed.machines)))
    commits = ", ".join(packed.commits[:3]) or "unknown"
    return f"{packed.name}: {len(packed.cells)} cells, commit {commits}; {machines}"


def _name(change: Change, comparison: Comparison) -> str:
    """Return method and point, and the settings that tell the cell from its neighbours."""
    cell = change.cell
    mine = cell.model_dump(exclude={"seed"})
    same = [
        other.cell.model_dump(exclude={"seed"})
        for other in comparison.changes
        if (other.cell.dataset, other.cell.method, other.cell.point) == (cell.dataset, cell.method, cell.point)
    ]
    extra = [str(mine[name]) for name in mine if len({one[name] for one in same}) > 1]
    seeds = f" ({len(change.seeds)} seeds)" if len(change.seeds) > 1 else ""
    name = f"{cell.method} {cell.point}{seeds}" + (f" [{' '.join(extra)}]" if extra else "")
    return _flag(change.alarms, name)


def _columns(change: Change) -> list[str]:
    time = change.time
    return [
        percent(change.accuracy[1]),
        "=" if change.difference == 0 else points(change.difference, 2),
        f"{change.losses}:{change.wins}" if change.wins is not None else "untested",
        p_value(change.p_adjusted),
        "=" if change.flops[0] == change.flops[1] else times(change.flops[1] / change.flops[0]),
        _arrow(*change.layers),
        DASH if time is None else f"{times(time.speedup[0])}→{times(time.speedup[1])}",
        DASH if time is None else fixed(time.ratio),
        DASH if time is None else f"{fixed(time.low)}–{fixed(time.high)}",
    ]


def _arrow(base: float, new: float) -> str:
    return f"{fixed(new)} =" if base == new else f"{fixed(base, 3)}→{fixed(new, 3)}"


def _conclusions(comparison: Comparison) -> list[str]:
    """Return what was compared, remarks, regressions, gaps and the result of the gate, one line each."""
    same = sum(not change.moved for change in comparison.changes)
    worse, unknown = len(comparison.regressions), len(comparison.gaps)
    lines = [
        f"{len(comparison.changes)} cells compared; in {same} of them all predictions and all counts are identical"
    ]
    for where, cells in (("base", comparison.only_base), ("new", comparison.only_new)):
        if cells:
            names = [f"{cell.dataset} {cell.method} {cell.point}" for cell in cells]
            lines.append(f"only in {where} ({len(cells)}): {first_few(names, _LISTED, '; ')}")
    return [
        *lines,
        *(f"- {remark}" for remark in comparison.remarks),
        *(f"regression: {alarm}" for alarm in comparison.regressions),
        *(f"gap: {gap}" for gap in comparison.gaps),
        f"gate: {', '.join(_counted(worse, 'regression') + _counted(unknown, 'gap')) or 'nothing got worse'}",
    ]


def _counted(number: int, name: str) -> list[str]:
    """Return ``["2 gaps"]``; nothing for 0."""
    return [f"{number} {name}{'s' * (number > 1)}"] if number else []
