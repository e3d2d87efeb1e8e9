"""Signs in the record of a fit that training went wrong: too few epochs, or a head that collapsed."""

from __future__ import annotations

from itertools import accumulate
from math import sqrt
from typing import NamedTuple

from harness.results.schema import Training

LOSS = 0.05  # of dev accuracy, compared with a shallower head
STANDARD_ERRORS = 2.0


class CollapsedExit(NamedTuple):
    """An exit (number from 1, in order of depth) with its dev accuracy (0..1), and the best shallower one with its."""

    exit: int
    accuracy: float
    better: int
    better_accuracy: float


def kept_the_last_epoch(training: Training) -> bool:
    """Return whether the best epoch is the last allowed one; false if the last one is kept by rule, or if that is unknown."""
    return training.best_epoch is not None and training.best_epoch == training.epochs


def collapsed_exits(training: Training) -> list[CollapsedExit]:
    """Return the exits that are much worse on dev than a shallower one.

    Much worse: by more than 5 points and by more than 2 standard errors of the difference, as of two independent samples of the
    dev rows. Both exits answer the same rows, so that the true error is smaller.
    """
    scores = training.exit_scores
    if not training.dev_rows or not scores:
        return []
    found = []
    for place, best in enumerate(accumulate(scores[:-1], max), start=1):
        own = scores[place]
        error = sqrt((own * (1 - own) + best * (1 - best)) / training.dev_rows)
        if best - own > max(LOSS, STANDARD_ERRORS * error):
            found.append(CollapsedExit(place + 1, own, scores.index(best) + 1, best))
    return found
