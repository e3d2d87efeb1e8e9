"""Folders that cannot be written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def test_nothing_can_be_written(
    small_disk: Any, survives: Callable[..., None], tried: Callable[[str], None], refused: Callable[[Any], str]
) -> None:
    """A run in a read-only folder ends at once with one line; afterwards the folder can be used."""
    tried("a read-only folder")
    with small_disk.read_only():
        assert str(small_disk.place.run) in refused(small_disk.place.carry_out())
    survives(small_disk.place)


def test_the_run_folder_becomes_read_only(
    small_disk: Any,
    undisturbed: Any,
    survives: Callable[..., None],
    tried: Callable[[str], None],
    refused: Callable[[Any], str],
) -> None:
    """A finished run that cannot be written stays as it is: run, report and the same command later."""
    tried("a read-only folder")
    place = undisturbed.copy_to(small_disk.place)
    with small_disk.read_only():
        for command in [(), ("report", str(place.run))]:
            assert str(place.run) in refused(place.carry_out(*command))
    survives(place)


def test_the_cache_is_read_only(
    small_disk: Any,
    undisturbed: Any,
    survives: Callable[..., None],
    tried: Callable[[str], None],
    refused: Callable[[Any], str],
) -> None:
    """A read-only cache that has everything is used; a fit that it lacks is refused in one line that names it."""
    tried("a read-only folder")
    place = small_disk.place
    elsewhere = place.notes / "run"
    with small_disk.read_only():
        assert "GEEP_BENCH_CACHE" in refused(place.carry_out(run=elsewhere))
    undisturbed.copy_to(place)
    with small_disk.read_only():
        survives(place, run=elsewhere)
