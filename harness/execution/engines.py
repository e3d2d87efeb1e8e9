"""How the blocks of one model are run: on weights of the run's type, eagerly, compiled, or as CUDA graphs.

The same engine serves every method of a run (DESIGN section 4, rule 1). What it prepares (weights in another type, compiled
code, captured graphs) is kept for the next pass over the same model.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import functional as F

from harness.contracts import Execution
from harness.core.errors import ConfigError
from harness.core.tokens import TokenSet
from harness.core.work import Tally
from harness.encoder import varlen
from harness.encoder.layout import Attention, Layout
from harness.encoder.model import EncoderLayer
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.partial_attention import SomeQueries

# A lane is memory in which one batch climbs. Climbs in flight at the same time need one each; parts of a batch that leave
# it for work of their own go through the lane at the side.
SIDE = -1
GRAPH_DEVICES = ("cuda",)
RECORDED = 2  # engines with graphs that are kept per model
# Compiled code per type and width of weights that one process may hold; torch's own limit of 8 is an error beyond.
_GRAPHS = 64
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Engine:
    """Runs blocks one by one, eagerly or with the part after attention compiled.

    Args:
        model: its weights are used as they are.
        compiled: one compiled function serves all layers and all batch shapes.
    """

    def __init__(self, model: MultiExitModel, *, compiled: bool = False) -> None:
        self.model = model
        self._close = compiled_close() if compiled else EncoderLayer.close
        weight = model.encoder.word.weight
        # Attention over packed rows costs what the kernel in use looks at.
        self._layer_ragged = varlen.fits(weight.device, weight.dtype, model.encoder.shape.head_width)
        self._head_ragged = varlen.fits(weight.device, weight.dtype, model.teacher.head_width)

    def embed(self, tokens: TokenSet, layout: Layout, positions: Tensor, lane: int = 0) -> Tensor:
        """h^0 of a batch: [rows, width]."""
        return self.model.encoder.embed(tokens, layout, positions)

    def layer(self, index: int, hidden: Tensor, layout: Layout, lane: int = 0) -> Tensor:
        """Layer ``index``: [rows, width] -> [rows, width]. ``hidden`` may be gone afterwards; see :meth:`keep`."""
        return self.run_layer(index, hidden, layout)

    def head(self, exit_layer: int, hidden: Tensor, layout: Layout, lane: int = 0) -> Tensor:
        """Head after layer ``exit_layer``: [rows, width] -> float32 [B, C], valid until the next head is run."""
        return self.run_head(exit_layer, hidden, layout)

    def keep(self, tensor: Tensor) -> Tensor:
        """What :meth:`layer` or :meth:`head` returned, to be kept for longer."""
        return tensor

    def layer_tally(self, layout: Layout) -> Tally:
        """What :meth:`layer` executes."""
        return layout.tally(ragged=self._layer_ragged and not layout.pad_to)

    def head_tally(self, layout: Layout) -> Tally:
        """What :meth:`head` executes."""
        return layout.tally("first", ragged=self._head_ragged and not layout.pad_to)

    def run_layer(self, index: int, hidden: Tensor, attention: Attention) -> Tensor:
        """The layer itself, whatever memory it runs in."""
        layer: Any = self.model.encoder.layers[index]
        # A single row would be compiled for itself, as sizes 0 and 1 are no free sizes to the compiler.
        close = self._close if len(hidden) > 1 else EncoderLayer.close
        return close(layer, hidden, attention.attend(layer.qkv(hidden), layer.heads))

    def run_some(self, index: int, active: Tensor, hidden: Tensor, attention: SomeQueries) -> Tensor:
        """Layer ``index`` for some rows, which attend to all: active [A, width], hidden [rows, width] -> [A, width].

        The rows' number is the data's, so this is launched as it is, also where whole layers are graphs.
        """
        layer: Any = self.model.encoder.layers[index]
        weight, bias, width = layer.qkv.weight, layer.qkv.bias, hidden.shape[1]
        query = F.linear(active, weight[:width], bias[:width])
        context = attention.attend(query, F.linear(hidden, weight[width:], bias[width:]), layer.heads)
        close = self._close if len(active) > 1 else EncoderLayer.close
        return close(layer, active, context)

    def some_tally(self, attention: SomeQueries) -> Tally:
        """What :meth:`run_some` executes for those rows; see :meth:`SomeQueries.left` for the others."""
        ragged = self._layer_ragged and not attention.layout.pad_to
        return attention.tally(ragged=ragged)

    def run_head(self, exit_layer: int, hidden: Tensor, attention: Attention) -> Tensor:
        """The head itself, whatever memory it runs in."""
        return self.model.student(exit_layer)(hidden, attention).float()


@cache
def compiled_close() -> Callable[[EncoderLayer, Tensor, Tensor], Tensor]:
    """:meth:`EncoderLayer.close` compiled once: weights are its inputs and the number of rows is left open."""
    import torch._dynamo.config as settings

    settings.recompile_limit = max(settings.recompile_limit, _GRAPHS)
    return torch.compile(EncoderLayer.close, dynamic=True, fullgraph=True)


@dataclass
class _Prepared:
    """What was made of one model, of use as long as its weights are these."""

    weights: list[Any]
    copies: dict[torch.dtype, MultiExitModel] = field(default_factory=dict)
    engines: dict[tuple[Any, ...], Engine] = field(default_factory=dict)


_prepared: WeakKeyDictionary[MultiExitModel, _Prepared] = WeakKeyDictionary()


def engine_for(model: MultiExitModel, execution: Execution, longest: int = 1) -> Engine:
    """The engine that an execution asks for; made at first, found again as long as the weights stay as they are.

    Args:
        longest: tokens of the longest sample to come.

    Raises:
        ConfigError: graphs are asked for where there is no CUDA device.
    """
    dtype = DTYPES[execution.dtype]
    graphs, compiled = "graphs" in execution.compute, "compiled" in execution.compute
    own = model.encoder.word.weight.dtype == dtype
    if graphs:
        graphs = _can_record(model, execution, dtype)
    if own and not graphs:
        return Engine(model, compiled=compiled)  # nothing worth keeping, and the model would never be let go
    from harness.execution.graphs import Bounds, GraphEngine

    bounds = Bounds.of(execution, longest) if graphs else None
    # A version does not rise where ``data`` is replaced, as a move to another device does.
    weights = [
        (id(weight), weight.device, weight.data_ptr(), 0 if weight.is_inference() else weight._version)
        for weight in model.parameters()
    ]
    kept = _prepared.get(model)
    if kept is None or kept.weights != weights:
        kept = _prepared[model] = _Prepared(weights)
    key = (dtype, compiled, bounds)
    if key not in kept.engines:
        ours = kept.copies.get(dtype) or model_copy(model, dtype)
        kept.copies[dtype] = ours
        # Buffers and graphs take memory; a sweep over batch sizes needs those of the last ones only.
        recorded = [other for other in kept.engines if other[2] is not None]
        if bounds and len(recorded) >= RECORDED:
            del kept.engines[recorded[0]]
        kept.engines[key] = GraphEngine(ours, bounds, compiled=compiled) if bounds else Engine(ours, compiled=compiled)
    return kept.engines[key]


def model_copy(model: MultiExitModel, dtype: torch.dtype) -> MultiExitModel:
    """The same model with weights of another type, for inference."""
    with torch.inference_mode(False):
        return copy.deepcopy(model).to(dtype).eval().requires_grad_(False)


def _can_record(model: MultiExitModel, execution: Execution, dtype: torch.dtype) -> bool:
    device = model.encoder.device
    if device.type not in GRAPH_DEVICES:
        raise ConfigError(f"compute '{execution.compute}' needs a CUDA device: choose eager or compiled")
    widths = (model.encoder.shape.head_width, model.teacher.head_width)
    if execution.protocol == "paper" or all(varlen.fits(device, dtype, width) for width in widths):
        return True
    say_no_graphs(execution.dtype, widths)
    return False


@cache
def say_no_graphs(dtype: str, widths: tuple[int, int]) -> None:
    """Once per process and not per pass, whatever filters of warnings come and go meanwhile."""
    warnings.warn(
        f"no CUDA graphs for packed batches of {dtype} with heads {widths} wide: running without them", stacklevel=4
    )
