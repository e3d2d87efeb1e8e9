"""BERT with int8 linear layers, quantised after training without any data: what engineers try first on a CPU.

Weights are rounded to int8 with a scale per output, activations while they run with a scale per row, that is per token, and the
integers are multiplied as integers. torch's own ``quantize_dynamic`` (deprecated since torch 2.10) has one scale for all rows of a
call, so that an answer depends on who shares the batch; with a scale per row it does not, the rounding error is smaller, and on the
CPU it was measured on it takes about the same time. Embeddings, norms, softmax and what lies between stay in float32.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.contracts import Fitted, Kind, OperatingPoint, Predictions, Task, TokenSet
from harness.distillation import fitted_teacher
from harness.encoder.backbone import Backbone
from harness.encoder.executors import run_full
from harness.encoder.multi_exit import MultiExitModel
from harness.errors import MethodError
from harness.fitted import FullDepth, load_model
from harness.registry import register
from harness.training import own_settings

STEPS = 127  # of int8 to either side of 0; -128 is left out, so that the range is even
SMALLEST = 1e-12  # reach of a row or of an output's weights that are all 0


def scales(values: Tensor) -> Tensor:
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
        scale = scales(weight)
        self.weight = nn.Parameter((weight / scale).round().to(torch.int8), requires_grad=False)
        self.bias = nn.Parameter(bias.clone(), requires_grad=False)
        self.register_buffer("scale", scale[:, 0])

    def forward(self, x: Tensor) -> Tensor:
        scale = scales(x)
        products = torch._int_mm((x / scale).round_().to(torch.int8), self.weight.t())  # int32 [rows, out]
        return products.float().mul_(scale).mul_(self.scale).add_(self.bias)


def quantise(model: MultiExitModel) -> MultiExitModel:
    """Put an :class:`Int8Linear` in the place of every linear layer, in place."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, Int8Linear(child))
    return model


class Quantised(FullDepth):
    """Full depth on int8 weights."""

    def predict(self, tokens: TokenSet, *, at: OperatingPoint) -> Predictions:
        if at.execution.dtype != "float32":
            raise MethodError(
                f"bert-int8 computes in float32 between its int8 products, not {at.execution.dtype}: say --dtype float32, "
                "or leave it out"
            )
        return run_full(self.model, tokens, at.execution)


@register
class BertInt8:
    """``bert`` with all its linear layers, heads included, in int8, quantised dynamically with a scale per token; CPU only.

    FLOPs are counted as for ``bert``: as many products, of smaller numbers. No settings of its own.
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
            ConfigError: a setting that nobody reads, or a ``bert`` that does not run on this chassis.
            MethodError: the device is no CPU, or one whose integer products are not exact.
        """
        own_settings(self.name, config, {})
        refuse_unless_cpu(self.name, backbone)
        refuse_unless_exact(self.name)
        tuned = fitted_teacher(teachers)
        return Quantised(quantise(copy.deepcopy(tuned.model)).eval(), tuned.training)

    def load(self, folder: Path, task: Task, backbone: Backbone, teachers: Mapping[str, Fitted]) -> Quantised:
        refuse_unless_cpu(self.name, backbone)
        refuse_unless_exact(self.name)
        return Quantised(*load_model(folder, backbone.device, quantise))

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
