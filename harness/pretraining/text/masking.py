"""Masking: whole words in English, runs of characters in Chinese.

BERT's masking (arXiv 1810.04805, section 3.1): of the chosen tokens 80 % become [MASK], 10 % another token, 10 % stay. A
word is chosen with all its pieces (whole-word masking). Chinese text has no marked words, so that runs of neighbouring
characters are chosen, as in MacBERT (arXiv 2004.13922): every character joins the one before it with probability 1/2, drawn
again each time a row is visited, which gives runs of 2 characters on average.

Words are chosen in random order within the budget of a row, which is a share of its tokens. A row whose first word exceeds
the budget has no masked token.
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
    """Masked rows.

    Attributes:
        ids: unsigned [B, T], masked.
        where: int64 [B * P], flat positions of the chosen tokens, then zeros; P is the largest budget of a row.
        labels: int64 [B * P], the original tokens, then :data:`ABSENT`.
    """

    ids: np.ndarray
    where: np.ndarray
    labels: np.ndarray


def word_starts(ids: np.ndarray, kinds: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return where a word (or a run of Chinese characters) begins, bool [B, T]."""
    kind = kinds[ids]  # [B, T]
    before = np.zeros_like(kind)  # nothing before the first token
    before[:, 1:] = kind[:, :-1]
    starts = (kind != SPECIAL) & ((kind != CONTINUES) | (before == SPECIAL))
    inside = (kind == CHARACTER) & (before == CHARACTER)
    if inside.any():
        starts &= ~(inside & (generator.random(ids.shape) < _JOINED))
    return starts


def choose(ids: np.ndarray, kinds: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """Choose the tokens to predict, whole words only: bool [B, T]."""
    count, length = ids.shape
    maskable = (kinds[ids] != SPECIAL).reshape(-1)
    starts = word_starts(ids, kinds, generator).reshape(-1)
    first = np.flatnonzero(starts)
    if not len(first):
        return np.zeros(ids.shape, dtype=bool)
    number = np.cumsum(starts) - 1  # word of every token; without meaning for special tokens
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
    """Choose tokens, mask them, and return the original ones as labels.

    Args:
        ids: unsigned [B, T].
        kinds: uint8 [V], see :func:`harness.pretraining.text.vocabulary.kinds`.
        share: of tokens that are chosen, 0 .. 1.
        mask_id: id of [MASK].
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
