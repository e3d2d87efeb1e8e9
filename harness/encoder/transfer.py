"""Between host and device, without the host waiting where it need not.

The executors' only ways across: :func:`upload` never waits, and :func:`download` hands out a copy that is under way, so
that other work can be queued before somebody waits for it. Both are plain views on the CPU.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def upload(values: np.ndarray, device: torch.device) -> Tensor:
    """``values`` on ``device``, through pinned memory: queued, not waited for."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class HostCopy:
    """A tensor on its way to the host."""

    def __init__(self, source: Tensor) -> None:
        self._arrived: torch.cuda.Event | None = None
        self._host = source.detach()
        if source.device.type == "cuda":
            self._host = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
            self._host.copy_(source, non_blocking=True)
            self._arrived = torch.cuda.Event()
            # Not of the current device, which may be another one.
            self._arrived.record(torch.cuda.current_stream(source.device))

    def wait(self) -> np.ndarray:
        """The values, once they are there."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host.numpy()


def download(source: Tensor) -> HostCopy:
    """Start copying to the host."""
    return HostCopy(source)
