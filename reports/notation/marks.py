"""Marks behind a method's name: a check failed, or data is missing. They are the same in every table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from reports.notation.numbers import finite, percent


class Marked(Protocol):
    """A row that can carry marks."""

    @property
    def marks(self) -> str:
        """The signs of all marks, in the order of :data:`MARKS`."""
        ...


@dataclass(frozen=True)
class Mark:
    """One mark.

    Attributes:
        sign: the character behind the name.
        note: the footnote.
        share: attribute whose lowest value over the marked rows is filled into the note at ``{lowest}``.
    """

    sign: str
    note: str
    share: str = ""


MARKS = (
    Mark(
        "†",
        "Labels changed between rounds, whose sample order differs{lowest}: "
        "the prediction for a sample depends on its neighbours.",
        "rounds_agree",
    ),
    Mark(
        "‡",
        "Labels changed with the batch size{lowest}: the prediction for a sample depends on its batch.",
        "batches_agree",
    ),
    Mark("§", "Testing changed the fitted state of the method: later samples were influenced by earlier ones."),
    Mark(
        "¤",
        "The engine's answers are not those of the same fit in float32{lowest}: see “same label as without the engine”.",
        "engine_agrees",
    ),
    Mark("¶", "Test rows also occur in train or dev (counted in the table of overlaps)."),
    Mark("°", "Per-sample rows are missing or unusable: paired tests and predictor quality do not include this row."),
    Mark(
        "#",
        "A mean over fewer seeds than other rows of the dataset have, or one that leaves out values that are not finite; "
        "see the caveats.",
    ),
    Mark(
        "»",
        "The epoch that was kept is the last one allowed: longer training may be better (epochs: “Behind the results”).",
    ),
    Mark(
        "‖",
        "A head collapsed: on dev it is more than 5 points and more than 2 standard errors below a shallower one; see caveats.",
    ),
    Mark(
        "≈",
        "The machine was slower while this row was timed: passes of the reference took over 25 % longer than in the middle row. "
        "Its speed-up compares neighbouring passes; its samples/s, tokens/s and latency are not comparable.",
    ),
)


def together(*several: str) -> str:
    """Return the marks of several rows that are shown as one."""
    return "".join(mark.sign for mark in MARKS if any(mark.sign in one for one in several))


def marked(name: str, marks: str) -> str:
    """Return ``name`` followed by its marks, if it has any."""
    return f"{name} {marks}" if marks else name


def footnotes(rows: Iterable[Marked], *, lowest: bool = True) -> list[str]:
    """Return the footnotes of the marks that these rows carry.

    Args:
        rows: rows with their marks.
        lowest: state the lowest agreement; False for rows that carry marks of other rows, too.
    """
    rows = list(rows)
    notes = []
    for mark in MARKS:
        carrying = [row for row in rows if mark.sign in row.marks]
        if carrying:
            known = [value for row in carrying if lowest and finite(value := getattr(row, mark.share, None))]
            least = f" (lowest agreement {percent(min(known), 2)} %)" if known else ""
            notes.append(f"{mark.sign} {mark.note.format(lowest=least)}")
    return notes


def data_tag(synthetic: bool) -> str:
    """Return the end of a caption."""
    return " (synthetic data)" if synthetic else ""


def file_tag(synthetic: bool) -> str:
    """Return the end of a file name."""
    return "-synthetic" if synthetic else ""
