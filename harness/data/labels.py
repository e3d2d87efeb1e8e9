"""Class labels as numbers 0 .. C - 1, from whatever a table holds: whole numbers in any spelling, or names of classes."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.core.errors import DataError
from harness.core.names import LONGEST_LABEL, check_label

_WHOLE = re.compile(r"[+-]?[0-9]{1,18}(\.0*)?")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE)
_SHOWN = 5


@dataclass(frozen=True)
class NumberedLabels:
    """Labels of all splits.

    Attributes:
        labels: int64 [N] by split.
        names: of the classes, in the order of their numbers; empty if no file names them.
        by_name: whether the table holds names rather than the numbers themselves.
    """

    labels: dict[str, np.ndarray]
    names: tuple[str, ...]
    by_name: bool


def rows_of(mask: np.ndarray | Sequence[bool]) -> str:
    """Return ``rows 3, 8, ... (12 rows)`` for the true entries of ``mask``; rows count from 1, without the header."""
    found = np.flatnonzero(mask) + 1
    listed = ", ".join(str(row) for row in found[:_SHOWN])
    more = f", ... ({len(found)} rows)" if len(found) > _SHOWN else ""
    return f"row{'s' if len(found) > 1 else ''} {listed}{more}"


def _name(text: str) -> str | None:
    try:
        return None if _NUMBER.fullmatch(text) else check_label(text)
    except ValueError:
        return None


def _read(value: Any) -> int | str | None:
    """Return a number, the name of a class, or ``None`` if the value is neither."""
    if isinstance(value, bool | np.bool_):
        return str(value)
    if isinstance(value, str):
        text = value.strip()
        if _WHOLE.fullmatch(text):
            return int(text.partition(".")[0])
        return _name(text)
    try:
        number = int(value)
        return number if number == value and abs(number) < 10**18 else None
    except (TypeError, ValueError, OverflowError):
        return None


def _read_all(values: Sequence[Any], where: str, column: str) -> list[int | str]:
    known: dict[Any, int | str | None] = {}  # few values are distinct: each is read once
    found: list[int | str | None] = []
    for value in values:
        key = (type(value), value) if isinstance(value, str | int | float) else None
        if key is None or key not in known:
            known[key] = _read(value)
        found.append(known[key])
    wrong = [one is None for one in found]
    if any(wrong):
        example = values[wrong.index(True)]
        missing = example is None or example == "" or (isinstance(example, float) and math.isnan(example))
        raise DataError(
            f"{where}: column '{column}' must hold integers or names of up to {LONGEST_LABEL} characters, but "
            f"{rows_of(wrong)} hold{'s' * (sum(wrong) == 1)} {'no value' if missing else f'e.g. {example!r:.40}'}: "
            "number the classes 0, 1, 2, ..., or give each a name"
        )
    return [one for one in found if one is not None]


def number_labels(
    values: Mapping[str, Sequence[Any]],
    places: Mapping[str, str],
    names: Sequence[str] = (),
    *,
    names_from: str = "",
    column: str = "label",
    offset: int = 0,
) -> NumberedLabels:
    """Return the labels of all splits as numbers.

    Whole numbers may be integers, floats or digits in text (``0``, ``0.0``, ``" 0"``), because formats differ in what they can
    hold. Other texts and booleans are names. Names are numbered in the order of ``names`` or, without these, in sorted order.
    Numbers stay as they are, unless all of them are among ``names``: then they are names, too.

    Args:
        values: by split; with ``"train"``.
        places: file or hub split of each, for messages.
        names: of the classes, in their order.
        names_from: where the names come from, e.g. ``"card.toml"``.
        offset: subtracted from numbers, which may count from 1.

    Raises:
        DataError: a label is missing, or neither a whole number nor a name; numbers and names are mixed; a name is unknown.
    """
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{names_from}: two classes are called '{twice}': give each class a name of its own")
    read = {split: _read_all(found, places[split], column) for split, found in values.items()}
    present = set(itertools.chain(*read.values()))
    if not present or not all(str(label) in names for label in present):
        if not any(isinstance(label, str) for label in present):
            numbers = {split: np.array(found, dtype=np.int64) - offset for split, found in read.items()}
            return NumberedLabels(numbers, tuple(names), by_name=False)
        _refuse_mixture(read, places, column)
    order = list(names) or sorted({str(label) for label in read["train"]})
    whose = f"the classes of {names_from}" if names else f"the labels of {places['train']}"
    numbers = {
        split: _positions(found, order, f"{places[split]}: column '{column}'", whose) for split, found in read.items()
    }
    return NumberedLabels(numbers, tuple(order), by_name=order != [str(number) for number in range(len(order))])


def _refuse_mixture(read: Mapping[str, list[int | str]], places: Mapping[str, str], column: str) -> None:
    """Raise an error if some labels are numbers and others names; what differs from train is at fault."""
    named = all(isinstance(label, str) for label in read["train"])
    for split, labels in read.items():
        odd = [isinstance(label, str) != named for label in labels]
        if any(odd):
            what, others = ("a number", "names") if named else ("a name", "numbers")
            raise DataError(
                f"{places[split]}: column '{column}' has {labels[odd.index(True)]!r:.40} in {rows_of(odd)}, {what} where other "
                f"rows have {others}: use numbers only, or names only"
            )


def _positions(labels: Sequence[int | str], order: Sequence[str], where: str, whose: str) -> np.ndarray:
    """Return the place of each label in ``order``; ``where`` and ``whose`` are for the message about others."""
    known = {name: number for number, name in enumerate(order)}
    unknown = [str(label) not in known for label in labels]
    if any(unknown):
        listed = ", ".join([*order[:_SHOWN], *(["..."] if len(order) > _SHOWN else [])])
        raise DataError(
            f"{where} has {labels[unknown.index(True)]!r:.40} in {rows_of(unknown)}, which is none of {whose} ({listed}): "
            "correct these labels, or the names"
        )
    return np.array([known[str(label)] for label in labels], dtype=np.int64)
