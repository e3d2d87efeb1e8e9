"""The peak rate of a device, as the rate of a large matrix product. Other rates are stated as shares of it."""

from __future__ import annotations

import numpy as np
import torch

from harness.core import clock


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
