"""Processes that are killed or interrupted anywhere."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("number", range(20))
def test_a_killed_run_resumes(
    number: int,
    place: Any,
    undisturbed: Any,
    survives: Callable[..., None],
    was_killed: Any,
    tried: Callable[[str], None],
    draw: Random,
) -> None:
    """A run that SIGKILL ends at any storage event, or while it computes after it, loses no finished cell and can be resumed.

    Every fourth one is killed a second time while it resumes.
    """
    tried("SIGKILL")
    for _ in range(2 if number % 4 == 0 else 1):
        event = draw.randint(1, undisturbed.events)
        was_killed(place.carry_out(fault={"kill_at": event, "delay": draw.choice([0.0, draw.uniform(0, 0.3)])}))
    survives(place)


@pytest.mark.parametrize("number", range(2))
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=lambda one: one.name)
def test_an_interrupted_run_resumes(
    sent: signal.Signals,
    number: int,
    place: Any,
    survives: Callable[..., None],
    tried: Callable[[str], None],
    draw: Random,
) -> None:
    """SIGTERM ends a run as SIGINT does: exit code 130 and one line that says how to resume."""
    tried(sent.name)
    pid, log = place.start()
    time.sleep(draw.uniform(0.2, 1.0))
    place.program.signal(pid, sent)
    ended = place.program.wait(pid, log)
    assert ended.code == 130, ended.log
    assert "Traceback" not in ended.log
    assert ended.lines() == ["geep-bench: stopped; run the same command again to resume"]
    survives(place)
