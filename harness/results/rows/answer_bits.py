"""Correctness of the rows of a split as text, a bit per row."""

from __future__ import annotations

import base64
import binascii

import numpy as np
from pydantic import Field

from harness.results.strict_record import StrictRecord


class AnswerBits(StrictRecord):
    """Which rows a cell answers correctly, so that a result by itself can be compared with another one row by row.

    Attributes:
        dev: correctness of the dev rows in file order (:func:`to_bits`), from one untimed pass.
        dev_rows: how many there are.
        test: the same of the ``quality.n`` test rows.
    """

    dev: str
    dev_rows: int = Field(ge=1)
    test: str


def to_bits(correct: np.ndarray) -> str:
    """Return bool [n] as base64 of eight rows per byte, the first in the highest bit."""
    return base64.b64encode(np.packbits(correct.astype(bool)).tobytes()).decode("ascii")


def from_bits(text: str, rows: int) -> np.ndarray:
    """Return the bool [rows] that :func:`to_bits` was given.

    Raises:
        ValueError: the text is damaged, or is not that of so many rows.
    """
    try:
        raw = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from error
    if len(raw) != (rows + 7) // 8:
        raise ValueError(f"{len(raw)} bytes do not fit {rows} samples")
    return np.unpackbits(np.frombuffer(raw, dtype=np.uint8), count=rows).astype(bool)
