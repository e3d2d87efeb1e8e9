"""Losses that compare samples, layers or classes: contrastive, relational, weighted by difficulty, and mutual."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from harness.toolkit.distillation import NO_LABEL

TAU = 0.05  # temperature of contrastive distillation


def contrastive_distance(student: Tensor, teacher: Tensor, tau: float = TAU) -> Tensor:
    """Return DisCo's contrastive distillation (Wu et al. 2021, arXiv 2112.05638): every state finds its own among the teacher's.

    InfoNCE of cosines over the batch, mean over samples; [B, width] each. The teacher gets no gradient.
    """
    ours, theirs = F.normalize(student.float(), dim=-1), F.normalize(teacher.detach().float(), dim=-1)
    return F.cross_entropy(ours @ theirs.T / tau, torch.arange(len(ours), device=ours.device))


def class_relations(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Return the mean squared difference of the cosines between class means: states [B, width], of any two widths.

    Classes are those of the batch; rows without a label do not count, and with fewer than two classes it is 0.
    """
    present = labels[labels != NO_LABEL].unique()
    if len(present) < 2:
        return student.new_zeros((), dtype=torch.float32)
    share = (labels[None] == present[:, None]).float()
    share = share / share.sum(-1, keepdim=True)
    ours, theirs = (F.normalize(share @ one.float(), dim=-1) for one in (student, teacher.detach()))
    return F.mse_loss(ours @ ours.T, theirs @ theirs.T)


def focused_kl(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, power: float) -> Tensor:
    """Return ``T^2 KL(teacher || student)``, in which samples are weighted by ``(1 - p_teacher(label)) ** power``; logits [B, C].

    Weights have a mean of 1 over the batch. For rows without a label, the teacher's answer stands for it.
    """
    said = teacher.detach().float()
    known = torch.where(labels == NO_LABEL, said.argmax(-1), labels)
    doubt = (1 - said.softmax(-1).gather(-1, known[:, None])[:, 0]).clamp(min=1e-6) ** power
    log_p, log_q = (said / temperature).log_softmax(-1), (student.float() / temperature).log_softmax(-1)
    each = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
    return (doubt / doubt.mean() * each).mean() * temperature**2


def mutual_loss(logits: Sequence[Tensor]) -> Tensor:
    """Return the mean over ordered pairs of exits of ``KL(p_j || p_i)``; p_j gets no gradient (deep mutual learning)."""
    logs = [one.float().log_softmax(-1) for one in logits]
    pairs = [
        F.kl_div(mine, other.detach(), log_target=True, reduction="batchmean")
        for i, mine in enumerate(logs)
        for j, other in enumerate(logs)
        if i != j
    ]
    return torch.stack(pairs).mean() if pairs else logs[0].new_zeros(())


def relation_logs(states: Tensor) -> Tensor:
    """Return log-probabilities of every sample's relation to the others of a batch: [B, width] -> [B, B - 1].

    Softmax over the others of the scaled products of states; the widths of two models may differ.
    """
    count = len(states)
    scores = states.float() @ states.float().T / math.sqrt(states.shape[1])
    return off_diagonal(scores, count).log_softmax(-1)


def off_diagonal(square: Tensor, count: int) -> Tensor:
    """Return a square matrix without its diagonal: [B, B] -> [B, B - 1]."""
    return square.flatten()[1:].view(count - 1, count + 1)[:, :-1].reshape(count, count - 1)


def relation_nll(logs: Tensor, labels: Tensor) -> Tensor:
    """Return the mean negative log-probability of others with the same label, of rows that have some: logs [B, B - 1]."""
    same = off_diagonal(labels[:, None] == labels[None], len(labels)).float()
    some = same.sum(-1) > 0
    each = -(logs * same).sum(-1) / same.sum(-1).clamp(min=1)
    return (each * some).sum() / some.sum().clamp(min=1)
