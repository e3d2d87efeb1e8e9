"""CascadeBERT (Li et al., Findings of EMNLP 2021): a small complete model first, the whole one if it is not confident."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from harness.contracts import Execution, OperatingPoint, Predictions
from harness.core.errors import ConfigError
from harness.core.tokens import Split, Task, TokenSet
from harness.core.work import ModelCost
from harness.encoder.backbone import Backbone
from harness.encoder.layout import Layout
from harness.encoder.model import parameters_of
from harness.encoder.multi_exit import MultiExitModel
from harness.execution.cascade import confidence, confidence_rule, run_cascade
from harness.execution.executors import run_full
from harness.toolkit.base_method import StagedMethod, Teachers
from harness.toolkit.budgets import Candidate, points_at_budgets
from harness.toolkit.dev_scores import full_depth_score
from harness.toolkit.distillation import fine_tuned, take_layers
from harness.toolkit.fitted import ChosenPoints, FittedModel, load_model, read_points, reading
from harness.toolkit.method_settings import BudgetSettings, Recipe
from harness.toolkit.training import TrainingReport, total_cost, train

TUNING = Execution(batch_size=64)
_APART = 1e-6  # confidences nearer than this differ by rounding only


class CascadeBertSettings(BudgetSettings):
    """Settings of CascadeBERT. Epochs and batch size are those of the released script."""

    epochs: int = Field(5, ge=1, description="passes over the train split")
    batch_size: int = Field(16, ge=1, description="samples per step")
    layers: int | None = Field(
        None, ge=1, description="layers of the small model; by default a sixth of the whole one's"
    )
    margin: float = Field(0.5, ge=0, le=1, description="margin of the ranking loss, in confidence")
    weight: float = Field(0.5, ge=0, description="weight of the ranking loss")
    difficulty: Literal["small", "bert"] = Field("small", description="model whose mistakes make a sample hard")
    folds: int = Field(5, ge=2, description="folds for difficulty = small")
    calibrate: bool = Field(False, description="true: fit a temperature on dev")


def ranking_loss(sure: Tensor, hard: Tensor, margin: float) -> Tensor:
    """Return the mean of ``max(0, margin - (easy - hard))`` over all pairs of an easy and a hard sample; 0 without pairs.

    The released code draws one hard sample for every easy one; this is the expectation over its draws.

    Args:
        sure: confidences [B].
        hard: bool [B].
    """
    pairs = ~hard[:, None] & hard[None, :]
    short = F.relu(margin - (sure[:, None] - sure[None, :]))
    return (short * pairs).sum() / pairs.sum().clamp(min=1)


def candidates(sure: np.ndarray, small: np.ndarray, whole: np.ndarray, layers: int, depth: int) -> list[Candidate]:
    """Return every distinct threshold on dev, from 0 (no sample continues) to 1 (all continue).

    Args:
        sure: confidences of the small model [N].
        small: bool [N], it is right.
        whole: bool [N], the whole model is right.
        layers: of the small model. A sample that continues runs ``layers + depth``.
    """
    order = np.argsort(sure, kind="stable")
    known, count = sure[order].astype(np.float64), len(sure)
    right = np.concatenate([[0], np.cumsum(whole[order])]) + np.concatenate(
        [np.cumsum(small[order][::-1])[::-1], [0]]
    )  # [N + 1], if the i least confident samples continue
    cut = [i for i in range(1, count) if known[i] - known[i - 1] > _APART]
    thresholds = {0: 0.0, **{i: float(known[i - 1] + known[i]) / 2 for i in cut}, count: 1.0}
    return [
        Candidate(threshold, layers + depth * i / count, float(right[i] / count)) for i, threshold in thresholds.items()
    ]


def fitted_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature of least cross-entropy, within 0.05 .. 20 (Guo et al., ICML 2017)."""
    from scipy.optimize import minimize_scalar

    def entropy(log_t: float) -> float:
        return float(F.cross_entropy(logits.double() / math.exp(log_t), labels))

    return math.exp(float(minimize_scalar(entropy, bounds=(math.log(0.05), math.log(20)), method="bounded").x))


@dataclass
class Cascade(ChosenPoints):
    """The whole model, the small one that runs before it, and one threshold per budget.

    Attributes:
        small: in eval mode on the same device.
    """

    executor = "cascade"

    small: MultiExitModel = field(kw_only=True)

    @property
    def cost(self) -> ModelCost:
        """Blocks of both models cost the same; parameters of both count."""
        cost = self.model.cost()
        return replace(cost, params=cost.params + parameters_of(self.small))

    def predict(self, tokens: TokenSet, *, at: OperatingPoint) -> Predictions:
        rule = confidence_rule(at.params["threshold"], at.params["temperature"])
        return run_cascade(self.small, self.model, tokens, at.execution, rule)

    def save(self, folder: Path) -> None:
        super().save(folder)
        (folder / "small").mkdir()
        self.small.save(folder / "small")

    @classmethod
    def load(cls, folder: Path, device: str) -> Self:
        model, report = load_model(folder, device)
        small = MultiExitModel.load(folder / "small", device)
        with reading(folder):
            return cls(model, report, read_points(folder / "points.json"), small=small)


@dataclass(frozen=True)
class _Small:
    """Makes and trains the small models of one fit."""

    task: Task
    backbone: Backbone
    layers: int
    head: str
    recipe: Recipe

    def fit(self, split: Split, seed: int, name: str, margin: float, weight: float, *, watched: bool) -> FittedModel:
        """Minimise cross-entropy plus ``weight`` times the ranking loss. Labels of hard samples are raised by the number of
        classes. ``watched``: keep the best dev epoch."""
        torch.manual_seed(seed)
        classes = self.task.num_labels
        encoder = take_layers(self.backbone.encoder(), range(self.layers))
        model = MultiExitModel(encoder, classes, (), self.head)

        def loss(tokens: TokenSet, layout: Layout, labels: Tensor) -> Tensor:
            *_, hidden = model.encoder.states(tokens, layout)
            logits = model.teacher(hidden, layout).float()
            ranked = ranking_loss(confidence(logits), labels >= classes, margin) if weight else 0.0
            return F.cross_entropy(logits, labels % classes) + weight * ranked

        evaluate = (lambda: full_depth_score(model, self.task.dev)) if watched else None
        report = train(model, loss, split, self.recipe, seed=seed, name=name, evaluate=evaluate)
        return FittedModel(model, report)

    def hard_out_of_fold(self, folds: int, seed: int, name: str) -> tuple[Tensor, TrainingReport]:
        """Return which samples are answered wrong by a small model trained on the other folds, bool [N], and the cost."""
        tokens, labels = self.task.train.tokens, self.task.train.labels
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        hard, report = torch.zeros(len(labels), dtype=torch.bool), TrainingReport(0.0, 0, 0, 0)
        for fold in range(folds):
            asked = order[fold::folds]
            rest = torch.ones(len(labels), dtype=torch.bool).index_fill_(0, asked, False).nonzero()[:, 0]
            split = Split(tokens.select(rest), labels[rest])
            made = self.fit(split, seed + 1 + fold, f"{name} fold {fold + 1}/{folds}", 0.0, 0.0, watched=False)
            hard[asked] = wrong(made.model, tokens.select(asked), labels[asked])
            assert made.training is not None
            report = report + made.training
        return hard, report


def wrong(model: MultiExitModel, tokens: TokenSet, labels: Tensor) -> Tensor:
    """Return which samples a model answers wrong: bool [N]."""
    return torch.from_numpy(run_full(model, tokens, TUNING).logits.argmax(-1)) != labels


class CascadeBert(StagedMethod[CascadeBertSettings]):
    """A small model answers if its largest probability is above a threshold; the fine-tuned ``bert`` runs for the rest.

    The small model is fine-tuned with its own head and with the difficulty-aware ranking loss: easy samples should be
    answered with more confidence than hard ones, by a margin. The head is of the teacher's kind.

    Two things differ from the paper. Its small model was pretrained at its size; this one starts from the first layers of
    the backbone, so expect less than published. And the released code reads from a file which samples are hard ("2 levels",
    "5 seeds", for the small model) and does not say how the file was made: here a sample is hard if a small model that was
    trained on the other folds answers it wrong.

    Thresholds are chosen on dev at budgets of mean layers, counting both models: k + L times the share that continues.
    """

    name = "cascadebert"
    needs: tuple[str, ...] = ("bert",)
    version = 2
    choices = StagedMethod.choices | {"calibrate"}
    settings = CascadeBertSettings
    fitted = Cascade

    def learn(self, own: CascadeBertSettings, task: Task, backbone: Backbone, teachers: Teachers, seed: int) -> Cascade:
        tuned = fine_tuned(self.name, teachers, head=own.head)
        bert = tuned.model
        if bert.encoder.shape.of_layers([0]) != backbone.shape.of_layers([0]):
            raise ConfigError(
                f"cascadebert: layers of 'bert' (width {bert.encoder.shape.width}) are not of the backbone's shape (width "
                f"{backbone.shape.width}), but both models need equal layers: name a 'bert' of this backbone"
            )
        layers = small_layers(own.layers, bert.depth)
        if own.folds > len(task.train):
            raise ConfigError(
                f"cascadebert: folds = {own.folds}, but there are {len(task.train)} train samples: lower it"
            )

        name = f"cascadebert {task.name}"
        makes = _Small(task, backbone, layers, bert.head_kind, own)
        labels = task.train.labels
        hard, spent = torch.zeros(len(labels), dtype=torch.bool), None
        if own.weight and own.difficulty == "bert":
            hard = wrong(bert, task.train.tokens, labels)
        elif own.weight:
            hard, spent = makes.hard_out_of_fold(own.folds, seed, name)
        marked = Split(task.train.tokens, labels + task.num_labels * hard)
        made = makes.fit(marked, seed, name, own.margin, own.weight, watched=True)
        # The whole model is part of the cost.
        return Cascade(bert, total_cost(tuned.training, spent, made.training), small=made.model)

    def decide(self, own: CascadeBertSettings, weights: FittedModel, task: Task, seed: int) -> Cascade:
        assert isinstance(weights, Cascade)
        return replace(weights, points=chosen_points(weights, task.dev, own.budgets, calibrate=own.calibrate))


def small_layers(layers: int | None, depth: int) -> int:
    """Return the layers of the small model.

    Raises:
        ConfigError: the whole model has one layer, or the small one would not be smaller.
    """
    if depth < 2:
        raise ConfigError(
            "cascadebert needs a 'bert' of at least 2 layers, so that a smaller one exists: choose another"
        )
    layers = layers or max(1, depth // 6)
    if layers >= depth:
        raise ConfigError(
            f"cascadebert: layers = {layers} of the small model, but the whole one has {depth}: choose 1 to {depth - 1}"
        )
    return layers


def chosen_points(fitted: Cascade, dev: Split, budgets: Sequence[float], *, calibrate: bool) -> list[OperatingPoint]:
    """Return one point per budget, chosen on dev (:func:`harness.toolkit.budgets.at_budgets`)."""
    small, whole = (torch.from_numpy(run_full(m, dev.tokens, TUNING).logits) for m in (fitted.small, fitted.model))
    temperature = fitted_temperature(small, dev.labels) if calibrate else 1.0
    sure = confidence(small, temperature).numpy()
    right_small, right_whole = ((logits.argmax(-1) == dev.labels).numpy() for logits in (small, whole))
    tried = candidates(sure, right_small, right_whole, fitted.small.depth, fitted.model.depth)
    return points_at_budgets(
        tried,
        budgets,
        fitted.model.depth,
        len(dev),
        lambda one: {"threshold": one.threshold, "temperature": temperature},
    )
