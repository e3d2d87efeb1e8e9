"""Two processes that write at once, in one run folder or with one cache; also from containers, whose process ids are equal."""

from __future__ import annotations

import time
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

pytestmark = pytest.mark.slow
PIDS = {"unlike process ids": ({}, {}), "equal process ids": ({"pid": 7}, {"pid": 7})}


@pytest.mark.parametrize("pids", PIDS)
def test_one_run_folder(
    pids: str,
    place: Any,
    survives: Callable[..., None],
    tried: Callable[[str], None],
    refused: Callable[[Any], str],
    draw: Random,
) -> None:
    """The second run in a folder is refused at once, in one line; the first one is not disturbed."""
    tried(f"two writers, {pids}")
    first, log = place.start(fault={"count": str(place.notes / "events"), **PIDS[pids][0]})
    until = time.monotonic() + 30
    while not (place.run / "run.json").is_file() and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(draw.uniform(0, 0.5))
    line = refused(place.carry_out(fault=PIDS[pids][1]))
    assert f"{place.run} is in use by another run" in line
    ended = place.program.wait(first, log)
    assert ended.code == 0, ended.log
    assert "8 measured, 0 kept" in ended.log
    survives(place)


@pytest.mark.parametrize("pids", PIDS)
@pytest.mark.parametrize("number", range(2))
def test_two_runs_fill_one_cache(
    number: int, pids: str, place: Any, survives: Callable[..., None], tried: Callable[[str], None], draw: Random
) -> None:
    """Two runs that fill one cache at the same time both end well, with the same answers."""
    tried(f"two writers, {pids}")
    places = [place.folder / name for name in "ab"]
    slow = draw.choice([0.0, 0.03])
    started = [
        place.start(run=run, fault={"slow_rename": slow, **own}) for run, own in zip(places, PIDS[pids], strict=True)
    ]
    for pid, log in started:
        ended = place.program.wait(pid, log)
        assert ended.code == 0, ended.log
        assert "Traceback" not in ended.log
    for run in places:
        survives(place, run=run)


def test_a_run_folder_whose_writer_was_killed_is_free(
    place: Any,
    undisturbed: Any,
    survives: Callable[..., None],
    tried: Callable[[str], None],
    was_killed: Any,
    draw: Random,
) -> None:
    """The lock of a killed process does not keep the next one out, even if a process with its id lives."""
    tried("two writers, the first one killed")
    event = draw.randint(undisturbed.events // 2, undisturbed.events)
    was_killed(place.carry_out(fault={"kill_at": event, "pid": 1}))
    survives(place)


def test_two_reports_at_once(
    place: Any, undisturbed: Any, survives: Callable[..., None], tried: Callable[[str], None]
) -> None:
    """Both give the report, or the second one is refused in one line."""
    tried("two writers, equal process ids")
    undisturbed.copy_to(place)
    started = [place.start("report", str(place.run), fault={"slow_rename": 0.05, "pid": 7}) for _ in range(2)]
    for ended in [place.program.wait(*one) for one in started]:
        assert ended.code in (0, 2), ended.log
        assert "Traceback" not in ended.log
        assert ended.code == 0 or len(ended.lines()) == 1
    survives(place)
