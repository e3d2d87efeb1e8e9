"""The main figure of a run of several sets: accuracy lost against realised speed-up, a panel per set and one for their mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from reports.analysis.cell_settings import grouped
from reports.analysis.depth_worth import DepthRow
from reports.analysis.set_means import SetMeans, lost_by
from reports.analysis.view import View
from reports.figures.drawing import GREYS, INK, PAPER, Drawing, Look, Spot, render
from reports.figures.label_places import Label, place_all_labels
from reports.figures.pareto import Point, frontier
from reports.notation.marks import data_tag, file_tag
from reports.notation.numbers import finite, points, points2, times

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "Accuracy lost against realised speed-up"
# In inches: readable in print across two columns, and at the width of a README.
_WIDTH, _PANEL, _GAP, _TITLE = 7.4, 1.42, 0.13, 0.36
_LEFT, _TOP, _BOTTOM, _ROW = 0.42, 0.16, 0.42, 0.145
_ASIDE = 0.16  # the mean is narrower by this, for the scale of the panels beside it
_COLUMNS, _LARGE = 4, 2  # panels beside each other; the mean takes two by two
_LEGEND = 4
_TICKS = (-5, -2, -1, 0, 1, 2, 5, 10, 20, 40)
_LOSS_TO_SHOW = 0.5  # more is drawn at the edge


def draw_losses(view: View, chosen: Mapping[str, Look]) -> list[Drawing]:
    """Return a figure per pool of two or more sets whose reference was measured."""
    drawings = []
    for same in grouped(view.set_means, lambda one: one.synthetic).values():
        for number, one in enumerate(same, start=1):
            if len(one.references) >= 2 and any(finite(mean.speedup) for mean in one.methods):
                drawings.append(_draw(view, one, chosen, f"-{number}" if number > 1 else ""))
    return drawings


def _draw(view: View, means: SetMeans, chosen: Mapping[str, Look], extra: str) -> Drawing:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = {label: _points_of_set(view, means, label) for label in means.sets if label in means.references}
    average = average_points(means)
    every = [*average, *(point for mine in panels.values() for point in mine)]
    shown = [name for name in chosen if any(point.row.method == name for point in every)]
    lines = max(2, math.ceil((len(panels) + _LARGE * _LARGE) / _COLUMNS))
    legend = math.ceil(len(shown) / _LEGEND)
    height = _TOP + lines * (_PANEL + _TITLE) + _BOTTOM + legend * _ROW
    figure = Figure(figsize=(_WIDTH, height))
    FigureCanvasAgg(figure)
    wide = (_WIDTH - _LEFT - 0.1 - (_COLUMNS - 1) * _GAP) / _COLUMNS
    limits = limits_of(every)

    def place(column: int, line: int, size: int) -> Axes:
        left = _LEFT + column * (wide + _GAP)
        top = height - _TOP - line * (_PANEL + _TITLE) - _TITLE
        across = wide if size == 1 else size * wide + (size - 1) * _GAP - _ASIDE
        down = size * _PANEL + (size - 1) * _TITLE
        return figure.add_axes((left / _WIDTH, (top - down) / height, across / _WIDTH, down / height))

    cells = [(c, r) for r in range(lines) for c in range(_COLUMNS) if c >= _LARGE or r >= _LARGE]
    spots: list[Spot] = []
    drawn = [(place(0, 0, _LARGE), f"Mean of {len(means.counted)} sets", "", average, 6.8)]
    depths = {row.label: row for row in view.depths if row.data == means.data}
    for (label, mine), (column, line) in zip(panels.items(), cells, strict=False):
        axes = place(column, line, 1)
        axes.tick_params(labelleft=column == 0 or (column == _LARGE and line < _LARGE))
        drawn.append((axes, *_title(view, label, depths.get(label)), mine, 5.4))
    for number, (axes, title, note, mine, size) in enumerate(drawn):
        draw_panel(axes, mine, chosen, limits, large=number == 0)
        axes.set_title(title, fontsize=9 if number == 0 else 7.5, pad=3)
        if note:
            axes.text(1.0, 1.02, note, transform=axes.transAxes, fontsize=5.5, ha="right", va="bottom", color=GREYS[0])
        label_best(axes, mine, chosen, size, large=number == 0)
        spots += spots_of(figure, axes, mine, "mean" if number == 0 else title, height)
    _common(figure, height, shown, chosen, legend)
    text = TITLE + data_tag(means.synthetic)
    figure.text(_LEFT / _WIDTH, 1 - 0.2 / height, text, fontsize=10.5, ha="left", va="baseline")
    lost = [label for label in means.sets if label not in panels]
    description = (
        f"{text}. Panels: the mean of {len(means.counted)} sets, and {', '.join(panels)}."
        + (f" Without a reference, and therefore not shown: {', '.join(lost)}." if lost else "")
        + " Points that no other method dominates are in full colour, joined by pale steps and labelled. Numbers are in the tables "
        "means and summary."
    )
    return render(figure, f"losses{extra}{file_tag(means.synthetic)}", text, description, role="losses", spots=spots)


def average_points(means: SetMeans) -> list[Point]:
    """Return the methods' points on average over sets: speed-up, and the change of accuracy against the reference."""
    return [
        Point(next(iter(mean.rows.values())), mean.speedup, -mean.lost, -mean.lost, -mean.lost)
        for mean in means.methods
        if mean.kind == "method" and finite(mean.speedup) and finite(mean.lost)
    ]


def _points_of_set(view: View, means: SetMeans, label: str) -> list[Point]:
    """Return the methods' points with a speed-up on one set; accuracy is the change against the reference."""
    found = []
    for mean in means.methods:
        row = mean.rows.get(label)
        lost = None if row is None else lost_by(row, means.references.get(label))
        if row is not None and row.kind == "method" and finite(row.speedup) and row.speedup > 0 and finite(lost):
            found.append(Point(row, row.speedup, -lost, -lost, -lost))
    return found


def _title(view: View, label: str, depth: DepthRow | None) -> tuple[str, str]:
    names = {group.label: group.dataset for group in view.groups}
    note = "" if depth is None else f"depth {points(depth.worth)}" + ("" if depth.counts else ": no claim")
    return names[label], note


def limits_of(every: Sequence[Point]) -> tuple[float, float, float, float]:
    """Return the common limits: speed-up, and change of accuracy in points."""
    fast = [point.cost for point in every] or [1.0]
    change = [100 * max(point.accuracy, -_LOSS_TO_SHOW) for point in every] or [0.0]
    return (
        min(0.85, min(fast) / 1.1),
        max(2.2, max(fast) * 1.25),
        min(-2.5, min(change) * 1.35),
        max(0.8, max(change) * 1.4),
    )


def draw_panel(
    axes: Axes,
    mine: Sequence[Point],
    chosen: Mapping[str, Look],
    limits: tuple[float, float, float, float],
    *,
    large: bool,
) -> None:
    """Draw the points of one panel; those that another one dominates are pale."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=1, linscale=0.5)
    axes.set_xlim(limits[0], limits[1])
    axes.set_ylim(limits[2], limits[3])
    ticks = [tick for tick in (0.5, 1, 2, 4, 8, 16, 32, 64) if limits[0] <= tick <= limits[1]]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axes.yaxis.set_major_locator(FixedLocator([-tick for tick in _TICKS if limits[2] <= -tick <= limits[3]]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{-value:g}".replace("-", "+") if value else "0"))
    axes.tick_params(labelsize=7 if large else 6, length=2, pad=1.5)
    axes.grid(linewidth=0.4)
    axes.axhline(0, color=INK, lw=0.6, alpha=0.6, zorder=1)
    noise = next((point.row.noise for point in mine if point.row.noise is not None), None)
    if noise is not None and not large:
        axes.axvspan(noise.low, noise.high, color=INK, alpha=0.08, lw=0)
    best = {id(mine[at]) for at in frontier(mine, "speedup")}
    front = sorted((p for p in mine if id(p) in best), key=lambda p: p.cost)
    if len(front) > 1:
        x, y = [p.cost for p in front], [100 * p.accuracy for p in front]
        axes.plot(x, y, color=INK, alpha=0.16, lw=2.2 if large else 1.6, drawstyle="steps-pre", zorder=1)
    variants = {
        name: sorted({p.row.variant for p in some}) for name, some in grouped(mine, lambda p: p.row.method).items()
    }
    for same in grouped(mine, lambda p: (p.row.method, p.row.variant)).values():
        ordered = sorted(same, key=lambda p: p.cost)
        look = chosen[same[0].row.method]
        if len(ordered) > 1:
            axes.plot(
                [p.cost for p in ordered],
                [100 * p.accuracy for p in ordered],
                color=look.color,
                lw=0.7,
                alpha=0.3,
                zorder=2,
            )
        for point in ordered:
            ahead = id(point) in best or point.row.is_reference
            hollow = look.hollow or variants[point.row.method].index(point.row.variant) % 2 == 1
            star = 1.7 if look.marker == "*" else 1.0
            axes.plot(
                [point.cost],
                [max(100 * point.accuracy, limits[2])],
                marker=look.marker,
                markersize=star * ((4.8 if large else 3.6) if ahead else (3.4 if large else 2.6)),
                markerfacecolor=PAPER if hollow else look.color,
                markeredgecolor=look.color,
                markeredgewidth=0.8,
                alpha=1.0 if ahead else 0.32,
                linestyle="none",
                clip_on=False,
                zorder=4 if ahead else 3,
            )


def label_best(axes: Axes, mine: Sequence[Point], chosen: Mapping[str, Look], size: float, *, large: bool) -> None:
    """Label the points that no other method dominates, equal ones once; small panels name a method at its fastest one only."""
    at = frontier(mine, "speedup")  # fastest first
    once = {(mine[i].cost, mine[i].accuracy): i for i in reversed(at)}
    named: set[tuple[str, str]] = set()
    labels: list[Label] = []
    for i in sorted(once.values(), key=lambda i: -mine[i].cost):
        row = mine[i].row
        line = row.method, row.variant
        if row.is_reference and not large:
            continue
        text = mine[i].name if large or line not in named else mine[i].setting
        named.add(line)
        labels.append((mine[i].cost, 100 * mine[i].accuracy, text, chosen[row.method].color))
    written = {(x, y) for x, y, _, _ in labels}
    others = [spot for p in mine if (spot := (p.cost, 100 * p.accuracy)) not in written]
    place_all_labels(axes, labels, others, size)


def _common(figure: Figure, height: float, shown: Sequence[str], chosen: Mapping[str, Look], legend: int) -> None:
    """Write the names of both axes once, and the legend."""
    from matplotlib.lines import Line2D

    figure.text(
        0.09 / _WIDTH,
        0.5 + 0.1 / height,
        "accuracy lost, points (+ gained)",
        fontsize=8,
        rotation=90,
        ha="center",
        va="center",
    )
    bottom = (_BOTTOM + legend * _ROW) / height
    figure.text(
        0.5, bottom - 0.29 / height, "speed-up, wall time of the reference over the method's", fontsize=8, ha="center"
    )
    handles = [
        Line2D(
            [],
            [],
            color=chosen[name].color,
            marker=chosen[name].marker,
            markersize=4.5,
            markerfacecolor=PAPER if chosen[name].hollow else chosen[name].color,
            linestyle="none",
            label=name,
        )
        for name in shown
    ]
    spacing: dict[str, Any] = {"handletextpad": 0.2, "labelspacing": 0.2, "columnspacing": 1.0, "borderpad": 0.1}
    figure.legend(
        handles=handles,
        loc="lower center",
        bbox_to_anchor=(0.5, 0.0),
        ncol=_LEGEND,
        fontsize=6.5,
        frameon=False,
        **spacing,
    )


def spots_of(figure: Figure, axes: Axes, mine: Sequence[Point], where: str, height: float) -> list[Spot]:
    """Return the description of every point, beside its place in a figure of this height, in inches."""
    if not mine:
        return []
    pixels = axes.transData.transform([(p.cost, 100 * p.accuracy) for p in mine])
    return [
        (
            72 * px / figure.dpi,
            72 * (height - py / figure.dpi),
            f"{where}: {p.row.method} {p.row.point}: {points2(p.accuracy)} points, speed-up {times(p.cost)}",
        )
        for (px, py), p in zip(pixels, mine, strict=True)
    ]
