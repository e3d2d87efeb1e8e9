"""Panels that show the factors of a speed-up, from layers to FLOPs to block time to wall time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from operator import mul

from harness.results.schema import SpeedupFactors
from reports.analysis.time_ratios import Noise, in_order, largest_loss
from reports.figures.drawing import FAINT, GAIN, GREYS, INK, LOSS, PAPER
from reports.figures.svg_canvas import Canvas, fitted, width_of
from reports.notation.numbers import times

# Pixels: room for names, a panel's bars and its numbers; lines of a panel; heading of a panel. Panels per line.
_LEFT, _WIDE, _RIGHT, _ROW, _HEAD, _COLUMNS = 126, 140, 56, 15, 40, 3


def draw_factor_panels(title: str, rows: Sequence[tuple[str, SpeedupFactors]], noise: Noise | None) -> tuple[str, str]:
    """Draw one panel per operating point of a method, on one logarithmic scale.

    Args:
        title: of the figure.
        rows: (name of the point, its factors).
        noise: band of A/A ratios, drawn around 1 and around the wall time.

    Returns:
        The SVG and a description in words.
    """
    names = in_order([one for _, one in rows])
    low, high = _limits([one for _, one in rows], noise)
    columns = 2 if len(rows) == 4 else min(_COLUMNS, len(rows))
    panel = _HEAD + _ROW * (len(names) + 1) + 22
    # A title is never cut, because it says where data is synthetic.
    width = max(_LEFT + columns * (_WIDE + _RIGHT) + 6, width_of(title, 12.5) + 12)
    canvas = Canvas(width, 22 + panel * math.ceil(len(rows) / columns), title)
    canvas.text(6, 16, title, size=12.5)
    for number, (name, one) in enumerate(rows):
        x0, y0 = _LEFT + (number % columns) * (_WIDE + _RIGHT), 22.0 + panel * (number // columns)
        if number % columns == 0:
            for line, label in enumerate([*names, "wall time"]):
                bold = line == len(names)
                canvas.text(_LEFT - 6, y0 + _HEAD + _ROW * line + 9.5, label, size=10, anchor="end", bold=bold)
        _panel(canvas, (x0, y0), name, one, names, (low, high), noise)
    words = "; ".join(f"{name} {times(one.measured)}" for name, one in rows)
    return canvas.svg(), f"{title}. Wall time against the reference: {words}. All factors are in the table."


def _limits(several: Sequence[SpeedupFactors], noise: Noise | None) -> tuple[float, float]:
    """Return the ends of the axis: all ratios reached, with their noise, are inside, and 1 is not at the edge."""
    reached = [
        value for one in several for value in (1.0, *accumulate((f.ratio for f in one.factors), mul), one.measured)
    ]
    band = (noise.high if noise else 1.0) * 1.03
    return min(0.8, min(reached) / band), max(1.25, max(reached) * band)


def _panel(
    canvas: Canvas,
    corner: tuple[float, float],
    name: str,
    one: SpeedupFactors,
    names: Sequence[str],
    limits: tuple[float, float],
    noise: Noise | None,
) -> None:
    """Draw the factors of one operating point, one below the other, each from the end of the one before."""
    x0, top = corner[0], corner[1] + _HEAD
    bottom = top + _ROW * (len(names) + 1)

    def at(value: float) -> float:
        return x0 + _WIDE * math.log(value / limits[0]) / math.log(limits[1] / limits[0])

    canvas.text(
        x0, corner[1] + 13, fitted(f"{name}: {times(one.measured)}", 10.5, _WIDE + _RIGHT), size=10.5, bold=True
    )
    loss = largest_loss(one)
    text = f"largest loss: {loss.name} {times(loss.ratio)}" if loss else "no loss"
    canvas.text(x0, corner[1] + 26, fitted(text, 9, _WIDE + _RIGHT), size=9)
    if noise is not None:
        for middle in dict.fromkeys((1.0, one.measured)):
            start, end = at(middle * noise.low), at(middle * noise.high)
            canvas.rect(start, top - 6, end - start, bottom - top + 6, INK, opacity=0.09)
    for tick in _ticks(*limits):
        canvas.line(at(tick), top - 6, at(tick), bottom, FAINT, above=1)
        canvas.text(at(tick), bottom + 12, f"{tick:g}×", size=8.5, anchor="middle")
    canvas.line(at(1), top - 6, at(1), bottom, GREYS[0], above=1)
    ratios = {factor.name: factor for factor in one.factors}
    reached = 1.0
    for line, label in enumerate(names):
        y, factor = top + _ROW * line, ratios.get(label)
        if factor is not None:
            after = reached * factor.ratio
            start, end = sorted((at(reached), at(after)))
            # Losses are hollow as well as orange, to be told apart in print without colour.
            fill, stroke = (GAIN, GAIN) if factor.ratio >= 1 else (PAPER, LOSS)
            tip = f"{factor.name} {times(factor.ratio)}: {factor.what}"
            canvas.rect(start, y, end - start, _ROW - 4, fill, stroke=stroke, tip=tip, above=2)
            canvas.text(x0 + _WIDE + 5, y + 9.5, times(factor.ratio), size=10)
            reached = after
        canvas.line(at(reached), y + _ROW - 4, at(reached), y + _ROW, GREYS[0], above=3)
    y = top + _ROW * len(names)
    start, end = sorted((at(1.0), at(one.measured)))
    canvas.rect(start, y, end - start, _ROW - 4, INK, stroke=INK, tip=f"wall time {times(one.measured)}", above=2)
    canvas.text(x0 + _WIDE + 5, y + 9.5, times(one.measured), size=10, bold=True)


def _ticks(low: float, high: float) -> list[float]:
    """Return round ratios inside the limits, at most seven."""
    every = [base * 10.0**power for power in range(-3, 5) for base in (1, 1.5, 2, 3, 5, 7)]
    inside = [tick for tick in every if low <= tick <= high]
    for kept in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        fewer = [t for t in inside if any(math.isclose(t / 10 ** math.floor(math.log10(t) + 1e-9), k) for k in kept)]
        if len(fewer) <= 7:
            return fewer
    return [1.0]
