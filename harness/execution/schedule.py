"""Execution order: samples sorted by predicted exit, then by length, within windows of arrival.

Batches cut from the result hold samples of similar depth and length, which exact-k batches and the ladder need.
:func:`schedule` reads its values first; :func:`schedule_on_device` takes bounds instead and never synchronises.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from harness.core.errors import ConfigError
from harness.kernels import Launcher, Source, cuda

_DIGIT = 16  # bits; NumPy's stable sort is a counting sort (radix) up to this width


def schedule(exits: Tensor, lengths: Tensor, *, descending: bool = True, window: int = 0) -> Tensor:
    """Return the stable order by (exit, length) within each window; ties stay in order of arrival.

    Args:
        exits: int16 [N], predicted exits, 0 or larger.
        lengths: int64 [N], tokens per sample, 0 or larger.
        descending: deepest and longest first, as the ladder needs, so that the active samples are a prefix.
        window: samples sorted together: positions [0, window), [window, 2 window) and so on; 0 is one window of all N.

    Returns:
        int64 [N] on the same device: sample ``order[i]`` runs as the i-th.

    Raises:
        ConfigError: shapes differ or a number is negative.
    """
    if exits.ndim != 1 or exits.shape != lengths.shape:
        raise ConfigError(f"schedule: exits {tuple(exits.shape)} and lengths {tuple(lengths.shape)} must both be [N]")
    if window < 0:
        raise ConfigError(f"schedule: window={window} must be 0 (all samples) or larger")
    if not len(exits):
        return torch.zeros(0, dtype=torch.int64, device=exits.device)
    depth, length = exits.to(torch.int64), lengths.to(torch.int64)
    (shallow, deep), (short, long) = ([int(end) for end in torch.aminmax(part)] for part in (depth, length))
    if shallow < 0 or short < 0:
        raise ConfigError(
            f"schedule: exit {shallow} or length {short} is negative: give layer indices and token counts"
        )
    window = window or len(exits)
    if (deep + 1) * (long + 1) * -(-len(exits) // window) >= 1 << 62:
        raise ConfigError(f"schedule: lengths up to {long} are too large to sort: give tokens per sample")
    return _by_library(depth, length, deep + 1, long, descending, window)


def _by_library(exits: Tensor, lengths: Tensor, depth: int, max_length: int, descending: bool, window: int) -> Tensor:
    """Sort int64 exits below ``depth`` and lengths up to ``max_length`` by a stable sort of a library."""
    if descending:
        exits, lengths = depth - 1 - exits, max_length - lengths
    key = exits * (max_length + 1) + lengths
    bins = depth * (max_length + 1)
    if window < len(key):
        key += torch.arange(len(key), device=key.device) // window * bins
    return _stable_argsort(key, -(-len(key) // window) * bins)


def _stable_argsort(key: Tensor, bound: int) -> Tensor:
    """Return the stable order of non-negative keys below ``bound``.

    A counting sort in torch operations would need each row's rank within its bin, which is another sort or an [N, bins]
    one-hot. CUDA's stable sort is a radix sort. On the CPU, torch's is a comparison sort for int64 (10,000 keys: 0.5 ms,
    1,000,000: 50 ms); NumPy sorts uint16 by counting (0.03 ms, 5 ms). 24 exits x 512 lengths are 14 bits, so one pass;
    windows add a second.
    """
    if key.device.type != "cpu":
        return torch.sort(key, stable=True).indices
    keys = key.numpy()
    order = np.argsort((keys & 0xFFFF).astype(np.uint16), kind="stable")
    for shift in range(_DIGIT, (bound - 1).bit_length(), _DIGIT):
        digit = (keys >> shift & 0xFFFF).astype(np.uint16)
        order = order[np.argsort(digit[order], kind="stable")]
    return torch.from_numpy(order)


# As in sort.cu.
MAX_BINS = 4096
TILE = 2048
_BOTH, _LENGTH, _EXIT = range(3)
_CELLS = 8  # per sample; above this, the bins of many small windows cost more than a library sort


def sort_kernels() -> Source:
    """Return the source of the counting sort."""
    return Source.of("harness.execution", "sort.cu")


def schedule_on_device(
    exits: Tensor,
    lengths: Tensor,
    *,
    depth: int,
    max_length: int,
    descending: bool = True,
    window: int = 0,
    launcher: Launcher | None = None,
) -> Tensor:
    """:func:`schedule` with known bounds: the same order without synchronising.

    Uses a counting sort where kernels can be launched, else a stable sort of torch.

    Args:
        exits: int16 [N], predicted exits, 0 .. depth - 1.
        lengths: int64 [N], tokens per sample, 0 .. max_length.
        depth: number of exits. An exit out of range counts as the nearest one in range, as values are not read here.
        max_length: longest sample. A longer one is placed as if it had this length.
        descending: deepest and longest first.
        window: samples sorted together; 0 is one window of all N.
        launcher: of :func:`sort_kernels`; by default one on the samples' device, if it is a CUDA device.

    Raises:
        ConfigError: shapes or dtypes do not fit, a bound is too small, or there are 2^31 samples or more.
    """
    if exits.ndim != 1 or exits.shape != lengths.shape:
        raise ConfigError(f"schedule: exits {tuple(exits.shape)} and lengths {tuple(lengths.shape)} must both be [N]")
    if window < 0 or depth < 1 or max_length < 0:
        raise ConfigError(f"schedule: window={window}, depth={depth} or max_length={max_length} is too small")
    size = len(exits)
    if size >= 1 << 31 or depth * (max_length + 1) >= 1 << 31:
        raise ConfigError(f"schedule: {size} samples, {depth} exits, {max_length} tokens: 2^31 are too many to sort")
    if not size:
        return torch.zeros(0, dtype=torch.int64, device=exits.device)
    window = min(window, size) or size
    if launcher is None and exits.device.type == "cuda":
        launcher = _device_launcher(exits.device)
    passes = _passes(size, window, depth, max_length)
    if launcher is None or not passes:
        exits, lengths = exits.to(torch.int64).clamp(0, depth - 1), lengths.to(torch.int64).clamp(0, max_length)
        return _by_library(exits, lengths, depth, max_length, descending, window)
    exits, lengths = exits.to(torch.int16).contiguous(), lengths.to(torch.int64).contiguous()
    windows, tiles = -(-size // window), -(-window // TILE)
    order = None
    for by, bins in passes:
        facts = (size, window, tiles, bins, depth, max_length, by, int(descending))
        counts = torch.empty(windows, bins, tiles, dtype=torch.int32, device=exits.device)
        launcher.launch("count_bins", windows * tiles, 128, exits, lengths, order, *facts, counts)
        ends = counts.view(-1).cumsum(0)
        placed = torch.empty(size, dtype=torch.int64, device=exits.device)
        launcher.launch("place", windows * tiles, 32, exits, lengths, order, *facts, counts, ends, placed)
        order = placed
    assert order is not None
    return order


def _passes(size: int, window: int, depth: int, max_length: int) -> list[tuple[int, int]]:
    """Return (sort key, number of bins) per pass: one pass if the bins are few, else two; none if there are too many."""
    cells = -(-size // window) * -(-window // TILE)
    room = _CELLS * size + (1 << 20)
    for passes in (
        [(_BOTH, depth * (max_length + 1))],
        [(_LENGTH, max_length + 1), (_EXIT, depth)],
    ):
        if all(bins <= MAX_BINS and bins * cells <= room for _, bins in passes):
            return passes
    return []


@cache
def _device_launcher(device: torch.device) -> Launcher | None:
    return None if cuda.problem() else cuda.launcher(sort_kernels(), device)
