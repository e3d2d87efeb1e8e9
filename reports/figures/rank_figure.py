"""Critical-difference diagrams (Demsar 2006, section 3.2.4): average ranks over sets, and which methods are not separated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.measure.areas import not_separated
from reports.analysis.verdicts.equal_cost import SetRanks
from reports.analysis.view import View, by_data
from reports.figures.drawing import GREYS, INK, Drawing, new_figure, render
from reports.notation.marks import data_tag, file_tag
from reports.notation.numbers import fixed, p_value

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "Average ranks over sets"
_HEADS = {"flops": "accuracy at half of the FLOPs", "time": "accuracy at half of the time", "score": "ELUE score"}
# In inches.
_WIDTH, _ROW, _HEAD, _FOOT, _SIDE = 7.4, 0.155, 0.62, 0.12, 1.75


def draw_ranks(view: View) -> list[Drawing]:
    """Return a figure with a diagram per endpoint for real data, and one for synthetic data, as far as methods were ranked."""
    halves = by_data([one for one in view.ranks if one.ranked])
    return [_draw(several, synthetic) for synthetic, several in halves]


def _draw(several: Sequence[SetRanks], synthetic: bool) -> Drawing:
    heights = [_height(one) for one in several]
    title, total = TITLE + data_tag(synthetic), sum(heights) + 0.3
    figure, axes = new_figure(_WIDTH, total)
    axes.set_xlim(0, _WIDTH)
    axes.set_ylim(-total, 0)
    axes.set_axis_off()
    axes.text(0.1, -0.2, title, fontsize=10.5)
    axes.text(_WIDTH - 0.1, -0.2, "bars: not separated at 5 % (Nemenyi)", fontsize=7, ha="right", color=GREYS[0])
    top = -0.3
    for one, height in zip(several, heights, strict=True):
        _diagram(axes, one, top)
        top -= height
    best = "; ".join(f"{_HEADS[one.endpoint]}: {one.ranked[0].name} first" for one in several)
    description = (
        f"{title}, 1 is best; methods under one bar are not separated. {best}. All ranks are in the tables ranks."
    )
    return render(figure, f"ranks{file_tag(synthetic)}", title, description, role="ranks")


def _height(one: SetRanks) -> float:
    return _HEAD + _FOOT + _ROW * (math.ceil(len(one.ranked) / 2) + _bars(one)) + 0.16


def _bars(one: SetRanks) -> float:
    """Return the room of the bars, in rows."""
    return 0.55 * len(not_separated([m.rank or 0.0 for m in one.ranked], one.critical_difference or 0.0)) + 0.4


def _diagram(axes: Axes, one: SetRanks, top: float) -> None:
    """Draw one diagram: the scale of ranks, bars over methods that are not separated, and names on both sides."""
    ranked = one.ranked
    left, right = _SIDE, _WIDTH - _SIDE

    def at(rank: float) -> float:
        return left + (right - left) * (rank - 1) / (len(ranked) - 1)

    y = top - _HEAD
    head = f"{_HEADS[one.endpoint]}: {len(ranked)} methods, {len(one.counted)} sets, Friedman p {p_value(one.p)}"
    axes.text(0.1, top - 0.14, head, fontsize=8, va="center")
    axes.plot([left, right], [y, y], color=INK, lw=0.9)
    for rank in range(1, len(ranked) + 1):
        axes.plot([at(rank)] * 2, [y, y + 0.05], color=INK, lw=0.7)
        axes.text(at(rank), y + 0.07, str(rank), fontsize=7, ha="center", va="bottom")
    wide = one.critical_difference or 0.0
    end = min(at(1 + wide), right)
    axes.plot([left, end], [y + 0.27] * 2, color=GREYS[0], lw=1.2)
    for x in (left, end):
        axes.plot([x, x], [y + 0.24, y + 0.30], color=GREYS[0], lw=1.2)
    axes.text(end + 0.05, y + 0.27, f"critical difference {fixed(wide)}", fontsize=6.5, va="center", color=GREYS[0])
    groups = not_separated([m.rank or 0.0 for m in ranked], wide)
    for number, (first, last) in enumerate(groups):
        height = y - _ROW * (0.4 + 0.55 * number)
        axes.plot(
            [at(ranked[first].rank or 0) - 0.04, at(ranked[last].rank or 0) + 0.04], [height] * 2, color=INK, lw=2.4
        )
    half = math.ceil(len(ranked) / 2)
    start = y - _ROW * _bars(one)
    for number, method in enumerate(ranked):
        on_left = number < half
        line = number if on_left else len(ranked) - 1 - number
        height = start - _ROW * (line + 0.6)
        x, side = at(method.rank or 0), (left - 0.1 if on_left else right + 0.1)
        axes.plot([x, x, side], [y, height, height], color=INK, lw=0.5)
        text = f"{method.name}  {fixed(method.rank)}" if on_left else f"{fixed(method.rank)}  {method.name}"
        axes.text(
            side + (-0.04 if on_left else 0.04),
            height,
            text,
            fontsize=7,
            ha="right" if on_left else "left",
            va="center",
        )
