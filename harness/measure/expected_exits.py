"""What exits by chance are worth: exact expectations from the answers of every layer's head. Pure functions on arrays.

A control that assigns exits at random is one draw; its expectation has no such noise. Layers count from 1 in arguments and results.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def unpack_layers(masks: np.ndarray, depth: int) -> np.ndarray:
    """Return bits 0..depth - 1 of every mask: bool [n, depth], where column i is the head after layer i + 1.

    Args:
        masks: int64 [n].
        depth: layers, at most 63.
    """
    return (masks.astype(np.int64)[:, None] >> np.arange(depth)) & 1 == 1


def expected_at_random(right: np.ndarray, histogram: Sequence[int]) -> np.ndarray:
    """Return the expected correctness of each sample if exits of this histogram are assigned at random: float [n].

    Sum over layers of the share of samples that exit there times whether its head is right: the mean over all permutations.

    Args:
        right: bool [n, heads], such as those after layer 1, 2, ..., depth.
        histogram: samples that exit after each of these heads; at least one in total.
    """
    counts = np.asarray(histogram, dtype=np.float64)
    return np.asarray(right @ (counts / counts.sum()))


def spread_at_random(right: np.ndarray, histogram: Sequence[int]) -> float:
    """Return the standard deviation of the mean correctness over random assignments of exits of this histogram, exactly.

    The variance of a sum over a random permutation: the squared deviations from the row and column means of the values that
    samples could get, over n - 1 (Hoeffding 1951). 0 for one sample.

    Args:
        right: bool [n, depth].
        histogram: samples that exit after layer 1, 2, ..., depth; n in total.
    """
    counts, n = np.asarray(histogram, dtype=np.float64), len(right)
    by_layer = right.mean(0)
    by_sample = right @ counts / n
    apart = right - by_sample[:, None] - by_layer + float(by_layer @ counts) / n
    return float(np.sqrt((apart**2).sum(0) @ counts / max(n - 1, 1)) / n)


def share_of_deeper(mean_layers: float, shallow: int, deep: int, beyond: float = 0.0) -> float | None:
    """Return the share of samples at layer ``deep``, the others at ``shallow``, that gives these mean layers.

    Args:
        shallow, deep: layers, shallow < deep.
        beyond: how far the mean may lie outside of the two depths, as a share of its layers. There the share is below 0 or above
            1: the line through both depths, which lies above a concave hull and so favours the control.

    Returns:
        None if the mean is further outside.
    """
    inside = shallow / (1 + beyond) - 1e-9 <= mean_layers <= deep * (1 + beyond) + 1e-9
    return (mean_layers - shallow) / (deep - shallow) if inside else None


def expected_at_two_depths(right: np.ndarray, shallow: int, deep: int, share: float) -> np.ndarray:
    """Return the expected correctness of each sample if a random ``share`` exits after layer ``deep``, the rest after ``shallow``.

    Mixes of two depths are the concave hull of constant depths: no assignment without knowledge of the samples is better.

    Args:
        right: bool [n, depth].
        share: of :func:`share_of_deeper`.

    Returns:
        float [n].
    """
    return np.asarray((1 - share) * right[:, shallow - 1] + share * right[:, deep - 1])


def first_layer(right: np.ndarray) -> np.ndarray:
    """Return the first layer whose head is right, int [n]; the full depth for samples that no layer gets right."""
    return np.where(right.any(1), right.argmax(1) + 1, right.shape[1])
