"""A page of text and tables that is shown on the terminal and written as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.core.terminal_table import terminal_table


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""

    def line(row: Sequence[str]) -> str:
        return "| " + " | ".join(text.replace("|", "\\|") for text in row) + " |"

    return [line(heads), "| --- |" + " ---: |" * (len(heads) - 1), *map(line, rows)]


def number(value: float) -> str:
    """Format a number with three digits or more: 12,345, 123, 12.3, 1.23."""
    digits = 0 if abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:,.{digits}f}"


def scale(value: float) -> tuple[str, float]:
    """Return the unit that suits a time in seconds, and how many of it make a second."""
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if abs(value) * factor >= 1 or not value:
            return unit, factor
    return "µs", 1e6


def seconds(value: float | None) -> str:
    """Format a time with its unit: 12.3 s, 4.56 ms, 78.9 µs."""
    if value is None:
        return "—"
    unit, factor = scale(value)
    return f"{number(value * factor)} {unit}"


def dataset_title(row: Mapping[str, Any]) -> str:
    """Return the dataset of a row, marked if it is synthetic, with its seed unless that is 0."""
    synthetic = " (synthetic)" if row["source"] == "embedded" else ""
    return f"{row['dataset']}{synthetic}" + (f", seed {row['seed']}" if row["seed"] else "")


class Page:
    """Text and tables, for the terminal and as Markdown.

    Args:
        title: of the page; data type and a mark for synthetic data follow it.
        rows: results on the page.
    """

    def __init__(self, title: str, rows: Sequence[Mapping[str, Any]], dtype: str) -> None:
        self._plain: list[str] = []
        self._markdown: list[str] = []
        word = "; all data synthetic" if all(row["source"] == "embedded" for row in rows) else ""
        self.heading(f"{title} ({dtype}{word})", 1)

    def heading(self, text: str, level: int = 2) -> None:
        self._plain += ["", text]
        self._markdown += ["", "#" * level + " " + text, ""]

    def text(self, *lines: str) -> None:
        """Add lines; in Markdown they become a list."""
        self._plain += lines
        self._markdown += ["", *(f"* {line}" for line in lines), ""]

    def table(self, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self._plain.append(terminal_table(heads, rows).rstrip("\n"))
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
