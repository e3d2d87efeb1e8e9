"""Linear layers in int8, quantised after training without data: the usual first step on a CPU.

Weights are rounded to int8 with a scale per output, activations at run time, and the products are integer products.
Embeddings, norms, softmax, gates and everything else stay in float32. The two engines differ in how activations are scaled:

``int8``
    each row by its own largest value, so that rows are independent. float32 noise of other batch shapes can still change a
    rounding now and then.
``int8-call``
    all rows of a call together, in seven bits, by the fused kernel of torch's ``quantize_dynamic`` (deprecated since torch
    2.10), with a scale per output. This is faster, but an answer depends on the other rows of the batch; the check of batch
    sizes marks the row if labels change.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from harness.core.errors import MethodError
from harness.encoder.multi_exit import MultiExitModel

STEPS = 127  # of int8 on either side of 0; -128 is not used, so that the range is symmetric
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

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.register_buffer("scale", scale)
        self._parts: dict[tuple[int | None, int | None], Int8Linear] = {}

    @classmethod
    def of(cls, linear: nn.Linear) -> Int8Linear:
        """Return a quantised copy of a linear layer."""
        weight = linear.weight.detach()
        scale = steps(weight)
        bias = None if linear.bias is None else linear.bias.detach().clone()
        return cls((weight / scale).round().to(torch.int8), scale[:, 0], bias)

    def forward(self, x: Tensor) -> Tensor:
        scale = steps(x)
        products = torch._int_mm((x / scale).round_().to(torch.int8), self.weight.t())  # int32 [rows, out]
        found = products.float().mul_(scale).mul_(self.scale)
        return found if self.bias is None else found.add_(self.bias)

    def part(self, outputs: slice) -> Int8Linear:
        """Return the layer of some outputs: views of the weights, made on first use."""
        key = (outputs.start, outputs.stop)
        if key not in self._parts:
            bias = None if self.bias is None else self.bias[outputs]
            self._parts[key] = type(self)(self.weight[outputs], self.scale[outputs], bias)
        return self._parts[key]


class CallLinear(Int8Linear):
    """The same weights; all rows of a call have one scale. Uses the kernel of torch's ``quantize_dynamic``."""

    _packed: Any = None

    def forward(self, x: Tensor) -> Tensor:
        if self._packed is None:  # packed on first use
            zeros = torch.zeros(len(self.scale), dtype=torch.int64)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # quantised tensors are deprecated
                weight = torch._make_per_channel_quantized_tensor(self.weight, self.scale.double(), zeros, 0)
                self._packed = torch.ops.quantized.linear_prepack(weight, self.bias)
        # Seven bits for activations, as in torch, so that CPUs that add two products in 16 bits do not overflow.
        found: Tensor = torch.ops.quantized.linear_dynamic(x, self._packed, True)
        return found


_quantised: WeakKeyDictionary[MultiExitModel, dict[type[Int8Linear], MultiExitModel]] = WeakKeyDictionary()


def quantised(model: MultiExitModel, kind: type[Int8Linear] = Int8Linear) -> MultiExitModel:
    """Return the trained model with every linear layer in int8, heads included.

    All other weights are shared with ``model``, which stays as it is. Methods with one model share its int8 form.
    """
    kept = _quantised.setdefault(model, {})
    if kind not in kept:
        new = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
        for module in list(new.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(module, name, kind.of(child))
        kept[kind] = new.eval()
    return kept[kind]


def check_exact() -> None:
    """Check that sums of int8 products are exact. Old CPUs without VNNI may add them in 16 bits, which overflow.

    Raises:
        MethodError: large products are wrong.
    """
    ends = torch.full((32, 64), STEPS, dtype=torch.int8)
    if not all(bool((torch._int_mm(ends, sign * ends.t()) == sign * 64 * STEPS**2).all()) for sign in (1, -1)):
        raise MethodError("products of int8 are not exact on this CPU: use another engine on this machine")
