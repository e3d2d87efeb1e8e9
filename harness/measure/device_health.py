"""Whether a device still works, and what to say when its memory ran out."""

from __future__ import annotations

import torch

from harness.core import clock
from harness.core.errors import DeviceError


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
