"""Losses that change during training: Continuation-KD and Annealing-KD, for every method that learns from a teacher's answers.

Continuation-KD (Jafari et al., Findings of EMNLP 2022, arXiv 2212.05998; no code) starts from an easy objective, which grows into
the teacher's logits and ends in the labels alone; a margin forgives small differences from the teacher, which may be noise::

    L(t) = psi(t) CE(labels, s) + (1 - psi(t)) max(0, |s - phi(t) z|^2 - m)

of student logits s and teacher logits z at the time t of training, 0 to 1. Annealing-KD (Jafari et al., EACL 2021, arXiv
2104.07163) is its predecessor: psi jumps, and there is no margin. The exact phi, psi and m are not published; those here are our
interpretation: phi rises linearly until ``switch``, from where psi rises linearly to the end, or jumps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, Self, TypeVar

from pydantic import Field, model_validator
from torch import Tensor

from harness.core.settings import StrictSettings
from harness.core.tokens import TokenSet
from harness.encoder.layout import Layout
from harness.toolkit.distillation import hard_loss
from harness.toolkit.method_settings import Recipe

R = TypeVar("R", bound=Recipe)
# Of a batch and the time of training: a scalar.
TimedLoss = Callable[[TokenSet, Layout, Tensor, float], Tensor]
# A schedule is the whole loss: settings of a constant one have no meaning beside it.
REPLACED = frozenset({"temperature", "alpha", "loss", "logits", "labels_only", "focus"})


class ScheduleSettings(StrictSettings):
    """Settings of a loss that changes during training."""

    schedule: Literal["constant", "continuation", "annealing"] = Field(
        "constant",
        description="continuation, annealing: from the teacher's logits, which grow, to labels alone; they replace the method's "
        "loss and run to their end, without patience",
    )
    switch: float = Field(
        0.5, gt=0, lt=1, description="share of the steps in which the teacher's logits grow; labels come after it"
    )
    shape: Literal["linear", "step"] = Field(
        "linear", description="continuation: how labels replace the teacher after the switch"
    )
    margin: float = Field(
        1.0,
        ge=0,
        description="continuation: squared difference from the teacher's logits without loss, per class",
    )

    @model_validator(mode="after")
    def _one_loss(self) -> Self:
        given = self.model_fields_set
        parts = {name for name in given if self.replaces(name)}
        if self.schedule != "constant" and parts:
            raise ValueError(
                f"schedule = {self.schedule} is the whole loss and has no {', '.join(sorted(parts))}: leave out one or the other"
            )
        for names, schedules in (
            (("switch",), ("continuation", "annealing")),
            (("shape", "margin"), ("continuation",)),
        ):
            for name in names:
                if name in given and self.schedule not in schedules:
                    raise ValueError(
                        f"{name} has no effect with schedule = {self.schedule}: leave it out, or set schedule"
                    )
        return self

    def replaces(self, name: str) -> bool:
        """Return whether a setting belongs to the constant loss, which a schedule replaces."""
        return name in REPLACED or name.startswith("alpha_")

    @property
    def scheduled(self) -> bool:
        """Whether the loss changes during training."""
        return self.schedule != "constant"

    def phi(self, time: float) -> float:
        """Return the factor on the teacher's logits at a time, 0..1."""
        return min(1.0, time / self.switch)

    def psi(self, time: float) -> float:
        """Return the weight of the labels at a time, 0..1."""
        if time < self.switch:
            return 0.0
        if self.schedule == "annealing" or self.shape == "step":
            return 1.0
        return (time - self.switch) / (1 - self.switch)

    def changing_loss(self, student: Tensor, teacher: Tensor, labels: Tensor, time: float) -> Tensor:
        """Return the loss of a batch: logits [B, C] of both, labels int64 [B], -1 for rows without one."""
        psi, total = self.psi(time), student.new_zeros((), dtype=student.float().dtype)
        if psi < 1:
            margin = self.margin * student.shape[1] if self.schedule == "continuation" else 0.0
            gap = (student.float() - self.phi(time) * teacher.detach().float()).square().sum(-1)
            total = total + (1 - psi) * (gap - margin).clamp(min=0).mean()
        return total + psi * hard_loss(student, labels) if psi else total


class Scheduled:
    """A loss that depends on the time of training (:class:`~harness.toolkit.training.CountsSteps`), to be called once a step.

    Args:
        loss: of a batch at a time, from 0 in the first step to 1 in the last one.
        samples: of the train split, for the number of steps.
    """

    def __init__(self, loss: TimedLoss, samples: int, recipe: Recipe) -> None:
        self.step = 0
        self._loss, self._steps = loss, math.ceil(samples / recipe.batch_size) * recipe.epochs

    def __call__(self, tokens: TokenSet, layout: Layout, labels: Tensor) -> Tensor:
        time = self.step / (self._steps - 1) if self._steps > 1 else 1.0
        self.step += 1
        return self._loss(tokens, layout, labels, time)


def without_patience(recipe: R) -> R:
    """Return a recipe that trains for all of its epochs: the schedule has to reach its end."""
    return recipe.model_copy(update={"patience": None})
