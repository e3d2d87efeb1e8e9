"""Runs the blocks of one model one by one: eagerly, or with the part after attention compiled."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from harness.core.tokens import TokenSet
from harness.core.work import Tally
from harness.encoder.device_kernels import varlen
from harness.encoder.device_kernels.packed_linear import outputs_of
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
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Engine:
    """Runs blocks one by one.

    Args:
        model: its weights are used as they are.
        compiled: compile the part after attention; one compiled function serves all layers and all batch shapes.
    """

    def __init__(self, model: MultiExitModel, *, compiled: bool = False) -> None:
        self.model = model
        self._close = compiled_close() if compiled else EncoderLayer.close
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
        close = self._close if len(hidden) > 1 else EncoderLayer.close
        return close(layer, hidden, layer.attended(hidden, attention))

    def run_some(self, index: int, active: Tensor, hidden: Tensor, attention: SomeQueries) -> Tensor:
        """Run layer ``index`` for some rows that attend to all: active [A, width], hidden [rows, width] -> [A, width].

        A depends on the data, so this is always launched eagerly, also if whole layers are graphs.
        """
        layer: Any = self.model.encoder.layers[index]
        width = hidden.shape[1]
        query = outputs_of(layer.qkv, layer.read(active), slice(None, width))
        keys_values = outputs_of(layer.qkv, layer.read(hidden), slice(width, None))
        context = attention.attend(query, keys_values, layer.heads, layer.reach)
        close = self._close if len(active) > 1 else EncoderLayer.close
        return close(layer, active, context)

    def some_tally(self, index: int, attention: SomeQueries) -> Tally:
        """Return what :meth:`run_some` executes for those rows; see :meth:`SomeQueries.left` for the others."""
        return attention.tally(ragged=self._layer_ragged and attention.is_ragged(self._reach(index)))

    def run_head(self, exit_layer: int, hidden: Tensor, attention: Attention) -> Tensor:
        """Run the head itself, in any memory."""
        return self.model.student(exit_layer)(hidden, attention).float()


@cache
def compiled_close() -> Callable[[EncoderLayer, Tensor, Tensor], Tensor]:
    """Return :meth:`EncoderLayer.close` compiled once: weights are inputs, and the number of rows is dynamic."""
    import torch._dynamo.config as settings

    settings.recompile_limit = max(settings.recompile_limit, _GRAPHS)
    own_compiler_caches()
    return torch.compile(EncoderLayer.close, dynamic=True, fullgraph=True)
