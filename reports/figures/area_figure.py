"""Pooled curves of accuracy over mean layers, one per early exit: the picture of the table of areas."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from reports.analysis.verdicts.area_ranks import BUDGETS, GRID, AreaRank
from reports.analysis.view import View, by_data
from reports.figures.drawing import INK, PAPER, Drawing, Look, new_figure, render
from reports.notation.marks import data_tag, file_tag
from reports.notation.numbers import percent2

# With more curves than this, those of lower rank are pale and without a name.
CROWD = 12


def draw_areas(view: View, chosen: Mapping[str, Look]) -> list[Drawing]:
    """Return a figure for real data and one for synthetic data, as far as there are curves."""
    return [_draw(rows, synthetic, chosen) for synthetic, rows in by_data(view.areas)]


def _draw(rows: Sequence[AreaRank], synthetic: bool, chosen: Mapping[str, Look]) -> Drawing:
    named = [row for row in rows if row.kind == "control" or row in rows[:CROWD]]
    title = "Accuracy over layers, mean over sets" + data_tag(synthetic)
    legend_rows = math.ceil((len(named) + 1 + (len(named) < len(rows))) / 3)
    height = 4.2 + 0.16 * legend_rows
    figure, axes = new_figure(7.2, height)
    axes.set_position((0.09, (0.16 * legend_rows + 0.6) / height, 0.89, 3.2 / height))
    axes.axvspan(*(100 * end for end in BUDGETS), color=INK, alpha=0.05, lw=0, label="budgets of the area")
    # Variants of one method share its colour; the second one is hollow.
    variants: dict[str, list[str]] = {}
    for row in rows:
        variants.setdefault(row.method, []).append(row.variant)
    for row in [row for row in rows if row not in named]:
        axes.plot(*_line(row), color=INK, alpha=0.15, lw=0.8, zorder=1, label="_")
    for row in reversed(named):
        look = chosen[row.method]
        hollow = look.hollow or variants[row.method].index(row.variant) % 2 == 1
        axes.plot(
            *_line(row),
            color=look.color,
            linestyle=look.line,
            marker=look.marker,
            markersize=4,
            markevery=3,
            markerfacecolor=PAPER if hollow else look.color,
            lw=1.2,
            zorder=3,
            label=_name(row),
        )
    axes.set_xlim(100 * GRID[0], 101)
    axes.set_xlabel("mean layers, % of the depth (fewer is better)")
    axes.set_ylabel("accuracy %")
    axes.set_title(title)
    handles, labels = axes.get_legend_handles_labels()
    if len(named) < len(rows):
        labels.append(f"pale: {len(rows) - len(named)} more")
        handles.append(axes.plot([], [], color=INK, alpha=0.3, lw=0.8)[0])
    spacing: dict[str, Any] = {"handlelength": 2.4, "labelspacing": 0.25, "columnspacing": 1.2, "borderpad": 0.2}
    order = [0, *range(len(named), 0, -1), *range(len(named) + 1, len(labels))]  # as in the table
    figure.legend(
        [handles[at] for at in order],
        [labels[at] for at in order],
        loc="lower left",
        bbox_to_anchor=(0.02, 0.0),
        ncol=3,
        **spacing,
    )
    description = f"{title}: {len(rows)} curves. All areas and ranks are in the table areas."
    return render(figure, f"areas{file_tag(synthetic)}", title, description, role="areas")


def _line(row: AreaRank) -> tuple[list[float], list[float]]:
    return [100 * share for share in GRID], [100 * value for value in row.curve]


def _name(row: AreaRank) -> str:
    place = "" if row.rank is None else f"{row.rank}. "
    return f"{place}{row.name} {percent2(row.area)} %"
