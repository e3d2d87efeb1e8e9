"""Time from raw texts to token ids: what a deployment spends before the timed region, which begins with ids on the device.

It is the same for all methods that read the ids of one tokenizer, so it is measured once for a dataset and a backbone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import numpy as np
import torch

from harness.core import clock
from harness.encoder.backbone import Backbone
from harness.results.schema import Tokenising
from harness.running.session import Session

PASSES = 3
BUDGET = 3.0  # seconds, after which no further pass begins
_timed: WeakKeyDictionary[Backbone, dict[tuple[str, int, int, int], Tokenising]] = WeakKeyDictionary()


def tokenising_of(session: Session) -> Tokenising | None:
    """Return the time from raw texts to ids for the test rows of a session, measured in the first call for these rows."""
    backbone, rows, texts = session.backbone, session.prepared.test_rows, session.prepared.raw_test
    length, size, threads = (
        session.settings.profile.max_length,
        session.settings.execution.batch_size,
        torch.get_num_threads(),
    )
    found = _timed.setdefault(backbone, {})
    key = (rows, length, size, threads)
    if texts is not None and key not in found:
        found[key] = time_tokenising(
            backbone, texts.texts, texts.pairs, max_length=length, batch_size=size, threads=threads
        )
    return found.get(key)


@contextmanager
def tokenizer_threads(count: int) -> Iterator[None]:
    """Give fast tokenizers this many threads inside the block; outside, the settings of the process hold.

    Their library makes its threads once, in the first parallel call of a process, and keeps their number: loading a backbone made
    as many as torch had.
    """
    given = {"TOKENIZERS_PARALLELISM": "true" if count > 1 else "false", "RAYON_NUM_THREADS": str(count)}
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def time_tokenising(
    backbone: Backbone,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    *,
    max_length: int,
    batch_size: int,
    threads: int,
) -> Tokenising:
    """Time :meth:`Backbone.encode` on all texts, batch by batch in order of arrival, ids brought to the device.

    Args:
        pairs: second texts.
        batch_size: texts in one call.
        threads: of the tokenizer; one that is not fast has one.
    """
    threads = threads if backbone.tokenizer.is_fast else 1

    def encode(first: int) -> None:
        part = slice(first, first + batch_size)
        second = None if pairs is None else pairs[part]
        backbone.encode(texts[part], second, max_length=max_length).to(backbone.device)

    seconds: list[float] = []
    with tokenizer_threads(threads):
        encode(0)  # warm-up
        while not seconds or (len(seconds) < PASSES and sum(seconds) < BUDGET):
            start = clock.now()
            for first in range(0, len(texts), batch_size):
                encode(first)
            clock.synchronise(backbone.device)
            seconds.append(clock.now() - start)
    return Tokenising(seconds=float(np.median(seconds)), passes=len(seconds), batch_size=batch_size, threads=threads)
