"""Two-step training of early exits: freeze a fine-tuned model, then train a head after every layer but the last."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from harness.core.errors import ConfigError
from harness.core.tokens import Task
from harness.encoder.multi_exit import MultiExitModel
from harness.toolkit.base_method import Teachers
from harness.toolkit.dev_scores import exits_score
from harness.toolkit.distillation import fine_tuned, take_layers
from harness.toolkit.fitted import FullDepth
from harness.toolkit.method_settings import Head, Recipe
from harness.toolkit.training import LossFn, TrainingReport, total_cost, train


@dataclass(frozen=True)
class FrozenHeads:
    """A copy of a fine-tuned model with new heads; encoder and last head are frozen.

    Attributes:
        model: shares no memory with the teacher.
        teacher: the fitted model of step 1.
    """

    method: str
    model: MultiExitModel
    teacher: FullDepth

    @classmethod
    def on(cls, method: str, head: Head | None, task: Task, teachers: Teachers, seed: int) -> FrozenHeads:
        """Copy the teacher ``bert`` and add heads of its kind, at random.

        Raises:
            ConfigError: the teacher is of another kind, has one layer only, or ``head`` is not its kind of head.
        """
        tuned = fine_tuned(method, teachers, head=head)
        bert = tuned.model
        if bert.depth < 2:
            raise ConfigError(
                f"{method} needs a 'bert' of at least 2 layers, so that there is an early exit: choose another backbone"
            )
        torch.manual_seed(seed)
        encoder = take_layers(bert.encoder, range(bert.depth))
        model = MultiExitModel(encoder, task.num_labels, range(bert.depth - 1), bert.head_kind)
        model.teacher.load_state_dict(bert.teacher.state_dict())
        model.encoder.requires_grad_(False)
        model.teacher.requires_grad_(False)
        return cls(method, model, tuned)

    def train(self, loss: LossFn, task: Task, recipe: Recipe, seed: int, horizon: int | None = None) -> TrainingReport:
        """Train the new heads and return the cost of both steps; without a patience, the last epoch is kept, as published.

        ``horizon``: as in :func:`train`.
        """
        report = train(
            self.model,
            loss,
            task.train,
            recipe,
            seed=seed,
            name=f"{self.method} {task.name}",
            evaluate=lambda: exits_score(self.model, task.dev),
            keep="last",
            horizon=horizon,
        )
        self.model.requires_grad_(True)
        return total_cost(self.teacher.training, report)
