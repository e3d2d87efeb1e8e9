"""Rows in more than one split are counted."""

from __future__ import annotations

from harness.core.tokens import TokenSet
from harness.running.overlaps import overlaps


def test_rows_are_compared_as_the_model_sees_them() -> None:
    """By ids and segments: the same words in another order, or split otherwise into a pair, are another row."""
    train = TokenSet.from_lists([[1, 5, 6], [1, 7], [1, 8, 9]], [[0, 0, 0], [0, 0], [0, 0, 1]])
    dev = TokenSet.from_lists([[1, 7], [1, 6, 5]])
    test = TokenSet.from_lists([[1, 5, 6], [1, 6, 5], [1, 8, 9], [1, 5, 6], [1, 5, 6], [1, 4]])
    found = overlaps(train, dev, test)
    assert (found.train_test, found.dev_test, found.train_dev, found.within_test) == (3, 1, 1, 2)
