"""What a test could have found, against simulation, theory and invariants."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from harness.measure.detectable import (
    chance_of_showing,
    detectable_by_mcnemar,
    detectable_mean,
    mcnemar_power,
    provable_margin,
    times_as_many,
)
from harness.measure.paired_tests import mcnemar


def test_detectable_mean_known_answer() -> None:
    """At 5 % and 80 % power it is 2.802 standard errors, and 2.487 for a one-sided margin (tables of Lachin 1981)."""
    assert detectable_mean(1.0) == pytest.approx(2.8016, abs=1e-4)
    assert provable_margin(1.0) == pytest.approx(2.4865, abs=1e-4)


@given(st.floats(0.001, 0.1), st.floats(0.001, 0.2), st.floats(0.55, 0.99))
def test_a_z_test_has_the_stated_power_there(se: float, alpha: float, power: float) -> None:
    """A normal estimate with this mean is significant with the stated probability."""
    shift = detectable_mean(se, alpha, power) / se
    assert norm.sf(norm.ppf(1 - alpha / 2) - shift) == pytest.approx(power)


def test_power_of_mcnemar_agrees_with_simulation() -> None:
    """8 % discordant rows among 500 and a true difference of 3 points: 4,000 simulated tests agree."""
    rng = np.random.default_rng(0)
    draws = rng.multinomial(500, [0.055, 0.025, 0.92], size=4000)
    simulated = np.mean([mcnemar(wins, losses) <= 0.05 for wins, losses, _ in draws])
    assert mcnemar_power(0.03, 0.08, 500) == pytest.approx(simulated, abs=0.02)


@given(st.integers(1, 400), st.floats(0.001, 1), st.floats(0.001, 0.2))
def test_without_a_difference_power_is_at_most_the_level(n: int, discordant: float, alpha: float) -> None:
    """The exact test keeps its level."""
    assert mcnemar_power(0.0, discordant, n, alpha) <= alpha + 1e-9


def test_detectable_difference_known_answers() -> None:
    """Many rows approach (z + z) sqrt(share / n); with no discordant row P(Bin(1000, d) >= 6) = 0.8 needs d = 0.79 points."""
    assert detectable_by_mcnemar(10_000, 1000) == pytest.approx(2.8016 * np.sqrt(0.1 / 10_000), rel=0.03)
    assert detectable_by_mcnemar(1000, 0) == pytest.approx(0.0079, abs=1e-4)
    assert detectable_by_mcnemar(5, 2) is None


@given(st.integers(20, 800), st.floats(0, 0.6))
def test_more_rows_find_less_and_stricter_levels_find_more(n: int, share: float) -> None:
    """The detectable difference has the stated power, falls with four times the rows, and rises at a stricter level."""
    discordant = round(n * share)
    found = detectable_by_mcnemar(n, discordant)
    assert found is not None
    assert mcnemar_power(found, max(found, discordant / n), n) == pytest.approx(0.8, abs=0.02)
    more, stricter = detectable_by_mcnemar(4 * n, 4 * discordant), detectable_by_mcnemar(n, discordant, alpha=0.005)
    assert more is not None and more < found
    assert stricter is None or stricter > found


def test_the_chance_to_show_a_margin_is_that_of_simulation() -> None:
    """A true difference drawn around the seen one, then a new one around the true one, passes the bound as often as computed."""
    rng = np.random.default_rng(0)
    true = rng.normal(-0.004, 0.005, 200_000)
    shown = rng.normal(true, 0.006) - norm.ppf(0.95) * 0.006 > -0.015
    assert chance_of_showing(-0.004, 0.005, 0.006, 0.015) == pytest.approx(shown.mean(), abs=0.005)


@given(st.floats(-0.009, 0.02), st.floats(0.001, 0.05))
def test_so_many_more_rows_have_the_stated_power(difference: float, se: float) -> None:
    """With that many rows, the bound is above the margin with 80 % probability; a difference beyond the margin has no number."""
    ratio = times_as_many(difference, se, 0.01)
    assert ratio is not None
    then = se / ratio**0.5
    assert norm.cdf((difference + 0.01) / then - norm.ppf(0.95)) == pytest.approx(0.8)
    assert times_as_many(-0.01, se, 0.01) is None
