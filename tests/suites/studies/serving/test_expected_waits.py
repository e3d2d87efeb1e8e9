"""Latencies that queueing predicts agree with closed forms and with the study of windows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from suites.studies.serving.batching import Batching
from suites.studies.serving.expected_waits import CallTimes, expected_latencies
from suites.studies.shared import queueing


@given(
    window=st.integers(1, 6),
    gaps=st.lists(st.floats(0.0, 5.0), min_size=6, max_size=60),
    service=st.floats(0.0, 9.0),
)
def test_windows_equal_the_formula_of_the_streaming_study(window: int, gaps: list[float], service: float) -> None:
    """Full windows have the latencies of suites.studies.shared.queueing."""
    arrivals = np.cumsum(gaps)[: len(gaps) // window * window]
    found = expected_latencies(Batching(window, waits=True), arrivals, CallTimes({window: [service]}))
    expected = queueing.serve(arrivals, np.full(len(arrivals) // window, service)).whole
    np.testing.assert_allclose(found, expected, atol=1e-9)


@given(
    size=st.integers(1, 5),
    gaps=st.lists(st.floats(0.0, 3.0), min_size=1, max_size=40),
    first=st.floats(0.1, 4.0),
    more=st.floats(0.0, 2.0),
)
def test_calls_of_what_waits_equal_an_event_by_event_server(
    size: int, gaps: list[float], first: float, more: float
) -> None:
    """An idle server takes what is there, a busy one what came meanwhile."""
    arrivals = np.cumsum(gaps)
    times = CallTimes({count: [first + more * (count - 1)] for count in range(1, size + 1)})
    found = expected_latencies(Batching(size, waits=False), arrivals, times)
    left, now, answers = list(arrivals), 0.0, []
    while left:
        now = max(now, left[0])
        batch = [time for time in left[:size] if time <= now]
        now += first + more * (len(batch) - 1)
        answers += [now - time for time in batch]
        left = left[len(batch) :]
    np.testing.assert_allclose(found, answers, atol=1e-9)


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_single_calls_equal_the_pollaczek_khinchine_formula(load: float) -> None:
    """Poisson arrivals and equal calls of one query are M/D/1: the mean wait is load * service / (2 (1 - load))."""
    service = 0.01
    arrivals = np.cumsum(np.random.default_rng(0).exponential(service / load, 10_000))
    found = expected_latencies(Batching(1, waits=False), arrivals, CallTimes({1: [service]}))
    assert found.mean() - service == pytest.approx(load * service / (2 * (1 - load)), rel=0.15)


def test_calls_between_two_sizes_take_times_between() -> None:
    """Times lie on the line between the nearest sizes; beyond all sizes, the nearest one counts."""
    times, rng = CallTimes({4: [4.0], 8: [6.0]}), np.random.default_rng(0)
    assert [times.draw(size, rng) for size in (1, 4, 5, 8, 99)] == [4.0, 4.0, 4.5, 6.0, 6.0]
    assert times.mean([4, 8]) == 5.0
    grouped = CallTimes.of_calls([(0.0, 1.0, 2), (1.0, 4.0, 2), (5.0, 5.5, 1)])
    assert {grouped.draw(2, rng) for _ in range(30)} == {1.0, 3.0}
    assert grouped.draw(1, rng) == 0.5
