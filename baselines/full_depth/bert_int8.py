"""BERT with int8 linear layers, quantised after training without data: the usual first step on a CPU.

Weights are rounded to int8 with a scale per output, activations at run time, and the products are integer products.
Embeddings, norms, softmax and everything else stay in float32. A setting chooses how activations are scaled:

``scales = "token"``
    each row by its own largest value, so that rows are independent. float32 noise of other batch shapes can still change a
    rounding now and then.
``scales = "call"``
    all rows of a call together, in seven bits, by the fused kernel of torch's ``quantize_dynamic`` (deprecated since torch
    2.10), with a scale per output. This is faster, but an answer depends on the other rows of the batch; the check of batch
    sizes marks the row if labels change.
"""

from __future__ import annotations

import copy
import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from harness.contracts import OperatingPoint, Predictions
from harness.core.errors import MethodError
from harness.core.text_formats import read_json
from harness.core.tokens import Task, TokenSet
from harness.encoder.backbone import Backbone
from harness.encoder.multi_exit import MultiExitModel
from harness.execution.executors import run_full
from harness.toolkit.base_method import BaseMethod, Teachers
from harness.toolkit.distillation import fitted_teacher
from harness.toolkit.fitted import FullDepth, load_model, reading
from harness.toolkit.method_settings import MethodSettings

STEPS = 127  # of int8 on either side of 0; -128 is not used, so that the range is symmetric
SCALES = "scales.json"
SMALLEST = 1e-12  # range of rows, and of weights of an output, that are all 0


def steps(values: Tensor) -> Tensor:
    """Return the step between two integers for each row: [rows, n] -> [rows, 1]."""
    return values.abs().amax(1, keepdim=True).clamp_min_(SMALLEST) / STEPS


class Int8Linear(nn.Module):
    """``x W^T + b`` with W in int8 [out, in] and x, row by row, rounded to int8; [rows, in] -> [rows, out].

    Sums of integers are exact, so a row's result does not depend on the other rows. ``in`` is at least 2: torch 2.13 computes
    wrong products over a single column.
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
    """The same weights; all rows of a call have one scale. Uses the kernel of torch's ``quantize_dynamic``."""

    _packed: Any = None

    def forward(self, x: Tensor) -> Tensor:
        if self._packed is None:  # packed on first use, after the weights are loaded
            zeros = torch.zeros(len(self.scale), dtype=torch.int64)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # quantised tensors are deprecated
                weight = torch._make_per_channel_quantized_tensor(self.weight, self.scale.double(), zeros, 0)
                self._packed = torch.ops.quantized.linear_prepack(weight, self.bias)
        # Seven bits for activations, as in torch, so that CPUs that add two products in 16 bits do not overflow.
        found: Tensor = torch.ops.quantized.linear_dynamic(x, self._packed, True)
        return found


LINEAR: dict[str, type[Int8Linear]] = {"token": Int8Linear, "call": CallLinear}


def quantise(model: MultiExitModel, scales: str = "token") -> MultiExitModel:
    """Replace every linear layer by an int8 one, in place."""
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
                f"bert-int8 computes in float32 between its int8 products, not {at.execution.dtype}: use --dtype float32, "
                "or leave the method out"
            )
        execution = replace(at.execution, compute=self.compute) if self.compute else at.execution
        return run_full(self.model, tokens, execution)


class QuantisedByCall(Quantised):
    """The same with :class:`CallLinear`, whose kernel cannot be compiled."""

    scales = "call"
    compute = "eager"


KINDS = {kind.scales: kind for kind in (Quantised, QuantisedByCall)}


class BertInt8Settings(MethodSettings):
    """Settings of ``bert-int8``."""

    scales: Literal["token", "call"] = Field("token", description="activations are scaled per row or per call")


class BertInt8(BaseMethod[BertInt8Settings]):
    """``bert`` with all its linear layers, heads included, in int8, quantised dynamically; CPU only.

    It has as many FLOPs as ``bert``: the same products, of smaller numbers.
    """

    name = "bert-int8"
    needs: tuple[str, ...] = ("bert",)
    settings = BertInt8Settings

    def learn(self, own: BertInt8Settings, task: Task, backbone: Backbone, teachers: Teachers, seed: int) -> Quantised:
        check_cpu(self.name, backbone)
        check_exact(self.name)
        tuned = fitted_teacher(teachers)
        return KINDS[own.scales](quantise(copy.deepcopy(tuned.model), own.scales).eval(), tuned.training)

    def load(self, folder: Path, task: Task, backbone: Backbone, teachers: Teachers) -> Quantised:
        check_cpu(self.name, backbone)
        check_exact(self.name)
        with reading(folder):
            kind = KINDS[read_json(folder / SCALES)]
        return kind(*load_model(folder, backbone.device, lambda model: quantise(model, kind.scales)))


def check_cpu(name: str, backbone: Backbone) -> None:
    """Check that the device is a CPU.

    Raises:
        MethodError: it is another device.
    """
    if torch.device(backbone.device).type != "cpu":
        raise MethodError(
            f"{name} runs on the CPU only, not on {backbone.device}: use --device cpu, or leave the method out"
        )


def check_exact(name: str) -> None:
    """Check that sums of int8 products are exact. Old CPUs without VNNI may add them in 16 bits, which overflow.

    Raises:
        MethodError: large products are wrong.
    """
    ends = torch.full((32, 64), STEPS, dtype=torch.int8)
    if not all(bool((torch._int_mm(ends, sign * ends.t()) == sign * 64 * STEPS**2).all()) for sign in (1, -1)):
        raise MethodError(f"{name}: products of int8 are not exact on this CPU: leave the method out on this machine")
