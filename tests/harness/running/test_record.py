"""Accuracy as stored."""

from __future__ import annotations

import numpy as np
import pytest

from harness.running.record import quality


def test_quality_by_hand() -> None:
    """Five samples of three classes: accuracy 3/5, F1 2/3, 4/5 and 0."""
    found = quality(np.array([0, 0, 1, 1, 1]), np.array([0, 2, 1, 1, 0]))
    assert found.accuracy == pytest.approx(0.6)
    assert found.macro_f1 == pytest.approx((1 / 2 + 4 / 5 + 0) / 3)
    assert found.n == 5
    assert found.accuracy_low <= 0.6 <= found.accuracy_high


def test_quality_of_one_row() -> None:
    """A test split of one row gives a result."""
    found = quality(np.array([1]), np.array([1]))
    assert (found.accuracy, found.accuracy_low, found.accuracy_high, found.macro_f1, found.n) == (1, 1, 1, 1, 1)
