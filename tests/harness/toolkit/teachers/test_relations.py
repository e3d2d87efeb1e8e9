"""Losses that compare samples, layers, classes or exits."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from harness.toolkit.distillation import soft_kl
from harness.toolkit.teachers.relations import (
    class_relations,
    contrastive_distance,
    focused_kl,
    mutual_loss,
    relation_logs,
    relation_nll,
)

LABELS = torch.tensor([0, 1, 0, 2, -1, 1])


@pytest.fixture
def states() -> tuple[torch.Tensor, torch.Tensor]:
    """Six states of width 16 and of width 4."""
    torch.manual_seed(0)
    return torch.randn(6, 16), torch.randn(6, 4, requires_grad=True)


def test_every_loss_is_smallest_for_the_teacher_itself(states: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Relations and exits that agree cost nothing; a contrastive pair is nearest to itself; the teacher has no gradient."""
    teacher, student = states[0].requires_grad_(), torch.randn(6, 16, requires_grad=True)
    assert class_relations(teacher, teacher, LABELS).item() == pytest.approx(0, abs=1e-12)
    assert mutual_loss([teacher, teacher]).item() == pytest.approx(0, abs=1e-6)
    same = contrastive_distance(teacher, teacher)
    assert same < 0.01 < contrastive_distance(student, teacher)
    (contrastive_distance(student, teacher) + class_relations(student, teacher, LABELS)).backward()
    assert teacher.grad is None and student.grad is not None and student.grad.any()


def test_relations_need_no_equal_widths(states: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Widths 16 and 4 are compared without a projection; without two classes there is no relation."""
    teacher, student = states
    class_relations(student, teacher, LABELS).backward()
    assert student.grad is not None and not student.grad[4].any()  # the row without a label
    assert class_relations(student, teacher, torch.zeros(6, dtype=torch.int64)) == 0
    assert relation_logs(student).shape == relation_logs(teacher).shape == (6, 5)


def test_relations_leave_out_the_sample_itself(states: tuple[torch.Tensor, torch.Tensor]) -> None:
    """They are distributions over the others; their loss is that of others with the same label."""
    logs = relation_logs(states[0])
    scores = states[0] @ states[0].T / 4
    others = [j for j in range(6) if j != 2]
    torch.testing.assert_close(logs[2], scores[2, others].log_softmax(-1))
    labels = torch.tensor([0, 1, 0, 2, 3, 1])
    pairs = [(0, 1), (1, 4), (2, 0), (5, 1)]  # row, and the place of its one partner among the others
    expected = -torch.stack([logs[i, j] for i, j in pairs]).mean()
    torch.testing.assert_close(relation_nll(logs, labels), expected)


def test_samples_weigh_by_the_teachers_doubt() -> None:
    """Power 0 is the plain loss; with a power, the sample of which the teacher is unsure counts most."""
    torch.manual_seed(1)
    student, teacher, labels = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 1, 2, -1])
    torch.testing.assert_close(focused_kl(student, teacher, labels, 2.0, 0.0), soft_kl(student, teacher, 2.0))
    known = torch.tensor([0, 1, 2, int(teacher[3].argmax())])
    doubt = (1 - teacher.softmax(-1)[torch.arange(4), known]) ** 2
    each = torch.stack([soft_kl(student[i : i + 1], teacher[i : i + 1], 2.0) for i in range(4)])
    torch.testing.assert_close(focused_kl(student, teacher, labels, 2.0, 2.0), (doubt / doubt.sum() * each).sum())


def test_mutual_learning_is_the_mean_over_ordered_pairs() -> None:
    """Of three exits there are six pairs; an exit alone learns from nobody."""
    torch.manual_seed(2)
    exits = [torch.randn(5, 3) for _ in range(3)]
    logs = [one.log_softmax(-1) for one in exits]
    pairs = [
        F.kl_div(logs[i], logs[j], log_target=True, reduction="batchmean") for i in range(3) for j in range(3) if i != j
    ]
    torch.testing.assert_close(mutual_loss(exits), torch.stack(pairs).mean())
    assert mutual_loss(exits[:1]) == 0
