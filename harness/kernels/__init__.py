"""CUDA kernels, compiled at run time and launched from torch, on a device or emulated on the host. May import core only.

::

    source = Source.of("geep.exit_table", "exit_table.cu", WIDTH=12)
    launcher = cuda.launcher(source, device)        # NVRTC through CuPy, on torch's stream and torch's memory
    launcher = host.launcher(source, workers=2)     # the same source compiled by g++ with shim.h
    launcher.launch("insert", grid, block, tensor, 3)

Code above a launcher is the same for both, so it is tested without a device. This room knows no kernel by name.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from harness.kernels.source import Parameter, Source

__all__ = ["Launcher", "Parameter", "Source"]


class Launcher(Protocol):
    """Runs the kernels of one source.

    Attributes:
        source: what was compiled.
        device: where every tensor argument must be.
        blocks: number of blocks that fills the device; kernels stride over the rest.
    """

    @property
    def source(self) -> Source: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def blocks(self) -> int: ...

    def launch(self, kernel: str, grid: int, block: int, *args: Tensor | int | None) -> None:
        """Run ``grid`` blocks of ``block`` threads (a multiple of 32), in order with torch's work on the device.

        Tensors are passed by address, ``None`` as a null pointer, ints as the scalar type that the kernel declares.

        Raises:
            TypeError: arguments do not fit the kernel's parameters.
            DeviceError: the source does not compile there.
            torch.OutOfMemoryError: no memory to load or launch it; nothing ran.
        """
