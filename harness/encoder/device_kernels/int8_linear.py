"""Linear layers in int8: weights rounded once with a scale per output, activations rounded at run time, integer products.

Symmetric in both (Jacob et al., CVPR 2018, with a zero point of 0). The two kinds differ in how activations are scaled.

CPUs without VNNI add pairs of products in 16 bits, which overflow with 8 bits on both sides. There, activations have 7 bits, so
that all sums are exact.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any, Self

import torch
from torch import Tensor, nn

STEPS = 127  # of int8 on either side of 0; -128 is not used, so that the range is symmetric
FEWER_STEPS = 63  # of 7 bits
SMALLEST = 1e-12  # range of rows, and of weights of an output, that are all 0


@cache
def activation_steps() -> int:
    """Return the largest integer of rounded activations on this CPU: 127, or 63 where sums would overflow; 0 if both do."""
    return next((most for most in (STEPS, FEWER_STEPS) if _sums_are_exact(most)), 0)


def sums_overflow() -> bool:
    """Return whether sums of products of 8 bits overflow on this CPU."""
    return activation_steps() != STEPS


def _sums_are_exact(most: int) -> bool:
    """Return whether the largest sums of products are right, in one row and in many."""
    for sign in (1, -1):
        weight = torch.full((32, 64), sign * STEPS, dtype=torch.int8)
        laid_out = torch.ops.onednn.qlinear_prepack(weight, None)
        for rows in (1, 32):
            levels = torch.full((rows, 64), most, dtype=torch.int8)
            found = _products(levels, most + 1, laid_out, torch.ones(32), torch.zeros(32, dtype=torch.int64))
            if not bool((found == sign * 64 * STEPS * most).all()):
                return False
    return True


def _products(levels: Tensor, zero: int, weight: Any, scale: Tensor, zeros: Tensor) -> Tensor:
    """Return sums of products times the scales of outputs: int8 [rows, in], weights laid out, [out] -> float32 [rows, out].

    Args:
        levels: overwritten.
        zero: what stands for 0: oneDNN's fast products are those of unsigned activations and signed weights.
    """
    # torch converts to int8 several times as fast as to uint8; adding half the range turns one into the other.
    shifted = levels.view(torch.uint8).add_(zero)
    found: Tensor = torch.ops.onednn.qlinear_pointwise(
        shifted, 1.0, zero, weight, scale, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return found


def steps(values: Tensor, most: int = STEPS) -> Tensor:
    """Return the step between two integers for each row, whose largest value becomes ``most``: [rows, n] -> [rows, 1]."""
    # Two reductions that only read are faster than one over absolute values, which have to be written first.
    top = torch.maximum(values.amax(1, keepdim=True), values.amin(1, keepdim=True).neg_())
    return top.clamp_min_(SMALLEST).div_(most)


class Int8Linear(nn.Module):
    """``x W^T + b`` with W in int8 [out, in] and x, row by row, rounded to 8 or 7 bits; float32 [rows, in] -> [rows, out].

    Sums of integers are exact, so a row's result does not depend on the other rows. Runs oneDNN's product of bytes with weights
    that are laid out on first use.
    """

    scale: Tensor

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.register_buffer("scale", scale)
        self._laid_out: Any = None
        self._parts: dict[tuple[int | None, int | None], Self] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # nothing in it changes, and laid-out weights cannot be copied

    @classmethod
    def of(cls, linear: nn.Linear) -> Self:
        """Quantise a linear layer, which stays as it is."""
        weight = linear.weight.detach()
        scale = steps(weight)
        bias = None if linear.bias is None else linear.bias.detach().clone()
        return cls((weight / scale).round().to(torch.int8), scale[:, 0], bias)

    def _lay_out(self) -> Any:
        zeros = torch.zeros(len(self.scale), dtype=torch.int64)
        return torch.ops.onednn.qlinear_prepack(self.weight.data, None), zeros

    def forward(self, x: Tensor) -> Tensor:
        if self._laid_out is None:
            self._laid_out = self._lay_out()
        weight, zeros = self._laid_out
        most = activation_steps()
        step = steps(x, most)
        levels = x.mul(step.reciprocal()).round_().to(torch.int8)
        found = _products(levels, most + 1, weight, self.scale, zeros)
        return found.mul_(step) if self.bias is None else torch.addcmul(self.bias, found, step, out=found)

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """Return ``residual + x W^T + b``: residual [rows, out]."""
        found: Tensor = self(x)
        return found.add_(residual)

    def part(self, outputs: slice) -> Self:
        """Return the layer of some outputs: views of the weights, made on first use."""
        key = (outputs.start, outputs.stop)
        if key not in self._parts:
            bias = None if self.bias is None else self.bias[outputs]
            self._parts[key] = type(self)(self.weight[outputs], self.scale[outputs], bias)
        return self._parts[key]


class CallLinear(Int8Linear):
    """The same weights; all rows of a call have one scale. Uses the kernel of torch's ``quantize_dynamic``."""

    def _lay_out(self) -> Any:
        zeros = torch.zeros(len(self.scale), dtype=torch.int64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # quantised tensors are deprecated
            weight = torch._make_per_channel_quantized_tensor(self.weight, self.scale.double(), zeros, 0)
            return torch.ops.quantized.linear_prepack(weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self._laid_out is None:
            self._laid_out = self._lay_out()
        # Seven bits for activations, as in torch, so that CPUs that add two products in 16 bits do not overflow.
        found: Tensor = torch.ops.quantized.linear_dynamic(x, self._laid_out, True)
        return found
