"""Heat maps of predicted against sequential exits, one per predictor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

from reports.analysis.prediction_quality import PredictorRow
from reports.figures.drawing import GREYS, INK, PAPER
from reports.figures.svg_canvas import Canvas, fitted, width_of
from reports.notation.numbers import fixed, minus, percent

# A share of samples below the first stays white; below the second its number is not written.
_VISIBLE, _WORTH_SAYING = 0.001, 0.01
_COLUMNS, _SIZE, _GAP, _HEAD = 4, 138.0, 40.0, 34.0


def draw_heat_maps(title: str, rows: Sequence[PredictorRow]) -> tuple[str, str]:
    """Draw a heat map per predictor: sequential exits downwards, predicted ones to the right; darker is more samples.

    Args:
        title: of the figure.
        rows: predictors, those at one point beside each other.

    Returns:
        The SVG and a description in words.
    """
    blocks = [list(same) for _, same in groupby(rows, key=lambda row: row.base)]
    lines = sum(math.ceil(len(block) / _COLUMNS) for block in blocks)
    pitch = _SIZE + _GAP + _HEAD - 10
    canvas = Canvas(max(_COLUMNS * (_SIZE + _GAP), width_of(title, 13)) + 12, 46 + lines * pitch, title)
    canvas.text(6, 16, title, size=13)
    canvas.text(
        6,
        31,
        "down: exit layer of the sequential exit; right: predicted layer; darker: more samples (numbers: %); framed: hits",
        size=9.5,
    )
    line = 0
    for block in blocks:
        for number, row in enumerate(block):
            x0 = 6 + 18 + (number % _COLUMNS) * (_SIZE + _GAP)
            _heat(canvas, row, x0, 46 + (line + number // _COLUMNS) * pitch + _HEAD)
        line += math.ceil(len(block) / _COLUMNS)
    words = "; ".join(f"{row.method} {row.point} {percent(row.agreement.hit, 0)} % hits" for row in rows)
    return canvas.svg(), f"{title}. {words}. All numbers are in the table."


def _heat(canvas: Canvas, row: PredictorRow, x0: float, y0: float) -> None:
    table, total = row.agreement.confusion, row.agreement.compared
    depth = len(table)
    step = _SIZE / depth
    canvas.text(x0 - 14, y0 - 18, fitted(f"{row.method} {row.point}", 10, _SIZE + 34), size=10, bold=True)
    tau = minus(fixed(row.agreement.tau_b))
    canvas.text(x0 - 14, y0 - 6, f"hits {percent(row.agreement.hit, 0)} %, tau-b {tau}", size=9)
    canvas.rect(x0, y0, _SIZE, _SIZE, "none", stroke=INK)
    for down in range(depth):
        for right in range(depth):
            share = table[down][right] / total
            x, y = x0 + right * step, y0 + down * step
            if share >= _VISIBLE:
                tip = f"exit at {down + 1}, predicted {right + 1}: {percent(share)} %" if share >= _WORTH_SAYING else ""
                canvas.rect(x, y, step, step, INK, opacity=round(20 * share**0.5) / 20 or 0.05, tip=tip)
            if down == right:
                canvas.rect(x + 0.5, y + 0.5, step - 1, step - 1, "none", stroke=GREYS[0], above=1)
            if share >= _WORTH_SAYING and step >= 18:
                color = PAPER if share**0.5 > 0.5 else INK
                canvas.text(x + step / 2, y + step / 2 + 3.5, percent(share, 0), size=9, anchor="middle", color=color)
    for layer in sorted({0, depth // 2, depth - 1}):
        canvas.text(x0 + (layer + 0.5) * step, y0 + _SIZE + 11, str(layer + 1), size=8.5, anchor="middle")
        canvas.text(x0 - 4, y0 + (layer + 0.5) * step + 3, str(layer + 1), size=8.5, anchor="end")
