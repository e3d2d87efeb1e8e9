"""The speed-up taken apart: from layers to FLOPs to the time of blocks to wall time, and what each loss is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from harness.results.schema import Factor, SpeedupFactors
from reports.figures.palette import FAINT, GAIN, GREYS, INK, LOSS, PAPER
from reports.figures.svg import Canvas, fitted, width_of
from reports.notation.numbers import DASH, finite, plain, times

if TYPE_CHECKING:
    from reports.analysis.noise import Noise

# Factors from layers to wall time, with what a value below 1 means. Names that are not here come last.
LOSSES: dict[str, str] = {
    "layers": "more layers are run than in the reference",
    "width": "a layer costs more FLOPs a token",
    "length": "the samples that go deep are the long ones",
    "attention and padding": "padding is computed, or attention over longer sequences weighs more",
    "heads": "exit heads are computed on top of layers",
    "FLOPs": "more FLOPs are run, all blocks together",
    "kernels": "the same FLOPs take longer: smaller or more launches",
    "prediction": "exits have to be predicted",
    "sorting": "samples are sorted and gathered, and the host has to be told",
    "answers": "answers go to the host and back into input order",
    "rest": "whatever is left of the pass: Python, launches, waiting",
}
_ORDER = {name: place for place, name in enumerate(LOSSES)}


def over_seeds(waterfalls: Sequence[SpeedupFactors]) -> SpeedupFactors | None:
    """Geometric means of the factors; one that a seed does not have is 1 there, so that products stay exact.

    The words of a factor are those of the first seed that has it.
    """
    good = [one for one in waterfalls if _usable(one)]
    if not good:
        return None
    found: dict[str, list[Factor]] = {}
    for one in good:
        for factor in one.factors:
            found.setdefault(factor.name, []).append(factor)

    def mean(values: Sequence[float]) -> float:
        return math.exp(sum(math.log(value) for value in values) / len(good))

    names = sorted(found, key=lambda name: _ORDER.get(name, len(_ORDER)))
    factors = [Factor(name=n, ratio=mean([f.ratio for f in found[n]]), what=found[n][0].what) for n in names]
    return SpeedupFactors(
        factors=factors, product=mean([one.product for one in good]), measured=mean([one.measured for one in good])
    )


def _usable(one: SpeedupFactors) -> bool:
    values = [factor.ratio for factor in one.factors] + [one.product, one.measured]
    return all(math.isfinite(value) and value > 0 for value in values)


def largest_loss(one: SpeedupFactors) -> Factor | None:
    """The factor that takes most; None where nothing is lost."""
    least = min(one.factors, key=lambda factor: factor.ratio, default=None)
    return least if least is not None and least.ratio < 0.995 else None


def draw_waterfalls(title: str, rows: Sequence[tuple[str, SpeedupFactors]], noise: Noise | None) -> tuple[str, str]:
    """One panel per operating point of a method, on one logarithmic scale.

    Args:
        title: of the figure.
        rows: (name of the point, waterfall).
        noise: band of A/A ratios, drawn around 1 and around the wall time.

    Returns:
        The SVG and a description in words.
    """
    names = sorted({f.name for _, one in rows for f in one.factors}, key=lambda n: _ORDER.get(n, len(_ORDER)))
    low, high = _limits([one for _, one in rows], noise)
    columns = 2 if len(rows) == 4 else min(_COLUMNS, len(rows))
    panel = _HEAD + _ROW * (len(names) + 1) + 22
    # A title is never cut: it says where data is synthetic.
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


# Pixels: room for names, a panel's bars and its numbers; lines of a panel; what stands above it.
_LEFT, _WIDE, _RIGHT, _ROW, _HEAD, _COLUMNS = 126, 140, 56, 15, 40, 3


def _limits(several: Sequence[SpeedupFactors], noise: Noise | None) -> tuple[float, float]:
    """Ends of the axis: everything reached, with its noise, is inside, and 1 is not at the edge."""
    reached = [value for one in several for value in (1.0, *_reached(one), one.measured)]
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
    """The factors of one operating point, one below the other, each from where the last one ended."""
    x0, top = corner[0], corner[1] + _HEAD
    bottom = top + _ROW * (len(names) + 1)

    def at(value: float) -> float:
        return x0 + _WIDE * math.log(value / limits[0]) / math.log(limits[1] / limits[0])

    canvas.text(
        x0, corner[1] + 13, fitted(f"{name}: {times(one.measured)}", 10.5, _WIDE + _RIGHT), size=10.5, bold=True
    )
    loss = largest_loss(one)
    said = f"largest loss: {loss.name} {times(loss.ratio)}" if loss else "nothing is lost"
    canvas.text(x0, corner[1] + 26, fitted(said, 9, _WIDE + _RIGHT), size=9)
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
            # Losses are hollow as well as orange: print without colour tells them apart.
            fill, stroke = (GAIN, GAIN) if factor.ratio >= 1 else (PAPER, LOSS)
            says = f"{factor.name} {times(factor.ratio)}: {factor.what}"
            canvas.rect(start, y, end - start, _ROW - 4, fill, stroke=stroke, says=says, above=2)
            canvas.text(x0 + _WIDE + 5, y + 9.5, times(factor.ratio), size=10)
            reached = after
        canvas.line(at(reached), y + _ROW - 4, at(reached), y + _ROW, GREYS[0], above=3)
    y = top + _ROW * len(names)
    start, end = sorted((at(1.0), at(one.measured)))
    canvas.rect(start, y, end - start, _ROW - 4, INK, stroke=INK, says=f"wall time {times(one.measured)}", above=2)
    canvas.text(x0 + _WIDE + 5, y + 9.5, times(one.measured), size=10, bold=True)


def _reached(one: SpeedupFactors) -> list[float]:
    """The ratio after each factor."""
    values, reached = [], 1.0
    for factor in one.factors:
        reached *= factor.ratio
        values.append(reached)
    return values


def _ticks(low: float, high: float) -> list[float]:
    """Round ratios inside, at most seven."""
    every = [base * 10.0**power for power in range(-3, 5) for base in (1, 1.5, 2, 3, 5, 7)]
    inside = [tick for tick in every if low <= tick <= high]
    for kept in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        fewer = [t for t in inside if any(math.isclose(t / 10 ** math.floor(math.log10(t) + 1e-9), k) for k in kept)]
        if len(fewer) <= 7:
            return fewer
    return [1.0]


def waterfall_note(names: Sequence[str]) -> str:
    """What a loss in each of these factors is."""
    told = [f"{name}: {LOSSES[name]}" for name in names if name in LOSSES]
    return "Below 1 a factor is a loss. " + "; ".join(told) + "."


def factor_text(one: Any, name: str) -> str:
    """The ratio of one factor of a row; a dash where the row has no such factor."""
    if not isinstance(one, SpeedupFactors):
        return DASH
    return next((times(factor.ratio) for factor in one.factors if factor.name == name), DASH)


def factor_value(one: Any, name: str) -> float | None:
    """The ratio of one factor as a number."""
    if not isinstance(one, SpeedupFactors):
        return None
    return next((factor.ratio for factor in one.factors if factor.name == name), None)


def loss_text(one: Any) -> str:
    """The largest loss in words."""
    if not isinstance(one, SpeedupFactors):
        return DASH
    loss = largest_loss(one)
    return f"{loss.name} {plain(loss.ratio)}×: {loss.what}" if loss and finite(loss.ratio) else "none"
