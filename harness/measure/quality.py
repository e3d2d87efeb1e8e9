"""Accuracy and what is uncertain about it. Pure functions."""

from __future__ import annotations

import numpy as np
from scipy.stats import binom
from sklearn.metrics import f1_score

from harness.results import Quality


def bootstrap_interval(correct: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of an accuracy (Efron 1979), exact.

    Resampling n zeros and ones with replacement gives a Binomial(n, accuracy) / n; its quantiles are the limits that
    infinitely many resamples would give. Degenerate (both limits the accuracy) where all or none are correct: a single
    sample tells nothing about spread.

    Args:
        correct: bool [n], n >= 1.
        level: coverage aimed at, in 0..1.
    """
    n, p = len(correct), float(np.mean(correct))
    tail = (1 - level) / 2
    low, high = binom.ppf([tail, 1 - tail], n, p) / n
    return float(low), float(high)


def quality(predictions: np.ndarray, labels: np.ndarray) -> Quality:
    """Accuracy with its interval, and macro F1 over the classes that occur (int64 [n] each)."""
    correct = predictions == labels
    low, high = bootstrap_interval(correct)
    return Quality(
        accuracy=float(correct.mean()),
        accuracy_low=low,
        accuracy_high=high,
        macro_f1=float(f1_score(labels, predictions, average="macro", zero_division=0)),
        n=len(labels),
    )
