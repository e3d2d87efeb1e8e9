"""Kernels on a CUDA device: NVRTC through CuPy, torch's memory, torch's current stream. CuPy is imported on first use.

CuPy only compiles and launches. Its memory pool is never used, so there is one allocator and graphs can be captured. Compile
(launch once) before a capture.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from harness.core.errors import DeviceError, first_line
from harness.kernels.compiled_code import own_compiler_caches
from harness.kernels.source import Source

BLOCKS_PER_PROCESSOR = 8
_INSTALL = "pip install 'geep-bench[cuda]'"
_PROBE = Source("probe.cu", 'extern "C" __global__ void probe() {}')


@cache
def problem() -> str | None:
    """Return why kernels cannot be launched on a CUDA device here, with advice; ``None`` if they can."""
    if not torch.cuda.is_available():
        return "torch sees no CUDA device: use a machine with one and a CUDA build of torch"
    try:
        import cupy
    except (ImportError, OSError, RuntimeError) as error:  # missing, or built for another CUDA or NumPy
        return f"CuPy cannot be imported ({first_line(error)}): {_INSTALL}"
    try:
        devices = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        # cudaErrorInsufficientDriver can occur although torch, built for an older CUDA, works with the driver.
        return (
            f"CuPy cannot use the device ({first_line(error)}): update the driver, or install CuPy for its CUDA version"
        )
    if not devices:
        return "CuPy sees no CUDA device: check CUDA_VISIBLE_DEVICES"
    try:
        # CuPy's wheels do not include NVRTC, and the driver may be older than NVRTC's target.
        _function(_PROBE, "probe")
    except DeviceError as error:
        return str(error)
    except torch.OutOfMemoryError as error:
        return f"{error}: free memory, then start again"
    return None


def launcher(source: Source, device: torch.device | None = None) -> CudaLauncher:
    """Return a launcher of the source on a device (default: the current one); CuPy compiles at the first launch and caches on disk.

    Raises:
        DeviceError: there is no CuPy, or it cannot use the device; see :func:`problem`.
    """
    reason = problem()
    if reason:
        raise DeviceError(f"CUDA kernels cannot run: {reason}")
    index = device.index if device is not None and device.index is not None else torch.cuda.current_device()
    return CudaLauncher(source, torch.device("cuda", index))


class CudaLauncher:
    """A :class:`harness.kernels.Launcher` on a CUDA device."""

    def __init__(self, source: Source, device: torch.device) -> None:
        self.source = source
        self.device = device
        self.blocks = BLOCKS_PER_PROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count
        self._kernels: dict[str, Any] = {}

    def launch(self, kernel: str, grid: int, block: int, *args: Tensor | int | None) -> None:
        import cupy

        # NumPy scalars are passed in their own width, addresses as 8 bytes.
        values = tuple(self.source.arguments(kernel, args, self.device))
        with torch.cuda.device(self.device):
            stream = torch.cuda.current_stream()
            # The stream protocol needs torch 2.10 and CuPy 14; older versions take the raw handle.
            if hasattr(cupy.cuda.Stream, "from_external") and hasattr(stream, "__cuda_stream__"):
                on = cupy.cuda.Stream.from_external(stream)
            else:
                on = cupy.cuda.ExternalStream(stream.cuda_stream, self.device.index)
            with cupy.cuda.Device(self.device.index), on:
                if kernel not in self._kernels:  # per device: CuPy loads a module for each
                    self._kernels[kernel] = _function(self.source, kernel)
                try:
                    self._kernels[kernel]((grid,), (block,), values)
                except Exception as error:
                    _tell_memory(error, kernel)
                    raise


def _function(source: Source, kernel: str) -> Any:
    """Return the compiled kernel on CuPy's current device.

    Raises:
        DeviceError: it does not compile or load.
        torch.OutOfMemoryError: the device has no memory for it.
    """
    try:
        return _module(source.text, source.options).get_function(kernel)
    except Exception as error:  # CuPy has separate error types for driver, NVRTC and loader
        _tell_memory(error, kernel)
        raise DeviceError(
            f"{source.name} does not compile here ({type(error).__name__}: {first_line(error)}):"
            f" NVRTC and a driver for its CUDA version are needed: {_INSTALL}"
        ) from error


def _tell_memory(error: Exception, kernel: str) -> None:
    """Raise ``torch.OutOfMemoryError`` for any out-of-memory error; CuPy has one type each for driver, runtime and pool."""
    if "out of memory" in str(error).lower().replace("_", " "):
        raise torch.OutOfMemoryError(
            f"no memory on the device to load or launch {kernel} ({first_line(error)})"
        ) from error


@cache
def _module(text: str, options: tuple[str, ...]) -> Any:
    import cupy

    own_compiler_caches()
    return cupy.RawModule(code=text, options=("-std=c++17", *options))  # no -arch: CuPy chooses it
