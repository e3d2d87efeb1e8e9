"""A table, and how it becomes Markdown, CSV, LaTeX (booktabs)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from reports.notation.numbers import DASH, finite

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """One column as people see it.

    Attributes:
        key: column of the frame that holds the raw value (what sorting by this column means).
        label: heading.
        show: text of a row in this column.
        numeric: right-aligned, sorted as a number.
        missing: why a value can be missing; becomes a note where one is.
        group: heading above several columns (LaTeX), prefixed to the label elsewhere.
    """

    key: str
    label: str
    show: Callable[[Row], str]
    numeric: bool = True
    missing: str = ""
    group: str = ""

    @property
    def heading(self) -> str:
        return f"{self.group} {self.label}".strip()


@dataclass
class Table:
    """Rows and how to show them.

    Attributes:
        name: file name without suffix; carries ``synthetic`` where due.
        caption: one sentence; carries ``synthetic`` where due.
        frame: raw values.
        columns: what people see.
        csv: frame columns that the CSV holds, raw.
        notes: footnotes.
        split: frame column whose change starts a new block in LaTeX.
    """

    name: str
    caption: str
    frame: pd.DataFrame
    columns: Sequence[Column]
    csv: Sequence[str]
    notes: list[str] = field(default_factory=list)
    split: str = ""

    def __post_init__(self) -> None:
        self.records: list[dict[str, Any]] = self.frame.to_dict("records")  # type: ignore[assignment]
        self.cells = [[column.show(record) for column in self.columns] for record in self.records]
        reasons: dict[str, list[str]] = {}
        for i, column in enumerate(self.columns):
            if column.missing and any(row[i].startswith(DASH) for row in self.cells):
                reasons.setdefault(column.missing, []).append(f"“{column.heading}”")
        self.notes += [f"{DASH} in {', '.join(headings)}: {reason}." for reason, headings in reasons.items()]

    def sort_value(self, record: Row, column: Column) -> str:
        """The raw value of a numeric cell as text; empty where there is no finite number."""
        value = record.get(column.key)
        return f"{float(value):.7g}" if value is not None and finite(_number(value)) else ""


def _number(value: Any) -> Any:
    """NumPy scalars as Python ones."""
    return value.item() if hasattr(value, "item") else value


def to_csv(table: Table) -> str:
    """Raw values, one header line; missing values are empty."""
    present = [name for name in table.csv if name in table.frame]
    return table.frame[present].to_csv(index=False, lineterminator="\n")


_MARKDOWN = re.compile(r"([\\`*_{}\[\]|~$])")


def escape_markdown(text: str) -> str:
    """``text`` as one line of Markdown that renders as itself."""
    text = _MARKDOWN.sub(r"\\\1", " ".join(text.split()))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def to_markdown(table: Table) -> str:
    """A pipe table with its caption above and its notes below."""
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
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
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
    "’": "'",
    "…": r"\textellipsis{}",
    "−": r"$-$",
    "“": "``",
    "”": "''",
    "·": r"$\cdot$",
    "|": r"\textbar{}",
}


def escape_latex(text: str) -> str:
    """``text`` as LaTeX that prints as itself (other scripts need XeLaTeX or LuaLaTeX)."""
    return "".join(_LATEX.get(char, char) for char in " ".join(text.split()))


def to_latex(table: Table) -> str:
    """A ``table*`` float with booktabs rules, scaled to the line width."""
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
    for record, row in zip(table.records, table.cells, strict=True):
        block = record.get(table.split) if table.split else None
        if previous is not None and block != previous:
            lines.append(r"\midrule")
        previous = block
        # Braces keep a cell that begins with "[" from being read as an option of "\\".
        lines.append(" & ".join(f"{{{escape_latex(cell)}}}" for cell in row) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}}"]
    if table.notes:
        notes = " ".join(escape_latex(note) for note in table.notes)
        lines.append(rf"\par\smallskip\parbox{{\linewidth}}{{\scriptsize {notes}}}")
    return "\n".join([*lines, r"\end{table*}"]) + "\n"


def _latex_groups(columns: Sequence[Column]) -> list[str]:
    """The heading row above grouped columns, with its partial rules; nothing where no column is grouped."""
    if not any(column.group for column in columns):
        return []
    cells, rules, start = [], [], 0
    while start < len(columns):
        end = start
        while end + 1 < len(columns) and columns[start].group and columns[end + 1].group == columns[start].group:
            end += 1
        if columns[start].group:
            cells.append(rf"\multicolumn{{{end - start + 1}}}{{c}}{{{escape_latex(columns[start].group)}}}")
            rules.append(rf"\cmidrule(lr){{{start + 1}-{end + 1}}}")
        else:
            cells.append("")
        start = end + 1
    return [" & ".join(cells) + r" \\", " ".join(rules)]
