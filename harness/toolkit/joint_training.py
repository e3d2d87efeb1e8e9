"""Joint training of all exits of one model, shared by the methods of this family.

A method states its loss over the exits (:meth:`JointMethod.combine`), where its exits are, whether it trains a gate, and
which epoch it keeps. This module does the rest: losses per exit, gradient equilibrium, the dev score, and tuning of the
authors' exit rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Generic

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import TypeVar

from harness.core.errors import ConfigError
from harness.core.tokens import Task, TokenSet
from harness.encoder.backbone import Backbone
from harness.encoder.layout import Layout
from harness.encoder.model import Gate
from harness.encoder.multi_exit import MultiExitModel
from harness.toolkit.base_method import StagedMethod, Teachers
from harness.toolkit.dev_scores import exits_score
from harness.toolkit.fitted import FittedModel
from harness.toolkit.method_settings import BudgetSettings, Head
from harness.toolkit.rule_exits import RuleExits, RuleName, new_gate, under_rule
from harness.toolkit.training import LossFn, train


class JointSettings(BudgetSettings):
    """Settings of jointly trained exits. Every exit has its own head."""

    head: Head = Field("linear", description="kind of classifier head; linear is BERT's pooler and classifier")


J = TypeVar("J", bound=JointSettings, default=JointSettings)


def exit_states(
    model: MultiExitModel,
    tokens: TokenSet,
    layout: Layout,
    *,
    equilibrium: bool = False,
    places: Sequence[int] | None = None,
) -> Iterator[Tensor]:
    """Yield the states after every answering layer, in order of depth, each [rows, width], for its head to read.

    Args:
        places: layer indices to yield the states of, rising; by default the answering layers. Layers above them do not run.
        equilibrium: rescale gradients in the backward pass (:func:`rescaled`) so that each layer gets the mean, and not
            the sum, of the gradients of the exits above it (Li et al., ICCV 2019; ElasticBERT's released code). With A
            exits, at place p = 0 .. A-1, the gradient from the deeper exits is multiplied by A - p - 1 and added to the
            gradient of the exit's own head, and the sum is divided by A - p. Heads get their full gradients.
    """
    hidden = model.encoder.embed(tokens, layout)
    chosen = model.answers if places is None else places
    for index, layer in enumerate(model.encoder.layers[: chosen[-1] + 1]):
        hidden = layer(hidden, layout)
        if index in chosen:
            above = len(chosen) - chosen.index(index)
            state = rescaled(hidden, 1 / above) if equilibrium else hidden
            yield state
            hidden = rescaled(state, above - 1) if equilibrium else state


def rescaled(hidden: Tensor, factor: float) -> Tensor:
    """Return the same values; their gradients are multiplied by ``factor`` in the backward pass."""
    same = hidden.view_as(hidden)
    if same.requires_grad:
        same.register_hook(lambda gradient: gradient * factor)
    return same


def exit_answers(
    model: MultiExitModel, tokens: TokenSet, layout: Layout, *, equilibrium: bool = False
) -> tuple[list[Tensor], list[Tensor]]:
    """Return states [rows, width] and float32 logits [B, C] of every exit, in order of depth; see :func:`exit_states`."""
    states = list(exit_states(model, tokens, layout, equilibrium=equilibrium))
    logits = [model.student(i)(h, layout).float() for i, h in zip(model.answers, states, strict=True)]
    return states, logits


def exit_losses(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Return the cross-entropy of every exit, mean over the batch: [A]."""
    return torch.stack([F.cross_entropy(answer, labels) for answer in logits])


def sample_losses(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Return the cross-entropy of every exit and sample: [A, B]."""
    return torch.stack([F.cross_entropy(answer, labels, reduction="none") for answer in logits])


def log_leaving(logits: Sequence[Tensor]) -> Tensor:
    """Return the log-probability of leaving at each of A exits, float32 [A, B], which are 1 in sum.

    Args:
        logits: of leaving at an early exit if still there, A - 1 tensors [B]. All samples leave at the last exit.
    """
    early = torch.stack([one.float() for one in logits])
    staying = F.logsigmoid(-early).cumsum(0)
    so_far = torch.cat([torch.zeros_like(early[:1]), staying])
    return so_far + torch.cat([F.logsigmoid(early), torch.zeros_like(early[:1])])


def weighted_mean(losses: Tensor, weights: Sequence[float]) -> Tensor:
    """Return ``sum_i w_i L_i / sum_i w_i`` of losses [A]."""
    scale = torch.tensor(weights, dtype=losses.dtype, device=losses.device)
    return (scale * losses).sum() / scale.sum()


class JointMethod(StagedMethod[J], Generic[J]):
    """A method that trains all its exits in one model and runs it under its authors' exit rule.

    Attributes:
        rule: the exit rule, a key of :data:`~harness.toolkit.rule_exits.RULES`. If it needs a gate, that is trained beside the
            heads.
        equilibrium: see :func:`exit_states`.
        keeps_best: keep the epoch with the best dev score (:func:`~harness.toolkit.dev_scores.exits_score`); else the last
            one, unless the settings have a patience.
    """

    settings: type[J] = JointSettings  # type: ignore[assignment]  # the default of J
    fitted = RuleExits
    rule: ClassVar[RuleName]
    equilibrium: ClassVar[bool] = False
    keeps_best: ClassVar[bool] = True
    version = 2

    def combine(self, losses: Tensor, own: J) -> Tensor:
        """Combine the exits' cross-entropies [A] into one loss; by default their sum."""
        return losses.sum()

    def objective(self, model: MultiExitModel, gate: Gate | None, own: J) -> LossFn:
        """Return the loss of one batch. The loss is called once per step, in order."""

        def loss(tokens: TokenSet, layout: Layout, labels: Tensor) -> Tensor:
            _, logits = exit_answers(model, tokens, layout, equilibrium=self.equilibrium)
            return self.combine(exit_losses(logits, labels), own)

        return loss

    def exits(self, depth: int, own: J) -> Sequence[int]:
        """Return the layer indices of the early exits, within 0 .. depth-2.

        Raises:
            ConfigError: a setting does not fit this depth.
        """
        return range(depth - 1)

    def learn(self, own: J, task: Task, backbone: Backbone, teachers: Teachers, seed: int) -> RuleExits:
        depth = backbone.shape.layers
        if depth < 2:
            raise ConfigError(
                f"{self.name} needs at least 2 layers, {backbone.name} has {depth}: choose another backbone"
            )
        exits = self.exits(depth, own)
        torch.manual_seed(seed)
        model = MultiExitModel(backbone.encoder(), task.num_labels, exits, own.head)
        gate = new_gate(self.rule, model)

        report = train(
            nn.ModuleList([model] if gate is None else [model, gate]),
            self.objective(model, gate, own),
            task.train,
            own,
            seed=seed,
            name=f"{self.name} {task.name}",
            evaluate=lambda: exits_score(model, task.dev),
            keep="best" if self.keeps_best else "last",
        )
        return RuleExits(model, report, rule=self.rule, gate=gate)

    def decide(self, own: J, weights: FittedModel, task: Task, seed: int) -> RuleExits:
        assert isinstance(weights, RuleExits)
        return under_rule(
            RuleExits,
            weights.model,
            weights.training,
            method=self.name,
            rule=self.rule,
            budgets=own.budgets,
            dev=task.dev,
            gate=weights.gate,
        )
