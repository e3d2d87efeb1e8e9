"""Copies between host and device that avoid waiting.

Executors use only these: :func:`upload` never waits, and :func:`download` returns a copy in progress, so that other work can be
queued before it is needed. Both are plain views on the CPU.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from harness.core.work import record


def upload(values: np.ndarray, device: torch.device) -> Tensor:
    """Return ``values`` on ``device``, through pinned memory and without waiting."""
    record("upload", count=values.nbytes)
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class HostCopy:
    """A tensor being copied to the host."""

    def __init__(self, source: Tensor) -> None:
        self._arrived: torch.cuda.Event | None = None
        self._host = source.detach()
        self._step = record("download", count=source.nbytes)
        if source.device.type == "cuda":
            self._host = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
            self._host.copy_(source, non_blocking=True)
            self._arrived = torch.cuda.Event()
            # The stream of the source's device, which may differ from the current device.
            self._arrived.record(torch.cuda.current_stream(source.device))

    def wait(self) -> np.ndarray:
        """Wait for the copy and return the values."""
        record("wait", count=self._step)
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host.numpy()


def download(source: Tensor) -> HostCopy:
    """Start copying to the host."""
    return HostCopy(source)
