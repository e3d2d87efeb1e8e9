"""Losses that change during training: their values at every time, and the methods that have them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from baselines.distilled.assistants import Assistants
from baselines.distilled.cerberus import Cerberus
from baselines.distilled.distilbert import DistilBert, DistilBertSettings
from baselines.distilled.tinybert import TinyBert
from baselines.small_models.sparse_dan import SparseDan
from harness.core.errors import ConfigError
from harness.core.tokens import Task
from harness.encoder.backbone import Backbone
from harness.toolkit.fitted import FullDepth
from harness.toolkit.method_settings import Recipe
from harness.toolkit.teachers.loss_schedule import Scheduled, ScheduleSettings

LABELS = torch.tensor([0, 2, 1, 0])


def own(**config: Any) -> ScheduleSettings:
    return ScheduleSettings.read({"schedule": "continuation", **config}, "x")


def logits(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    student, teacher = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(seed))
    return student.requires_grad_(), teacher


def test_it_starts_with_logits_of_zero_and_ends_with_labels() -> None:
    """At first the minimum is at zero logits, whatever the teacher says; in the last step it is cross-entropy, exactly."""
    student, teacher = logits()
    for schedule in (own(margin=0.0), own(schedule="annealing")):
        zero = torch.zeros_like(student, requires_grad=True)
        schedule.changing_loss(zero, teacher, LABELS, 0.0).backward()
        assert zero.grad is not None and not zero.grad.any()
        first = schedule.changing_loss(student, teacher, LABELS, 0.0)
        torch.testing.assert_close(first, student.square().sum(-1).mean())
        assert schedule.changing_loss(student, teacher, LABELS, 1.0).item() == F.cross_entropy(student, LABELS).item()


def test_at_the_switch_the_teacher_is_imitated() -> None:
    """The whole logits of the teacher, and no labels yet."""
    student, teacher = logits()
    found = own(margin=0.0, switch=0.6).changing_loss(student, teacher, LABELS, 0.6 - 1e-9)
    torch.testing.assert_close(found, (student - teacher).square().sum(-1).mean())


def test_small_gaps_are_forgiven() -> None:
    """Inside the margin the gradient is zero, outside it is that of the squared difference."""
    _, teacher = logits()
    student = (teacher + 0.5).requires_grad_()  # a squared difference of 0.75 over three classes
    for margin, forgiven in ((0.3, True), (0.2, False)):
        student.grad = None
        own(margin=margin).changing_loss(student, teacher, LABELS, 0.4999999).backward()
        assert student.grad is not None and bool(student.grad.any()) is not forgiven


@given(st.floats(0.05, 0.95), st.sampled_from(["linear", "step"]), st.lists(st.floats(0, 1), min_size=2, max_size=2))
def test_weights_only_rise(switch: float, shape: str, times: list[float]) -> None:
    """Both factors rise from 0 to 1, labels only after the switch."""
    schedule = own(switch=switch, shape=shape)
    early, late = sorted(times)
    assert schedule.phi(early) <= schedule.phi(late) <= 1 and schedule.psi(early) <= schedule.psi(late) <= 1
    assert (schedule.phi(0.0), schedule.psi(0.0), schedule.phi(1.0), schedule.psi(1.0)) == (0, 0, 1, 1)
    assert schedule.psi(early) == 0 or early >= switch


def test_time_runs_from_the_first_to_the_last_step() -> None:
    """It is 0 in the first step and 1 in the last one; a training of one step is at its end."""
    seen: list[float] = []

    def loss(*batch: Any) -> torch.Tensor:
        seen.append(batch[-1])
        return torch.zeros(())

    steps = Scheduled(loss, 10, Recipe(epochs=2, batch_size=4))
    for _ in range(6):
        steps(None, None, None)  # type: ignore[arg-type]
    assert seen == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    steps.step = 3  # as training sets it after a kill
    steps(None, None, None)  # type: ignore[arg-type]
    assert seen[-1] == pytest.approx(0.6)
    Scheduled(loss, 3, Recipe(epochs=1, batch_size=4))(None, None, None)  # type: ignore[arg-type]
    assert seen[-1] == 1.0


@pytest.mark.parametrize("schedule", ["continuation", "annealing"])
@pytest.mark.parametrize(
    ("method", "config"),
    [
        (DistilBert(), {}),
        (TinyBert(), {"layers": 1, "intermediate_epochs": 1}),
        (Assistants(), {"weights": "none"}),
        (Cerberus(), {"ends": 2}),
        (SparseDan(), {"rows": 8, "width": 8, "label_epochs": 0}),
    ],
    ids=lambda one: getattr(one, "name", ""),
)
def test_every_distilled_method_has_a_schedule(
    method: Any,
    config: dict[str, Any],
    schedule: str,
    signal_task: Task,
    small_backbone: Backbone,
    trained_bert: FullDepth,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It trains for all epochs, whatever the patience is, and its loss is asked at times from 0 to 1."""
    times: list[float] = []
    real = ScheduleSettings.changing_loss

    def noted(self: ScheduleSettings, *given: Any) -> torch.Tensor:
        times.append(given[-1])
        return real(self, *given)

    monkeypatch.setattr(ScheduleSettings, "changing_loss", noted)
    quick = {"epochs": 3, "batch_size": 48, "patience": 1, "learning_rate": 1e-9, "precision": "float32"}
    made = method.fit(
        signal_task,
        small_backbone,
        {"bert": trained_bert},
        config={**quick, **config, "schedule": schedule},
        seed=0,
    )
    assert sorted(set(times)) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert len(made.training.dev_scores) == 3


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"schedule": "continuation", "alpha_ce": 5.0}, "is the whole loss and has no alpha_ce"),
        ({"schedule": "annealing", "temperature": 2.0}, "has no temperature"),
        ({"schedule": "annealing", "margin": 1.0}, "margin has no effect with schedule = annealing"),
        ({"switch": 0.4}, "switch has no effect with schedule = constant"),
        ({"schedule": "continuation", "switch": 1.0}, "switch"),
        ({"schedule": "continuation", "switch": 0.0}, "switch"),
        ({"schedule": "continuation", "margin": -1.0}, "margin"),
    ],
)
def test_schedules_that_make_no_sense_are_refused(config: dict[str, Any], message: str) -> None:
    """Other losses beside it, parts of another schedule, and a schedule that never reaches its end."""
    with pytest.raises(ConfigError, match=message):
        DistilBertSettings.read(config, "method 'distilbert'")
