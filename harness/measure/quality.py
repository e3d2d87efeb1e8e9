"""Accuracy and what is uncertain about it. Pure functions."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import f1_score

from harness.measure.statistics import bootstrap_interval
from harness.results.schema import Quality


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
