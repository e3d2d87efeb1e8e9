"""Numbers as text for readers. A value that is missing or not finite becomes an em dash, never 0."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TypeGuard

DASH = "—"


def finite(value: object) -> TypeGuard[float]:
    """Return whether ``value`` is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def plain(value: object) -> str:
    """Return about three significant digits, thousands separated: 0.0123, 1.23, 12.3, 1,234."""
    if not finite(value):
        return DASH
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 99.95:
        return f"{value:,.0f}"
    if size >= 9.995:
        return f"{value:.1f}"
    return f"{value:.2f}" if size >= 0.9995 else f"{value:#.3g}"


def ratio(above: float | None, below: float | None) -> float | None:
    """Return ``above / below``; None where either is missing or ``below`` is zero."""
    return above / below if above is not None and below else None


def fixed(value: object, digits: int = 2) -> str:
    """Return a number with a fixed number of decimals."""
    return f"{value:,.{digits}f}" if finite(value) else DASH


def whole(value: object) -> str:
    """Return an integer with thousands separated."""
    return f"{value:,.0f}" if finite(value) else DASH


def percent(value: object, digits: int = 1) -> str:
    """Return a share in 0..1 as percent, without the percent sign."""
    return f"{100 * value:.{digits}f}" if finite(value) else DASH


def minus(text: str) -> str:
    """Replace the hyphen of a negative number by a minus sign."""
    return f"−{text[1:]}" if text.startswith("-") else text


def points(value: object, digits: int = 1) -> str:
    """Return a difference of two shares in percentage points, with its sign."""
    if not finite(value):
        return DASH
    text = f"{100 * value:+.{digits}f}"
    return text.replace("-", "−") if float(text) else f"{0:.{digits}f}"


# With two decimals.
percent2, points2 = partial(percent, digits=2), partial(points, digits=2)


def times(value: object) -> str:
    """Return a ratio, e.g. ``2.31×``."""
    return f"{plain(value)}×" if finite(value) else DASH


def span(low: object, high: object, show: Callable[[object], str] = plain) -> str:
    """Return two bounds as ``low–high``."""
    return f"{show(low)}–{show(high)}" if finite(low) and finite(high) else DASH


def p_value(value: object) -> str:
    """Return a p-value; below 0.001 as a bound."""
    if not finite(value):
        return DASH
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def flops_unit(largest: float) -> tuple[float, str]:
    """Return divisor and prefix for a column of FLOPs with this largest value."""
    for divisor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if largest >= divisor:
            return divisor, prefix
    return 1.0, ""
