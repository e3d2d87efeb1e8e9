"""What a fitted method takes beside time: bytes on disk, memory of the process, energy of the device."""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from harness.contracts import Fitted
from harness.core import clock
from harness.core.errors import DeviceError

WEIGHTS = (".safetensors", ".onnx")
WINDOW = 2.0  # seconds; NVML's energy counter moves about ten times a second


@dataclass(frozen=True)
class State:
    """Everything a fitted method has learnt, as it would be stored.

    Attributes:
        digest: of all bytes; equal if nothing changed.
        size: bytes.
        weights: there are weights among it; a method without any borrows another's.
    """

    digest: str
    size: int
    weights: bool = True

    @classmethod
    def of(cls, fitted: Fitted) -> State:
        """Of what ``fitted`` saves now."""
        digest, size, weights = hashlib.blake2b(digest_size=16), 0, False
        with tempfile.TemporaryDirectory() as place:
            fitted.save(Path(place))
            for path in sorted(Path(place).rglob("*")):
                if path.is_file():
                    content = path.read_bytes()
                    digest.update(f"{path.relative_to(place)} {len(content)}".encode() + content)
                    size += len(content)
                    weights |= path.suffix in WEIGHTS
        return cls(digest.hexdigest(), size, weights)


def reset_host_peak() -> bool:
    """Forget the process's peak memory so far; ``False`` where the system cannot (it needs Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def host_peak() -> int | None:
    """Peak resident bytes of the process since :func:`reset_host_peak`; ``None`` where the system does not tell."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        return None
    return None


def joules(run: Callable[[], object], device: torch.device) -> float | None:
    """Energy of one ``run`` on a CUDA device, from repeating it for :data:`WINDOW` seconds; ``None`` without a counter.

    The counter is the device's own (``nvmlDeviceGetTotalEnergyConsumption``, Volta and later): the whole board, idle
    power included, and everybody's work on it. Short runs need long windows: sensors see a part of the time only
    (Yang et al. 2023, arXiv 2312.02741).
    """
    meter = _meter(device)
    if meter is None:
        return None
    clock.synchronise(device)
    runs, begin, before = 0, clock.now(), meter()
    while not runs or clock.now() - begin < WINDOW:
        run()
        clock.synchronise(device)
        runs += 1
    return (meter() - before) / 1000 / runs


def _meter(device: torch.device) -> Callable[[], int] | None:
    """The energy counter in millijoules."""
    if device.type != "cuda":
        return None
    try:
        import pynvml
    except ImportError:
        return None
    nvml: Any = pynvml
    try:
        nvml.nvmlInit()
        # NVML counts all devices, torch those that are visible; the identifier is common to both.
        name = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        handle = nvml.nvmlDeviceGetHandleByUUID(name)
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except nvml.NVMLError as error:
        print(f"no energy counter: {error}", file=sys.stderr)
        return None
    return lambda: int(nvml.nvmlDeviceGetTotalEnergyConsumption(handle))


def check_alive(device: str) -> None:
    """Use the device once.

    Raises:
        DeviceError: it does not answer any more. After most CUDA errors nothing else works in the process, either, so that
            every cell to come would fail.
    """
    try:
        _touch(device)
    except torch.OutOfMemoryError:
        return  # full, but there
    except RuntimeError as error:
        raise DeviceError(
            f"the device '{device}' stopped working ({str(error).splitlines()[0]}): finished cells are kept; "
            "look after it, then run the same command again"
        ) from error


def _touch(device: str) -> None:
    torch.zeros(1, device=device)
    clock.synchronise(device)


def advice(error: BaseException) -> str:
    """How to mend a failed cell, as far as the error tells; else nothing."""
    if isinstance(error, torch.OutOfMemoryError):
        return "; the device's memory ran out: lower --batch-size, or --compute eager"
    return ""
