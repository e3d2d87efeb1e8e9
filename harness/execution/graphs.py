"""Blocks as CUDA graphs: one launch per block instead of one per kernel.

A graph is bound to addresses and shapes. So batches run in fixed buffers, rows are rounded up to one of few sizes, and lengths
are data on the device. Slots beyond the batch have length 0, and rows beyond it hold stale values that are never read.
Layer i reads buffer i mod 2 and writes the other, so recording a block twice is harmless.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from harness.contracts import Execution
from harness.core.tokens import TokenSet
from harness.core.work import Tally
from harness.encoder.device_kernels import varlen
from harness.encoder.layout import Attention, Layout, attend_grid, rotary_angles, rotated, split_heads, window_of
from harness.encoder.local_attention import in_window
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.shape import Reach
from harness.execution.engine import SIDE, Engine, rounded


@dataclass(frozen=True)
class Bounds:
    """The largest batch to come.

    Attributes:
        slots: samples.
        rows: rows of hidden states.
        longest: tokens of the longest sample.
        pad_to: rows of every sample; ``None`` for packed.
    """

    slots: int
    rows: int
    longest: int
    pad_to: int | None

    @classmethod
    def of(cls, execution: Execution, longest: int) -> Bounds:
        """Return bounds for an execution and a longest sample, rounded up so that similar sets share graphs."""
        if execution.protocol == "paper":
            longest = execution.max_length
            return cls(execution.batch_size, execution.batch_size * longest, longest, longest)
        longest = -(-longest // 64) * 64
        rows = execution.batch_size * longest
        if execution.batch_tokens:
            rows = min(rows, max(execution.batch_tokens, longest))
        return cls(execution.batch_size, rounded(rows, 64), longest, None)

    def size(self, layout: Layout) -> int:
        """Return the number of rows that a block over this batch runs on."""
        if self.pad_to:
            return min(rounded(layout.count, 1), self.slots) * self.pad_to
        return min(rounded(layout.rows, 64), self.rows)


class GraphRecorder(Protocol):
    """Turns a function into one that repeats it in the same memory."""

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        """Record ``run``. Recording may execute it any number of times."""


@contextmanager
def _uncollected() -> Iterator[None]:
    """Disable the garbage collector: freeing another graph would break a capture."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class CudaRecorder:
    """Captures CUDA graphs. They share one memory pool, as they never run at the same time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        current = torch.cuda.current_stream(self.device)
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            run()  # libraries initialise themselves, which a capture does not allow
            with _uncollected():
                # ``torch.cuda.graph`` would synchronise and empty the cache before every capture.
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    run()
                finally:
                    graph.capture_end()
        current.wait_stream(self._stream)
        return graph.replay


def _rotated_at(qkv: Tensor, places: Tensor, heads: int, reach: Reach) -> Tensor:
    """Apply rotary positions to queries and keys of rows at ``places`` (integers [rows]) of their samples."""
    width = qkv.shape[1] // 3
    return rotated(qkv, rotary_angles(places, reach.base, width // heads), 2 * width)


class _PackedAttention:
    """Attention of packed samples whose bounds are in a buffer, cut off at ``rows``."""

    def __init__(self, bounds: Tensor, rows: int, longest: int) -> None:
        self._rows, self._longest = rows, longest
        self._bounds = bounds.clamp(max=rows)

    @cached_property
    def first(self) -> Tensor:
        return self._bounds[:-1].clamp(max=self._rows - 1).long()

    def attend(self, qkv: Tensor, heads: int, dropout: float = 0.0, reach: Reach | None = None) -> Tensor:
        if reach is not None:
            rows = torch.arange(self._rows, dtype=torch.int32, device=qkv.device)
            # Rows beyond the batch are never read, so any place will do.
            starts = self._bounds[torch.searchsorted(self._bounds, rows, right=True, out_int32=True) - 1]
            qkv = _rotated_at(qkv, rows - starts, heads, reach)
        return varlen.attend(qkv, heads, self._bounds, self._longest, window_of(reach))

    def attend_first(self, query: Tensor, kv: Tensor, heads: int, dropout: float = 0.0) -> Tensor:
        return varlen.attend_first(query, kv, heads, self._bounds, self._longest)


class _PaddedAttention:
    """Attention of ``count`` padded samples whose lengths are in a buffer."""

    def __init__(self, lengths: Tensor, count: int, pad_to: int) -> None:
        self._count, self._pad_to = count, pad_to
        every = torch.arange(pad_to, device=lengths.device)
        # An empty slot attends to one row, because attention over nothing is NaN.
        self._mask = (every < lengths[:count, None].clamp(min=1))[:, None, None, :]

    @cached_property
    def first(self) -> Tensor:
        return torch.arange(self._count, device=self._mask.device) * self._pad_to

    def attend(self, qkv: Tensor, heads: int, dropout: float = 0.0, reach: Reach | None = None) -> Tensor:
        mask = self._mask
        if reach is not None:
            places = torch.arange(self._pad_to, device=qkv.device)
            qkv = _rotated_at(qkv, places.repeat(self._count), heads, reach)
            if not reach.within(self._pad_to):
                mask = in_window(places, self._pad_to, reach.window, mask)
        return attend_grid(split_heads(qkv, self._count, self._pad_to, 3, heads), mask)

    def attend_first(self, query: Tensor, kv: Tensor, heads: int, dropout: float = 0.0) -> Tensor:
        keys_values = split_heads(kv, self._count, self._pad_to, 2, heads)
        return attend_grid((query.view(self._count, heads, 1, -1), *keys_values), self._mask)


def begins_at(part: Tensor, whole: Tensor) -> bool:
    """Return whether ``part`` starts at the address of ``whole``."""
    return part.data_ptr() == whole.data_ptr()


class Lane:
    """Fixed buffers for one batch at a time."""

    def __init__(self, bounds: Bounds, width: int, labels: int, dtype: torch.dtype, device: torch.device) -> None:
        self._size = bounds
        self.states = torch.zeros(2, bounds.rows, width, dtype=dtype, device=device)
        self.logits = torch.zeros(bounds.slots, labels, dtype=torch.float32, device=device)
        self._bounds = torch.zeros(bounds.slots + 1, dtype=torch.int32, device=device)
        self._lengths = torch.zeros(bounds.slots, dtype=torch.int64, device=device)
        self.root: Layout | None = None

    def take(self, layout: Layout) -> None:
        """Load the batch that ``layout`` is a prefix of, unless it is loaded already."""
        root = layout.root
        if root is self.root:
            return
        self.root = root
        if root.pad_to:
            self._lengths[: root.count].copy_(root.offsets[1:] - root.offsets[:-1])
        else:
            self._bounds[: root.count + 1].copy_(root.bounds)
            self._bounds[root.count + 1 :].fill_(root.rows)

    def place(self, hidden: Tensor, index: int) -> None:
        """Copy hidden states to where layer ``index`` (or the head before it) reads them, unless they are there."""
        target = self.states[index % 2]
        if not begins_at(hidden, target):
            target[: len(hidden)].copy_(hidden)

    def attention(self, rows: int) -> Attention:
        """Return the attention of the loaded batch, of which ``rows`` rows run."""
        if self._size.pad_to:
            return _PaddedAttention(self._lengths, rows // self._size.pad_to, self._size.pad_to)
        return _PackedAttention(self._bounds, rows, self._size.longest)


class GraphEngine(Engine):
    """Replays each block from a graph, captured when its size first occurs.

    Args:
        bounds: of all batches to come.
        recorder: by default captures CUDA graphs.
    """

    def __init__(
        self, model: MultiExitModel, bounds: Bounds, *, compiled: bool = False, recorder: GraphRecorder | None = None
    ) -> None:
        super().__init__(model, compiled=compiled)
        self.bounds = bounds
        self._recorder = recorder or CudaRecorder(model.encoder.device)
        self._lanes: dict[int, Lane] = {}
        self._graphs: dict[tuple[int, str, int, int], Callable[[], None]] = {}

    @property
    def recorded(self) -> int:
        """Number of graphs so far."""
        return len(self._graphs)

    def _lane(self, number: int) -> Lane:
        if number not in self._lanes:
            encoder = self.model.encoder
            weight = encoder.word.weight
            self._lanes[number] = Lane(self.bounds, encoder.shape.width, self.model.labels, weight.dtype, weight.device)
        return self._lanes[number]

    def _replay(self, key: tuple[int, str, int, int], run: Callable[[], None]) -> None:
        if key not in self._graphs:
            self._graphs[key] = self._recorder.record(run)
        self._graphs[key]()

    def embed(self, tokens: TokenSet, layout: Layout, positions: Tensor, lane: int = 0) -> Tensor:
        place = self._lane(lane)
        place.take(layout)
        hidden = place.states[0][: layout.rows]
        hidden.copy_(super().embed(tokens, layout, positions))
        return hidden

    def layer(self, index: int, hidden: Tensor, layout: Layout, lane: int = 0) -> Tensor:
        place, rows = self._lane(lane), self.bounds.size(layout)
        place.take(layout)
        place.place(hidden, index)
        source, target = place.states[index % 2], place.states[1 - index % 2]

        def run() -> None:
            target[:rows].copy_(self.run_layer(index, source[:rows], place.attention(rows)))

        self._replay((lane, "layer", index, rows), run)
        return target[: layout.rows]

    def head(self, exit_layer: int, hidden: Tensor, layout: Layout, lane: int = 0) -> Tensor:
        if layout.root is not self._lane(lane).root:
            lane = SIDE  # part of a batch that continues in its own lane
        place, rows = self._lane(lane), self.bounds.size(layout)
        place.take(layout)
        place.place(hidden, exit_layer + 1)
        source = place.states[(exit_layer + 1) % 2]

        def run() -> None:
            logits = self.run_head(exit_layer, source[:rows], place.attention(rows))
            place.logits[: len(logits)].copy_(logits)

        self._replay((lane, "head", exit_layer, rows), run)
        return place.logits[: layout.count]

    def keep(self, tensor: Tensor) -> Tensor:
        return tensor.clone()

    def layer_tally(self, index: int, layout: Layout) -> Tally:
        return self._tally(layout, every=True, reach=self._reach(index))

    def head_tally(self, layout: Layout) -> Tally:
        return self._tally(layout, every=False)

    def _tally(self, layout: Layout, *, every: bool, reach: Reach | None = None) -> Tally:
        """Return what runs, stale rows included."""
        rows = self.bounds.size(layout)
        if self.bounds.pad_to:
            return Tally(layout.count, rows, layout.valid, rows * (self.bounds.pad_to if every else 1))
        sizes = np.diff(np.minimum(layout.root.starts, rows))
        if every and reach is not None and reach.window:
            return Tally(layout.count, rows, layout.valid, sum(reach.pairs(int(size)) for size in sizes))
        return Tally(layout.count, rows, layout.valid, int((sizes**2).sum() if every else sizes.sum()))
