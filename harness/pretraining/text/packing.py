"""Packing of documents into rows of a fixed number of tokens.

A document is cut into *pieces*, ``[CLS] tokens [SEP]``, of at most one row. A pair that fits into a row is one piece,
``[CLS] tokens [SEP] tokens [SEP]``, whose second text is in the second segment; any other pair becomes two documents. Pieces
that fill a row exactly have a row of their own. The ends of documents and short documents share rows, and padding fills the
rest. Every piece begins with [CLS], so that the ids determine the pieces: positions restart there, and attention stays within a
piece (:mod:`harness.pretraining.text.batches`, :mod:`harness.encoder.masked_words`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from harness.pretraining.text.vocabulary import Specials

_OWN = Specials()
SHORTEST = 2  # tokens of a piece; a single one has no context


def full_pieces(ids: np.ndarray, length: int, special: Specials = _OWN) -> tuple[np.ndarray, np.ndarray]:
    """Cut a document into full rows.

    Args:
        ids: unsigned [n], without special tokens.
        length: tokens per row.
        special: ids of special tokens.

    Returns:
        The full rows [m, length], and the remaining ids (possibly none), of the same type.
    """
    inside = length - 2
    count = len(ids) // inside
    rows = np.empty((count, length), dtype=ids.dtype)
    rows[:, 0], rows[:, -1] = special.cls, special.sep
    rows[:, 1:-1] = ids[: count * inside].reshape(count, inside)
    return rows, ids[count * inside :]


def paired(first: np.ndarray, second: np.ndarray, length: int, special: Specials = _OWN) -> np.ndarray | None:
    """Return the ids of a pair between [CLS] and the last [SEP]; ``None`` if the pair does not fit into ``length`` tokens."""
    if len(first) + len(second) + 2 + special.between > length:
        return None
    return np.concatenate([first, np.full(special.between, special.sep, dtype=first.dtype), second])


def best_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Distribute pieces over rows: longest first, each into the fullest row with enough room (best-fit decreasing).

    Args:
        lengths: of the pieces, each in 1 .. ``room``.
        room: length of a row.

    Returns:
        Numbers of the pieces, per row.
    """
    rows: list[list[int]] = []
    open_rows: list[list[int]] = [[] for _ in range(room + 1)]  # by remaining room
    there = 0  # bit r is set if a row with remaining room r exists
    for piece in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        size = lengths[piece]
        fitting = there >> size
        if fitting:
            left = size + (fitting & -fitting).bit_length() - 1
            row = open_rows[left].pop()
            if not open_rows[left]:
                there &= ~(1 << left)
        else:
            left, row = room, len(rows)
            rows.append([])
        rows[row].append(piece)
        if left - size:
            open_rows[left - size].append(row)
            there |= 1 << (left - size)
    return rows


def shared_rows(leftovers: Sequence[np.ndarray], length: int, special: Specials = _OWN) -> np.ndarray:
    """Pack pieces (of one unsigned type, without special tokens, at most ``length - 2`` each) into rows [n, length]."""
    plan = best_fit([len(piece) + 2 for piece in leftovers], length)
    rows = np.full((len(plan), length), special.pad, dtype=leftovers[0].dtype if plan else np.uint16)
    for row, members in zip(rows, plan, strict=True):
        place = 0
        for number in members:
            piece = leftovers[number]
            end = place + len(piece) + 2
            row[place], row[end - 1] = special.cls, special.sep
            row[place + 1 : end - 1] = piece
            place = end
    return rows
