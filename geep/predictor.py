"""Build tables from observed exits, and choose settings of rules and tables on dev."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from geep.exit_table import ExitTable
from geep.exit_table.columns import TableColumns
from geep.rule_choices import Assignments
from harness.contracts import OperatingPoint
from harness.core.tokens import TokenSet
from harness.execution.exit_rules import candidate_thresholds, first_exit, normalised_entropy
from harness.toolkit.budgets import points_at_budgets
from harness.toolkit.rule_exits import Tried

THRESHOLDS = 256  # speeds tried for a budget, at most


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


def agreement_table(
    tokens: TokenSet,
    logits: Tensor,
    answers: tuple[int, ...],
    depth: int,
    *,
    ngram: int,
    min_count: int,
    smoothing: int,
) -> ExitTable:
    """Return a table of how often each exit has the answer of full depth; it needs neither a speed nor labels.

    Args:
        logits: [A, N, C] of every answering layer, the last layer among them.
        answers: the A layer indices.
    """
    predicted = logits.argmax(-1)
    agrees = torch.zeros(len(tokens), depth, dtype=torch.bool)
    agrees[:, torch.tensor(answers)] = (predicted == predicted[-1]).T.cpu()
    table = ExitTable(TableColumns(agreement=depth), ngram=ngram)
    table.insert(tokens, agrees)
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
        predicted = logits.argmax(-1)
        return cls(
            np.array(answers),
            (predicted == labels).numpy(),
            (predicted == predicted[-1]).numpy(),
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

    def outcomes(self, exits: np.ndarray, *, extra: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Return mean layers and accuracy [Q] of predicted exits, int16 [N, Q]; ``extra`` as :func:`nearest` has it."""
        layers = (exits + 1 + extra * (exits < self.depth - 1)).mean(0)
        return layers, self.correct[self.position(exits), np.arange(len(exits))[:, None]].mean(0)


def nearest(exits: np.ndarray, view: DevView, budget: float, *, extra: int = 0) -> tuple[int, float, float]:
    """Choose the candidate whose mean layers on dev are nearest to ``budget``; the more accurate one on ties, then the first.

    Args:
        exits: int16 [N, Q], predictions on dev under every candidate.
        extra: additional layers of an answer before the last layer (1 for the shared answer).

    Returns:
        its number, its mean layers on dev, its accuracy on dev.
    """
    layers, accuracy = view.outcomes(exits, extra=extra)
    best = int(np.lexsort((-accuracy, np.abs(layers - budget).round(6)))[0])
    return best, float(layers[best]), float(accuracy[best])


def budget_speeds(view: DevView, budgets: Sequence[float]) -> list[float]:
    """Return per budget the speed at which the sequential exit has the nearest mean layers on dev, each at most once.

    Rounded to six digits, which name the table's folder.
    """
    thresholds = candidate_thresholds(view.entropy[:-1], (0.0, 1.0), most=THRESHOLDS)
    speeds = sorted({float(f"{threshold:g}") for threshold in thresholds})
    layers = np.array([view.sequential_layers(speed) for speed in speeds])
    return list(dict.fromkeys(speeds[int(np.abs(layers - budget * view.depth).argmin())] for budget in budgets))


def budget_points(
    by_table: Mapping[float | None, Assignments], view: DevView, budgets: Sequence[float]
) -> list[OperatingPoint]:
    """Return a point per budget: of all tables and settings the pair that uses it best (:mod:`harness.toolkit.budgets`).

    Students answer. The shared answer costs one more layer and is measured at the speeds.

    Args:
        by_table: candidates per table, by its speed; ``None`` for a table without a speed.
        view: the students' answers.
        budgets: shares of the depth.
    """
    pairs = []
    for speed, candidates in by_table.items():
        named = {} if speed is None else {"speed": speed}
        outcomes = zip(candidates.settings, *(part.tolist() for part in view.outcomes(candidates.exits)), strict=True)
        for number, (settings, layers, accuracy) in enumerate(outcomes):
            pairs.append(Tried(number, layers, accuracy, {**named, **settings, "answer": "student"}))
    return points_at_budgets(pairs, budgets, view.depth, view.correct.shape[1], lambda pair: pair.settings)
