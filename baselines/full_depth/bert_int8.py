"""BERT with int8 linear layers, quantised after training without any data: what engineers try first on a CPU.

Weights are rounded to int8 with a scale per output, activations while they run, and the integers are multiplied as integers.
Embeddings, norms, softmax and what lies between stay in float32. How activations are scaled is a setting:

``scales = "token"``
    each row by its own largest number, so that rows do not feel each other. float32 noise of other shapes still tips a rounding
    now and then.
``scales = "call"``
    all rows of a call together, in seven bits, by the fused kernel behind torch's ``quantize_dynamic`` (deprecated since torch
    2.10), as that computes with a scale per output: an answer depends on who shares the batch, which the referee's check of
    batch sizes marks where labels change; and it is faster.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from harness.contracts import Fitted, Kind, OperatingPoint, Predictions
from harness.core.errors import ConfigError, MethodError, ResultError
from harness.core.tokens import Task, TokenSet
from harness.encoder.backbone import Backbone
from harness.encoder.multi_exit import MultiExitModel
from harness.execution.executors import run_full
from harness.registry import register
from harness.toolkit.distillation import fitted_teacher
from harness.toolkit.fitted import FullDepth, load_model
from harness.toolkit.training import own_settings

STEPS = 127  # of int8 to either side of 0; -128 is left out, so that the range is even
SCALES = "scales.json"
SMALLEST = 1e-12  # reach of a row or of an output's weights that are all 0


def steps(values: Tensor) -> Tensor:
    """Step between two integers for each row: [rows, n] -> [rows, 1]."""
    return values.abs().amax(1, keepdim=True).clamp_min_(SMALLEST) / STEPS


class Int8Linear(nn.Module):
    """``x W^T + b`` with W in int8 [out, in] and x, row by row, rounded to int8; [rows, in] -> [rows, out].

    Integers are added up exactly, so that a row's result does not depend on the rows beside it. ``in`` is at least 2: torch 2.13
    multiplies wrongly over a single column.
    """

    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, bias = linear.weight.detach(), linear.bias.detach()
        scale = steps(weight)
        self.weight = nn.Parameter((weight / scale).round().to(torch.int8), requires_grad=False)
        self.bias = nn.Parameter(bias.clone(), requires_grad=False)
        self.register_buffer("scale", scale[:, 0])

    def forward(self, x: Tensor) -> Tensor:
        scale = steps(x)
        products = torch._int_mm((x / scale).round_().to(torch.int8), self.weight.t())  # int32 [rows, out]
        return products.float().mul_(scale).mul_(self.scale).add_(self.bias)


class CallLinear(Int8Linear):
    """The same weights, all rows of a call rounded with one scale, by the kernel behind torch's ``quantize_dynamic``."""

    _packed: Any = None

    def forward(self, x: Tensor) -> Tensor:
        if self._packed is None:  # when the weights are there
            zeros = torch.zeros(len(self.scale), dtype=torch.int64)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of quantised tensors, which are deprecated
                weight = torch._make_per_channel_quantized_tensor(self.weight, self.scale.double(), zeros, 0)
                self._packed = torch.ops.quantized.linear_prepack(weight, self.bias)
        # As there, with seven bits for activations, so that no sum of two products overflows where a CPU adds them in 16 bits.
        found: Tensor = torch.ops.quantized.linear_dynamic(x, self._packed, True)
        return found


LINEAR: dict[str, type[Int8Linear]] = {"token": Int8Linear, "call": CallLinear}


def quantise(model: MultiExitModel, scales: str = "token") -> MultiExitModel:
    """Put an int8 layer in the place of every linear one, in place."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, LINEAR[scales](child))
    return model


class Quantised(FullDepth):
    """Full depth on int8 weights."""

    scales: ClassVar[str] = "token"

    def save(self, folder: Path) -> None:
        super().save(folder)
        (folder / SCALES).write_text(json.dumps(self.scales), encoding="utf-8")

    def predict(self, tokens: TokenSet, *, at: OperatingPoint) -> Predictions:
        if at.execution.dtype != "float32":
            raise MethodError(
                f"bert-int8 computes in float32 between its int8 products, not {at.execution.dtype}: say --dtype float32, "
                "or leave it out"
            )
        way = replace(at.execution, compute=self.compute) if self.compute else at.execution
        return run_full(self.model, tokens, way)


class QuantisedByCall(Quantised):
    """The same with :class:`CallLinear`, whose kernel no compiler looks into."""

    scales = "call"
    compute = "eager"


KINDS = {kind.scales: kind for kind in (Quantised, QuantisedByCall)}


@register
class BertInt8:
    """``bert`` with all its linear layers, heads included, in int8, quantised dynamically; CPU only.

    FLOPs are counted as for ``bert``: as many products, of smaller numbers.

    Config: ``scales``, ``"token"`` (default) or ``"call"``.
    """

    name = "bert-int8"
    kind: Kind = "method"
    needs: tuple[str, ...] = ("bert",)
    version = 1

    def fit(
        self, task: Task, backbone: Backbone, teachers: Mapping[str, Fitted], *, config: Mapping[str, Any], seed: int
    ) -> Quantised:
        """Quantise what ``bert`` learnt.

        Raises:
            ConfigError: a setting that nobody reads, unknown ``scales``, or a ``bert`` that does not run on this chassis.
            MethodError: the device is no CPU, or one whose integer products are not exact.
        """
        scales = own_settings(self.name, config, {"scales": "token"})["scales"]
        if scales not in KINDS:
            raise ConfigError(f"{self.name}: scales = {scales!r} is unknown: choose one of {', '.join(KINDS)}")
        refuse_unless_cpu(self.name, backbone)
        refuse_unless_exact(self.name)
        tuned = fitted_teacher(teachers)
        return KINDS[scales](quantise(copy.deepcopy(tuned.model), scales).eval(), tuned.training)

    def load(self, folder: Path, task: Task, backbone: Backbone, teachers: Mapping[str, Fitted]) -> Quantised:
        refuse_unless_cpu(self.name, backbone)
        refuse_unless_exact(self.name)
        try:
            kind = KINDS[json.loads((folder / SCALES).read_text(encoding="utf-8"))]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ResultError(f"cannot load {folder}: {error!r}: delete that folder and run again") from error
        return kind(*load_model(folder, backbone.device, lambda model: quantise(model, kind.scales)))

    def point_names(self, config: Mapping[str, Any]) -> list[str]:
        return ["full"]


def refuse_unless_cpu(name: str, backbone: Backbone) -> None:
    """Complain about another device.

    Raises:
        MethodError: it is none of a CPU.
    """
    if torch.device(backbone.device).type != "cpu":
        raise MethodError(f"{name} runs on the CPU only, not on {backbone.device}: say --device cpu, or leave it out")


def refuse_unless_exact(name: str) -> None:
    """Complain about a CPU that adds up products of int8 in 16 bits, which overflow: old ones without VNNI may.

    Raises:
        MethodError: large products came out wrong.
    """
    ends = torch.full((32, 64), STEPS, dtype=torch.int8)
    if not all(bool((torch._int_mm(ends, sign * ends.t()) == sign * 64 * STEPS**2).all()) for sign in (1, -1)):
        raise MethodError(f"{name}: products of int8 are not exact on this CPU: leave it out here")
