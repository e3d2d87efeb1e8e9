"""L0 masks over layers, heads, inner units and dimensions of the states (CoFi: Xia et al., ACL 2022, section 3 and appendix A).

A mask is a stretched hard concrete variable (Louizos et al., ICLR 2018): 0 with some probability, else up to 1, with a gradient.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from harness.encoder.pruning.unit_masks import EncoderMasks, LayerMasks
from harness.encoder.shape import EncoderShape

# As released: the temperature of the sigmoid, its stretched range, and the sharpening of final masks.
_TEMPERATURE, _FROM, _TO, _SHARPER = 2 / 3, -0.1, 1.1, 0.8
_SURE = 10.0  # logit of masks that start open; inner units start at 0
_LIMIT = math.log(1e2)  # of logits
_TINY = 1e-6
_SHIFT = 30.0  # more than any two logits differ


def keep_probability(logits: Tensor) -> Tensor:
    """Return the probability that a mask is not 0."""
    start = _TEMPERATURE * math.log(-_FROM / _TO)
    return torch.sigmoid(logits - start).clamp(_TINY, 1 - _TINY)


def sampled(logits: Tensor) -> Tensor:
    """Draw masks, 0..1, with a gradient in the logits."""
    noise = torch.empty_like(logits).uniform_(_TINY, 1 - _TINY)
    soft = torch.sigmoid((noise.log() - (1 - noise).log() + logits) / _TEMPERATURE)
    return (soft * (_TO - _FROM) + _FROM).clamp(0, 1)


def settled(logits: Tensor, shift: float = 0.0) -> Tensor:
    """Return the final masks of groups of units, [..., units]: in each group, the expected number of units is 0, the rest soft.

    Args:
        shift: added to the logits when units are counted.
    """
    soft = torch.sigmoid(logits / _TEMPERATURE * _SHARPER)
    left = keep_probability(logits + shift).sum(-1, keepdim=True).round()
    rank = logits.argsort(dim=-1, descending=True, stable=True).argsort(-1)
    return torch.where(rank < left, soft, 0.0)


class L0Masks(nn.Module):
    """Logits of all masks, and multipliers of the constraint on density: their gradients are reversed, so that they maximise it.

    Attributes:
        own_rate: their learning rate; see :func:`harness.toolkit.training.parameter_groups`.
    """

    def __init__(self, shape: EncoderShape, own_rate: float) -> None:
        super().__init__()
        self.own_rate, self._head_width, self._width = own_rate, shape.head_width, shape.width
        self._head_weights = 4 * shape.head_width
        starts = {
            "heads": (_SURE, (shape.layers, shape.heads)),
            "inner": (0.0, (shape.layers, shape.intermediate)),
            "attention": (_SURE, (shape.layers, 1)),
            "output": (_SURE, (shape.layers, 1)),
            "hidden": (_SURE, (shape.width,)),
        }
        self.logits = nn.ParameterDict(
            {name: nn.Parameter(torch.empty(size).normal_(mean, 1e-2)) for name, (mean, size) in starts.items()}
        )
        self.multipliers = nn.Parameter(torch.zeros(2))
        self.multipliers.register_hook(torch.neg)

    @torch.no_grad()
    def limit(self) -> None:
        """Keep logits in their range, as after every step of the released code."""
        for logits in self.logits.values():
            logits.clamp_(-_LIMIT, _LIMIT)

    def _density(self, kept: dict[str, Tensor]) -> Tensor:
        """Return the share of weights that is left, given the share of every unit that is."""
        heads, inner = kept["heads"] * kept["attention"], kept["inner"] * kept["output"]
        whole = self._head_weights * heads.numel() + 2 * inner.numel()
        return kept["hidden"].mean() * (self._head_weights * heads.sum() + 2 * inner.sum()) / whole

    def expected_density(self) -> Tensor:
        """Return the expected share of the layers' weights that is left."""
        return self._density({name: keep_probability(logits) for name, logits in self.logits.items()})

    def constraint(self, target: float) -> Tensor:
        """Return ``a (d - t) + b (d - t)^2`` for the expected density d: added to the loss, it is maximised in a and b."""
        off = self.expected_density() - target
        return self.multipliers[0] * off + self.multipliers[1] * off**2

    def _encoder_masks(self, masks: dict[str, Tensor]) -> EncoderMasks:
        width, layers = self._head_width, []
        for index, heads in enumerate(masks["heads"]):
            value = heads[:, None].expand(-1, width)
            gates = masks["attention"][index, 0], masks["output"][index, 0]
            layers.append(LayerMasks(torch.ones_like(value), value, masks["inner"][index], *gates))
        return EncoderMasks(tuple(layers), masks["hidden"])

    def sample(self) -> EncoderMasks:
        """Draw masks for a pass in training."""
        return self._encoder_masks({name: sampled(logits) for name, logits in self.logits.items()})

    @torch.no_grad()
    def final(self, target: float) -> EncoderMasks:
        """Return fixed masks under which at most ``target`` of the weights is left, and as much of that as possible.

        The expected density of a short training may be off, so units are counted with all logits shifted by one number.
        """

        def masks(shift: float) -> dict[str, Tensor]:
            found = {name: settled(logits, shift) for name, logits in self.logits.items()}
            if not found["hidden"].any():  # states need a dimension
                found["hidden"][self.logits["hidden"].argmax()] = 1.0
            return found

        low, high = -_SHIFT, _SHIFT
        for _ in range(40):
            middle = (low + high) / 2
            left = float(self._density({name: (mask != 0).float() for name, mask in masks(middle).items()}))
            low, high = (middle, high) if left <= target + 1e-9 else (low, middle)
        return self._encoder_masks(masks(low))
