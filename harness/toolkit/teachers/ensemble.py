"""Weights of an ensemble: those with the smallest cross-entropy on dev, found by differential evolution; and its answers."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import differential_evolution
from torch import Tensor

LEAST = 1e-12  # probability of a label, so that logarithms are finite


def cross_entropy_of(weights: np.ndarray, right: np.ndarray) -> float:
    """Return the mean negative logarithm of ``sum_i w_i p_i(label) / sum_i w_i``.

    Args:
        weights: [k], at least 0, not all 0.
        right: [k, N], every member's probability of the label.
    """
    mixed = weights @ right / weights.sum()
    return float(-np.log(np.maximum(mixed, LEAST)).mean())


def label_probabilities(logits: Tensor, labels: Tensor) -> np.ndarray:
    """Return every member's probability of the label, float64 [k, N], of logits [k, N, C] and labels [N]."""
    found = logits.double().softmax(-1)[:, torch.arange(len(labels)), labels.to(logits.device)]
    return found.cpu().numpy()


def evolved_weights(right: np.ndarray, seed: int, *, generations: int = 1000, tolerance: float = 1e-7) -> np.ndarray:
    """Return weights in 0..1 with sum 1 that minimise :func:`cross_entropy_of` (Storn and Price 1997; scipy).

    The best single member is in the first generation, so that the result is at least as good.

    Args:
        right: [k, N], see :func:`label_probabilities`.
        seed: the same seed gives the same weights.
    """
    count = len(right)
    if count == 1:
        return np.ones(1)
    start = np.eye(count)[best_member(right)]
    found = differential_evolution(
        lambda weights: cross_entropy_of(weights, right) if weights.sum() > LEAST else np.inf,
        [(0.0, 1.0)] * count,
        seed=seed,
        maxiter=generations,
        tol=tolerance,
        x0=start,
    )
    weights = np.asarray(found.x, dtype=np.float64)
    return weights / weights.sum()


def best_member(right: np.ndarray) -> int:
    """Return the member with the smallest cross-entropy, the first of equal ones."""
    return int(np.argmin([cross_entropy_of(row, right) for row in np.eye(len(right))]))


def mixed_logits(logits: Tensor, weights: np.ndarray, temperature: float) -> Tensor:
    """Return logits whose softmax at a temperature is ``sum_i w_i softmax(z_i / T)``: [k, N, C] -> float32 [N, C].

    With all weight on one member, its own logits.
    """
    if weights.max() == 1.0:
        return logits[int(weights.argmax())]
    shares = torch.as_tensor(np.log(np.maximum(weights, LEAST)), dtype=torch.float32, device=logits.device)
    return temperature * torch.logsumexp((logits.float() / temperature).log_softmax(-1) + shares[:, None, None], 0)
