"""GEEP's one-step training objective: the shared exit loss (Li et al. 2024; released EasyNLP code, corrected).

::

    L = sum_{s in S} w_s CE(C_T(F_L(h^s)), label)  +  sum_{i=1..E} KL(p_T || softmax C_i(h^i))
    p_T = stopgrad softmax C_T(F_L(h^{L-1}))

with S = {1..E, L-1} in layers counted from 1, and w_s = 1 as published. The released code recomputes every prefix from the
embeddings, which takes E(E+3)/2 + L layer passes per batch. Here h^1 .. h^{L-1} are computed once, and F_L runs once over all
of them side by side: L + E passes. The paths of a batch then share dropout masks; the loss is otherwise the same.

The published objective gives the full-depth path one of E + 1 equal parts of the teacher's loss. :class:`Objective` has our
variants, which give it more, or take less from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from harness.core.tokens import TokenSet
from harness.encoder.layout import Layout
from harness.encoder.multi_exit import MultiExitModel
from harness.toolkit.joint_training import exit_states

PathWeights = Literal["equal", "rising"]


@dataclass(frozen=True)
class Objective:
    """What differs from the published objective; the defaults are that one.

    Attributes:
        path_weights: ``"equal"``: w_s = 1; ``"rising"``: w_s is proportional to the layers that path s runs, with the same sum,
            so that the full-depth path counts most (PABEE's weights, Zhou et al., NeurIPS 2020).
        student_gradient: whether the students' losses reach the encoder; else they train the students alone.
        equilibrium: balance the gradients of the paths at every layer (:func:`~harness.toolkit.joint_training.exit_states`).
        student_labels: whether each student's loss has the cross-entropy with the labels added, as jointly trained exits have
            (ElasticBERT, Liu et al., NAACL 2022); else students learn from the teacher alone.
    """

    path_weights: PathWeights = "equal"
    student_gradient: bool = True
    equilibrium: bool = False
    student_labels: bool = False


PUBLISHED = Objective()


def weights_of_paths(kind: PathWeights, paths: Sequence[int], depth: int) -> list[float]:
    """Return w_s of every path, with the sum ``len(paths)``.

    Args:
        paths: layer indices after which F_L runs, rising.
        depth: L.
    """
    if kind == "equal":
        return [1.0] * len(paths)
    layers = [min(path + 2, depth) for path in paths]  # with F_L
    return [len(paths) * each / sum(layers) for each in layers]


def shared_exit_loss(
    model: MultiExitModel, tokens: TokenSet, layout: Layout, labels: Tensor, objective: Objective = PUBLISHED
) -> Tensor:
    """Return the objective on one batch, a scalar.

    Args:
        model: students after layer indices 0 .. E-1 (E <= L - 2) and a teacher.
        tokens: B samples in the order of ``layout``.
        labels: int64 [B].
    """
    paths = [*model.exits, model.depth - 2]
    places = exit_states(model, tokens, layout, equilibrium=objective.equilibrium, places=paths)
    states = dict(zip(paths, places, strict=True))  # h^i, each [rows, width]
    # F_L and C_T process the samples of all paths as one long batch.
    together = torch.cat([states[i] for i in paths])
    tiled = Layout(np.tile(layout.lengths, len(paths)), layout.pad_to, layout.device)
    teacher = model.shared_answer(together, tiled)  # [len(paths) * B, C]
    # Mean over the batch, weighted sum over the paths.
    each = F.cross_entropy(teacher.float(), labels.repeat(len(paths)), reduction="none").view(len(paths), -1).mean(1)
    loss = (each * each.new_tensor(weights_of_paths(objective.path_weights, paths, model.depth))).sum()
    target = teacher[-layout.count :].detach().float().log_softmax(-1)  # the full-depth path
    for i in model.exits:
        state = states[i] if objective.student_gradient else states[i].detach()
        student = model.student(i)(state, layout).float().log_softmax(-1)
        loss = loss + F.kl_div(student, target, reduction="batchmean", log_target=True)
        if objective.student_labels:
            loss = loss + F.nll_loss(student, labels)
    return loss
