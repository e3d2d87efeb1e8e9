"""A table of typed rows, and its forms: Markdown, CSV, LaTeX (booktabs)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

import pandas as pd

from harness.core.files import write_text
from harness.core.names import csv_value
from reports.notation.numbers import DASH, finite

R = TypeVar("R")
R_contra = TypeVar("R_contra", contravariant=True)


@dataclass(frozen=True)
class Column(Generic[R_contra]):
    """One column as shown to readers.

    Attributes:
        key: name of the raw value, by which the page sorts.
        label: heading.
        show: text of a row in this column; without it the raw value as ``form`` gives it.
        numeric: right-aligned, sorted as a number.
        missing: why a value can be missing; becomes a note where one is.
        group: heading above several columns (LaTeX), prefixed to the label elsewhere.
        form: text of a raw value.
    """

    key: str
    label: str
    show: Callable[[R_contra], str] | None = None
    numeric: bool = True
    missing: str = ""
    group: str = ""
    form: Callable[[Any], str] = str

    @property
    def heading(self) -> str:
        return f"{self.group} {self.label}".strip()


@dataclass
class Table(Generic[R]):
    """Rows and how to show them.

    Attributes:
        name: file name without suffix; contains ``synthetic`` where the data is.
        caption: one sentence; contains ``synthetic`` where the data is.
        rows: what the lines are about.
        columns: what readers see.
        csv: names of the raw values in the CSV.
        notes: footnotes.
        split: attribute of the rows whose change starts a new block in LaTeX.
        values: raw values that are not attributes of the rows, by name.
    """

    name: str
    caption: str
    rows: Sequence[R]
    columns: Sequence[Column[R]]
    csv: Sequence[str]
    notes: list[str] = field(default_factory=list)
    split: str = ""
    values: Mapping[str, Callable[[R], object]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.cells = [
            [column.show(row) if column.show else column.form(self.raw(row, column.key)) for column in self.columns]
            for row in self.rows
        ]
        reasons: dict[str, list[str]] = {}
        for i, column in enumerate(self.columns):
            if column.missing and any(row[i].startswith(DASH) for row in self.cells):
                reasons.setdefault(column.missing, []).append(f"“{column.heading}”")
        self.notes = [
            *self.notes,
            *(f"{DASH} in {', '.join(headings)}: {reason}." for reason, headings in reasons.items()),
        ]

    def raw(self, row: R, name: str) -> object:
        """Return a raw value of a row.

        Raises:
            AttributeError: the row has no such value.
        """
        return self.values[name](row) if name in self.values else getattr(row, name)

    def sort_value(self, row: R, column: Column[R]) -> str:
        """Return the raw value of a numeric cell as text; empty where there is no finite number."""
        value = self.raw(row, column.key)
        return f"{float(value):.7g}" if finite(value) else ""


AnyTable: TypeAlias = Table[Any]


def to_csv(table: AnyTable) -> str:
    """Return the raw values with one header line; missing values are empty."""
    columns = {csv_value(name): [csv_value(table.raw(row, name)) for row in table.rows] for name in table.csv}
    return pd.DataFrame(columns).to_csv(index=False, lineterminator="\n")


_MARKDOWN = re.compile(r"([\\`*_{}\[\]|~$])")


def escape_markdown(text: str) -> str:
    """Return ``text`` as one line of Markdown that renders as itself."""
    text = _MARKDOWN.sub(r"\\\1", " ".join(text.split()))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def to_markdown(table: AnyTable) -> str:
    """Return a pipe table with its caption above and its notes below."""
    heads = [escape_markdown(column.heading) for column in table.columns]
    rules = ["---:" if column.numeric else ":---" for column in table.columns]
    lines = [
        f"**{escape_markdown(table.caption)}**",
        "",
        "| " + " | ".join(heads) + " |",
        "| " + " | ".join(rules) + " |",
    ]
    lines += ["| " + " | ".join(escape_markdown(cell) for cell in row) + " |" for row in table.cells]
    if table.notes:
        lines += ["", *(f"- {escape_markdown(note)}" for note in table.notes)]
    return "\n".join(lines) + "\n"


_LATEX = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "—": "---",
    "–": "--",
    "×": r"$\times$",
    "±": r"$\pm$",
    "†": r"$\dagger$",
    "‡": r"$\ddagger$",
    "§": r"\textsection{}",
    "¶": r"\textparagraph{}",
    "°": r"\textdegree{}",
    "¤": r"\textcurrency{}",
    "»": r"$\gg$",
    "‖": r"$\|$",
    "≈": r"$\approx$",
    "’": "'",
    "š": r"\v{s}",
    "…": r"\textellipsis{}",
    "−": r"$-$",
    "“": "``",
    "”": "''",
    "·": r"$\cdot$",
    "|": r"\textbar{}",
}


def escape_latex(text: str) -> str:
    """Return ``text`` as LaTeX that prints as itself (other scripts need XeLaTeX or LuaLaTeX)."""
    return "".join(_LATEX.get(char, char) for char in " ".join(text.split()))


def to_latex(table: AnyTable) -> str:
    """Return a ``table*`` float with booktabs rules, scaled to the line width."""
    align = "".join("r" if column.numeric else "l" for column in table.columns)
    label = re.sub(r"[^A-Za-z0-9.-]+", "-", table.name)
    lines = [
        r"% needs \usepackage{booktabs} and \usepackage{graphicx}",
        r"\begin{table*}[t]",
        r"\centering\footnotesize",
        rf"\caption{{{escape_latex(table.caption)}}}",
        rf"\label{{tab:{label}}}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{align}}}",
        r"\toprule",
        *_latex_groups(table.columns),
        " & ".join(escape_latex(column.label) for column in table.columns) + r" \\",
        r"\midrule",
    ]
    previous = None
    for row, cells in zip(table.rows, table.cells, strict=True):
        block = getattr(row, table.split) if table.split else None
        if previous is not None and block != previous:
            lines.append(r"\midrule")
        previous = block
        # Without braces LaTeX would read a cell that begins with "[" as an option of "\\".
        lines.append(" & ".join(f"{{{escape_latex(cell)}}}" for cell in cells) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}}"]
    if table.notes:
        notes = " ".join(escape_latex(note) for note in table.notes)
        lines.append(rf"\par\smallskip\parbox{{\linewidth}}{{\scriptsize {notes}}}")
    return "\n".join([*lines, r"\end{table*}"]) + "\n"


def _latex_groups(columns: Sequence[Column[R]]) -> list[str]:
    """Return the heading row above grouped columns and its partial rules; nothing where no column is grouped."""
    if not any(column.group for column in columns):
        return []
    cells, rules, start = [], [], 1
    for group, same in groupby(columns, key=lambda column: column.group):
        width = len(list(same))
        if group:
            cells.append(rf"\multicolumn{{{width}}}{{c}}{{{escape_latex(group)}}}")
            rules.append(rf"\cmidrule(lr){{{start}-{start + width - 1}}}")
        else:
            cells += [""] * width
        start += width
    return [" & ".join(cells) + r" \\", " ".join(rules)]


def table_files(tables: Sequence[AnyTable]) -> Iterator[tuple[str, str]]:
    """Return name and text of the files of every table: Markdown, CSV and LaTeX."""
    for table in tables:
        for suffix, render in (("md", to_markdown), ("csv", to_csv), ("tex", to_latex)):
            yield f"{table.name}.{suffix}", render(table)


def write_tables(tables: Sequence[AnyTable], folder: Path) -> None:
    """Write every table as Markdown, CSV and LaTeX.

    Raises:
        ResultError: the folder cannot be written.
    """
    for name, text in table_files(tables):
        write_text(folder / name, text)
