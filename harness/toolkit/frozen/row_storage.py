"""Room for numbers that are computed once and read in every epoch: memory, or a nameless file beside the cache."""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from harness.core.files import cache_root

SHARE = 1 / 8  # of the device's memory, at most, for one array; a fit has up to two, and fits run side by side


def room_for(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """Return an array to fill, or ``None`` if there is no room.

    In memory up to :data:`SHARE` of it. Beyond that, on a CPU, in a file without a name in the folder of the cache, of at most half
    the free space, which goes with the process, however that ends. On another device there is no room: reading from a file would
    take as long as computing.

    Args:
        shape: of the array; it has at least one element.
    """
    size = prod(shape) * dtype.itemsize
    if size <= SHARE * _memory(device):
        return torch.empty(tuple(shape), dtype=dtype, device=device)
    if device.type != "cpu":
        return None
    root = cache_root()
    try:
        root.mkdir(parents=True, exist_ok=True)
        if size > shutil.disk_usage(root).free / 2:
            return None
        with tempfile.TemporaryFile(dir=root) as file:
            os.posix_fallocate(file.fileno(), 0, size)  # on a full disk, writing to the mapping would end the process
            return torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=dtype).view(tuple(shape))
    except OSError:
        return None


def _memory(device: torch.device) -> int:
    """Return the bytes of memory that a device has."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
