"""Choose the engine for a model and an execution, and cache what it prepared: converted weights, compiled code, graphs.

The same engine serves every method of a run, so all methods are compared under the same conditions.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch

from harness.contracts import Compute, Execution
from harness.core.errors import ConfigError
from harness.encoder.device_kernels import varlen
from harness.encoder.device_kernels.host_memory import keep_freed_memory
from harness.encoder.device_kernels.packed_linear import can_pack, packed
from harness.encoder.multi_exit import MultiExitModel
from harness.execution.engine import DTYPES, Engine, PackedEngine
from harness.execution.graphs import Bounds, GraphEngine

GRAPH_DEVICES = ("cuda",)
# Heads are small products over few rows, for which packing wins nothing, and stay in float32 then: exit rules read them.
LAYERS = "encoder.layers"
RECORDED = 2  # engines with graphs that are kept per model


@dataclass
class _Prepared:
    """What was prepared for one model; valid as long as its weights do not change."""

    weights: list[Any]
    copies: dict[tuple[torch.dtype, bool], MultiExitModel] = field(default_factory=dict)
    engines: dict[tuple[Any, ...], Engine] = field(default_factory=dict)


_prepared: WeakKeyDictionary[MultiExitModel, _Prepared] = WeakKeyDictionary()


def engine_for(model: MultiExitModel, execution: Execution, longest: int = 1) -> Engine:
    """Return the engine for an execution, from the cache as long as the weights stay the same.

    Args:
        longest: tokens of the longest sample to come.

    Raises:
        ConfigError: graphs were requested without a CUDA device, or packed weights where nothing runs them.
    """
    dtype = DTYPES[execution.dtype]
    graphs, compiled, pack = (
        "graphs" in execution.compute,
        "compiled" in execution.compute,
        execution.compute == "packed",
    )
    own = model.encoder.word.weight.dtype == dtype
    if graphs:
        graphs = _can_record(model, execution, dtype)
    if pack:
        _check_packs(model, dtype)
    if own and not graphs and not pack:
        return Engine(model, compiled=compiled)  # nothing to cache, and a cached engine would keep the model alive
    bounds = Bounds.of(execution, longest) if graphs else None
    # Replacing ``data``, for example by moving to another device, does not raise the version.
    weights = [
        (id(weight), weight.device, weight.data_ptr(), 0 if weight.is_inference() else weight._version)
        for weight in model.parameters()
    ]
    kept = _prepared.get(model)
    if kept is None or kept.weights != weights:
        kept = _prepared[model] = _Prepared(weights)
    key = (dtype, compiled, bounds, pack)
    if key not in kept.engines:
        if (dtype, pack) not in kept.copies:
            plain = model if own and pack else model_copy(model, dtype, heads=torch.float32 if pack else dtype)
            kept.copies[dtype, pack] = packed(plain, LAYERS) if pack else plain
        ours = kept.copies[dtype, pack]
        # Buffers and graphs take memory; a sweep over batch sizes only needs the most recent ones.
        recorded = [other for other in kept.engines if other[2] is not None]
        if bounds and len(recorded) >= RECORDED:
            del kept.engines[recorded[0]]
        kept.engines[key] = _made(ours, bounds, compiled=compiled, pack=pack)
    return kept.engines[key]


def without_compiler(compute: Compute) -> Compute:
    """Return the compute mode of a method that launches its blocks one by one, without a compiler or graphs."""
    return "packed" if compute == "packed" else "eager"


def model_copy(model: MultiExitModel, dtype: torch.dtype, *, heads: torch.dtype | None = None) -> MultiExitModel:
    """Return a copy of the model with weights of another type, for inference.

    Args:
        heads: type of the heads; by default as all others.
    """
    with torch.inference_mode(False):
        new = copy.deepcopy(model).eval().requires_grad_(False)
        new.encoder.to(dtype)
        for part in (new.students, new.teacher):
            part.to(heads or dtype)
        return new


def _made(model: MultiExitModel, bounds: Bounds | None, *, compiled: bool, pack: bool) -> Engine:
    if pack:
        keep_freed_memory()
        return PackedEngine(model)
    return GraphEngine(model, bounds, compiled=compiled) if bounds else Engine(model, compiled=compiled)


def _check_packs(model: MultiExitModel, dtype: torch.dtype) -> None:
    if model.encoder.device.type != "cpu" or not can_pack(dtype):
        where = "this CPU" if model.encoder.device.type == "cpu" else "a CUDA device"
        raise ConfigError(f"compute 'packed' of {dtype} does not run on {where}: choose auto, eager or compiled")


def _can_record(model: MultiExitModel, execution: Execution, dtype: torch.dtype) -> bool:
    device = model.encoder.device
    if device.type not in GRAPH_DEVICES:
        raise ConfigError(f"compute '{execution.compute}' needs a CUDA device: choose eager or compiled")
    widths = (model.encoder.shape.head_width, model.teacher.head_width)
    if execution.protocol == "paper" or all(varlen.fits(device, dtype, width) for width in widths):
        return True
    warn_without_graphs(execution.dtype, widths)
    return False


@cache
def warn_without_graphs(dtype: str, widths: tuple[int, int]) -> None:
    """Warn once per process, whatever warning filters change meanwhile."""
    warnings.warn(
        f"no CUDA graphs for packed batches of {dtype} with heads {widths} wide: running without them", stacklevel=4
    )
