"""Importance of units by first-order gradients (GRAIN: Yang et al., ACL 2023, section 3), and masks that shrink."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from harness.encoder.pruning.unit_masks import EncoderMasks, LayerMasks
from harness.encoder.shape import EncoderShape


class UnitScores(nn.Module):
    """Scores and masks of all units of an encoder in one ranking: inner units, and dimensions of heads, of queries and values.

    A unit's score is the absolute gradient of the loss in its mask. At 1 that is ``|sum(dL/dW * W)|`` over the unit's weights, as
    released: rows of the query matrix with their bias, columns of the output matrices. Scores and masks are buffers, so a training
    that resumes has them, and the best epoch keeps its own.

    Args:
        beta: of the moving average of scores.
        structure: alpha of structure regularisation; values of a head with density d count ``tanh(d / alpha)`` times; 0: once.
    """

    masks: Tensor
    scores: Tensor
    shares: Tensor
    flops: Tensor

    def __init__(self, shape: EncoderShape, beta: float, structure: float) -> None:
        super().__init__()
        self.beta, self.structure = beta, structure
        head = (shape.layers, shape.heads, shape.head_width)
        # Parameters of a unit: two rows or columns of matrices, and the biases of its rows.
        double = 2 * shape.width
        kinds = (((shape.layers, shape.intermediate), double + 1), (head, double + 2), (head, double + 1))
        self._shapes = [sizes for sizes, _ in kinds]
        self._counts = [math.prod(sizes) for sizes in self._shapes]
        weights = torch.cat([torch.full((math.prod(sizes),), float(weight)) for sizes, weight in kinds]).double()
        self.register_buffer("masks", torch.ones(len(weights)))
        self.register_buffer("scores", torch.zeros(len(weights)))
        self.register_buffer("shares", weights / weights.sum(), persistent=False)
        self.register_buffer("flops", torch.zeros((), dtype=torch.float64))  # spent on scores

    def parts(self, units: Tensor) -> tuple[Tensor, ...]:
        """Split values of all units: inner [L, I], queries [L, H, d], values [L, H, d]."""
        return tuple(part.view(size) for part, size in zip(units.split(self._counts), self._shapes, strict=True))

    def encoder_masks(self, units: Tensor | None = None) -> EncoderMasks:
        """Return masks for passes; by default those of now."""
        layers = zip(*self.parts(self.masks if units is None else units), strict=True)
        return EncoderMasks(tuple(LayerMasks(query, value, inner) for inner, query, value in layers))

    @property
    def density(self) -> float:
        """Share of the weights in layers that is left."""
        return float((self.shares * self.masks).sum())

    @torch.no_grad()
    def learn(self, gradient: Tensor) -> None:
        """Update scores with the gradient of the loss in the masks, [units]."""
        new = gradient.abs().to(self.scores.dtype)
        if self.structure:
            left = self.parts(self.masks)[2].mean(-1, keepdim=True)  # density of every head's values
            self.parts(new)[2].mul_(torch.tanh(left / self.structure))
        self.scores.copy_(self.beta * self.scores + (1 - self.beta) * new)
        self.scores[self.masks == 0] = -math.inf

    @torch.no_grad()
    def prune(self, density: float) -> None:
        """Remove the lowest units until at most one more than ``density`` of the weights is left.

        Queries of a head without values go with it, so a little less may be left. What is removed never comes back.
        """
        order = self.scores.argsort(stable=True)
        count = int(torch.searchsorted(self.shares[order].cumsum(0), 1.0 - density))
        self.masks[order[:count]] = 0
        _, queries, values = self.parts(self.masks)
        queries.mul_((values != 0).any(-1, keepdim=True))
        self.scores[self.masks == 0] = -math.inf


def density_at(step: int, first: int, last: int, target: float) -> float:
    """Return the density after a step, from 1: 1 up to step ``first``, then cubic down to ``target`` at step ``last``."""
    if step <= first and first < last:
        return 1.0
    if step >= last:
        return target
    return target + (1.0 - target) * (1.0 - (step - first) / (last - first)) ** 3
