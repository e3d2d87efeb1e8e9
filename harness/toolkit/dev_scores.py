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


def area_by_sample(logits: Tensor, labels: Tensor, answers: tuple[int, ...]) -> np.ndarray:
    """Return every sample's contribution to the area under accuracy over mean layers: float64 [N], whose mean is the area.

    The curve is that of the sequential entropy exit, with a point per threshold, from all samples at the first answering layer to
    all samples at the last one. Points are joined by straight lines, and the area is divided by the distance of these two
    layers: it is the mean accuracy over budgets. The rule is the same for all methods, whatever rule they run with: the
    criterion judges weights, not rules.

    The area is no mean over samples, since samples move points in both directions. A contribution is the area plus the sample's
    influence on it (the infinitesimal jackknife: Efron 1982, "The jackknife, the bootstrap and other resampling plans", chapter 6),
    so that differences between methods can be tested as those of accuracies are.

    Args:
        logits: [A, N, C] of every answering layer, in order of depth.
        labels: int64 [N].
        answers: the A layer indices, rising. With a single one, contributions are right (1) or wrong (0).
    """
    correct = logits.argmax(-1) == labels  # [A, N]
    if len(answers) == 1:
        return correct[0].double().numpy()
    scores = scores_of(Entropy(0.0), logits)
    # From every sample's first to its last layer: below and above all entropies.
    thresholds = torch.from_numpy(candidate_thresholds(scores[:-1].numpy(), (-1.0, 2.0), most=THRESHOLDS))
    places = replay(Entropy(thresholds[:, None]), scores).flip(0)  # [K, N], from the first layer to the last
    layers = torch.tensor(answers)[places].double().numpy()
    right = correct[places, torch.arange(len(labels))].double().numpy()
    mean_layers, accuracy = layers.mean(1), right.mean(1)
    steps, heights = np.diff(mean_layers), (accuracy[1:] + accuracy[:-1]) / 2
    # The area is sum(heights * steps); both factors are means over samples.
    own = (right[1:] + right[:-1]) / 2
    influence = steps @ (own - heights[:, None]) + heights @ (np.diff(layers, axis=0) - steps[:, None])
    found: np.ndarray = (heights @ steps + influence) / (answers[-1] - answers[0])
    return found


def area_over_layers(logits: Tensor, labels: Tensor, answers: tuple[int, ...]) -> float:
    """Return the area under accuracy over layers, 0..1; see :func:`area_by_sample`."""
    return float(area_by_sample(logits, labels, answers).mean())


def _accuracies(logits: Tensor, labels: Tensor) -> tuple[float, ...]:
    return tuple(float((answer.argmax(-1) == labels).float().mean()) for answer in logits)


def full_depth_score(model: MultiExitModel, dev: Split) -> DevScore:
    """Return the dev accuracy of the last layer as score."""
    exits = _accuracies(exit_logits(model, dev.tokens, EVALUATION), dev.labels)
    return DevScore(exits[-1], exits)


def exits_score(model: MultiExitModel, dev: Split) -> DevScore:
    """Return the area under accuracy over layers (:func:`area_over_layers`) on dev as score."""
    return score_of_exits(exit_logits(model, dev.tokens, EVALUATION), dev, model.answers)


def score_of_exits(logits: Tensor, dev: Split, answers: tuple[int, ...]) -> DevScore:
    """Return :func:`exits_score` of logits [A, N, C] that are there already."""
    return DevScore(area_over_layers(logits, dev.labels, answers), _accuracies(logits, dev.labels))
