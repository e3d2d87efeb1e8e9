"""The speed-up taken apart: from layers to FLOPs to the time of blocks to wall time, and what each loss is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from harness.results import Factor, Waterfall
from reports.canvas import Canvas, fitted
from reports.numbers import DASH, finite, plain, times
from reports.palette import FAINT, GAIN, INK, LOSS, PAPER

if TYPE_CHECKING:
    from reports.noise import Noise

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


def over_seeds(waterfalls: Sequence[Waterfall]) -> Waterfall | None:
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
    return Waterfall(
        factors=factors, product=mean([one.product for one in good]), measured=mean([one.measured for one in good])
    )


def _usable(one: Waterfall) -> bool:
    values = [factor.ratio for factor in one.factors] + [one.product, one.measured]
    return all(math.isfinite(value) and value > 0 for value in values)


def largest_loss(one: Waterfall) -> Factor | None:
    """The factor that takes most; None where nothing is lost."""
    least = min(one.factors, key=lambda factor: factor.ratio, default=None)
    return least if least is not None and least.ratio < 0.995 else None


def draw_waterfalls(title: str, rows: Sequence[tuple[str, Waterfall]], noise: Noise | None) -> tuple[str, str]:
    """One panel per operating point of a method, on one logarithmic scale.

    Args:
        title: of the figure.
        rows: (name of the point, waterfall).
        noise: band of A/A ratios, drawn around 1 and around the wall time.

    Returns:
        The SVG and a description in words.
    """
    steps = [(1.0, *_reached(one), one.measured) for _, one in rows]
    band = noise.high if noise else 1.0
    low = min(min(values) for values in steps) / band / 1.03
    high = max(max(values) for values in steps) * band * 1.03
    low, high = min(low, 0.8), max(high, 1.25)
    columns = min(2, len(rows))
    left, wide, right, row_height, head = 128, 210, 62, 15, 40
    panel = left + wide + right
    heights = [head + row_height * (len(one.factors) + 1) + 22 for _, one in rows]
    lines = [max(heights[i : i + columns]) for i in range(0, len(rows), columns)]
    canvas = Canvas(panel * columns + 12, 24 + sum(lines), title)
    canvas.text(6, 16, fitted(title, 13, canvas.width - 12), size=13)
    ticks = _ticks(low, high)

    for number, (name, one) in enumerate(rows):
        x0 = 6 + (number % columns) * panel + left
        y0 = 24.0 + sum(lines[: number // columns])

        def at(value: float, x0: float = x0) -> float:
            return x0 + wide * math.log(value / low) / math.log(high / low)

        bottom = y0 + head + row_height * (len(one.factors) + 1)
        canvas.text(x0 - left, y0 + 14, fitted(f"{name}: {times(one.measured)}", 11, panel - 8), bold=True)
        loss = largest_loss(one)
        under = f"largest loss: {loss.name} {times(loss.ratio)}" if loss else "nothing is lost"
        canvas.text(x0 - left, y0 + 28, under, size=9.5)
        if noise is not None:
            for middle in dict.fromkeys((1.0, one.measured)):
                start, end = at(middle * noise.low), at(middle * noise.high)
                canvas.rect(start, y0 + head - 6, end - start, bottom - y0 - head + 6, INK, opacity=0.09)
        for tick in ticks:
            canvas.line(at(tick), y0 + head - 6, at(tick), bottom, FAINT)
            canvas.text(at(tick), bottom + 12, f"{tick:g}×", size=8.5, anchor="middle")
        canvas.line(at(1), y0 + head - 6, at(1), bottom)
        reached = 1.0
        for line, factor in enumerate(one.factors):
            y = y0 + head + row_height * line
            after = reached * factor.ratio
            gain = factor.ratio >= 1
            start, end = sorted((at(reached), at(after)))
            says = f"{factor.name} {times(factor.ratio)}: {factor.what}"
            # Losses are hollow as well as orange: print without colour tells them apart.
            canvas.rect(
                start, y, end - start, row_height - 4, GAIN if gain else PAPER, stroke=GAIN if gain else LOSS, says=says
            )
            canvas.line(at(after), y, at(after), y + row_height + row_height - 4, dashed=True)
            canvas.text(x0 - 6, y + 9.5, factor.name, size=10, anchor="end")
            canvas.text(x0 + wide + 6, y + 9.5, times(factor.ratio), size=10)
            reached = after
        y = y0 + head + row_height * len(one.factors)
        start, end = sorted((at(1.0), at(one.measured)))
        canvas.rect(start, y, end - start, row_height - 4, INK, says=f"wall time: {times(one.measured)}")
        canvas.text(x0 - 6, y + 9.5, "wall time", size=10, anchor="end", bold=True)
        canvas.text(x0 + wide + 6, y + 9.5, times(one.measured), size=10, bold=True)
    words = "; ".join(f"{name} {times(one.measured)}" for name, one in rows)
    return canvas.svg(), f"{title}. Wall time against the reference: {words}. All factors are in the table."


def _reached(one: Waterfall) -> list[float]:
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
    if not isinstance(one, Waterfall):
        return DASH
    return next((times(factor.ratio) for factor in one.factors if factor.name == name), DASH)


def factor_value(one: Any, name: str) -> float | None:
    """The ratio of one factor as a number."""
    if not isinstance(one, Waterfall):
        return None
    return next((factor.ratio for factor in one.factors if factor.name == name), None)


def loss_text(one: Any) -> str:
    """The largest loss in words."""
    if not isinstance(one, Waterfall):
        return DASH
    loss = largest_loss(one)
    return f"{loss.name} {plain(loss.ratio)}×: {loss.what}" if loss and finite(loss.ratio) else "none"
