"""The setting ``engine`` of a method: what each engine changes, what can run on it, and a fitted method on it.

An engine is no part of the training: fits are the same, and so are thresholds, which were chosen on dev with float weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch

from harness.contracts import ASSIGNED, BY_RULE, EngineName, Execution, Fitted
from harness.core.errors import MethodError
from harness.core.tokens import TokenSet
from harness.encoder.device_kernels.int8_linear import CallLinear, Int8Linear, sums_overflow
from harness.encoder.device_kernels.packed_linear import can_pack
from harness.encoder.multi_exit import MultiExitModel
from harness.engines.ctranslate2_encoder import CTranslate2, CTranslate2Int8
from harness.engines.int8 import check_exact, quantised
from harness.engines.onnx_graph import OnnxGraph, OnnxInt8
from harness.engines.openvino_graph import OpenVino, OpenVinoInt8
from harness.engines.whole_model import WholeModel
from harness.toolkit.fitted import FittedModel, FullDepth

# Setting ``executor`` of a method, which replaces the run's choice.
ExecutorName = Literal["ladder", "exact-k", "shrink", "rebatch"]
# Engines of another library, at full depth.
WHOLE: Mapping[EngineName, type[WholeModel]] = {
    "onnx": OnnxGraph,
    "onnx-int8": OnnxInt8,
    "openvino": OpenVino,
    "openvino-int8": OpenVinoInt8,
    "ctranslate2": CTranslate2,
    "ctranslate2-int8": CTranslate2Int8,
}
# What an engine replaces in the run's execution. Rows of int8-call share a scale, so there must be none beyond the batch.
CHANGES: Mapping[EngineName, Mapping[str, Any]] = {
    "eager": {"compute": "eager"},
    "packed": {"compute": "packed"},
    "compiled": {"compute": "compiled"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"dtype": "float32", "compute": "packed"},
    "int8-call": {"dtype": "float32", "compute": "eager"},
    **{name: {"dtype": "float32", "compute": "eager"} for name in WHOLE},
}
# Raised when answers or times of an engine change, so that its cells are measured again. Since 2: heads in float32.
VERSIONS: dict[EngineName, int] = {"bfloat16": 2, "int8": 2, "int8-call": 2, "onnx-int8": 2}
LINEAR: Mapping[EngineName, type[Int8Linear]] = {"int8": Int8Linear, "int8-call": CallLinear}
CPU_ONLY = ("packed", *LINEAR, *WHOLE)
# What loses a bit where sums of products would overflow.
OVERFLOWS: Mapping[EngineName, str] = {"int8": "activations", "onnx-int8": "weights"}
CALIBRATION = 128  # training rows
# Where a fitted method leaves the executor to the run: the key of the execution, and its values.
EXECUTORS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    ASSIGNED: ("executor", ("ladder", "exact-k")),
    BY_RULE: ("rule_executor", ("shrink", "rebatch")),
}
KEYS = {way: key for key, ways in EXECUTORS.values() for way in ways}


def execution_on(engine: EngineName | None, given: Execution, executor: str | None = None) -> Execution:
    """Return the run's execution with the changes of an engine and with another executor; ``None`` changes nothing."""
    changes = {} if engine is None else dict(CHANGES[engine])
    if executor in KEYS:
        changes[KEYS[executor]] = executor
    return replace(given, **changes)


def engine_key(engine: EngineName) -> str:
    """Return what the keys of cells have for an engine: its name, and its version from 2 on."""
    return f"{engine} {VERSIONS[engine]}" if engine in VERSIONS else engine


def check_executor(executor: ExecutorName, name: str, fitted: Any) -> None:
    """Check that a method can use its executor.

    Args:
        name: the method, for the error.
        fitted: the fitted method, or its class if that is known before it is fitted.

    Raises:
        MethodError: it runs its samples in another way.
    """
    own = getattr(fitted, "executor", "own")
    if isinstance(own, property):  # known only of a fitted one
        return
    _, able = EXECUTORS.get(own, ("", ()))
    if executor not in able:
        mend = (
            f"choose {' or '.join(able)}" if able else f"remove that key, as it always runs its own executor, '{own}'"
        )
        needs = "follows an exit rule" if KEYS[executor] == "rule_executor" else "needs exits that are known beforehand"
        raise MethodError(f"{name}: executor '{executor}' {needs}, and this method is of another kind: {mend}")


def check_engine(engine: EngineName, name: str, device: str, kind: type | None) -> None:
    """Check that a method can use its engine, before anything is trained if ``kind`` is known.

    Args:
        name: the method, for the error.
        kind: class of its fitted methods; ``None`` if it is not known yet.

    Raises:
        MethodError: the device, the machine or the method does not fit, or a library is missing.
    """
    where = f"{name}: engine '{engine}'"
    if engine in CPU_ONLY and torch.device(device).type != "cpu":
        raise MethodError(f"{where} runs on the CPU only, not on {device}: use --device cpu, or leave the method out")
    try:
        if engine == "bfloat16" and torch.device(device).type == "cpu" and not can_pack(torch.bfloat16):
            raise MethodError("this CPU has no products of bfloat16: use another engine on this machine")
        if engine in LINEAR:
            check_exact()
        if engine in WHOLE:
            WHOLE[engine].check()
    except MethodError as error:
        raise MethodError(f"{where}: {error}") from error
    if kind is not None and (reason := _refusal(engine, kind)) is not None:
        able = [one for one in get_args(EngineName) if _refusal(one, kind) is None]
        raise MethodError(f"{where} {reason}: use {', '.join(able[:-1])} or {able[-1]}")


def _refusal(engine: EngineName, kind: type) -> str | None:
    """Return why fitted methods of a class cannot run on an engine, ``None`` if they can."""
    if not issubclass(kind, FittedModel):
        own = engine not in ("eager", "bfloat16")  # autocast serves networks of their own, too
        return "needs a model of this project's encoder, and this method has a network of its own" if own else None
    if engine in WHOLE and not issubclass(kind, FullDepth):
        return "runs full depth only, and this method decides where samples exit"
    if kind.compute is not None and CHANGES[engine].get("compute", kind.compute) not in (kind.compute, "packed"):
        return f"cannot be, since this method always runs its blocks {kind.compute}"
    return None


def engine_notes(engine: EngineName | None) -> list[str]:
    """Return what readers of results must know about an engine on this machine."""
    if engine is None or engine not in OVERFLOWS or not sums_overflow():
        return []
    return [
        f"{engine}: {OVERFLOWS[engine]} have 7 bits instead of 8, since this CPU (without VNNI) adds pairs of products in 16 bits"
    ]


def on_engine(engine: EngineName, fitted: Fitted, train: TokenSet | None = None) -> Fitted:
    """Return a fitted method whose models run on an engine; the given one does not change.

    The changes of :func:`execution_on` are left to the caller.

    Args:
        train: training rows, for engines that choose scales on some of them; labels are not used.
    """
    if engine in WHOLE:
        assert isinstance(fitted, FullDepth)
        kind = WHOLE[engine]
        return kind.of(fitted, calibration_rows(train) if kind.calibrates and train is not None else None)
    if engine in LINEAR:
        found: Fitted = _converted(fitted, partial(quantised, kind=LINEAR[engine]))
        return found
    return fitted


def calibration_rows(train: TokenSet) -> TokenSet:
    """Return the training rows on which an engine chooses scales: random ones, the same in every run."""
    return train.select(np.random.default_rng(0).permutation(len(train))[:CALIBRATION])


def _converted(value: Any, convert: Callable[[MultiExitModel], MultiExitModel]) -> Any:
    """Return a copy of a fitted method with other models in its attributes, and in those of methods that it borrows from."""
    if isinstance(value, MultiExitModel):
        return convert(value)
    if not isinstance(value, FittedModel):
        return value
    new = copy.copy(value)
    vars(new).update({name: _converted(part, convert) for name, part in vars(value).items()})
    return new
