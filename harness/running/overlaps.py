"""Rows that stand in more than one split: what a reader has to know before believing an accuracy."""

from __future__ import annotations

import hashlib
from collections import Counter

from harness.core.tokens import TokenSet
from harness.results.schema import Overlaps


def row_hashes(tokens: TokenSet) -> list[bytes]:
    """A hash of every sample's ids and segments, in order."""
    ids, segments = tokens.ids.cpu().numpy(), tokens.segments.cpu().numpy()
    offsets = tokens.offsets.cpu().tolist()
    return [
        hashlib.blake2b(ids[a:b].tobytes() + segments[a:b].tobytes(), digest_size=16).digest()
        for a, b in zip(offsets[:-1], offsets[1:], strict=True)
    ]


def overlaps(train: TokenSet, dev: TokenSet, test: TokenSet) -> Overlaps:
    """Rows of one split whose ids, as the model sees them (cut to length), stand in another, too.

    ``train_test`` and ``dev_test`` count rows of test, ``train_dev`` rows of dev; ``within_test`` rows of test that repeat
    an earlier one.
    """
    learnt, chosen = set(row_hashes(train)), row_hashes(dev)
    asked = row_hashes(test)
    known = set(chosen)
    return Overlaps(
        train_test=sum(row in learnt for row in asked),
        dev_test=sum(row in known for row in asked),
        train_dev=sum(row in learnt for row in chosen),
        within_test=sum(count - 1 for count in Counter(asked).values()),
    )
