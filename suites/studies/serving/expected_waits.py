"""Latencies that queueing predicts for a server: what a measured load test is compared with.

One server takes calls one by one; :class:`~suites.studies.serving.batching.Batching` says when and how many. With windows of
arrivals it is the queue of :mod:`suites.studies.shared.queueing`; a test checks that both agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from suites.studies.serving.batching import Batching


class CallTimes:
    """Times of calls by their size, from which those of other calls are drawn.

    Args:
        seconds: by number of queries in a call; at least one.
    """

    def __init__(self, seconds: Mapping[int, Sequence[float]]) -> None:
        self._sizes = np.array(sorted(seconds))
        self._seconds = [np.asarray(seconds[size], dtype=float) for size in self._sizes]

    @classmethod
    def of_calls(cls, calls: Iterable[tuple[float, float, int]]) -> CallTimes:
        """Group calls (begin, end, size) by size."""
        seconds: dict[int, list[float]] = {}
        for begin, end, size in calls:
            seconds.setdefault(size, []).append(end - begin)
        return cls(seconds)

    def draw(self, size: int, rng: np.random.Generator) -> float:
        """Return the seconds of a call: drawn from its size, or on the line between the two nearest sizes."""
        above = min(int(np.searchsorted(self._sizes, size)), len(self._sizes) - 1)
        high = self._one_of(above, rng)
        if above == 0 or size >= self._sizes[above]:
            return high
        low = self._one_of(above - 1, rng)
        share = (size - self._sizes[above - 1]) / (self._sizes[above] - self._sizes[above - 1])
        return float(low + share * (high - low))

    def _one_of(self, place: int, rng: np.random.Generator) -> float:
        seconds = self._seconds[place]
        return float(seconds[rng.integers(len(seconds))])

    def mean(self, sizes: Iterable[int]) -> float:
        """Return the mean seconds of calls of these sizes."""
        means = [float(np.mean(seconds)) for seconds in self._seconds]
        return float(np.mean(np.interp(list(sizes), self._sizes, means)))


def expected_latencies(batching: Batching, arrivals: np.ndarray, times: CallTimes, seed: int = 0) -> np.ndarray:
    """Return the latency of every query from its arrival to its answer, in seconds, float64 [N].

    Args:
        arrivals: seconds, rising, float64 [N].
    """
    rng = np.random.default_rng(seed)
    found = np.empty(len(arrivals))
    free, first = -np.inf, 0  # when the server is free again; the first query that is not served
    while first < len(arrivals):
        if batching.waits:
            count = min(batching.size, len(arrivals) - first)  # the last window is cut short
            begin = max(free, arrivals[first + count - 1])
        else:
            begin = max(free, arrivals[first])
            there = int(np.searchsorted(arrivals, begin, side="right")) - first
            count = batching.take(there, last=False)
        free = begin + times.draw(count, rng)
        found[first : first + count] = free - arrivals[first : first + count]
        first += count
    return found
