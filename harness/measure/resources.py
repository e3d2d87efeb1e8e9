"""Resources of a fitted method beside time: bytes on disk, memory, energy; and the state and peak rate of the device."""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.contracts import Fitted
from harness.core import clock
from harness.core.errors import DeviceError
from harness.encoder.device_kernels.host_memory import release_freed_memory
from harness.encoder.multi_exit import MODEL

EXPORTED = (".onnx", ".bin")
WEIGHTS = (".safetensors", *EXPORTED)
WINDOW = 2.0  # seconds; NVML updates its energy counter about ten times a second


@dataclass(frozen=True)
class SavedState:
    """Everything that a fitted method has learnt, as it would be stored.

    Attributes:
        digest: of all bytes; equal if nothing changed.
        size: bytes.
        weights: whether it stores tensors; a method without any uses the weights of another one.
        has_model: whether it stores the weights of a model of the harness, or a model that was exported.
    """

    digest: str
    size: int
    weights: bool = True
    has_model: bool = True

    @classmethod
    def of(cls, fitted: Fitted) -> SavedState:
        """Save ``fitted`` to a temporary folder and hash the files."""
        digest, size = hashlib.blake2b(digest_size=16), 0
        weights = has_model = False
        with tempfile.TemporaryDirectory() as place:
            fitted.save(Path(place))
            for path in sorted(Path(place).rglob("*")):
                if path.is_file():
                    content = path.read_bytes()
                    digest.update(f"{path.relative_to(place)} {len(content)}".encode() + content)
                    size += len(content)
                    weights |= path.suffix in WEIGHTS
                    has_model |= path.suffix in EXPORTED or path.name == MODEL
        return cls(digest.hexdigest(), size, weights, has_model)


def reset_host_peak() -> bool:
    """Reset the peak memory of the process; return ``False`` if the system cannot (only Linux can)."""
    release_freed_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def host_peak() -> int | None:
    """Return the peak resident bytes of the process since :func:`reset_host_peak`; ``None`` if unknown."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        return None
    return None


def joules(run: Callable[[], object], device: torch.device) -> float | None:
    """Measure the energy of one ``run`` on a CUDA device, repeated for :data:`WINDOW` seconds; ``None`` without a counter.

    The counter (``nvmlDeviceGetTotalEnergyConsumption``, Volta and later) covers the whole board: idle power and the work
    of other processes are included. Short runs need long windows, because the sensors sample only a part of the time
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
    """Return a function that reads the energy counter in millijoules."""
    if device.type != "cuda":
        return None
    try:
        import pynvml
    except ImportError:
        return None
    nvml: Any = pynvml
    try:
        nvml.nvmlInit()
        # NVML numbers all devices, torch only the visible ones; the identifier is the same in both.
        name = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        handle = nvml.nvmlDeviceGetHandleByUUID(name)
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except nvml.NVMLError as error:
        print(f"no energy counter: {error}", file=sys.stderr)
        return None
    return lambda: int(nvml.nvmlDeviceGetTotalEnergyConsumption(handle))


def check_alive(device: str) -> None:
    """Use the device once, to find out whether it still works.

    Raises:
        DeviceError: it does not. After most CUDA errors nothing else works in the process, so all further cells would fail.
    """
    try:
        _touch(device)
    except torch.OutOfMemoryError:
        return  # the device works, but its memory is full
    except RuntimeError as error:
        raise DeviceError(
            f"the device '{device}' stopped working ({str(error).splitlines()[0]}): finished cells are kept; "
            "check the device, then run the same command again"
        ) from error


def _touch(device: str) -> None:
    torch.zeros(1, device=device)
    clock.synchronise(device)


def lost_cores(before: int, after: int, threads: int) -> list[str]:
    """Return a note on times that were measured while the machine had fewer cores than threads, or another number at the end.

    Args:
        before, after: cores that the process could use (:func:`harness.core.environment.usable_cores`).
        threads: of torch.
    """
    if before == after >= threads:
        return []
    cores = str(before) if before == after else f"{before} at the start and {after} at the end"
    return [f"measured with {threads} threads on {cores} usable cores: its times are not those of a quiet machine"]


def advice(error: BaseException) -> str:
    """Return how to correct a failed cell if the error is known; else an empty string."""
    if isinstance(error, torch.OutOfMemoryError):
        return "; the device's memory is full: lower --batch-size, or use --compute eager"
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):  # the second one is torch's
        return "; the memory is full: use fewer rows (--max-train, --max-test), or close other programs"
    return ""


def matrix_rate(device: str, dtype: torch.dtype) -> float:
    """Measure the FLOP/s of a large product of random matrices: the median of ten, after two for warm-up."""
    size = 8192 if torch.device(device).type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(12):
        phases = clock.Phases(device)
        clock.synchronise(device)
        with phases("product"):
            a @ b
        seconds.append(phases.seconds()["product"])
    return 2 * size**3 / float(np.median(seconds[2:]))
