"""The only module that reads clocks. Tests replace :func:`now`."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def now() -> float:
    """Return seconds on a monotonic clock."""
    return time.perf_counter()


def busy() -> float:
    """Return seconds that this process has computed, all threads together; time that others had the processor is left out."""
    return time.process_time()


def synchronise(device: torch.device | str) -> None:
    """Wait until all work queued on ``device`` is done."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


class Phases:
    """Seconds of the named parts of one pass. CUDA events, read at the end, avoid synchronisation."""

    def __init__(self, device: torch.device | str) -> None:
        self._device = torch.device(device)
        self._cuda = self._device.type == "cuda"
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the time of the ``with`` block to ``name``."""
        if self._cuda:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            stream = torch.cuda.current_stream(self._device)  # of that device, whichever is current
            begin.record(stream)
            yield
            end.record(stream)
            self._events.append((name, begin, end))
        else:
            start = now()
            yield
            self._seconds[name] += now() - start

    def seconds(self) -> dict[str, float]:
        """Return seconds by name. On CUDA, call it when the results are on the host."""
        for name, begin, end in self._events:
            end.synchronize()
            self._seconds[name] += begin.elapsed_time(end) / 1000
        self._events.clear()
        return dict(self._seconds)
