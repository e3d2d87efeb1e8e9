"""One table, for the terminal and as Markdown."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence


def _width(text: str) -> int:
    """Terminal columns; East Asian wide characters take two."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def plain(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines for the terminal: the first column to the left, the others to the right."""
    widths = [max(_width(row[i]) for row in (heads, *rows)) for i in range(len(heads))]

    def line(row: Sequence[str]) -> str:
        gaps = [" " * (width - _width(text)) for text, width in zip(row, widths, strict=True)]
        cells = [row[0] + gaps[0], *(gap + text for gap, text in zip(gaps[1:], row[1:], strict=True))]
        return "  ".join(cells).rstrip()

    return [line(heads), "-" * (sum(widths) + 2 * len(widths) - 2), *map(line, rows)]


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""

    def line(row: Sequence[str]) -> str:
        return "| " + " | ".join(text.replace("|", "\\|") for text in row) + " |"

    return [line(heads), "| --- |" + " ---: |" * (len(heads) - 1), *map(line, rows)]


def number(value: float) -> str:
    """Three digits or more: 12,345, 123, 12.3, 1.23."""
    digits = 0 if abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:,.{digits}f}"


def scale(value: float) -> tuple[str, float]:
    """Unit in which a time in seconds is read best, and how many of it make a second."""
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if abs(value) * factor >= 1 or not value:
            return unit, factor
    return "µs", 1e6


def seconds(value: float | None) -> str:
    """A time with its unit: 12.3 s, 4.56 ms, 78.9 µs."""
    if value is None:
        return "—"
    unit, factor = scale(value)
    return f"{number(value * factor)} {unit}"


class Page:
    """Text and tables, said once and shown twice."""

    def __init__(self) -> None:
        self._plain: list[str] = []
        self._markdown: list[str] = []

    def heading(self, text: str, level: int = 2) -> None:
        self._plain += ["", text]
        self._markdown += ["", "#" * level + " " + text, ""]

    def text(self, *lines: str) -> None:
        """Lines of their own: a list in Markdown."""
        self._plain += lines
        self._markdown += ["", *(f"* {line}" for line in lines), ""]

    def table(self, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self._plain += plain(heads, rows)
        self._markdown += ["", *markdown(heads, rows), ""]

    @property
    def for_terminal(self) -> str:
        return "\n".join(self._plain).strip("\n")

    @property
    def as_markdown(self) -> str:
        lines: list[str] = []
        for line in self._markdown:
            if line or (lines and lines[-1]):
                lines.append(line)
        return "\n".join(lines).strip("\n") + "\n"
