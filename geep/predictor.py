"""Build tables from training exits and tune the quantile on dev."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from geep.exit_table import ExitTable
from harness.core.tokens import TokenSet
from harness.execution.exit_rules import first_exit, normalised_entropy

QUANTILES = tuple(range(5, 1001, 5))  # per mille


def build_table(
    tokens: TokenSet,
    logits: Tensor,
    answers: tuple[int, ...],
    speed: float,
    depth: int,
    *,
    ngram: int,
    min_count: int,
    smoothing: int,
) -> ExitTable:
    """Return the exit table of the sequential entropy exit at ``speed`` over the given samples.

    Args:
        logits: [A, N, C] of every answering layer.
        answers: the A layer indices.
    """
    table = ExitTable(depth, ngram=ngram)
    table.insert(tokens, torch.tensor(answers)[first_exit(logits, speed)])
    table.freeze(min_count=min_count, smoothing=smoothing)
    return table


@dataclass(frozen=True)
class DevView:
    """Results of every answering layer on dev; all tuning uses only this.

    Attributes:
        answers: layer indices, int64 [A].
        correct: bool [A, N], against the gold labels.
        agrees: bool [A, N], with the answer of the last layer.
        entropy: float32 [A, N], normalised.
        depth: L.
    """

    answers: np.ndarray
    correct: np.ndarray
    agrees: np.ndarray
    entropy: np.ndarray
    depth: int

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor, answers: tuple[int, ...], depth: int) -> DevView:
        """Build from logits [A, N, C] and gold labels [N]."""
        said = logits.argmax(-1)
        return cls(
            np.array(answers),
            (said == labels).numpy(),
            (said == said[-1]).numpy(),
            normalised_entropy(logits).numpy(),
            depth,
        )

    def sequential_layers(self, speed: float) -> float:
        """Return the mean layers of the sequential entropy exit at ``speed``, the budget of predictions."""
        sure = self.entropy <= speed
        sure[-1] = True
        return float((self.answers[sure.argmax(0)] + 1).mean())

    def position(self, exits: np.ndarray) -> np.ndarray:
        """Convert layer indices to positions in :attr:`answers`."""
        return np.searchsorted(self.answers, exits)


def tune_quantile(exits: np.ndarray, view: DevView, budget: float, *, extra: int = 0) -> tuple[int, float, float]:
    """Choose the quantile whose mean layers on dev are nearest to ``budget``; the more accurate one on ties.

    Args:
        exits: int16 [N, Q], predictions on dev at :data:`QUANTILES`.
        extra: additional layers of an answer before the last layer (1 for the shared answer).

    Returns:
        quantile in per mille, its mean layers on dev, its accuracy on dev.
    """
    layers = (exits + 1 + extra * (exits < view.depth - 1)).mean(0)  # [Q]
    accuracy = view.correct[view.position(exits), np.arange(len(exits))[:, None]].mean(0)
    best = int(np.lexsort((-accuracy, np.abs(layers - budget).round(6)))[0])
    return QUANTILES[best], float(layers[best]), float(accuracy[best])
