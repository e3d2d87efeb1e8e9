"""Two-step training of early exits: freeze a fine-tuned model, then train a head after every layer but the last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.core.errors import ConfigError
from harness.core.tokens import Split, Task, TokenSet
from harness.encoder.layout import Layout
from harness.encoder.model import LinearHead
from harness.encoder.multi_exit import MultiExitModel
from harness.toolkit.base_method import Teachers
from harness.toolkit.dev_scores import EVALUATION, exits_score, score_of_exits
from harness.toolkit.distillation import fine_tuned, take_layers
from harness.toolkit.fitted import FullDepth
from harness.toolkit.frozen.frozen_exits import FrozenExits
from harness.toolkit.frozen.frozen_states import FrozenStates
from harness.toolkit.method_settings import Head, Recipe
from harness.toolkit.training import TrainingReport, total_cost, train

# Of a batch: answers of the new heads, [B, C] each, in order of depth; the last head's answers [B, C], empty if the loss does not
# need them; labels [B].
HeadsLoss = Callable[[Sequence[Tensor], Tensor, Tensor], Tensor]


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

    def train(
        self,
        loss: HeadsLoss,
        task: Task,
        recipe: Recipe,
        seed: int,
        horizon: int | None = None,
        *,
        answers: bool = True,
        dropout: bool = False,
        rows: Split | None = None,
    ) -> TrainingReport:
        """Train the new heads and return the cost of both steps; without a patience, the last epoch is kept, as published.

        What the frozen parts say about train and, if every epoch is scored, about dev is computed once.

        Args:
            horizon: as in :func:`train`.
            answers: whether the loss needs the last head's answers.
            dropout: run the frozen parts with dropout, in every epoch.
            rows: to learn from; by default train.
        """
        model, name = self.model, f"{self.method} {task.name}"
        rows = rows or task.train
        frozen = FrozenStates(
            model,
            rows.tokens,
            [exit_layer + 1 for exit_layer in model.exits],
            recipe,
            name=name,
            first_only=isinstance(model.teacher, LinearHead),
            answers=answers,
            dropout=dropout,
        )
        stored = frozen.store() if recipe.epochs > 1 else None
        again = recipe.epochs > 1 and recipe.patience is not None
        dev = FrozenExits(model, task.dev.tokens, EVALUATION)

        def loss_of(tokens: TokenSet, layout: Layout, labels: Tensor) -> Tensor:
            said = frozen(tokens, layout)
            answered = [model.student(i)(said.states[i + 1], said.layout) for i in model.exits]
            return loss(answered, said.answers, labels)

        report = train(
            model,
            loss_of,
            Split(frozen.rows, rows.labels),
            recipe,
            seed=seed,
            name=name,
            evaluate=lambda: score_of_exits(dev(), task.dev, model.answers) if again else exits_score(model, task.dev),
            keep="last",
            horizon=horizon,
        )
        model.requires_grad_(True)
        return total_cost(self.teacher.training, stored, report)
