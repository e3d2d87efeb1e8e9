"""The figure that a report opens with, accuracy lost against speed-up, and the same in a small panel per family of methods."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from reports.analysis.cell_settings import SAME_REFERENCE, grouped, values_of
from reports.analysis.decision.deciding import Decision
from reports.analysis.result_rows import ResultRow
from reports.analysis.set_means import lost_by
from reports.analysis.view import Group, View
from reports.figures.drawing import GREYS, INK, Drawing, Look, new_figure, render
from reports.figures.loss_figure import average_points, draw_panel, label_best, limits_of, spots_of
from reports.figures.pareto import CROWD, Point
from reports.notation.marks import data_tag, file_tag
from reports.notation.numbers import finite

_WIDTH, _HEIGHT = 5.0, 3.2  # inches: one figure point is about one pixel on a phone
_COLUMNS, _PANEL, _GAP = 4, 1.35, 0.42
OTHERS = "others"


def draw_answers(view: View, chosen: Mapping[str, Look]) -> list[Drawing]:
    """Return a figure each for real and synthetic data: of its only set, or of the mean over its sets."""
    drawings = []
    for synthetic in (False, True):
        mine = [one for one in view.decisions if one.synthetic == synthetic]
        means = next((one for one in view.set_means if one.synthetic == synthetic and len(one.references) > 1), None)
        if means is not None and (points := average_points(means)):
            where = f"mean of {len(means.counted)} sets"
        elif mine and (group := _group(view, mine[0])) is not None:
            points, where = changes(view.of(group)), group.dataset
        else:
            continue
        if points:
            drawings.append(_draw(points, chosen, mine[0] if mine else None, where, synthetic))
    return drawings


def _group(view: View, decision: Decision) -> Group | None:
    return next((group for group in view.groups if group.label == decision.sets[0]), None)


def changes(rows: Sequence[ResultRow]) -> list[Point]:
    """Return the methods' points of a set: speed-up, and the change of accuracy against the reference, 0..1.

    As the speed-up, the change is that against the reference of the row's own backbone and conditions.
    """
    references = grouped((row for row in rows if row.is_reference), lambda row: values_of(row, SAME_REFERENCE))
    full = {same: max(mine, key=lambda row: row.mean_layers or 0.0) for same, mine in references.items()}
    found = []
    for row in rows:
        lost = lost_by(row, full.get(values_of(row, SAME_REFERENCE)))
        if row.kind == "method" and finite(row.speedup) and row.speedup > 0 and finite(lost):
            found.append(Point(row, row.speedup, -lost, -lost, -lost))
    return found


def _draw(
    points: Sequence[Point], chosen: Mapping[str, Look], decision: Decision | None, where: str, synthetic: bool
) -> Drawing:
    title = f"Accuracy lost against speed-up: {where}{data_tag(synthetic)}"
    figure, axes = new_figure(_WIDTH, _HEIGHT)
    axes.set_position((0.115, 0.15, 0.865, 0.75))
    limits = limits_of(points)
    draw_panel(axes, points, chosen, limits, large=True)
    axes.tick_params(labelsize=8)
    if decision is not None:
        axes.axhspan(-100 * decision.asked.max_loss, limits[3], color=INK, alpha=0.05, lw=0)
        named = decision.recommended
        for point in points:
            if named is not None and (point.row.method, point.row.point) == (named.method, named.point):
                axes.plot(
                    [point.cost],
                    [max(100 * point.accuracy, limits[2])],
                    marker="o",
                    markersize=13,
                    markerfacecolor="none",
                    markeredgecolor=INK,
                    markeredgewidth=1.3,
                    linestyle="none",
                    clip_on=False,
                    zorder=5,
                )
    label_best(axes, points, chosen, 7.5, large=True)
    axes.set_xlabel("speed-up, wall time of the reference over the method's", fontsize=8)
    axes.set_ylabel("accuracy lost, points (+ gained)", fontsize=8)
    axes.set_title(title, fontsize=9)
    description = (
        f"{title}. {len(points)} points of {len({p.row.method for p in points})} methods; those that no other dominates are named, "
        "and the recommended one is ringed. All numbers are in the tables."
    )
    spots = spots_of(figure, axes, points, where, _HEIGHT)
    return render(figure, f"answer{file_tag(synthetic)}", title, description, role="answer", spots=spots)


def families_of(methods: Sequence[str]) -> dict[str, str]:
    """Return method -> family: the shortest method of the run whose name it continues, as in ``fastbert-paper``.

    Methods without such relatives are one family, :data:`OTHERS`.
    """
    base = {
        name: min((other for other in methods if name == other or name.startswith(f"{other}-")), key=len)
        for name in methods
    }
    size = {one: sum(other == one for other in base.values()) for one in base.values()}
    return {name: one if size[one] > 1 else OTHERS for name, one in base.items()}


def draw_families(view: View, group: Group, chosen: Mapping[str, Look]) -> Drawing | None:
    """Draw a panel per family over the points of all methods; None with few methods, which one figure can name."""
    points = changes(view.of(group))
    methods = sorted({point.row.method for point in points})
    family = families_of(methods)
    names = sorted({*family.values()}, key=lambda one: (one == OTHERS, one))
    if len(methods) <= CROWD or len(names) < 2:
        return None
    title = f"Accuracy lost against speed-up, by family: {group.label}"
    lines = math.ceil(len(names) / _COLUMNS)
    width = 0.45 + _COLUMNS * (_PANEL + _GAP)
    height = 0.62 + lines * (_PANEL + _GAP)
    figure, first = new_figure(width, height)
    first.remove()
    limits = limits_of(points)
    for number, name in enumerate(names):
        column, line = number % _COLUMNS, number // _COLUMNS
        left, top = 0.45 + column * (_PANEL + _GAP), height - 0.58 - line * (_PANEL + _GAP)
        axes = figure.add_axes((left / width, (top - _PANEL) / height, _PANEL / width, _PANEL / height))
        mine = [point for point in points if family.get(point.row.method) == name or point.row.is_reference]
        others = [point for point in points if point not in mine]
        axes.plot(
            [p.cost for p in others],
            [max(100 * p.accuracy, limits[2]) for p in others],
            marker=".",
            markersize=2.5,
            color=GREYS[1],
            alpha=0.6,
            linestyle="none",
            clip_on=False,
        )
        draw_panel(axes, mine, chosen, limits, large=False)
        axes.set_title(name, fontsize=8, pad=3)
        axes.tick_params(labelleft=column == 0)
        label_best(axes, mine, chosen, 5.6, large=False)
    figure.text(0.45 / width, 1 - 0.24 / height, title, fontsize=10, ha="left", va="baseline")
    description = (
        f"{title}. Grey dots are the methods of the other families; in each panel, the points that no other of the family "
        "dominates are named. Down: points of accuracy lost; across: speed-up, wall time of the reference over the method's."
    )
    return render(figure, f"families-{group.slug}", title, description, role="families")
