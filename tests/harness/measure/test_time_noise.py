"""The noise of times, and "faster and not worse"."""

from __future__ import annotations

from collections.abc import Sequence
from math import log

import numpy as np
import pytest

from harness.measure.time_noise import faster_and_not_worse, median_noise, self_ratios


def test_self_ratios_by_hand() -> None:
    """Successive passes of one series are pairs; passes of different series are not."""
    assert self_ratios([[1.0, 2.0, 1.0], [5.0], [], [3.0, 9.0]]) == pytest.approx([log(2), -log(2), log(3)])
    assert len(self_ratios([])) == 0


def test_noise_of_a_median_equals_theory() -> None:
    """The median of three normal values has 0.6698 times their deviation, symmetrically."""
    pairs = np.random.default_rng(0).normal(0, 0.05, 5000)
    noise = median_noise(pairs, 3)
    assert noise.std() == pytest.approx(0.6698 * 0.05, rel=0.03)
    assert abs(noise.mean()) < 5e-4


def test_stalls_widen_the_noise() -> None:
    """If one pair in ten is doubled, the tails of the median of three show it."""
    calm = np.full(100, 0.01)
    stalling = np.concatenate([calm[:90], np.full(10, log(2))])
    assert np.quantile(median_noise(calm, 3), 0.99) == pytest.approx(0.01)
    assert np.quantile(median_noise(stalling, 3), 0.995) == pytest.approx(log(2))


@pytest.mark.parametrize(
    ("losses", "ratios", "expected"),
    [
        (0, (2.0, 2.1, 1.9), (True, True)),
        (40, (2.0, 2.1, 1.9), (False, True)),
        (0, (1.01, 1.0, 1.02), (True, False)),
        (40, (1.01, 1.0, 1.02), (False, False)),
    ],
)
def test_faster_and_not_worse(losses: int, ratios: Sequence[float], expected: tuple[bool, bool]) -> None:
    """Both tests use their lower bounds."""
    pairs = np.random.default_rng(0).normal(0, 0.05, 200)
    found = faster_and_not_worse(10, losses, 2000, ratios, pairs, margin=0.01)
    assert (found.not_worse, found.faster) == expected
    assert found.lowest_speedup < np.median(ratios)


def test_few_samples_are_not_enough() -> None:
    """With full agreement, 200 samples cannot exclude a loss of one point, but 300 can."""
    pairs = np.full(50, 0.01)
    assert not faster_and_not_worse(0, 0, 200, [2.0], pairs, margin=0.01).not_worse
    assert faster_and_not_worse(0, 0, 300, [2.0], pairs, margin=0.01).not_worse
