"""The disk is full at ten points of a run and of pretraining."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.slow
POINTS = 10


@pytest.mark.parametrize("point", range(1, 8))
def test_during_a_run(
    point: int,
    small_disk: Any,
    undisturbed: Any,
    survives: Callable[..., None],
    tried: Callable[[str], None],
    refused: Callable[[Any], str],
) -> None:
    """The run ends with one line that says what to free; with more space it resumes and loses nothing."""
    tried("a full disk")
    ended = small_disk.carry_out(undisturbed.place.folder, point / 8)
    assert re.search(r"\bfree\b", refused(ended))
    survives(small_disk.grown())


@pytest.mark.parametrize("point", range(1, 4))
def test_a_full_disk_ends_pretraining_with_one_line(
    point: int, small_disk: Any, pretrained: Any, tried: Callable[[str], None], refused: Callable[[Any], str]
) -> None:
    """Pretraining ends with one line; with more space the same command gives the same weights."""
    tried("a full disk")
    place = small_disk.place
    ended = small_disk.carry_out(pretrained.out, point / 4, *pretrained.command(place))
    assert re.search(r"\bfree\b", refused(ended))
    ended = small_disk.grown().carry_out(*pretrained.command(place))
    assert ended.code == 0, ended.log
    assert (place.folder / "out" / "model.safetensors").read_bytes() == pretrained.weights
