"""Room in memory, in a file, or none."""

from __future__ import annotations

import os
import shutil
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.core.files import cache_root
from harness.toolkit.frozen import row_storage
from harness.toolkit.frozen.row_storage import room_for

CPU = torch.device("cpu")


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a memory of 800 bytes, of which one array may take 100."""
    monkeypatch.setattr(row_storage, "_memory", lambda _: 800)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_beyond_its_share_of_memory_an_array_is_in_a_file_that_leaves_nothing(
    dtype: torch.dtype, small_memory: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to an eighth of memory no file is opened; beyond that, numbers come back from a file that has no name."""
    reserved: list[int] = []
    reserve = os.posix_fallocate
    monkeypatch.setattr(os, "posix_fallocate", lambda *at: (reserved.append(at[-1]), reserve(*at)))
    fits = 100 // dtype.itemsize
    assert room_for((fits, 1), dtype, CPU) is not None
    assert not reserved
    found = room_for((2, fits), dtype, CPU)
    assert found is not None
    assert reserved == [found.nbytes]
    values = torch.randn(2, fits).to(dtype)
    found.copy_(values)
    assert (found.shape, found.dtype) == (values.shape, dtype)
    assert torch.equal(found, values)
    assert not list(cache_root().iterdir())


def test_no_room(small_memory: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is none in a file that would take more than half the free space, on a full disk, or on another device."""
    large: Any = ((30,), torch.float32)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=239))
        assert room_for(*large, CPU) is None
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=240))
        assert room_for(*large, CPU) is not None
    assert room_for(*large, torch.device("meta")) is None

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert room_for(*large, CPU) is None
