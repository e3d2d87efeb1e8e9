"""How small models learn: from labels, or from a teacher's answers on train and on texts without labels, then from labels.

The teacher is the fine-tuned ``bert``. It does not change, so what it says about every row is computed once and read in all epochs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from harness.core.tokens import Split, Task, TokenSet
from harness.encoder.layout import Layout
from harness.encoder.multi_exit import MultiExitModel
from harness.toolkit.base_method import Teachers
from harness.toolkit.dev_scores import full_depth_score
from harness.toolkit.distillation import (
    Unlabelled,
    fine_tuned,
    hard_loss,
    rows_to_teach,
    soft_kl,
    states_and_logits,
)
from harness.toolkit.fitted import FullDepth
from harness.toolkit.frozen.frozen_states import FrozenStates
from harness.toolkit.method_settings import MethodSettings, Recipe
from harness.toolkit.teachers.loss_schedule import Scheduled, ScheduleSettings, without_patience
from harness.toolkit.text_models.text_model import TextModel
from harness.toolkit.text_models.text_pass import text_score
from harness.toolkit.training import DevScore, TrainingReport, total_cost, train

# Of student and teacher logits [B, C]: a scalar.
SoftLoss = Callable[[Tensor, Tensor], Tensor]
# More rows, which follow those of a split, and what making them cost.
MoreRows = Callable[[Split], tuple[Split, TrainingReport | None]]


class TaughtSettings(ScheduleSettings, MethodSettings):
    """Settings of a small model that a teacher may teach. ``epochs`` and ``learning_rate`` are those of the first stage."""

    loss: Literal["kl", "mse", "ce"] = Field(
        "kl",
        description="what it learns first: kl: the teacher's probabilities; mse: its logits; ce: labels alone, and the teacher "
        "does not run",
    )
    temperature: float = Field(1.0, gt=0, description="temperature of the teacher's and the student's softmax with kl")
    alpha_soft: float = Field(1.0, gt=0, description="weight of the teacher's answers")
    alpha_hard: float = Field(0.0, ge=0, description="weight of labels beside them, for rows that have one")
    unlabelled: Unlabelled = Field(
        "auto", description="whether the teacher also answers rows without labels; auto: if there are any"
    )
    label_epochs: int = Field(0, ge=0, description="epochs on labels alone afterwards; the better one on dev is kept")
    label_learning_rate: float | None = Field(
        None, gt=0, description="peak learning rate of label_epochs; by default learning_rate"
    )


def needs_unlabelled(settings: type[TaughtSettings], config: Mapping[str, Any]) -> bool:
    """Return whether a method with these settings reads rows without labels (:class:`harness.contracts.UsesUnlabelled`).

    Args:
        config: of the profile, not yet validated; what is left out has its default.
    """
    known = {name: config.get(name, settings.model_fields[name].default) for name in ("loss", "unlabelled")}
    return known["loss"] != "ce" and known["unlabelled"] != "no"


def soft_loss(own: TaughtSettings) -> SoftLoss:
    """Return the loss between the logits of student and teacher that the settings name, mean over rows (mse: and classes)."""
    if own.loss == "mse":
        return lambda student, teacher: F.mse_loss(student.float(), teacher.detach().float())
    return lambda student, teacher: soft_kl(student, teacher, own.temperature)


def no_more(split: Split) -> tuple[Split, TrainingReport | None]:
    """Return a split as it is (:data:`MoreRows`)."""
    return split, None


def _answer(model: TextModel | MultiExitModel, tokens: TokenSet, layout: Layout) -> Tensor:
    """Return logits [B, C]; those of the last head of an encoder."""
    if isinstance(model, MultiExitModel):
        return states_and_logits(model, tokens, layout)[1]
    logits: Tensor = model(tokens, layout)
    return logits


def _score(model: TextModel | MultiExitModel, dev: Split) -> DevScore:
    return full_depth_score(model, dev) if isinstance(model, MultiExitModel) else text_score(model, dev)


def teach(
    method: str,
    model: TextModel | MultiExitModel,
    own: TaughtSettings,
    task: Task,
    teachers: Teachers,
    seed: int,
    soft: SoftLoss | None = None,
    more: MoreRows = no_more,
) -> TrainingReport:
    """Train a model in place and return what that cost, the teacher's own training and its answers included.

    1. With ``loss`` kl or mse: ``alpha_soft`` times the loss to the teacher's answers on train and rows without labels, plus
       ``alpha_hard`` times the cross-entropy on train; the best epoch on dev is kept. With ce: the cross-entropy on train.
    2. ``label_epochs`` epochs of cross-entropy on train, not after ce; whichever stage is better on dev is kept.

    Args:
        model: a small encoder learns as one without Transformer layers does.
        soft: replaces :func:`soft_loss`.
        more: adds augmented rows to those of the first stage.

    Raises:
        ConfigError: the teacher is of another kind, or rows without labels are wanted and there are none.
    """
    name = f"{method} {task.name}"

    def on_labels(rows: Split, recipe: Recipe, stage: str = "") -> TrainingReport:
        def loss(tokens: TokenSet, layout: Layout, labels: Tensor) -> Tensor:
            return hard_loss(_answer(model, tokens, layout), labels)

        return train(model, loss, rows, recipe, seed=seed, name=name + stage, evaluate=lambda: _score(model, task.dev))

    if own.loss == "ce":
        rows, made = more(task.train)
        return total_cost(made, on_labels(rows, own))
    tuned = fine_tuned(method, teachers)
    rows, made = more(rows_to_teach(task, own.unlabelled, method))
    taught = _from_teacher(name, model, own, rows, task.dev, tuned, seed, soft or soft_loss(own))
    first = total_cost(tuned.training, made, taught)
    if not own.label_epochs:
        return first
    before = {key: value.detach().clone() for key, value in model.state_dict().items()}
    patience = None if own.patience is None else min(own.patience, own.label_epochs)
    recipe = own.changed(epochs=own.label_epochs, learning_rate=own.label_learning_rate).model_copy(
        update={"patience": patience}
    )
    second = on_labels(task.train, recipe, ", labels")
    if max(second.dev_scores) < max(first.dev_scores):
        model.load_state_dict(before)
        return total_cost(second, first)
    return total_cost(first, second)


def _from_teacher(
    name: str,
    model: TextModel | MultiExitModel,
    own: TaughtSettings,
    rows: Split,
    dev: Split,
    tuned: FullDepth,
    seed: int,
    soft: SoftLoss,
) -> TrainingReport:
    teacher = FrozenStates(tuned.model, rows.tokens, (), own, name=name)
    stored = teacher.store()

    def loss(tokens: TokenSet, layout: Layout, labels: Tensor) -> Tensor:
        logits = _answer(model, tokens, layout)
        found = own.alpha_soft * soft(logits, teacher(tokens, layout).answers)
        return found + own.alpha_hard * hard_loss(logits, labels) if own.alpha_hard else found

    def at(tokens: TokenSet, layout: Layout, labels: Tensor, time: float) -> Tensor:
        return own.changing_loss(_answer(model, tokens, layout), teacher(tokens, layout).answers, labels, time)

    split = Split(teacher.rows, rows.labels)
    recipe = without_patience(own) if own.scheduled else own
    chosen = Scheduled(at, len(split), own) if own.scheduled else loss
    report = train(model, chosen, split, recipe, seed=seed, name=name, evaluate=lambda: _score(model, dev))
    return total_cost(stored, report)
