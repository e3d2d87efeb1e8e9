"""Copies between host and device, on a stand-in for a device that works only when waited for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from harness.encoder import transfer
from harness.encoder.transfer import download, upload

HERE, THERE = torch.device("cuda", 0), torch.device("cuda", 1)
QUEUES: dict[torch.device, list[Callable[[], Any]]] = defaultdict(list)


class Event:
    """Mark a position in a stream's queue; waiting for it runs the work before it."""

    def record(self, stream: torch.device | None = None) -> None:
        self.queue = QUEUES[stream or HERE]  # by default the current device
        self.place = len(self.queue)

    def synchronize(self) -> None:
        for act in self.queue[: self.place]:
            act()


class Pinned:
    """Host memory with undefined content until a copy has arrived."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.values = torch.full(shape, 77, dtype=dtype)

    def copy_(self, source: Far, non_blocking: bool) -> None:
        assert non_blocking
        QUEUES[source.device].append(lambda: self.values.copy_(source.values))

    def numpy(self) -> np.ndarray:
        return self.values.numpy()


class Far:
    """A tensor on the second device while the first device is current."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values, self.device, self.shape, self.dtype = values, THERE, values.shape, values.dtype
        self.nbytes = values.nbytes

    def detach(self) -> Far:
        return self


def pretend(patch: pytest.MonkeyPatch) -> None:
    """Pretend that there are two devices."""

    def empty(shape: tuple[int, ...], *, dtype: torch.dtype, pin_memory: bool) -> Pinned:
        assert pin_memory, "a copy to pageable memory makes the host wait"
        return Pinned(shape, dtype)

    QUEUES.clear()
    patch.setattr(torch, "empty", empty)
    patch.setattr(torch.cuda, "Event", Event)
    patch.setattr(torch.cuda, "current_stream", lambda device=HERE: device)


@pytest.fixture
def _devices(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)


def check_waiting() -> None:
    """Check that the host waits for the copy and for nothing else."""
    first = transfer.download(Far(torch.tensor([1.0, 2.0])))  # type: ignore[arg-type]
    QUEUES[THERE].append(lambda: pytest.fail("waited for more than the copy"))
    assert first._host.numpy().tolist() == [77.0, 77.0]
    assert first.wait().tolist() == [1.0, 2.0]


@pytest.mark.usefixtures("_devices")
def test_values_arrive_only_after_waiting() -> None:
    """The host waits for the copy on its stream, and not for work queued later."""
    check_waiting()


BUGS = {
    "no wait": ("self._arrived.synchronize()", "pass"),
    "nothing is copied": ("self._host.copy_(source, non_blocking=True)", "pass"),
    "another device's stream": ("record(torch.cuda.current_stream(source.device))", "record()"),
    "the host does not wait": ("if self._arrived is not None", "if self._arrived is None"),
}


@pytest.mark.usefixtures("_devices")
@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_caught(
    bug: str, planted: Callable[[str, str, str], Callable[[], None]], fails_apart: Callable[..., bool]
) -> None:
    """Checks fail for copies that are read too soon."""
    put = planted("encoder.transfer", *BUGS[bug])

    def compare() -> None:
        put()
        check_waiting()

    assert fails_apart(compare)


@pytest.mark.usefixtures("_devices")
def test_two_pending_copies_are_independent() -> None:
    """Each copy has its own memory and can be waited for in any order."""
    one, two = (download(Far(torch.tensor([flag, not flag]))) for flag in (True, False))  # type: ignore[arg-type]
    assert two.wait().tolist() == [False, True]
    assert one.wait().tolist() == [True, False]


def test_on_the_host_nothing_is_copied() -> None:
    """On the CPU, both directions return views."""
    values = np.arange(3)
    there = upload(values, torch.device("cpu"))
    assert there.data_ptr() == values.ctypes.data
    assert download(there).wait().ctypes.data == values.ctypes.data


def test_an_upload_is_pinned_and_asynchronous(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays of any strides are copied from pinned memory, because the host would wait for pageable memory."""
    seen: list[Any] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: seen.append(tensor.tolist()) or tensor)
    monkeypatch.setattr(
        torch.Tensor, "to", lambda tensor, device, non_blocking=False: seen.append((device, non_blocking))
    )
    upload(np.arange(6).reshape(2, 3).T, THERE)
    assert seen == [[[0, 3], [1, 4], [2, 5]], (THERE, True)]
