"""Which tokens are to be guessed: whole words in English, spans of neighbours in Chinese.

BERT's masking (arXiv 1810.04805, section 3.1): of the chosen tokens 80 % become [MASK], 10 % another token, 10 % stay. A
word is chosen with all its pieces (whole-word masking). Chinese text does not show its words, so that there, as in MacBERT
(arXiv 2004.13922), runs of neighbouring characters are chosen: every character joins the one before it with probability
1/2, anew each time a row is seen, which makes runs of 2 characters on average.

Words are chosen in random order as long as a row's budget lasts, a share of its tokens; a row whose first word exceeds
it has none masked.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from harness.encoder.masked_words import ABSENT, budget
from harness.pretraining.text.vocabulary import CHARACTER, CONTINUES, MASK, SPECIAL, SPECIALS

_JOINED = 0.5
_MASKED, _SWAPPED = 0.8, 0.9


@dataclass(frozen=True)
class Masked:
    """Rows to guess in.

    Attributes:
        ids: unsigned [B, T], with masks.
        where: int64 [B * P], flat places to guess at, first those that count; P is a row's largest budget.
        labels: int64 [B * P], what was there; :data:`ABSENT` behind those that count.
    """

    ids: np.ndarray
    where: np.ndarray
    labels: np.ndarray


def word_starts(ids: np.ndarray, kinds: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Where a word (or a span of Chinese characters) begins, bool [B, T]."""
    kind = kinds[ids]  # [B, T]
    before = np.zeros_like(kind)  # nothing before the first token
    before[:, 1:] = kind[:, :-1]
    starts = (kind != SPECIAL) & ((kind != CONTINUES) | (before == SPECIAL))
    inside = (kind == CHARACTER) & (before == CHARACTER)
    if inside.any():
        starts &= ~(inside & (generator.random(ids.shape) < _JOINED))
    return starts


def choose(ids: np.ndarray, kinds: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """Tokens to guess, whole words only: bool [B, T]."""
    count, length = ids.shape
    maskable = (kinds[ids] != SPECIAL).reshape(-1)
    starts = word_starts(ids, kinds, generator).reshape(-1)
    first = np.flatnonzero(starts)
    if not len(first):
        return np.zeros(ids.shape, dtype=bool)
    number = np.cumsum(starts) - 1  # word of every token; that of a special token means nothing
    size = np.bincount(number[maskable], minlength=len(first))
    row = first // length
    order = np.argsort(row + generator.random(len(first)))  # by row, at random within it
    spent = np.cumsum(size[order])
    words = np.bincount(row, minlength=count)
    tokens = maskable.reshape(count, length).sum(1)  # [B]
    before = np.repeat(np.cumsum(tokens) - tokens, words)
    allowed = np.minimum(np.maximum(1, np.rint(share * tokens)), budget(share, length))
    taken = np.zeros(len(first), dtype=bool)
    taken[order] = spent - before <= np.repeat(allowed, words)
    return (taken[number] & maskable).reshape(count, length)


def mask(
    ids: np.ndarray, kinds: np.ndarray, share: float, generator: np.random.Generator, mask_id: int = MASK
) -> Masked:
    """Choose, hide, and remember.

    Args:
        ids: unsigned [B, T].
        kinds: uint8 [V], see :func:`harness.pretraining.text.vocabulary.kinds`.
        share: of tokens to guess, 0 .. 1.
        mask_id: of [MASK].
    """
    chosen = np.flatnonzero(choose(ids, kinds, share, generator))
    most = ids.shape[0] * budget(share, ids.shape[1])
    where = np.zeros(most, dtype=np.int64)
    labels = np.full(most, ABSENT, dtype=np.int64)
    where[: len(chosen)] = chosen
    flat = ids.reshape(-1).copy()
    labels[: len(chosen)] = flat[chosen]
    fate = generator.random(len(chosen))
    others = generator.integers(len(SPECIALS), max(len(kinds), len(SPECIALS) + 1), len(chosen))
    kept = flat[chosen]
    flat[chosen] = np.where(fate < _MASKED, mask_id, np.where(fate < _SWAPPED, others, kept)).astype(ids.dtype)
    return Masked(flat.reshape(ids.shape), where, labels)
