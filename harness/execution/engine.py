"""Runs the blocks of one model one by one: eagerly, or with the part after attention compiled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from harness.core.tokens import TokenSet
from harness.core.work import Tally
from harness.encoder.device_kernels import text_by_text, varlen
from harness.encoder.device_kernels.packed_linear import closing, outputs_of
from harness.encoder.layout import Attention, Layout
from harness.encoder.model import EncoderLayer
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.partial_attention import SomeQueries
from harness.encoder.shape import Reach
from harness.kernels.compiled_code import own_compiler_caches

# A lane is the memory of one batch in flight. Batches in flight at the same time need one each. Samples that leave their
# batch for work of their own use the side lane.
SIDE = -1
# Compiled versions per process, one per type and width of weights. Above torch's default limit of 8 it raises an error.
_GRAPHS = 64
_STEPS = 16  # sizes per doubling: rounding up adds 2 % of rows on average, 6 % at most
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def rounded(size: int, least: int) -> int:
    """Round ``size`` up to one of few sizes, all of them multiples of ``least``."""
    step = max(least, (1 << max(0, (size - 1).bit_length() - 1)) // _STEPS // least * least)
    return -(-size // step) * step


class Engine:
    """Runs blocks one by one.

    Args:
        model: its weights are used as they are.
        compiled: compile the part after attention; one compiled function serves all layers and all batch shapes.
    """

    def __init__(self, model: MultiExitModel, *, compiled: bool = False) -> None:
        self.model = model
        self._after_attention = compiled_after_attention() if compiled else EncoderLayer.after_attention
        if compiled and model.encoder.shape.sizes:
            _allow_more_versions(model.depth)
        weight = model.encoder.word.weight
        # The cost of attention over packed rows depends on the kernel in use.
        self._layer_ragged = varlen.fits(weight.device, weight.dtype, model.encoder.shape.head_width)
        self._head_ragged = varlen.fits(weight.device, weight.dtype, model.teacher.head_width)

    def embed(self, tokens: TokenSet, layout: Layout, positions: Tensor, lane: int = 0) -> Tensor:
        """Return h^0 of a batch: [rows, width]."""
        return self.model.encoder.embed(tokens, layout, positions)

    def layer(self, index: int, hidden: Tensor, layout: Layout, lane: int = 0) -> Tensor:
        """Run layer ``index``: [rows, width] -> [rows, width]. May overwrite ``hidden``; see :meth:`keep`."""
        return self.run_layer(index, hidden, layout)

    def head(self, exit_layer: int, hidden: Tensor, layout: Layout, lane: int = 0) -> Tensor:
        """Run the head after layer ``exit_layer``: [rows, width] -> float32 [B, C], valid until the next head runs."""
        return self.run_head(exit_layer, hidden, layout)

    def keep(self, tensor: Tensor) -> Tensor:
        """Return a result of :meth:`layer` or :meth:`head` that stays valid after later blocks."""
        return tensor

    def layer_tally(self, index: int, layout: Layout) -> Tally:
        """Return what :meth:`layer` executes for layer ``index``."""
        return layout.tally(ragged=self._layer_ragged and not layout.pad_to, reach=self._reach(index))

    def _reach(self, index: int) -> Reach | None:
        return self.model.encoder.shape.reach(index)

    def head_tally(self, layout: Layout) -> Tally:
        """Return what :meth:`head` executes."""
        return layout.tally("first", ragged=self._head_ragged and not layout.pad_to)

    def run_layer(self, index: int, hidden: Tensor, attention: Attention) -> Tensor:
        """Run the layer itself, in any memory."""
        layer: Any = self.model.encoder.layers[index]
        # The compiler specialises on sizes 0 and 1, so a single row would be compiled separately.
        after_attention = self._after_attention if len(hidden) > 1 else EncoderLayer.after_attention
        return after_attention(layer, hidden, layer.run_attention(hidden, attention))

    def run_some(self, index: int, active: Tensor, hidden: Tensor, attention: SomeQueries) -> Tensor:
        """Run layer ``index`` for some rows that attend to all: active [A, width], hidden [rows, width] -> [A, width].

        A depends on the data, so this is always launched eagerly, also if whole layers are graphs.
        """
        layer: Any = self.model.encoder.layers[index]
        context = _attend_some(layer, active, hidden, attention, len(active), len(hidden))
        after_attention = self._after_attention if len(active) > 1 else EncoderLayer.after_attention
        return after_attention(layer, active, context)

    def some_tally(self, index: int, attention: SomeQueries) -> Tally:
        """Return what :meth:`run_some` executes for those rows; see :meth:`left_tally` for the others."""
        return attention.tally(ragged=self._layer_ragged and attention.is_ragged(self._reach(index)))

    def left_tally(self, attention: SomeQueries) -> Tally:
        """Return what :meth:`run_some` executes for the rows that are keys and values only."""
        return attention.left()

    def run_head(self, exit_layer: int, hidden: Tensor, attention: Attention) -> Tensor:
        """Run the head itself, in any memory."""
        return self.model.student(exit_layer)(hidden, attention).float()


class PackedEngine(Engine):
    """Runs the blocks of a model with packed layers on few sizes.

    oneDNN makes a kernel when a number of rows first occurs, which can take longer than the product, and exits make many numbers.
    So layers run on rows rounded up. The rows beyond the batch hold any values; nothing reads what becomes of them.
    """

    def __init__(self, model: MultiExitModel) -> None:
        super().__init__(model)
        self._layers: list[Any] = list(model.encoder.layers)  # as finding one takes a while
        self._closing = [closing(layer) for layer in self._layers]
        self._dtype, self._width = model.encoder.word.weight.dtype, model.encoder.shape.width

    def _by_text(self, layout: Layout, reach: Reach | None) -> bool:
        """Return whether attention runs text by text."""
        if layout.pad_to or reach is not None:
            return False
        size = (layout.count, layout.valid, layout.longest)
        return text_by_text.fits(layout.device, self._dtype, self._width, *size)

    def layer_tally(self, index: int, layout: Layout) -> Tally:
        """Return what runs, the rows beyond the batch included."""
        reach = self._layers[index].reach
        return layout.tally(ragged=self._by_text(layout, reach), reach=reach, rows=rounded(layout.rows, 1))

    def some_tally(self, index: int, attention: SomeQueries) -> Tally:
        return replace(super().some_tally(index, attention), tokens=rounded(attention.rows, 1))

    def left_tally(self, attention: SomeQueries) -> Tally:
        left = rounded(attention.layout.rows, 1) - rounded(attention.rows, 1)
        return replace(super().left_tally(attention), tokens=left)

    def layer(self, index: int, hidden: Tensor, layout: Layout, lane: int = 0) -> Tensor:
        layer = self._layers[index]
        rows, size = len(hidden), rounded(len(hidden), 1)
        wide = _extended(hidden, size)
        if not layer.heads:  # pruned
            return self._closing[index](wide, hidden.new_empty(size, 0))[:rows]
        qkv = layer.qkv(layer.attention_input(wide))
        if self._by_text(layout, layer.reach):
            context = text_by_text.attend(qkv, layer.heads, layout.first_rows)
        else:
            context = _extended(layout.attend(qkv[:rows], layer.heads, 0.0, layer.reach), size)
        return self._closing[index](wide, context)[:rows]

    def run_some(self, index: int, active: Tensor, hidden: Tensor, attention: SomeQueries) -> Tensor:
        layer = self._layers[index]
        rows, count = len(hidden), len(active)
        few, wide = _extended(active, rounded(count, 1)), _extended(hidden, rounded(rows, 1))
        context = _attend_some(layer, few, wide, attention, count, rows)
        new: Tensor = layer.after_attention(few, _extended(context, len(few)))
        return new[:count]

    def run_head(self, exit_layer: int, hidden: Tensor, attention: Attention) -> Tensor:
        """Run the head in float32, whatever type the layers have."""
        return self.model.student(exit_layer)(hidden.float(), attention)


def _attend_some(layer: Any, active: Tensor, hidden: Tensor, attention: SomeQueries, count: int, rows: int) -> Tensor:
    """Run attention of a layer for the first ``count`` rows of ``active`` over the first ``rows`` of ``hidden``: [count, D]."""
    if not layer.heads:  # pruned
        return active.new_empty(count, 0)
    query = outputs_of(layer.qkv, layer.attention_input(active), slice(None, layer.attention))[:count]
    keys_values = outputs_of(layer.qkv, layer.attention_input(hidden), slice(layer.attention, None))[:rows]
    return attention.attend(query, keys_values, layer.heads, layer.reach)


def _extended(x: Tensor, size: int) -> Tensor:
    """Return the rows [n, width] with further ones up to ``size``: those behind them in memory if there are any, else a copy."""
    if len(x) == size:
        return x
    width = x.shape[1]
    if x.is_contiguous() and x.storage_offset() + size * width <= x.untyped_storage().nbytes() // x.element_size():
        return x.as_strided((size, width), (width, 1))
    wide = x.new_zeros(size, width)
    wide[: len(x)] = x
    return wide


def _allow_more_versions(count: int) -> None:
    """Allow the compiler more versions: layers of a pruned model differ in size, and each is compiled separately."""
    import torch._dynamo.config as settings

    settings.recompile_limit += count
    settings.accumulated_recompile_limit += count


@cache
def compiled_after_attention() -> Callable[[EncoderLayer, Tensor, Tensor], Tensor]:
    """Return :meth:`EncoderLayer.after_attention` compiled once: weights are inputs, and the number of rows is dynamic."""
    import torch._dynamo.config as settings

    settings.recompile_limit = max(settings.recompile_limit, _GRAPHS)
    own_compiler_caches()
    return torch.compile(EncoderLayer.after_attention, dynamic=True, fullgraph=True)
