"""Accuracy against cost. Labels name points where there is room; pointing at a point shows its description."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from reports.analysis.cell_settings import grouped
from reports.analysis.result_rows import ResultRow
from reports.analysis.view import Group, View
from reports.figures.drawing import INK, PAPER, Drawing, Look, Spot, new_figure, render
from reports.figures.label_places import Label, place_labels
from reports.notation.numbers import finite, fixed, percent, plain, times

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Cost = Literal["flops_linear", "samples_per_s", "speedup"]
# With more lines than this in a figure, dominated ones are pale, and only points that nothing dominates are labelled.
CROWD = 14
FAR = 2


@dataclass(frozen=True)
class Point:
    """One row in a figure: cost on the x axis, accuracy with its interval (0..1) on the y axis."""

    row: ResultRow
    cost: float
    accuracy: float
    low: float
    high: float

    @property
    def setting(self) -> str:
        return short_point(self.row.point) if "=" in self.row.point else ""

    @property
    def name(self) -> str:
        return f"{self.row.method} {self.setting}".strip()


def points_of(rows: Sequence[ResultRow], cost: Cost) -> list[Point]:
    """Return the rows that have both an accuracy and a cost."""
    found = []
    for row in rows:
        x, y = getattr(row, cost), row.accuracy
        if finite(x) and finite(y) and x > 0:
            low, high = (end if finite(end) else y for end in (row.accuracy_low, row.accuracy_high))
            found.append(Point(row, x, y, low, high))
    return found


def frontier(points: Sequence[Point], cost: Cost) -> list[int]:
    """Return the indices of methods' points that no other method's point dominates, cheapest first.

    A point is dominated by one that is at least as accurate and as cheap, and better in one of the two. Controls and bounds
    are ignored. More ``samples_per_s`` or ``speedup`` is cheaper.
    """

    def worth(at: int) -> tuple[float, float]:
        price = points[at].cost
        return (price if cost == "flops_linear" else -price), -points[at].accuracy

    found: list[int] = []
    for at in sorted((i for i, point in enumerate(points) if point.row.kind == "method"), key=worth):
        if not found or worth(at)[1] < worth(found[-1])[1] or worth(at) == worth(found[-1]):
            found.append(at)
    return found


def floor_of(points: Sequence[Point]) -> float | None:
    """Return where the axis of accuracy is cut, in 0..1, so that a few failed points do not flatten all others.

    At most a tenth of the points lie below the cut, farther from the others than :data:`FAR` times the range of those. None
    where there are no such points.
    """
    ranked = sorted(points, key=lambda point: point.accuracy)
    values = [point.accuracy for point in ranked]
    for below in range(len(values) // 10, 0, -1):
        span = values[-1] - values[below]
        if span > 0 and values[below] - values[below - 1] > FAR * span:
            floor = min(point.low for point in ranked[below:]) - span / 4
            return float(floor) if floor > values[below - 1] else None
    return None


def short_point(point: str) -> str:
    """Return the label of a point in a crowded figure: the value of ``name=value``, without its variant."""
    return point.partition("/")[0].rpartition("=")[2]


def describe(row: ResultRow, setting: str) -> str:
    """Return the description of a point."""
    name = " ".join(part for part in (row.method, row.point, setting) if part) + _bound(row)
    return (
        f"{name}: accuracy {percent(row.accuracy)} %, {fixed(row.mean_layers)} layers, FLOPs ratio {times(row.ratio_linear)}, "
        f"{plain(row.samples_per_s)} samples/s, speed-up {times(row.speedup)}"
    )


def _bound(row: ResultRow) -> str:
    return " (bound, not a method)" if row.kind == "bound" else ""


def draw_pareto(view: View, group: Group, chosen: Mapping[str, Look], cost: Cost) -> Drawing:
    """Draw accuracy against one cost; the points of a line are joined in order of cost."""
    what, word = ("FLOPs", "flops") if cost == "flops_linear" else ("throughput", "throughput")
    title = f"Accuracy against {what}: {group.label}"
    points = points_of(view.of(group), cost)
    # Points that one line may join.
    lines = grouped(points, lambda point: (point.row.method, point.row.variant, view.setting_of(point.row)))
    variants = {name: sorted({key[1] for key in lines if key[0] == name}) for name in {key[0] for key in lines}}
    # What the reference reaches by chance.
    bands = [(p.cost, p.row.noise) for p in points if p.row.is_reference and cost == "samples_per_s"]
    noise = [(middle * band.low, middle * band.high) for middle, band in bands if band]
    entries = {(key[0], key[2]) if chosen[key[0]].line == "--" else key for key in lines}
    crowded = len(entries) > CROWD
    # So many names are no help beside small multiples by family; the points that matter are labelled.
    legend_rows = 0 if crowded else math.ceil((len(entries) + bool(noise) + 1) / 2)
    height = 4.2 + 0.16 * legend_rows
    figure, axes = new_figure(6.0, height)
    axes.set_position((0.11, (0.16 * legend_rows + 0.55) / height, 0.86, 3.3 / height))
    labels: list[Label] = []
    named: set[str] = set()
    best = [points[at] for at in frontier(points, cost)]
    if len(best) > 1:
        x, y = [p.cost for p in best], [100 * p.accuracy for p in best]
        axes.plot(x, y, color=INK, alpha=0.18, lw=3, drawstyle="steps-post", zorder=1, label="not dominated")
    for (method, variant, setting), unordered in lines.items():
        mine = sorted(unordered, key=lambda p: p.cost)
        second = variants[method].index(variant) % 2 == 1
        legend = _legend(mine[0].row, variant, setting)
        front = [p for p in mine if p in best or p.row.is_reference]
        shown = "_" if legend in named else legend
        _plot(axes, mine, chosen[method], hollow=second, legend=shown, behind=crowded and not front)
        named.add(legend)
        if crowded:
            # Budgets that chose the same setting are one point, on a FLOPs axis exactly, and are labelled once.
            once = {(p.accuracy, p.row.flops_linear): p for p in reversed(front)}
            labels += [
                (p.cost, 100 * p.accuracy, p.name, chosen[method].color)
                for p in front
                if once[p.accuracy, p.row.flops_linear] is p
            ]
        elif mine[0].row.kind == "method" and variant == variants[method][0]:
            labels += _labels(mine, cost, chosen[method])
    for number, (low, high) in enumerate(noise):
        axes.axvspan(low, high, color=INK, alpha=0.09, lw=0, label="_" if number else "reference against itself (A/A)")
    _scale(axes, [p.cost for p in points], cost)
    floor = floor_of(points)
    if floor is not None:
        labels += _cut(axes, points, chosen, floor)
    axes.set_ylabel("accuracy %, 95 % interval")
    axes.set_title(title)
    if lines and not crowded:
        # Below the axes, in the space that the height includes for it.
        spacing: dict[str, Any] = {
            "handlelength": 2.4,
            "labelspacing": 0.25,
            "columnspacing": 1.2,
            "borderaxespad": 0.2,
            "borderpad": 0.2,
        }
        figure.legend(loc="lower left", bbox_to_anchor=(0.02, 0.0), ncol=2, **spacing)
    place_labels(axes, labels)
    spots: list[Spot] = []
    if points:
        pixels = axes.transData.transform([(p.cost, 100 * max(p.accuracy, floor or 0.0)) for p in points])
        # Points of a 72nd inch, from the top.
        spots = [
            (72 * px / figure.dpi, 72 * (height - py / figure.dpi), describe(p.row, view.setting_of(p.row)))
            for (px, py), p in zip(pixels, points, strict=True)
        ]
    description = (
        f"{title}. {len(points)} points of {len(variants)} methods; all numbers are in the table results-{group.slug}."
    )
    return render(figure, f"pareto-{word}-{group.slug}", title, description, role="pareto", spots=spots)


def _legend(row: ResultRow, variant: str, setting: str) -> str:
    # Variants of a control look alike and share one line of the legend.
    shown = variant and row.kind != "control"
    return " ".join(part for part in (row.method, f"({variant})" if shown else "", setting) if part) + _bound(row)


def _plot(axes: Axes, points: Sequence[Point], look: Look, *, hollow: bool, legend: str, behind: bool) -> None:
    low = [max(0.0, 100 * (p.accuracy - p.low)) for p in points]
    high = [max(0.0, 100 * (p.high - p.accuracy)) for p in points]
    front = points[0].row.kind == "method"
    axes.errorbar(
        [p.cost for p in points],
        [100 * p.accuracy for p in points],
        yerr=[low, high],
        color=look.color,
        marker=look.marker,
        markersize=9 if look.marker == "*" else 5,
        linestyle=look.line,
        linewidth=1.2 if front and not behind else 0.8,
        elinewidth=0.5,
        markerfacecolor=PAPER if hollow or look.hollow else look.color,
        markeredgecolor=look.color,
        markeredgewidth=1.0,
        label=legend,
        zorder=3 if front else 2,
        alpha=0.35 if behind else 1.0 if front else 0.9,
    )


def _cut(axes: Axes, points: Sequence[Point], chosen: Mapping[str, Look], floor: float) -> list[Label]:
    """End the axis at ``floor``; points below it become an arrow on the axis, labelled with their accuracy."""
    top = max(p.high for p in points)
    axes.set_ylim(100 * floor, 100 * (top + (top - floor) / 20))
    found: list[Label] = []
    for p in points:
        if p.accuracy < floor:
            color = chosen[p.row.method].color
            axes.plot([p.cost], [100 * floor], marker=7, markersize=7, color=color, clip_on=False, zorder=4, label="_")
            text = f"{p.name}: {percent(p.accuracy)} %"
            found.append((p.cost, 100 * (floor + (top - floor) / 20), text, color))
    return found


def _labels(points: Sequence[Point], cost: Cost, look: Look) -> list[Label]:
    """Return the labels of a line: a lone point has its method; on a line each has its setting, the last one the method too."""
    end = points[0] if cost == "samples_per_s" else points[-1]
    found = []
    for p in points:
        text = short_point(p.row.point) if len(points) > 1 else ""
        name = f"{p.row.method} {text}".strip() if p is end else text
        found.append((p.cost, 100 * p.accuracy, name, look.color))
    return found


def _scale(axes: Axes, values: Sequence[float], cost: Cost) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if values and max(values) / min(values) > 6:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    elif values:
        axes.set_xlim(left=0)
    if cost == "samples_per_s":
        divisor, label = 1.0, "samples/s (more is better)"
    else:
        divisor, prefix = (1e9, "G") if max(values, default=0) >= 1e9 else (1e6, "M")
        label = f"{prefix}FLOPs per sample, linear layers (fewer is better)"
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / divisor:,g}"))
    axes.set_xlabel(label)
