"""What two runs say about each other, for the terminal and for a log."""

from __future__ import annotations

from harness.regression.compare import Change, Comparison
from harness.results.packed_run import PackedRun
from harness.results.schema import Cell
from reports.notation.numbers import DASH, fixed, p_value, percent, points, times
from reports.terminal import fit

_NAME = 40
_LISTED = 8


def render(comparison: Comparison) -> str:
    """Both runs, a line a cell, a line a method, remarks, and what the gate says. Fits 132 columns."""
    lines = [f"base: {_run(comparison.base)}", f"new:  {_run(comparison.new)}", ""]
    dataset = None
    for change in comparison.changes:
        label = f"{change.cell.dataset}{' (synthetic)' * change.synthetic}"
        if label != dataset:
            lines += [*([""] if dataset else []), _line(label, _HEADS)]
            dataset = label
        lines.append(_line(f"{'!' if change.alarms else ' '} {_name(change, comparison)}", _columns(change)))
    lines.append("")
    if comparison.methods:
        lines.append("times per method, median over its cells (below 1: slower than in base):")
        lines += [
            f"{'!' if method.alarm else ' '} {fit(method.name, 24)} {fixed(method.ratio)}×  {method.cells} cells, "
            f"adjusted p {p_value(method.p_adjusted)}"
            for method in comparison.methods
        ]
        lines.append("")
    lines += _counts(comparison)
    lines += [f"- {remark}" for remark in comparison.remarks]
    lines += [f"regression: {alarm}" for alarm in comparison.alarms]
    number = len(comparison.alarms)
    lines.append(
        f"gate: {'nothing got worse' if not number else '1 regression' if number == 1 else f'{number} regressions'}"
    )
    return "\n".join(lines) + "\n"


_HEADS = ["acc. %", "change", "lost:won", "p adj.", "FLOPs", "layers", "speed-up", "ratio", "noise"]
_WIDTHS = [8, 8, 10, 8, 9, 14, 15, 7, 13]


def _line(name: str, columns: list[str]) -> str:
    return (
        fit(name, _NAME) + "".join(f"{text:>{width}}" for text, width in zip(columns, _WIDTHS, strict=True))
    ).rstrip()


def _run(packed: PackedRun) -> str:
    machines = ", ".join(dict.fromkeys(map(str, packed.machines)))
    commits = ", ".join(packed.commits[:3]) or "unknown"
    return f"{packed.name}: {len(packed.cells)} cells, commit {commits}; {machines}"


def _name(change: Change, comparison: Comparison) -> str:
    """Method and point, and what else tells the cell from its neighbours."""
    same = [
        other
        for other in comparison.changes
        if (other.cell.dataset, other.cell.method, other.cell.point)
        == (change.cell.dataset, change.cell.method, change.cell.point)
    ]
    facts = [other.cell.model_dump(exclude={"seed"}) for other in same]
    mine = change.cell.model_dump(exclude={"seed"})
    extra = [str(mine[name]) for name in mine if len({fact[name] for fact in facts}) > 1]
    seeds = f" ({len(change.seeds)} seeds)" if len(change.seeds) > 1 else ""
    return f"{change.cell.method} {change.cell.point}{seeds}" + (f" [{' '.join(extra)}]" if extra else "")


def _columns(change: Change) -> list[str]:
    time = change.time
    tested = change.wins is not None
    return [
        percent(change.accuracy[1]),
        "=" if change.difference == 0 else points(change.difference, 2),
        f"{change.losses}:{change.wins}" if tested else "untested",
        p_value(change.p_adjusted) if change.p_adjusted is not None else DASH,
        "=" if change.flops[0] == change.flops[1] else times(change.flops[1] / change.flops[0]),
        _arrow(*change.layers),
        DASH if time is None else f"{times(time.speedup[0])}→{times(time.speedup[1])}",
        DASH if time is None else fixed(time.ratio),
        DASH if time is None else f"{fixed(time.low)}–{fixed(time.high)}",
    ]


def _arrow(base: float, new: float) -> str:
    return f"{fixed(new)} =" if base == new else f"{fixed(base, 3)}→{fixed(new, 3)}"


def _counts(comparison: Comparison) -> list[str]:
    still = sum(not change.moved for change in comparison.changes)
    lines = [
        f"{len(comparison.changes)} cells compared; in {still} of them every answer and every count is what it was"
    ]
    for where, cells in (("base", comparison.only_base), ("new", comparison.only_new)):
        if cells:
            shown = "; ".join(map(_short, cells[:_LISTED]))
            more = f"; and {len(cells) - _LISTED} more" if len(cells) > _LISTED else ""
            lines.append(f"only in {where} ({len(cells)}): {shown}{more}")
    return lines


def _short(cell: Cell) -> str:
    return f"{cell.dataset} {cell.method} {cell.point}"
