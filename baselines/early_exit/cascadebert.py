"""CascadeBERT (Li et al., Findings of EMNLP 2021): a small complete model first, the whole one where it is unsure."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from harness.contracts import Execution, Fitted, Kind, OperatingPoint, Predictions
from harness.core.errors import ConfigError, ResultError
from harness.core.tokens import Split, Task, TokenSet
from harness.core.work import ModelCost
from harness.encoder.backbone import Backbone
from harness.encoder.layout import Layout
from harness.encoder.model import parameters_of
from harness.encoder.multi_exit import MultiExitModel
from harness.execution.cascade import confidence, confidence_rule, run_cascade
from harness.execution.executors import run_full
from harness.registry import register
from harness.toolkit.budgets import BUDGETS, Candidate, at_budgets, budget_name, checked_budgets
from harness.toolkit.distillation import fine_tuned, take_layers
from harness.toolkit.fitted import FittedModel, load_model
from harness.toolkit.training import Recipe, TrainingReport, dev_accuracies, own_settings, train

DEFAULTS: dict[str, Any] = {
    "layers": None,  # of the small model: a sixth of the whole one's, as 2 of 12
    "margin": 0.5,
    "weight": 0.5,  # of the ranking loss
    "difficulty": "small",  # whose mistakes make a sample hard: "small" (out of fold) or "bert" (on train itself)
    "folds": 5,
    "calibrate": False,  # a temperature on dev
    "budgets": BUDGETS,
}
TUNING = Execution(batch_size=64)
_APART = 1e-6  # confidences nearer than this are told apart by rounding only


def ranking_loss(sure: Tensor, hard: Tensor, margin: float) -> Tensor:
    """Mean of ``max(0, margin - (easy - hard))`` over all pairs of an easy and a hard sample; 0 where there is none.

    The released code draws one hard sample for every easy one; this is the mean of what it may draw.

    Args:
        sure: confidences [B].
        hard: bool [B].
    """
    pairs = ~hard[:, None] & hard[None, :]
    short = F.relu(margin - (sure[:, None] - sure[None, :]))
    return (short * pairs).sum() / pairs.sum().clamp(min=1)


def candidates(sure: np.ndarray, small: np.ndarray, whole: np.ndarray, layers: int, depth: int) -> list[Candidate]:
    """Every threshold that makes a difference on dev, from nobody going on (0) to everybody (1).

    Args:
        sure: confidences of the small model [N].
        small: bool [N], it is right.
        whole: bool [N], the whole model is.
        layers: of the small model. Whoever goes on runs ``layers + depth``.
    """
    order = np.argsort(sure, kind="stable")
    known, count = sure[order].astype(np.float64), len(sure)
    right = np.concatenate([[0], np.cumsum(whole[order])]) + np.concatenate(
        [np.cumsum(small[order][::-1])[::-1], [0]]
    )  # [N + 1], the i least sure going on
    going = [i for i in range(1, count) if known[i] - known[i - 1] > _APART]
    thresholds = {0: 0.0, **{i: float(known[i - 1] + known[i]) / 2 for i in going}, count: 1.0}
    return [
        Candidate(threshold, layers + depth * i / count, float(right[i] / count)) for i, threshold in thresholds.items()
    ]


def fitted_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature of least cross-entropy, within 0.05 .. 20 (Guo et al., ICML 2017)."""
    from scipy.optimize import minimize_scalar

    def entropy(log_t: float) -> float:
        return float(F.cross_entropy(logits.double() / math.exp(log_t), labels))

    return math.exp(float(minimize_scalar(entropy, bounds=(math.log(0.05), math.log(20)), method="bounded").x))


@dataclass(kw_only=True)
class Cascade(FittedModel):
    """The whole model, the small one before it, and one threshold per budget.

    Attributes:
        small: in eval mode on the same device.
        points: chosen on dev when it was fitted.
    """

    executor = "cascade"

    small: MultiExitModel
    points: list[OperatingPoint] = field(default_factory=list)

    @property
    def cost(self) -> ModelCost:
        """Blocks of the small model cost what the whole one's do; both must be kept at hand."""
        cost = self.model.cost()
        return replace(cost, params=cost.params + parameters_of(self.small))

    def operating_points(self, dev: Split) -> Sequence[OperatingPoint]:
        return self.points

    def predict(self, tokens: TokenSet, *, at: OperatingPoint) -> Predictions:
        rule = confidence_rule(at.params["threshold"], at.params["temperature"])
        return run_cascade(self.small, self.model, tokens, at.execution, rule)

    def save(self, folder: Path) -> None:
        super().save(folder)
        (folder / "small").mkdir()
        self.small.save(folder / "small")
        points = [{"name": point.name, "params": dict(point.params)} for point in self.points]
        (folder / "points.json").write_text(json.dumps(points, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, device: str) -> Cascade:
        """What :meth:`save` wrote.

        Raises:
            ResultError: a file is missing or damaged.
        """
        model, report = load_model(folder, device)
        small = MultiExitModel.load(folder / "small", device)
        try:
            facts = json.loads((folder / "points.json").read_text(encoding="utf-8"))
            points = [OperatingPoint(point["name"], point["params"]) for point in facts]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ResultError(f"cannot load {folder}: {error}: delete that folder and run again") from error
        return cls(model, report, small=small, points=points)


@dataclass(frozen=True)
class _Small:
    """How small models of this fit are made and trained."""

    task: Task
    backbone: Backbone
    layers: int
    head: str
    recipe: Recipe

    def fit(self, split: Split, seed: int, name: str, margin: float, weight: float, *, watched: bool) -> FittedModel:
        """Cross-entropy, plus ``weight`` times the ranking loss; labels beyond the classes are those of hard samples."""
        torch.manual_seed(seed)
        classes = self.task.num_labels
        encoder = take_layers(self.backbone.encoder(), range(self.layers))
        model = MultiExitModel(encoder, classes, (), self.head)

        def loss(tokens: TokenSet, layout: Layout, labels: Tensor) -> Tensor:
            *_, hidden = model.encoder.states(tokens, layout)
            logits = model.teacher(hidden, layout).float()
            ranked = ranking_loss(confidence(logits), labels >= classes, margin) if weight else 0.0
            return F.cross_entropy(logits, labels % classes) + weight * ranked

        evaluate = (lambda: dev_accuracies(model, self.task.dev)[-1]) if watched else None
        report = train(model, loss, split, self.recipe, seed=seed, name=name, evaluate=evaluate)
        return FittedModel(model, report)

    def hard_out_of_fold(self, folds: int, seed: int, name: str) -> tuple[Tensor, TrainingReport]:
        """Samples that a small model gets wrong which was trained, with a seed of its own, on the other folds: bool [N]."""
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
    """Samples that a model gets wrong: bool [N]."""
    return torch.from_numpy(run_full(model, tokens, TUNING).logits.argmax(-1)) != labels


@register
class CascadeBert:
    """A small model answers where its largest probability is above a threshold; the fine-tuned ``bert`` runs for the rest.

    The small model is fine-tuned with its own head and with the difficulty-aware ranking loss: easy samples shall be
    answered with more confidence than hard ones, by a margin (0.5, weight 0.5).

    Two things are ours. The paper's small model was pretrained at its size; this one starts from the first layers of the
    backbone, which is its honest limit: expect less than published. And the released code reads from a file which samples
    are hard ("2 levels", "5 seeds", for the small model), not saying how that was made: here, those that small models
    trained on the other of ``folds`` parts get wrong.

    Thresholds are chosen on dev at budgets of mean layers, those of both models counted: k + L times the share that goes
    on.

    Config: :data:`DEFAULTS`, and the keys of :class:`~harness.toolkit.training.Recipe` (5 epochs, batches of 16 as in the released
    script). The head is of the teacher's kind.
    """

    name = "cascadebert"
    kind: Kind = "method"
    needs: tuple[str, ...] = ("bert",)
    version = 1

    def fit(
        self, task: Task, backbone: Backbone, teachers: Mapping[str, Fitted], *, config: Mapping[str, Any], seed: int
    ) -> Cascade:
        """Find out what is hard, train the small model, choose thresholds on dev.

        Raises:
            ConfigError: a setting that makes no sense or that nobody reads, or a teacher that does not fit.
        """
        own = own_settings(self.name, config, DEFAULTS)
        budgets = checked_budgets(self.name, own["budgets"])
        recipe = Recipe.of(config, epochs=5, batch_size=16)
        tuned = fine_tuned(self.name, teachers)
        bert = tuned.model
        if replace(bert.encoder.shape, layers=1) != replace(backbone.shape, layers=1):
            raise ConfigError(
                f"cascadebert: layers of 'bert' (width {bert.encoder.shape.width}) are not of the backbone's shape (width "
                f"{backbone.shape.width}): both of its models need layers alike, so name a 'bert' of this backbone"
            )
        layers = small_layers(own["layers"], bert.depth)
        if config.get("head", bert.head_kind) != bert.head_kind:
            raise ConfigError(f"cascadebert: head '{config['head']}' is not 'bert's '{bert.head_kind}': set both alike")
        _check(own, len(task.train))

        name = f"cascadebert {task.name}"
        makes = _Small(task, backbone, layers, bert.head_kind, recipe)
        report = tuned.training or TrainingReport(0.0, 0, 0, 0)  # the whole model is part of what it costs
        labels = task.train.labels
        hard = torch.zeros(len(labels), dtype=torch.bool)
        if own["weight"] and own["difficulty"] == "bert":
            hard = wrong(bert, task.train.tokens, labels)
        elif own["weight"]:
            hard, spent = makes.hard_out_of_fold(own["folds"], seed, name)
            report = report + spent
        marked = Split(task.train.tokens, labels + task.num_labels * hard)
        made = makes.fit(marked, seed, name, own["margin"], own["weight"], watched=True)
        assert made.training is not None
        fitted = Cascade(bert, report + made.training, small=made.model)
        fitted.points = chosen_points(fitted, task.dev, budgets, calibrate=own["calibrate"])
        return fitted

    def point_names(self, config: Mapping[str, Any]) -> list[str]:
        return [budget_name(budget) for budget in checked_budgets(self.name, config.get("budgets", BUDGETS))]

    def load(self, folder: Path, task: Task, backbone: Backbone, teachers: Mapping[str, Fitted]) -> Cascade:
        return Cascade.load(folder, backbone.device)


def small_layers(layers: Any, depth: int) -> int:
    """Layers of the small model.

    Raises:
        ConfigError: there is nothing smaller than the whole model, or it is no whole number below its depth.
    """
    if depth < 2:
        raise ConfigError("cascadebert needs a 'bert' of at least 2 layers: nothing is smaller than a single one")
    layers = max(1, depth // 6) if layers is None else layers
    if not isinstance(layers, int) or not 1 <= layers < depth:
        raise ConfigError(
            f"cascadebert: a small model of {layers} layers before one of {depth} makes no sense: choose 1 to {depth - 1}"
        )
    return layers


def _check(own: Mapping[str, Any], samples: int) -> None:
    if not 0 <= own["margin"] <= 1 or not own["weight"] >= 0 or not math.isfinite(own["weight"]):
        raise ConfigError(
            f"cascadebert: margin {own['margin']} or weight {own['weight']} makes no sense: margin in 0..1, weight 0 or more"
        )
    if own["difficulty"] not in ("small", "bert"):
        raise ConfigError(f"cascadebert: difficulty {own['difficulty']!r} is unknown: choose small or bert")
    if not isinstance(own["folds"], int) or not 2 <= own["folds"] <= samples:
        raise ConfigError(f"cascadebert: folds = {own['folds']} makes no sense: give 2 to {samples}, the train samples")
    if not isinstance(own["calibrate"], bool):
        raise ConfigError(f"cascadebert: calibrate = {own['calibrate']!r} is neither true nor false")


def chosen_points(fitted: Cascade, dev: Split, budgets: Sequence[float], *, calibrate: bool) -> list[OperatingPoint]:
    """One point per budget: the most accurate threshold on dev that keeps it."""
    small, whole = (torch.from_numpy(run_full(m, dev.tokens, TUNING).logits) for m in (fitted.small, fitted.model))
    temperature = fitted_temperature(small, dev.labels) if calibrate else 1.0
    sure = confidence(small, temperature).numpy()
    right_small, right_whole = ((logits.argmax(-1) == dev.labels).numpy() for logits in (small, whole))
    able = candidates(sure, right_small, right_whole, fitted.small.depth, fitted.model.depth)
    return [
        OperatingPoint(
            budget_name(budget),
            {
                "budget": budget,
                "threshold": one.threshold,
                "temperature": temperature,
                "dev_mean_layers": one.layers,
                "dev_accuracy": one.accuracy,
            },
        )
        for budget, one in zip(budgets, at_budgets(able, budgets, fitted.model.depth), strict=True)
    ]
