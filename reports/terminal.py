"""The short table that the terminal shows after a run."""

from __future__ import annotations

import unicodedata
from pathlib import Path

from reports.analysis.view import View, build_view
from reports.notation.marks import footnotes
from reports.notation.numbers import fixed, percent, plain, times
from reports.tables.formats import Row
from reports.tables.summary import method_name

WIDTH = 110
_NAME = 56


def _width(text: str) -> int:
    """Terminal columns of ``text``; East Asian wide characters take two."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def fit(text: str, width: int) -> str:
    """``text`` cut or filled up to exactly ``width`` terminal columns."""
    if _width(text) > width:
        while _width(text) > width - 1:
            text = text[:-1]
        text += "…"
    return text + " " * (width - _width(text))


def _line(name: str, numbers: list[str]) -> str:
    return (fit(name, _NAME) + "".join(f"{number:>10}" for number in numbers)).rstrip()


def summary(run_path: Path | str) -> str:
    """Per dataset and method: accuracy, mean layers, FLOPs ratio, samples/s, speed-up. Fits 110 columns.

    Raises:
        ResultError: there is no run or no result in it.
    """
    return render(build_view(run_path, samples=False))


def render(view: View) -> str:
    """The summary of a view that was read already."""
    heads = ["acc. %", "layers", "FLOPs", "samples/s", "speed-up"]
    lines: list[str] = []
    hidden = 0
    for group in view.groups:
        records = view.records(group)
        shown = [record for record in records if record["kind"] == "method"] or records
        hidden += len(records) - len(shown)
        lines += ["", _line(f"{group.label}", heads), fit(f"  {group.facts}", WIDTH).rstrip()]
        if noise := view.noise_of(group):
            text = f"  noise of a speed-up (A/A, reference over itself, 10th to 90th percentile): {noise}"
            lines.append(fit(text, WIDTH).rstrip())
        lines.append("-" * 106)
        lines += [_line(_name(view, record), _numbers(record)) for record in shown]
    lines.append("")
    lines += [fit(note, WIDTH).rstrip() for note in footnotes(view.rows)]
    if hidden:
        lines.append(f"{hidden} rows of controls and bounds are in the report.")
    if view.caveats:
        lines.append(f"{len(view.caveats)} caveat(s), see the report; the first: ")
        lines.append(fit(f"  {view.caveats[0]}", WIDTH).rstrip())
    lines.append("FLOPs: how many times fewer (linear) than the reference; speed-up: wall time; — not measured.")
    return "\n".join(lines).strip("\n") + "\n"


def _name(view: View, record: Row) -> str:
    extra = " ".join(str(record[name]) for name in view.varying)
    return f"{method_name(record)} {record['point']}" + (f" [{extra}]" if extra else "")


def _numbers(record: Row) -> list[str]:
    return [
        percent(record["accuracy"]),
        fixed(record["mean_layers"]),
        times(record["ratio_linear"]),
        plain(record["samples_per_s"]),
        times(record["speedup"]),
    ]
