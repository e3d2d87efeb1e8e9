"""Linear layers whose weights are laid out once as oneDNN's CPU kernels read them.

``torch.nn.functional.linear`` brings the weights into such a layout in every call, or reads them as they are; for few rows both
cost more than the product itself. Activations run inside the same kernel.

For many rows, torch's own product is as fast with AVX-512, and 10 % faster without it; there, it takes over.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.encoder.device_kernels.host_memory import use_huge_pages
from harness.encoder.device_kernels.int8_linear import Int8Linear

Model = TypeVar("Model", bound=nn.Module)
# Activations by their name in torch's gelu: (name, variant) in oneDNN.
_EPILOGUES = {"none": ("gelu", "none"), "tanh": ("gelu", "tanh"), "relu": ("relu", "")}


def can_pack(dtype: torch.dtype) -> bool:
    """Return whether this build of torch and this CPU can run packed weights of a type."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


# Measured on two cores without AVX-512, at widths of 384 and 768: up to about 100 rows oneDNN is faster, from 400 on torch's MKL.
_MANY_ROWS = 256


def plain_from(dtype: torch.dtype) -> float:
    """Return the rows from which torch's own product is faster on this CPU."""
    plain = torch.backends.cpu.get_cpu_capability() == "AVX2" and torch.backends.mkl.is_available()
    return _MANY_ROWS if plain and dtype == torch.float32 else math.inf


class PackedLinear(nn.Module):
    """``x W^T + b`` for inference: [rows, in] -> [rows, out]. Shares weights and bias with the layer that it is made from."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self._weight, self._bias = weight.detach(), None if bias is None else bias.detach()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(self._weight.contiguous(), None)
        operations = torch.ops.mkldnn
        use_huge_pages(operations.data_ptr(self._packed), operations._nbytes(self._packed))
        self._kernel = operations._linear_pointwise  # finding it takes a while
        self._parts: dict[tuple[int | None, int | None], PackedLinear] = {}
        self._plain_from = plain_from(weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) >= self._plain_from:
            return F.linear(x, self._weight, self._bias)
        found: Tensor = self._kernel.default(x, self._packed, self._bias, "none", [], "")
        return found

    def activated(self, x: Tensor, activation: str) -> Tensor:
        """Return ``activation(x W^T + b)``; names as in :data:`~harness.encoder.shape.ACTIVATIONS`."""
        if len(x) >= self._plain_from:
            return activate(F.linear(x, self._weight, self._bias), activation)
        name, variant = _EPILOGUES[activation]
        found: Tensor = self._kernel.default(x, self._packed, self._bias, name, [], variant)
        return found

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """Return ``residual + x W^T + b``: residual [rows, out].

        Not inside the kernel, which took 8 to 24 % longer than both steps for 49 rows at BERT-base's width; for many rows they
        take the same.
        """
        return self.forward(x).add_(residual)

    def part(self, outputs: slice) -> PackedLinear:
        """Return the layer of some outputs, made on first use."""
        key = (outputs.start, outputs.stop)
        if key not in self._parts:
            bias = None if self._bias is None else self._bias[outputs]
            self._parts[key] = PackedLinear(self._weight[outputs], bias)
        return self._parts[key]


def activate(x: Tensor, activation: str) -> Tensor:
    """Apply an activation; names as in :data:`~harness.encoder.shape.ACTIVATIONS`."""
    return F.relu(x) if activation == "relu" else F.gelu(x, approximate=activation)


def activated(linear: nn.Module, x: Tensor, activation: str) -> Tensor:
    """Return ``activation(linear(x))``, in one kernel if the layer can."""
    return linear.activated(x, activation) if isinstance(linear, PackedLinear) else activate(linear(x), activation)


def plus(linear: nn.Module, x: Tensor, residual: Tensor, drop: Callable[[Tensor], Tensor]) -> Tensor:
    """Return ``residual + drop(linear(x))``, in place if the layer can: those for inference, without dropout."""
    return linear.plus(x, residual) if isinstance(linear, PackedLinear | Int8Linear) else residual + drop(linear(x))


def closing(layer: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """Return what a packed layer runs after attention, row by row: (hidden, context) [rows, width] -> [rows, width].

    For BERT's structure that is a function that has all parts at hand: finding them in modules takes longer than a norm.

    Args:
        layer: an :class:`~harness.encoder.model.EncoderLayer`.
    """
    parts = (layer.out, layer.up, layer.down)
    if layer.norm_first or layer.gated or not all(isinstance(part, PackedLinear) for part in parts):
        found: Callable[[Tensor, Tensor], Tensor] = layer.after_attention
        return found
    out, up, down = parts
    between, last, activation = _norm(layer.norm_attention), _norm(layer.norm_output), layer.activation

    def close(hidden: Tensor, context: Tensor) -> Tensor:
        middle = between(out.plus(context, hidden))
        return last(down.plus(up.activated(middle, activation), middle))

    return close


def _norm(norm: nn.LayerNorm) -> Callable[[Tensor], Tensor]:
    shape, weight, bias, eps = list(norm.normalized_shape), norm.weight, norm.bias, norm.eps
    return lambda x: torch.layer_norm(x, shape, weight, bias, eps, False)


def outputs_of(linear: Any, x: Tensor, outputs: slice) -> Tensor:
    """Compute some outputs of a linear layer; packed and quantised layers return such a part."""
    if isinstance(linear, nn.Linear):
        bias = linear.bias
        return F.linear(x, linear.weight[outputs], None if bias is None else bias[outputs])
    found: Tensor = linear.part(outputs)(x)
    return found


def packed(model: Model, *submodules: str) -> Model:
    """Return the model with packed linear layers in the named submodules, for inference.

    All other weights are shared with ``model``, which stays as it is.
    """
    with torch.inference_mode(False):
        new = copy.deepcopy(model, {id(weight): weight for weight in (*model.parameters(), *model.buffers())})
        for module in [module for name in submodules for module in new.get_submodule(name).modules()]:
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear) and child.weight.numel():  # of pruned layers, nothing may be left
                    setattr(module, name, PackedLinear(child.weight, child.bias))
        return new.eval()
