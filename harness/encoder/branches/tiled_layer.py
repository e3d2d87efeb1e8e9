"""Several layers over copies of one batch, as one layer over a batch with all copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.encoder.model import EncoderLayer


class _SideBySide(nn.Module):
    """Parts of one kind, each on its own share of the rows, one after another. They are not submodules: others own them."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts: tuple[Any, ...] = tuple(parts)

    def stacked(self, name: str) -> Tensor | None:
        """Return the weights (or biases) of all parts: [k, ...]; ``None`` if they have none."""
        found = [getattr(part, name) for part in self.parts]
        return None if found[0] is None else torch.stack(found)

    def shares(self, x: Tensor) -> Tensor:
        """[k * rows, D] -> [k, rows, D]."""
        return x.view(len(self.parts), -1, x.shape[-1])


class SideBySideLinear(_SideBySide):
    """``x_i W_i^T + b_i`` for all parts i in one batched product: [k * rows, in] -> [k * rows, out]."""

    @property
    def weight(self) -> Tensor:
        """Weights of the first part."""
        found: Tensor = self.parts[0].weight
        return found

    def forward(self, x: Tensor) -> Tensor:
        weights, biases = self.stacked("weight"), self.stacked("bias")
        assert weights is not None
        if biases is None:
            return torch.bmm(self.shares(x), weights.mT).flatten(0, 1)
        return torch.baddbmm(biases[:, None], self.shares(x), weights.mT).flatten(0, 1)


class SideBySideNorm(_SideBySide):
    """A layer norm with the weights of each part on its rows: [k * rows, D] -> [k * rows, D]."""

    def forward(self, x: Tensor) -> Tensor:
        weights, biases = self.stacked("weight"), self.stacked("bias")
        assert weights is not None
        normal = F.layer_norm(self.shares(x), x.shape[-1:], eps=self.parts[0].eps) * weights[:, None]
        return (normal if biases is None else normal + biases[:, None]).flatten(0, 1)


class TiledLayer(EncoderLayer):
    """k layers of one shape over k copies of a batch: copy i runs layer i, and attention runs once over all samples.

    [k * rows, width] -> [k * rows, width], with the layout of all k * B samples. It has no weights of its own; those of the layers
    get the gradients. Equal to the layers one by one, dropout masks aside.
    """

    def __init__(self, layers: Sequence[EncoderLayer]) -> None:
        nn.Module.__init__(self)
        first = layers[0]
        for name in ("heads", "attention", "reach", "dropout", "activation", "norm_first", "gated", "cost"):
            setattr(self, name, getattr(first, name))

        def beside(name: str, kind: Callable[[Sequence[nn.Module]], nn.Module]) -> nn.Module:
            return kind([getattr(layer, name) for layer in layers])

        self.qkv, self.out, self.up, self.down = (  # type: ignore[assignment]
            beside(name, SideBySideLinear) for name in ("qkv", "out", "up", "down")
        )
        self.norm_attention, self.norm_output = (  # type: ignore[assignment]
            beside(name, SideBySideNorm) for name in ("norm_attention", "norm_output")
        )
