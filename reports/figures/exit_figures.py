"""Exit layers in pictures: a histogram per row, and a heat map of predicted against sequential exits per predictor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby

from reports.analysis.result_rows import ResultRow
from reports.analysis.verdicts.prediction_quality import PredictorRow
from reports.analysis.view import Group, View
from reports.figures.drawing import GREYS, INK, PAPER, Drawing, Look, new_figure, render
from reports.figures.svg_canvas import Canvas, fitted, width_of
from reports.notation.numbers import finite, fixed, minus, percent

_PANELS = 4  # histograms per line
_MOST_PANELS = 36


def draw_exit_histograms(view: View, group: Group, chosen: Mapping[str, Look]) -> Drawing | None:
    """Draw the exit histograms of a dataset; None where no row uses more than one exit.

    All panels share one pair of axes, because many axes are slow.
    """
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    rows = [row for row in view.of(group) if sum(1 for share in _shares(row) if share) > 1]
    if not rows:
        return None
    # A control often has the histogram of its method by construction; it is drawn once.
    total = len(rows)
    shown: list[ResultRow] = []
    seen: set[tuple[object, ...]] = set()
    for row in rows:
        key = (row.base, *_shares(row), view.setting_of(row))
        if row.kind != "control" or key not in seen:
            shown.append(row)
        seen.add(key)
    rows = shown[:_MOST_PANELS]
    left_out = total - len(rows)
    highest = max(share for row in rows for share in _shares(row))
    lines = math.ceil(len(rows) / _PANELS)
    title = f"Exit layers of samples: {group.label}"
    height = 0.62 + 0.86 * lines
    figure, axes = new_figure(7.6, height)
    axes.set_axis_off()
    axes.set_position((0.02, 0.02, 0.96, 1 - 0.36 / height - 0.02))
    axes.set_xlim(0, _PANELS)
    axes.set_ylim(-lines, 0)
    figure.text(0.02, 1 - 0.14 / height, title, fontsize=10, va="center")
    note = f"share of samples per exit layer, tallest bar {100 * highest:.0f} %; ▾ mean layers executed"
    if any(row.answered_before for row in rows):
        note += "; 0: before layer 1"
    figure.text(
        0.02,
        1 - 0.32 / height,
        note + (f"; {left_out} equal or further rows left out" if left_out else ""),
        fontsize=7.5,
        va="center",
    )
    bars: dict[str, list[Path]] = {}
    baselines = []
    for number, row in enumerate(rows):
        x0, y0 = number % _PANELS + 0.03, -(number // _PANELS) - 0.86
        shares, look = _shares(row), chosen[row.method]
        bins, width, room = len(shares), 0.9, 0.52
        step, lowest = width / bins, bins - len(row.histogram)  # one bin more before layer 1
        for place, share in enumerate(shares):
            x, top = x0 + place * step, y0 + room * share / highest
            if share:
                corners = [(x + 0.1 * step, y0), (x + 0.9 * step, y0), (x + 0.9 * step, top), (x + 0.1 * step, top)]
                bars.setdefault(look.color, []).append(Path([*corners, corners[0]], closed=True))
        baselines.append(Path([(x0, y0), (x0 + width, y0)]))
        name = f"{row.method} {row.point} {view.setting_of(row)}".strip()
        axes.text(x0, y0 + room + 0.19, name[:36], fontsize=6.5, va="center")
        for place in {0, bins - 1, bins // 2}:
            text = str(place + 1 - lowest)
            axes.text(x0 + (place + 0.5) * step, y0 - 0.07, text, fontsize=6, ha="center", va="center")
        if finite(row.mean_layers):
            mean = min(max(row.mean_layers - 0.5 + lowest, 0.0), bins)
            axes.plot([x0 + mean * step], [y0 + room + 0.06], marker="v", markersize=3, color=INK, linestyle="none")
    # One path per colour, because hundreds of single bars are slow to draw and large to load.
    for color, paths in bars.items():
        axes.add_patch(PathPatch(Path.make_compound_path(*paths), facecolor=color, linewidth=0))
    axes.add_patch(PathPatch(Path.make_compound_path(*baselines), edgecolor=INK, linewidth=0.6, fill=False))
    description = f"{title}. One histogram for each of {len(rows)} rows that use more than one exit, all on one scale."
    return render(figure, f"exits-{group.slug}", title, description, role="exits")


def _shares(row: ResultRow) -> list[float]:
    """Return the share of samples per exit, 0..1: after layer 1, 2, ..., and first before layer 1 if there are any."""
    before, total = row.answered_before, sum(row.histogram)
    after = [(1 - (before or 0.0)) * count / max(total, 1) for count in row.histogram]
    return [before, *after] if before else after


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
    if any(row.agreement.first == 0 for row in rows):
        canvas.text(6, 43, "0: answered before layer 1", size=9.5)
    words = "; ".join(f"{row.method} {row.point} {percent(row.agreement.hit, 0)} % hits" for row in rows)
    return canvas.svg(), f"{title}. {words}. All numbers are in the table."


def _heat(canvas: Canvas, row: PredictorRow, x0: float, y0: float) -> None:
    table, total = row.agreement.confusion, row.agreement.compared
    depth, first = len(table), row.agreement.first
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
                tip = (
                    f"exit at {down + first}, predicted {right + first}: {percent(share)} %"
                    if share >= _WORTH_SAYING
                    else ""
                )
                canvas.rect(x, y, step, step, INK, opacity=round(20 * share**0.5) / 20 or 0.05, tip=tip)
            if down == right:
                canvas.rect(x + 0.5, y + 0.5, step - 1, step - 1, "none", stroke=GREYS[0], above=1)
            if share >= _WORTH_SAYING and step >= 18:
                color = PAPER if share**0.5 > 0.5 else INK
                canvas.text(x + step / 2, y + step / 2 + 3.5, percent(share, 0), size=9, anchor="middle", color=color)
    for layer in sorted({0, depth // 2, depth - 1}):
        name = str(layer + first)
        canvas.text(x0 + (layer + 0.5) * step, y0 + _SIZE + 11, name, size=8.5, anchor="middle")
        canvas.text(x0 - 4, y0 + (layer + 0.5) * step + 3, name, size=8.5, anchor="end")
