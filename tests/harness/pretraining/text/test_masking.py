"""Masking: which tokens, and how."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from harness.encoder.masked_words import ABSENT, budget
from harness.pretraining.text.masking import choose, mask, word_starts
from harness.pretraining.text.shards import Shards
from harness.pretraining.text.vocabulary import CHARACTER, CONTINUES, MASK, SPECIAL, SPECIALS, WORD

# Five special tokens, ten words, ten continuations, ten characters.
KINDS = np.array([SPECIAL] * 5 + [WORD] * 10 + [CONTINUES] * 10 + [CHARACTER] * 10, dtype=np.uint8)
rows = arrays.arrays(np.uint16, st.tuples(st.integers(1, 6), st.integers(4, 40)), elements=st.integers(0, 34))
shares = st.floats(0.05, 0.9)


@given(rows, shares, st.integers(0, 9))
@settings(max_examples=60)
def test_whole_words_are_masked_within_the_budget(ids: np.ndarray, share: float, seed: int) -> None:
    """Whole words are chosen, no row exceeds its share, and special tokens are never chosen."""
    chosen = choose(ids, KINDS, share, np.random.default_rng(seed))
    kind = KINDS[ids]
    assert not chosen[kind == SPECIAL].any()
    joined = (kind[:, 1:] == CONTINUES) & (kind[:, :-1] != SPECIAL)
    assert (chosen[:, 1:][joined] == chosen[:, :-1][joined]).all()
    tokens = (kind != SPECIAL).sum(1)
    assert (chosen.sum(1) <= np.maximum(1, np.rint(share * tokens))).all()
    assert (chosen.sum(1) <= budget(share, ids.shape[1])).all()


@given(rows, shares, st.integers(0, 9))
@settings(max_examples=60)
def test_labels_are_the_original_tokens(ids: np.ndarray, share: float, seed: int) -> None:
    """Other tokens do not change, no special token but [MASK] is inserted, and shapes depend only on those of the rows."""
    found = mask(ids, KINDS, share, np.random.default_rng(seed))
    count = int((found.labels != ABSENT).sum())
    assert len(found.where) == len(found.labels) == ids.shape[0] * budget(share, ids.shape[1])
    where = found.where[:count]
    assert (found.labels[:count] == ids.reshape(-1)[where]).all() and (found.labels[count:] == ABSENT).all()
    assert len(set(where.tolist())) == count
    others = np.delete(np.arange(ids.size), where)
    assert (found.ids.reshape(-1)[others] == ids.reshape(-1)[others]).all()
    put = found.ids.reshape(-1)[where]
    assert ((put == MASK) | (put >= len(SPECIALS))).all()


def test_shares_equal_those_of_bert() -> None:
    """Of single-token words 15 % are chosen: 80 % of them are masked, 10 % replaced, 10 % kept."""
    ids = np.random.default_rng(0).integers(5, 15, (200, 100)).astype(np.uint16)
    found = mask(ids, KINDS, 0.15, np.random.default_rng(1))
    assert (found.labels != ABSENT).all() and len(found.labels) == 200 * 15
    put, was = found.ids.reshape(-1)[found.where], found.labels
    assert abs((put == MASK).mean() - 0.8) < 0.03
    # A replacement is sometimes the same word.
    assert abs(((put != MASK) & (put != was)).mean() - 0.1) < 0.03


def test_runs_of_characters_have_two_on_average_and_vary() -> None:
    """Runs of characters are drawn again each time, and contain only neighbouring characters."""
    ids = np.full((50, 100), 30, dtype=np.uint16)
    ids[:, 50] = 6
    first, second = (word_starts(ids, KINDS, np.random.default_rng(seed)) for seed in (0, 1))
    assert (first != second).any()
    assert first[:, [0, 50, 51]].all()
    assert abs(first.mean() - 0.5) < 0.05


def test_every_position_is_masked_eventually(chinese: Shards) -> None:
    """Over many draws every maskable position of real rows is chosen."""
    ids = np.array(chinese.rows("full")[0][:4])
    ever = np.zeros(ids.shape, dtype=bool)
    for seed in range(300):
        ever |= choose(ids, chinese.kinds, 0.3, np.random.default_rng(seed))
    assert (ever == (chinese.kinds[ids] != SPECIAL)).all()
