"""Rows in more than one split are counted."""

from __future__ import annotations

from harness.core.tokens import TokenSet
from harness.data.overlaps import count_overlaps


def test_rows_are_compared_by_ids_and_segments() -> None:
    """The same words in another order, or split differently into a pair, make another row."""
    train = TokenSet.from_lists([[1, 5, 6], [1, 7], [1, 8, 9]], [[0, 0, 0], [0, 0], [0, 0, 1]])
    dev = TokenSet.from_lists([[1, 7], [1, 6, 5]])
    test = TokenSet.from_lists([[1, 5, 6], [1, 6, 5], [1, 8, 9], [1, 5, 6], [1, 5, 6], [1, 4]])
    found = count_overlaps(train, dev, test)
    assert found == {"train_test": 3, "dev_test": 1, "train_dev": 1, "within_test": 2}
