"""Waiting times when randomly arriving samples are collected in windows, and windows are served one by one.

A window of W samples is served as soon as its last sample has arrived and earlier windows are done; all its answers are given
together. With Poisson arrivals at rate r (samples/s), windows arrive with Erlang(W, 1/r) gaps, and service times vary little:
an E_W/G/1 queue, M/D/1 for W = 1. The k-th sample of a window waits for W - k others, which takes Erlang(W - k, 1/r) time:
(W - 1) / (2 r) on average over k, (W - 1) / r for the first. Windows are never closed early; a time-out would bound the wait
and make batches smaller.

Source: Lindley 1952 for the recursion.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import gammainc

ARRIVALS = 1_000_000  # simulated samples
WINDOWS = (400, 50_000)  # simulated windows, at least and at most
SETTLING = 0.1  # share of simulated windows that are discarded, because the queue begins empty


def collecting_mean(window: int, rate: float) -> float:
    """Return the mean seconds that a sample waits for the rest of its window."""
    return (window - 1) / (2 * rate)


def collecting_worst(window: int, rate: float) -> float:
    """Return the mean seconds that the first sample of a window waits for the rest."""
    return (window - 1) / rate


def collecting_quantile(window: int, rate: float, share: float) -> float:
    """Return the seconds within which the windows of ``share`` (0..1, exclusive) of all samples are full; exact.

    The wait is 0 for the last sample of a window, and Erlang(j, 1 / rate) with equally likely j = 1 .. W - 1 for the others.
    """
    if share <= 1 / window:
        return 0.0
    shapes = np.arange(1, window)

    def short(scaled: float) -> float:
        return float((1 + gammainc(shapes, scaled).sum()) / window) - share

    high = float(window)
    while short(high) < 0:
        high *= 2
    return float(brentq(short, 0.0, high, xtol=1e-9, rtol=1e-12)) / rate


def utilisation(window: int, rate: float, service: float) -> float:
    """Return the utilisation of the server; at 1 or more it cannot keep up.

    Args:
        service: mean seconds for a window.
    """
    return rate * service / window


@dataclass(frozen=True)
class Waits:
    """Waiting times in seconds, in order of arrival.

    Attributes:
        collecting: [J * W], until its window is full.
        queueing: [J], of full windows behind earlier ones.
        whole: [J * W], from arrival to answer.
    """

    collecting: np.ndarray
    queueing: np.ndarray
    whole: np.ndarray


def serve(arrivals: np.ndarray, services: np.ndarray) -> Waits:
    """Return the waiting times for given arrivals ([J * W], rising) and service times of windows ([J]), in seconds."""
    windows = arrivals.reshape(len(services), -1)
    full = windows[:, -1]
    # Finished windows: f_j = max(f_{j-1}, full_j) + s_j; with C the running sum of s, f_j - C_j is a running maximum.
    before = np.cumsum(services) - services
    begin = np.maximum.accumulate(full - before) + before
    collecting = full[:, None] - windows
    queueing = np.maximum(begin - full, 0.0)
    whole = collecting + (queueing + services)[:, None]
    return Waits(collecting.ravel(), queueing, whole.ravel())


def simulate(window: int, rate: float, services: np.ndarray, seed: int = 0) -> Waits:
    """Simulate Poisson arrivals with service times drawn from measured ones (seconds per window); discard the beginning."""
    rng = np.random.default_rng(seed)
    count = int(np.clip(ARRIVALS // window, *WINDOWS))
    arrivals = np.cumsum(rng.exponential(1 / rate, count * window))
    found = serve(arrivals, rng.choice(services, count))
    first = int(SETTLING * count)
    return Waits(found.collecting[first * window :], found.queueing[first:], found.whole[first * window :])
