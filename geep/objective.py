"""GEEP's one-step training objective: the shared exit loss (Li et al. 2024; released EasyNLP code, corrected).

::

    L = sum_{s in S} CE(C_T(F_L(h^s)), label)  +  sum_{i=1..E} KL(p_T || softmax C_i(h^i))
    p_T = stopgrad softmax C_T(F_L(h^{L-1}))

with S = {1..E, L-1} in layers counted from 1. The released code recomputes every prefix from the embeddings, which takes
E(E+3)/2 + L layer passes per batch. Here h^1 .. h^{L-1} are computed once, and F_L runs once over all of them side by side:
L + E passes. The paths of a batch then share dropout masks; the loss is otherwise the same.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from harness.core.tokens import TokenSet
from harness.encoder.layout import Layout
from harness.encoder.multi_exit import MultiExitModel


def shared_exit_loss(model: MultiExitModel, tokens: TokenSet, layout: Layout, labels: Tensor) -> Tensor:
    """Return the objective on one batch, a scalar.

    Args:
        model: students after layer indices 0 .. E-1 (E <= L - 2) and a teacher.
        tokens: B samples in the order of ``layout``.
        labels: int64 [B].
    """
    last = model.depth - 1
    states = list(model.encoder.states(tokens, layout, upto=last))[1:]  # h^1 .. h^{L-1}, each [rows, width]
    paths = [*model.exits, last - 1]
    # F_L and C_T process the samples of all paths as one long batch.
    together = torch.cat([states[i] for i in paths])
    tiled = Layout(np.tile(layout.lengths, len(paths)), layout.pad_to, layout.device)
    teacher = model.shared_answer(together, tiled)  # [len(paths) * B, C]
    # Mean over the batch, sum over the paths.
    loss = F.cross_entropy(teacher.float(), labels.repeat(len(paths))) * len(paths)
    target = teacher[-layout.count :].detach().float().log_softmax(-1)  # the full-depth path
    for i in model.exits:
        student = model.student(i)(states[i], layout).float().log_softmax(-1)
        loss = loss + F.kl_div(student, target, reduction="batchmean", log_target=True)
    return loss
