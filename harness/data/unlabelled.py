"""Texts without labels, for methods that can learn from them: rows of train beyond its limit, and a folder's own file.

None of them is a row of train, dev or test: equal texts are dropped here, and equal token ids after tokenisation
(:func:`harness.data.overlaps.without_rows_of`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

MOST_UNLABELLED = 10_000


@dataclass(frozen=True)
class RawTexts:
    """Texts, or pairs of texts.

    Attributes:
        texts: N texts.
        pairs: N second texts, or ``None`` if samples are single texts.
    """

    texts: list[str]
    pairs: list[str] | None

    def __len__(self) -> int:
        return len(self.texts)

    def rows(self) -> Iterator[tuple[str, str | None]]:
        """Yield each text with its second text."""
        return zip(self.texts, itertools.repeat(None) if self.pairs is None else self.pairs, strict=False)


@dataclass(frozen=True)
class UnlabelledTexts(RawTexts):
    """Texts without labels.

    Attributes:
        origin: where they come from, for a note.
        drawn: how many rows there were before repeated ones, and those of train, dev and test, were dropped.
    """

    origin: str
    drawn: int


def draw_unlabelled(
    train: RawTexts, beyond: np.ndarray, own: UnlabelledTexts | None, known: Iterable[RawTexts], most: int
) -> UnlabelledTexts | None:
    """Draw rows of train beyond its limit and rows of the dataset's own file, without their labels.

    Rows are drawn by number (seed 0), so that labels have no influence, and stay in their order: those of train first. Then
    repeated rows and those of ``known`` are dropped.

    Args:
        beyond: int64 [M], the rows of ``train`` that are not trained on.
        own: the texts of the dataset's own file, if it has one.
        known: rows that must not occur: those of train, dev and test.
        most: maximum number of rows; 0 for none.

    Returns:
        The texts; ``None`` if no row is left.
    """
    offered = len(beyond) + (0 if own is None else len(own))
    drawn = np.sort(np.random.default_rng(0).permutation(offered)[:most])
    if not len(drawn):
        return None
    rows = _picked(train, beyond[drawn[drawn < len(beyond)]])
    origins = [f"{len(beyond):,} rows of train beyond its limit"] if len(beyond) else []
    if own is not None:
        rows += _picked(own, drawn[drawn >= len(beyond)] - len(beyond))
        origins.append(own.origin)
    kept = dict.fromkeys(rows)
    for row in itertools.chain.from_iterable(part.rows() for part in known):
        kept.pop(row, None)
    if not kept:
        return None
    pairs = [pair for _, pair in kept if pair is not None] if train.pairs is not None else None
    return UnlabelledTexts([text for text, _ in kept], pairs, " and ".join(origins), len(drawn))


def _picked(texts: RawTexts, rows: Sequence[int] | np.ndarray) -> list[tuple[str, str | None]]:
    return [(texts.texts[row], None if texts.pairs is None else texts.pairs[row]) for row in rows]
