"""Waiting in windows: samples arrive at random, are collected until a window is full, and windows are served one by one.

A window of W samples is served as soon as its last sample has arrived and the windows before it are done; all its answers
are given together. With Poisson arrivals at rate r (samples/s) windows arrive with Erlang(W, 1/r) gaps, and services hardly
vary: an E_W/G/1 queue, M/D/1 for W = 1. The sample that arrives as the k-th of its window waits for W - k others, which is
Erlang(W - k, 1/r): (W - 1) / (2 r) on average over k, (W - 1) / r for the first. Windows are never closed early; a time-out
would bound the wait and make batches smaller.

Sources: Kleinrock, Queueing Systems I (1975), M/G/1 (Pollaczek-Khinchine); Kingman 1962 for the upper bound; Lindley 1952
for the recursion.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import gammainc

ARRIVALS = 1_000_000  # simulated samples
WINDOWS = (400, 50_000)  # simulated windows, at least and at most
SETTLING = 0.1  # of the simulated windows, left out: the queue begins empty


def collecting_mean(window: int, rate: float) -> float:
    """Mean seconds that a sample waits for the rest of its window."""
    return (window - 1) / (2 * rate)


def collecting_worst(window: int, rate: float) -> float:
    """Mean seconds that the first of a window waits for the rest."""
    return (window - 1) / rate


def collecting_quantile(window: int, rate: float, share: float) -> float:
    """Seconds within which ``share`` (0..1, exclusive) of all samples have their window full; exact.

    The wait is 0 for the last of a window, and Erlang(j, 1 / rate) with j = 1 .. W - 1 equally often for the others.
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
    """Share of the time that the server works, if it can: 1 or more means that it cannot keep up.

    Args:
        service: mean seconds for a window.
    """
    return rate * service / window


def queueing_single(rate: float, service: float) -> float:
    """Mean seconds in the queue of M/D/1 (W = 1), for a utilisation below 1."""
    load = rate * service
    return load * service / (2 * (1 - load))


def queueing_bound(window: int, rate: float, service: float, deviation: float = 0.0) -> float:
    """Kingman's upper bound of the mean seconds that a full window waits for the ones before, utilisation below 1.

    Args:
        deviation: standard deviation of the service, seconds.
    """
    gap, variance = window / rate, window / rate**2
    return (variance + deviation**2) / (2 * gap * (1 - service / gap))


@dataclass(frozen=True)
class Waits:
    """Seconds of every sample (or window), in order of arrival.

    Attributes:
        collecting: [J * W], until its window is full.
        queueing: [J], that a full window waits for the ones before.
        whole: [J * W], from arrival to answer.
    """

    collecting: np.ndarray
    queueing: np.ndarray
    whole: np.ndarray


def serve(arrivals: np.ndarray, services: np.ndarray) -> Waits:
    """What samples wait, given when they arrive ([J * W], rising) and how long every window takes ([J])."""
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
    """Poisson arrivals, and services drawn from measured ones (seconds per window); the beginning is left out."""
    rng = np.random.default_rng(seed)
    count = int(np.clip(ARRIVALS // window, *WINDOWS))
    arrivals = np.cumsum(rng.exponential(1 / rate, count * window))
    found = serve(arrivals, rng.choice(services, count))
    first = int(SETTLING * count)
    return Waits(found.collecting[first * window :], found.queueing[first:], found.whole[first * window :])
