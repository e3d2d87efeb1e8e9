"""Training all exits of one model together: what the regimes of the early-exit family share.

A regime is its loss over the exits (:meth:`JointMethod.objective`), where its exits are, whether it learns a gate, and which
epoch it keeps. Everything else is here: losses per exit, gradient equilibrium, the dev score, and the way from there to
a model under the authors' exit rule.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.contracts import Fitted, Kind
from harness.core.errors import ConfigError
from harness.core.tokens import Task, TokenSet
from harness.encoder.backbone import Backbone
from harness.encoder.layout import Layout
from harness.encoder.model import ExitGate
from harness.encoder.multi_exit import MultiExitModel
from harness.toolkit.budgets import BUDGETS, budget_name, checked_budgets
from harness.toolkit.rule_exits import RuleExits, under_rule
from harness.toolkit.training import LossFn, Recipe, dev_accuracies, own_settings, train


def exit_states(
    model: MultiExitModel, tokens: TokenSet, layout: Layout, *, equilibrium: bool = False
) -> Iterator[Tensor]:
    """States h after every answering layer, in order of depth, each [rows, width], for its head to read.

    Args:
        equilibrium: rescale gradients on their way down (:func:`rescaled`) so that each layer gets the mean, and not
            the sum, of the gradients of the exits above it (Li et al., ICCV 2019; ElasticBERT's released
            code). Of A exits, at place p = 0 .. A-1: what comes from the deeper ones is multiplied by A - p - 1, added
            to the gradient of the exit's own head, and the sum is divided by A - p. Heads get their full gradients.
    """
    hidden = model.encoder.embed(tokens, layout)
    places = len(model.answers)
    for index, layer in enumerate(model.encoder.layers):
        hidden = layer(hidden, layout)
        if index in model.answers:
            above = places - model.answers.index(index)
            state = rescaled(hidden, 1 / above) if equilibrium else hidden
            yield state
            hidden = rescaled(state, above - 1) if equilibrium else state


def rescaled(hidden: Tensor, factor: float) -> Tensor:
    """The same values; gradients that come back through here are multiplied by ``factor``."""
    same = hidden.view_as(hidden)
    if same.requires_grad:
        same.register_hook(lambda gradient: gradient * factor)
    return same


def exit_answers(
    model: MultiExitModel, tokens: TokenSet, layout: Layout, *, equilibrium: bool = False
) -> tuple[list[Tensor], list[Tensor]]:
    """States [rows, width] and float32 logits [B, C] of every exit, in order of depth; see :func:`exit_states`."""
    states = list(exit_states(model, tokens, layout, equilibrium=equilibrium))
    logits = [model.student(i)(h, layout).float() for i, h in zip(model.answers, states, strict=True)]
    return states, logits


def exit_losses(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Cross-entropy of every exit, mean over the batch: [A]."""
    return torch.stack([F.cross_entropy(answer, labels) for answer in logits])


def weighted_mean(losses: Tensor, weights: Sequence[float]) -> Tensor:
    """``sum_i w_i L_i / sum_i w_i`` of losses [A]."""
    scale = torch.tensor(weights, dtype=losses.dtype, device=losses.device)
    return (scale * losses).sum() / scale.sum()


class JointMethod(ABC):
    """A method that trains all its exits in one model and runs it under its authors' rule.

    Config: :attr:`settings`, ``budgets``, the keys of :class:`~harness.toolkit.training.Recipe`, and ``head`` (``"linear"`` unless
    set: BERT's pooler and classifier on [CLS], of which every exit has its own).

    Attributes:
        rule: authors' exit rule, out of :data:`~harness.toolkit.rule_exits.RULES`.
        settings: of its own, with defaults.
        gated: whether a gate is trained beside the heads.
        keeps_best: the epoch with the largest dev accuracy, mean over all exits, is kept; else the last one.
    """

    name: ClassVar[str]
    rule: ClassVar[str]
    settings: ClassVar[Mapping[str, Any]] = {}
    gated: ClassVar[bool] = False
    keeps_best: ClassVar[bool] = True
    kind: Kind = "method"
    needs: tuple[str, ...] = ()
    version = 1

    @abstractmethod
    def objective(self, model: MultiExitModel, gate: ExitGate | None, own: Mapping[str, Any]) -> LossFn:
        """The loss of one batch. It is called once per step, in order."""

    def exits(self, depth: int, own: Mapping[str, Any]) -> Sequence[int]:
        """Layer indices of the early exits, out of 0 .. depth-2."""
        return range(depth - 1)

    def check(self, own: Mapping[str, Any]) -> None:  # noqa: B027 - most have nothing to complain about
        """Complain about settings before anything is trained.

        Raises:
            ConfigError: one makes no sense.
        """

    def fit(
        self, task: Task, backbone: Backbone, teachers: Mapping[str, Fitted], *, config: Mapping[str, Any], seed: int
    ) -> RuleExits:
        """Train, then set the rule on dev.

        Raises:
            ConfigError: a setting that makes no sense or that nobody reads, or a backbone of one layer.
        """
        own = own_settings(self.name, config, {"budgets": BUDGETS, **self.settings})
        budgets = checked_budgets(self.name, own["budgets"])
        self.check(own)
        recipe, depth = Recipe.of(config), backbone.shape.layers
        if depth < 2:
            raise ConfigError(
                f"{self.name} needs at least 2 layers, {backbone.name} has {depth}: choose another backbone"
            )
        exits = self.exits(depth, own)
        torch.manual_seed(seed)
        model = MultiExitModel(backbone.encoder(), task.num_labels, exits, config.get("head", "linear"))
        gate = ExitGate(backbone.shape.width).to(model.encoder.device) if self.gated else None

        def evaluate() -> float:
            scores = dev_accuracies(model, task.dev)
            return sum(scores) / len(scores)

        report = train(
            nn.ModuleList([model] if gate is None else [model, gate]),
            self.objective(model, gate, own),
            task.train,
            recipe,
            seed=seed,
            name=f"{self.name} {task.name}",
            evaluate=evaluate if self.keeps_best else None,
        )
        return under_rule(
            RuleExits, model, report, method=self.name, rule=self.rule, budgets=budgets, dev=task.dev, gate=gate
        )

    def point_names(self, config: Mapping[str, Any]) -> list[str]:
        return [budget_name(b) for b in checked_budgets(self.name, config.get("budgets", BUDGETS))]

    def load(self, folder: Path, task: Task, backbone: Backbone, teachers: Mapping[str, Fitted]) -> RuleExits:
        return RuleExits.load(folder, backbone.device)
