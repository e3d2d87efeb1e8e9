"""Waiting in windows: closed forms, an event-by-event server and the recursion agree."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suites.studies.shared import queueing


class Server:
    """Return the waits of windows that are served event by event, a slow and simple reference."""

    def __init__(self, window: int, services: list[float]) -> None:
        self.window, self.services = window, list(services)
        self.now = 0.0
        self.waiting: list[float] = []
        self.done: list[tuple[float, float, float]] = []  # collecting, queueing, total

    def arrive(self, time: float) -> None:
        self.waiting.append(time)
        if len(self.waiting) < self.window:
            return
        begin = max(self.now, time)
        self.now = begin + self.services.pop(0)
        self.done += [(time - came, begin - time, self.now - came) for came in self.waiting]
        self.waiting = []


@given(
    window=st.integers(1, 6),
    gaps=st.lists(st.floats(0.0, 5.0), min_size=1, max_size=60),
    services=st.lists(st.floats(0.0, 20.0), min_size=60, max_size=60),
)
def test_the_recursion_equals_the_server(window: int, gaps: list[float], services: list[float]) -> None:
    """The recursion equals the event-by-event server, whether the queue is stable or not."""
    gaps = (gaps * window)[: len(gaps) // window * window or window]
    arrivals = np.cumsum(gaps)
    count = len(arrivals) // window
    server = Server(window, services)
    for time in arrivals:
        server.arrive(float(time))
    found = queueing.serve(arrivals, np.array(services[:count]))
    expected = np.array(server.done)
    np.testing.assert_allclose(found.collecting, expected[:, 0], atol=1e-9)
    np.testing.assert_allclose(np.repeat(found.queueing, window), expected[:, 1], atol=1e-9)
    np.testing.assert_allclose(found.whole, expected[:, 2], atol=1e-9)


@given(window=st.integers(1, 300), rate=st.floats(0.01, 1e4))
def test_regular_arrivals_equal_the_closed_form(window: int, rate: float) -> None:
    """With regular arrivals, the mean wait is (W - 1) / (2 rate) and the first sample's (W - 1) / rate."""
    arrivals = np.arange(3 * window) / rate
    found = queueing.serve(arrivals, np.zeros(3))
    assert found.collecting.mean() == pytest.approx(queueing.collecting_mean(window, rate), rel=1e-6, abs=1e-9)
    assert found.collecting.max() == pytest.approx(queueing.collecting_worst(window, rate), rel=1e-6, abs=1e-9)


@settings(max_examples=15)
@given(
    window=st.sampled_from([1, 2, 16, 256, 1000]), rate=st.sampled_from([0.5, 10.0, 3000.0]), seed=st.integers(0, 99)
)
def test_random_arrivals_equal_the_closed_forms(window: int, rate: float, seed: int) -> None:
    """Mean and quantiles of collecting agree with a simulation of a million Poisson arrivals."""
    found = queueing.simulate(window, rate, np.array([0.0]), seed).collecting
    assert found.mean() == pytest.approx(queueing.collecting_mean(window, rate), rel=0.02, abs=1e-12)
    for share in (0.5, 0.99):
        within = (found <= queueing.collecting_quantile(window, rate, share) + 1e-12).mean()
        assert within >= share - 0.01
        if window > 2:
            assert within == pytest.approx(share, abs=0.01)


def test_the_collecting_quantile_of_a_pair_is_known() -> None:
    """In a window of two, half of the samples wait 0, and the others exponentially."""
    assert queueing.collecting_quantile(1, 7.0, 0.99) == 0
    assert queueing.collecting_quantile(2, 7.0, 0.5) == 0
    assert queueing.collecting_quantile(2, 7.0, 0.75) == pytest.approx(np.log(2) / 7)


def queueing_single(rate: float, service: float) -> float:
    """Return the mean seconds in the queue of M/D/1 (W = 1), for a utilisation below 1 (Pollaczek-Khinchine).

    Source: Kleinrock, Queueing Systems I (1975).
    """
    load = rate * service
    return load * service / (2 * (1 - load))


def queueing_bound(window: int, rate: float, service: float, deviation: float = 0.0) -> float:
    """Return Kingman's upper bound (1962) of the mean seconds in the queue of a full window, for a utilisation below 1.

    Args:
        deviation: standard deviation of the service, seconds.
    """
    gap, variance = window / rate, window / rate**2
    return (variance + deviation**2) / (2 * gap * (1 - service / gap))


@pytest.mark.parametrize("load", [0.2, 0.5, 0.8])
def test_single_samples_equal_the_pollaczek_khinchine_formula(load: float) -> None:
    """With W = 1 and equal service times, the queue is M/D/1."""
    rate = 40.0
    service = load / rate
    found = queueing.simulate(1, rate, np.array([service]), seed=1).queueing
    assert queueing.utilisation(1, rate, service) == pytest.approx(load)
    # A queue of 50,000 is one long correlated sample.
    assert found.mean() == pytest.approx(queueing_single(rate, service), rel=0.15)


@settings(max_examples=20)
@given(window=st.sampled_from([1, 4, 64, 512]), load=st.floats(0.05, 0.85), spread=st.floats(0.0, 0.5))
def test_queueing_is_below_kingmans_bound(window: int, load: float, spread: float) -> None:
    """The mean wait in the queue stays below the upper bound and vanishes for large windows."""
    rate = 100.0
    mean = load * window / rate
    services = np.array([mean * (1 - spread), mean * (1 + spread)])
    found = queueing.simulate(window, rate, services, seed=2).queueing.mean()
    assert found <= 1.25 * queueing_bound(window, rate, mean, spread * mean) + 1e-9


def test_an_overloaded_queue_grows() -> None:
    """If twice as much arrives as is served, the second half waits longer than the first."""
    found = queueing.serve(np.arange(400) / 10.0, np.full(100, 0.8))
    assert queueing.utilisation(4, 10.0, 0.8) == 2
    assert (np.diff(found.queueing) > 0).all()
