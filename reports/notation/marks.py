"""Marks behind a method's name: a check that failed, or data that is missing. The same in every table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from reports.notation.numbers import finite, percent

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Mark:
    """One mark.

    Attributes:
        sign: what stands behind the name.
        holds: whether a row of the view earns it.
        note: the footnote, given the rows that carry it.
    """

    sign: str
    holds: Callable[[Row], bool]
    note: Callable[[pd.DataFrame], str]


def _below_one(row: Row, name: str) -> bool:
    value = row.get(name, 1.0)
    return finite(value) and bool(value < 1)


def _lowest(frame: pd.DataFrame, name: str) -> str:
    """In brackets, where the rows still know it."""
    known = [value for value in frame[name] if finite(value)] if name in frame else []
    return f" (lowest agreement {percent(min(known), 2)} %)" if known else ""


def _leaks(row: Row) -> bool:
    return any(finite(row.get(name)) and bool(row[name] > 0) for name in ("overlap_train_test", "overlap_dev_test"))


MARKS = (
    Mark(
        "†",
        lambda row: _below_one(row, "rounds_agree"),
        lambda frame: (
            f"Labels changed between rounds, whose sample order differs{_lowest(frame, 'rounds_agree')}: "
            "the answer of a sample depends on its neighbours."
        ),
    ),
    Mark(
        "‡",
        lambda row: _below_one(row, "batches_agree"),
        lambda frame: (
            f"Labels changed with the batch size{_lowest(frame, 'batches_agree')}: "
            "the answer of a sample depends on its batch."
        ),
    ),
    Mark(
        "§",
        lambda row: row.get("state_unchanged") is False,
        lambda frame: "Testing changed what the method had learnt: later samples saw earlier ones.",
    ),
    Mark(
        "¶",
        _leaks,
        lambda frame: "Test rows also occur in train or dev (counted in the table of overlaps).",
    ),
    Mark(
        "°",
        lambda row: bool(row.get("samples_missing")),
        lambda frame: "Per-sample rows are missing or unusable: paired tests and predictor quality leave this row out.",
    ),
    Mark(
        "#",
        lambda row: bool(row.get("partial")),
        lambda frame: (
            "A mean over fewer seeds than other rows of the dataset have, or without values that are no numbers; "
            "see the caveats."
        ),
    ),
)


def signs(row: Row) -> str:
    """The marks of a row of the view, in order."""
    return "".join(mark.sign for mark in MARKS if mark.holds(row))


def together(*several: str) -> str:
    """The marks of several rows shown as one."""
    return "".join(mark.sign for mark in MARKS if any(mark.sign in one for one in several))


def marked(name: str, row: Row) -> str:
    """``name`` with the marks of its row, if it has any."""
    found = row.get("marks")
    return f"{name} {found}" if isinstance(found, str) and found else name


def footnotes(frame: pd.DataFrame) -> list[str]:
    """What the marks that occur in ``frame["marks"]`` mean."""
    if "marks" not in frame:
        return []
    carried: Iterable[str] = [text if isinstance(text, str) else "" for text in frame["marks"]]
    found = pd.Series(list(carried), index=frame.index, dtype=object)
    notes = []
    for mark in MARKS:
        rows = found.map(lambda text, sign=mark.sign: sign in text).astype(bool)
        if rows.any():
            notes.append(f"{mark.sign} {mark.note(frame[rows])}")
    return notes
