"""Finds rows that occur in more than one split, which a reader must know to judge an accuracy."""

from __future__ import annotations

import hashlib
from collections import Counter

from harness.core.tokens import TokenSet


def _hashes(tokens: TokenSet) -> list[bytes]:
    """Return a hash of every sample's ids and segments, in order."""
    ids, segments = tokens.ids.cpu().numpy(), tokens.segments.cpu().numpy()
    offsets = tokens.offsets.cpu().tolist()
    return [
        hashlib.blake2b(ids[a:b].tobytes() + segments[a:b].tobytes(), digest_size=16).digest()
        for a, b in zip(offsets[:-1], offsets[1:], strict=True)
    ]


def count_overlaps(train: TokenSet, dev: TokenSet, test: TokenSet) -> dict[str, int]:
    """Count equal rows; compared are the ids that the model sees, cut to its length.

    Returns:
        ``train_test`` and ``dev_test``: rows of test that also occur in train or dev. ``train_dev``: rows of dev that also
        occur in train. ``within_test``: rows of test that repeat an earlier one.
    """
    in_train, dev_rows, test_rows = set(_hashes(train)), _hashes(dev), _hashes(test)
    in_dev = set(dev_rows)
    return {
        "train_test": sum(row in in_train for row in test_rows),
        "dev_test": sum(row in in_dev for row in test_rows),
        "train_dev": sum(row in in_train for row in dev_rows),
        "within_test": sum(count - 1 for count in Counter(test_rows).values()),
    }


def without_rows_of(tokens: TokenSet, *others: TokenSet) -> TokenSet:
    """Return ``tokens`` without repeated rows and without rows that one of ``others`` has, in order; compared as above."""
    known = {row for other in others for row in _hashes(other)}
    first: dict[bytes, int] = {}
    for number, row in enumerate(_hashes(tokens)):
        if row not in known:
            first.setdefault(row, number)
    return tokens.select([*first.values()])
