"""Scores on dev that choose the epoch to keep and, in a search, the settings: one criterion per kind of method.

A method that answers at full depth is scored by its accuracy (:func:`full_depth_score`). A method with early exits is scored by
the area under accuracy over layers (:func:`exits_score`): a good model is accurate at every cost, not at one.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from harness.contracts import Execution
from harness.core.tokens import Split
from harness.encoder.multi_exit import MultiExitModel
from harness.execution.executors import exit_logits
from harness.execution.exit_rules import Entropy, candidate_thresholds, replay, scores_of
from harness.toolkit.training import DevScore

EVALUATION = Execution(batch_size=64)
THRESHOLDS = 200  # at most, on the curve


def area_over_layers(logits: Tensor, labels: Tensor, answers: tuple[int, ...]) -> float:
    """Return the area under accuracy over mean layers of the sequential entropy exit: the mean accuracy over budgets.

    The curve has a point per entropy threshold, from all samples at the first answering layer to all samples at the last one;
    points are joined by straight lines, and the area is divided by the distance of these two layers. The rule is the same for all
    methods, whatever rule they run with: the criterion judges weights, not rules.

    Args:
        logits: [A, N, C] of every answering layer, in order of depth.
        labels: int64 [N].
        answers: the A layer indices, rising.

    Returns:
        0..1; the accuracy, if only one layer answers.
    """
    correct = logits.argmax(-1) == labels  # [A, N]
    if len(answers) == 1:
        return float(correct.double().mean())
    scores = scores_of(Entropy(0.0), logits)
    thresholds = torch.from_numpy(candidate_thresholds(scores[:-1].numpy(), (-1.0, 2.0), most=THRESHOLDS))
    places = replay(Entropy(thresholds[:, None]), scores)  # [K, N]
    layers = torch.tensor(answers)[places].double().mean(1).numpy()
    accuracy = correct[places, torch.arange(len(labels))].double().mean(1).numpy()
    order = np.argsort(layers, kind="stable")
    return float(np.trapezoid(accuracy[order], layers[order]) / (answers[-1] - answers[0]))


def _accuracies(logits: Tensor, labels: Tensor) -> tuple[float, ...]:
    return tuple(float((answer.argmax(-1) == labels).float().mean()) for answer in logits)


def full_depth_score(model: MultiExitModel, dev: Split) -> DevScore:
    """Return the dev accuracy of the last layer as score."""
    exits = _accuracies(exit_logits(model, dev.tokens, EVALUATION), dev.labels)
    return DevScore(exits[-1], exits)


def exits_score(model: MultiExitModel, dev: Split) -> DevScore:
    """Return the area under accuracy over layers (:func:`area_over_layers`) on dev as score."""
    logits = exit_logits(model, dev.tokens, EVALUATION)
    return DevScore(area_over_layers(logits, dev.labels, model.answers), _accuracies(logits, dev.labels))
