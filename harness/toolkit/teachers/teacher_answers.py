"""What frozen teachers of any kind answer for the rows of a train split: computed once, read in every epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from harness.contracts import Fitted
from harness.core import clock
from harness.core.errors import ConfigError
from harness.core.tokens import Task, TokenSet
from harness.encoder.backbone import Backbone
from harness.toolkit.dev_scores import EVALUATION
from harness.toolkit.fitted import FittedModel
from harness.toolkit.frozen.frozen_states import FrozenStates, NumberedRows
from harness.toolkit.method_settings import Recipe
from harness.toolkit.training import TrainingReport, total_cost


class TeacherAnswers:
    """Logits of teachers for every row, and what they cost.

    A teacher on this project's encoder answers with its last head, in the precision of the training; any other one, such as a
    bag of words, answers as it predicts, if it has one operating point.

    Attributes:
        names: of the teachers, in the order of their answers.
        rows: the samples, numbered; batches of them are taught.
        logits: float32 [T, N, C] on the device of the samples.

    Raises:
        ConfigError: a teacher has other labels, another vocabulary or several operating points.
    """

    def __init__(
        self,
        teachers: Mapping[str, Fitted],
        tokens: TokenSet,
        task: Task,
        backbone: Backbone,
        recipe: Recipe,
        method: str,
    ) -> None:
        self.rows = NumberedRows.of(tokens)
        self.names = tuple(sorted(teachers))
        self._teachers, self._task, self._recipe, self._method = teachers, task, recipe, method
        self._costs: list[TrainingReport | None] = []
        for name in self.names:
            _check_words(method, name, teachers[name], backbone)
            self._costs.append(getattr(teachers[name], "training", None))
        self.logits = self.of(tokens)

    @property
    def cost(self) -> TrainingReport:
        """Cost of the trainings of all teachers, of which a shared one counts once, and of the answers so far."""
        return total_cost(*self._costs)

    def of(self, tokens: TokenSet) -> Tensor:
        """Compute the answers for other samples: [T, M, C]."""
        said = []
        for name in self.names:
            logits, cost = _answers(self._method, name, self._teachers[name], tokens, self._task, self._recipe)
            if logits.shape[1] != self._task.num_labels:
                raise ConfigError(
                    f"{self._method}: teacher '{name}' has {logits.shape[1]} labels, the dataset {self._task.num_labels}: name "
                    "teachers that were trained on its labels"
                )
            said.append(logits)
            self._costs.append(cost)
        return torch.stack(said)

    def __call__(self, tokens: TokenSet) -> Tensor:
        """Return the answers for a batch selected from :attr:`rows`: [T, B, C]."""
        assert isinstance(tokens, NumberedRows)
        return self.logits.index_select(1, tokens.numbers)


def _check_words(method: str, name: str, fitted: Any, backbone: Backbone) -> None:
    model = getattr(fitted, "model", None)
    limits = getattr(getattr(model, "encoder", None), "shape", None) or getattr(model, "limits", None)
    if limits is not None and limits.vocab_size != backbone.shape.vocab_size:
        raise ConfigError(
            f"{method}: teacher '{name}' has a vocabulary of {limits.vocab_size}, the backbone '{backbone.name}' "
            f"{backbone.shape.vocab_size}, so that token ids differ: name teachers made from that backbone"
        )


def last_head_answers(fitted: Any) -> bool:
    """Return whether the answer of a fitted method at full depth is that of its model's last head after all layers."""
    return isinstance(fitted, FittedModel) and fitted.is_stack


def _answers(
    method: str, name: str, fitted: Any, tokens: TokenSet, task: Task, recipe: Recipe
) -> tuple[Tensor, TrainingReport]:
    if last_head_answers(fitted):
        fitted.model.eval()
        frozen = FrozenStates(fitted.model, tokens, (), recipe, name=f"{task.name} {method}")
        cost = frozen.store()
        assert cost is not None and frozen.stored_answers is not None
        return frozen.stored_answers, cost
    points = fitted.operating_points(task.dev)
    if len(points) != 1:
        raise ConfigError(
            f"{method}: teacher '{name}' has {len(points)} operating points: name a teacher that answers at full depth"
        )
    begin = clock.now()
    found = fitted.predict(tokens, at=replace(points[0], execution=EVALUATION))
    cost = TrainingReport(
        clock.now() - begin,
        0,
        int(found.work.rows("layer")),
        0,
        flops=float(fitted.cost.flops(found.work, "linear")),
    )
    return torch.from_numpy(found.logits).to(tokens.device), cost
