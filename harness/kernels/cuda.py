"""Kernels on a CUDA device: NVRTC through CuPy, torch's memory, torch's current stream. CuPy is imported on first use.

CuPy only compiles and launches: its memory pool is never touched, so that there is one allocator and graphs can be
captured. Compile (one launch) before a capture.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from harness.errors import DeviceError
from harness.kernels.source import Source

BLOCKS_PER_PROCESSOR = 8
_INSTALL = "pip install 'geep-bench[cuda]'"


@cache
def problem() -> str | None:
    """Why kernels cannot be launched on a CUDA device here, with what mends it; ``None`` where they can."""
    if not torch.cuda.is_available():
        return "torch sees no CUDA device: use a machine with one and a CUDA build of torch"
    try:
        import cupy
    except ImportError as error:
        return f"CuPy cannot be imported ({_line(error)}): {_INSTALL}"
    try:
        devices = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        # cudaErrorInsufficientDriver: also where torch, built for an older CUDA, is content with the driver.
        return f"CuPy cannot use the device ({_line(error)}): update the driver, or install CuPy for its CUDA version"
    if not devices:
        return "CuPy sees no CUDA device: check CUDA_VISIBLE_DEVICES"
    return None


def launcher(source: Source, device: torch.device | None = None) -> CudaLauncher:
    """A launcher of the source on a device (the current one); compiled at the first launch, cached by CuPy on disk.

    Raises:
        DeviceError: there is no CuPy, or it cannot use the device; see :func:`problem`.
    """
    reason = problem()
    if reason:
        raise DeviceError(f"CUDA kernels: {reason}")
    index = device.index if device is not None and device.index is not None else torch.cuda.current_device()
    return CudaLauncher(source, torch.device("cuda", index))


class CudaLauncher:
    """See :class:`harness.kernels.Launcher`."""

    def __init__(self, source: Source, device: torch.device) -> None:
        self.source = source
        self.device = device
        self.blocks = BLOCKS_PER_PROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count
        self._kernels: dict[str, Any] = {}

    def launch(self, kernel: str, grid: int, block: int, *args: Tensor | int | None) -> None:
        import cupy

        # Scalars of NumPy are passed in their own width, addresses as the 8 bytes that they are.
        values = tuple(self.source.arguments(kernel, args, self.device))
        with torch.cuda.device(self.device):
            stream = torch.cuda.current_stream()
            # torch 2.10 and CuPy 14 speak the stream protocol; before, the raw handle does.
            if hasattr(cupy.cuda.Stream, "from_external") and hasattr(stream, "__cuda_stream__"):
                on = cupy.cuda.Stream.from_external(stream)
            else:
                on = cupy.cuda.ExternalStream(stream.cuda_stream, self.device.index)
            with cupy.cuda.Device(self.device.index), on:
                self._kernel(kernel)((grid,), (block,), values)

    def _kernel(self, name: str) -> Any:
        """The compiled kernel; on this device, as CuPy makes a module its own on every device."""
        if name not in self._kernels:
            compiled = _module(self.source.text, self.source.options)
            try:
                self._kernels[name] = compiled.get_function(name)
            except Exception as error:  # CuPy has types of its own for errors of driver, NVRTC and loader
                raise DeviceError(
                    f"CUDA kernels: {self.source.name} does not compile here ({type(error).__name__}: {_line(error)}):"
                    f" NVRTC and a driver for its CUDA version are needed: {_INSTALL}"
                ) from error
        return self._kernels[name]


@cache
def _module(text: str, options: tuple[str, ...]) -> Any:
    import cupy

    return cupy.RawModule(code=text, options=("-std=c++17", *options))  # no -arch: CuPy chooses it


def _line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
