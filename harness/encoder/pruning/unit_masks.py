"""Masks over the units of an encoder: dimensions of heads, inner units, whole halves of layers, dimensions of the states."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from harness.core.errors import ConfigError
from harness.encoder.model import Encoder
from harness.encoder.shape import EncoderShape, LayerSize


@dataclass(frozen=True)
class LayerMasks:
    """What the units of one layer are multiplied with; 0 removes a unit. Floats, on the encoder's device.

    Attributes:
        query: [heads, head width], dimensions of a head's queries and, with them, of its keys.
        value: [heads, head width], dimensions of a head's values.
        inner: [intermediate], units of the inner layer.
        attention: [], what attention adds to the state, bias included; ``None``: 1.
        output: [], what the inner layer adds to it, bias included; ``None``: 1.
    """

    query: Tensor
    value: Tensor
    inner: Tensor
    attention: Tensor | None = None
    output: Tensor | None = None

    @property
    def kept_heads(self) -> Tensor:
        """Heads with a value dimension, bool [heads]; none of them if attention as a whole is removed."""
        kept = (self.value != 0).any(1)
        return kept if self.attention is None else kept & (self.attention != 0)

    @property
    def kept_inner(self) -> Tensor:
        """Inner units that are left, bool [intermediate]; none of them if the inner layer as a whole is removed."""
        kept = self.inner != 0
        return kept if self.output is None else kept & (self.output != 0)

    def size(self) -> LayerSize:
        """Return the sizes of the layer without what is removed."""
        heads = self.kept_heads
        queries, values = ((mask[heads] != 0).sum(1).tolist() for mask in (self.query, self.value))
        return LayerSize(tuple(queries), tuple(values), int(self.kept_inner.sum()))


@dataclass(frozen=True)
class EncoderMasks:
    """Masks of all units of an encoder.

    Attributes:
        layers: one per layer.
        hidden: [width], dimensions of the states between layers; ``None``: 1.
    """

    layers: tuple[LayerMasks, ...]
    hidden: Tensor | None = None

    @classmethod
    def full(cls, encoder: Encoder) -> Self:
        """Return masks that remove nothing."""
        shape = encoder.shape

        def ones(*size: int) -> Tensor:
            return torch.ones(size, device=encoder.device)

        units = (shape.heads, shape.head_width)
        return cls(tuple(LayerMasks(ones(*units), ones(*units), ones(shape.intermediate)) for _ in range(shape.layers)))

    def gone(self) -> Iterator[str]:
        """Yield the parts of layers of which nothing is left, e.g. ``"attention of layer 3"``; layers count from 1."""
        for number, size in enumerate((layer.size() for layer in self.layers), 1):
            if not size.heads:
                yield f"attention of layer {number}"
            if not size.intermediate:
                yield f"inner units of layer {number}"


def check_prunable(shape: EncoderShape, name: str, method: str) -> None:
    """Check that units of an encoder can be removed.

    Args:
        name: of the model, for the error.

    Raises:
        ConfigError: its layers are not of BERT's structure, or were pruned before.
    """
    if shape.differences & {"sizes", "unpruned_width"}:
        raise ConfigError(f"{method}: {name} is pruned already: start from an unpruned model")
    if shape.differences - {"embedding"}:
        raise ConfigError(
            f"{method}: units are removed from layers like BERT's, and {name} differs in {', '.join(sorted(shape.differences))}: "
            "choose another backbone, such as BERT's, RoBERTa's or ELECTRA's"
        )
