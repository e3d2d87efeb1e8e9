"""GRAIN (Yang et al., ACL 2023, arXiv 2212.07634): units inside heads and inner layers are removed during distillation.

Checked against the released code (airaria/GRAIN). The differences are stated in :class:`Grain`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.pruned.pruned_student import PrunedSettings, PruningMethod, checked_teacher
from baselines.pruned.unit_scores import UnitScores, density_at
from harness.core.tokens import Split, Task, TokenSet
from harness.encoder.backbone import Backbone
from harness.encoder.layout import Layout
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.pruning.masked_pass import MaskedPasses
from harness.encoder.shape import layer_cost
from harness.toolkit.base_method import Teachers
from harness.toolkit.dev_scores import full_depth_score
from harness.toolkit.distillation import hard_loss, rows_to_teach, soft_cross_entropy, states_and_logits
from harness.toolkit.fitted import FullDepth
from harness.toolkit.frozen.frozen_states import FrozenStates
from harness.toolkit.training import DevScore, total_cost, train


class GrainSettings(PrunedSettings):
    """Settings of GRAIN. Defaults are those of the released script for GLUE, except epochs, rate and ``start``."""

    temperature: float = Field(
        8.0, gt=0, description="temperature of the teacher's and the student's softmax in the loss"
    )
    alpha_hidden: float = Field(1.0, ge=0, description="weight of the hidden states")
    prune_from: float = Field(0.2, ge=0, lt=1, description="share of the steps before units are removed")
    prune_until: float = Field(0.4, gt=0, le=1, description="share of the steps after which the density is reached")
    beta: float = Field(0.998, ge=0, lt=1, description="decay of the moving average of scores")
    structure: float = Field(
        0.3,
        ge=0,
        description="alpha of structure regularisation: up to about this density, a head is emptied first; 0: off",
    )
    separate: bool = Field(
        True, description="whether scores follow from the loss of answers alone (gradient separation)"
    )

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if self.prune_from >= self.prune_until:
            raise ValueError(
                f"prune_from = {self.prune_from:g} is not before prune_until = {self.prune_until:g}: give pruning some steps"
            )
        return self


def matched_places(depth: int) -> list[int]:
    """Return the i of the states h^i that are compared: embeddings, and every second state up to the last."""
    return [0, *range(2 - depth % 2, depth + 1, 2)]


class GrainLoss:
    """The loss of a batch, which also updates scores and masks.

    ``CE(softmax(t / T), softmax(s / T)) + alpha sum_i MSE(W_i s_i + b_i, t_i)``; W_i starts as the identity. Scores follow from
    the first term alone (gradient separation): the teacher's hidden states do not say which units answers need.

    Attributes:
        step: of the next call, from 0.
    """

    def __init__(self, student: MultiExitModel, frozen: FrozenStates, own: GrainSettings, steps: int) -> None:
        shape = student.encoder.shape
        self.student, self.frozen, self.own = student, frozen, own
        self.first, self.last = int(own.prune_from * steps), max(1, int(own.prune_until * steps))
        self.scores = UnitScores(shape, own.beta, own.structure).to(student.encoder.device)
        self.passes = MaskedPasses(student.encoder, self.scores.encoder_masks())
        projections = {str(place): nn.Linear(shape.width, shape.width) for place in frozen.places}
        for projection in projections.values():
            nn.init.eye_(projection.weight)
            nn.init.zeros_(projection.bias)
        self.projections = nn.ModuleDict(projections)
        self.projections.to(student.encoder.device)
        self.step = 0

    @property
    def trained(self) -> nn.ModuleList:
        """All that changes in training."""
        return nn.ModuleList([self.student, self.scores, self.projections])

    def __call__(self, tokens: TokenSet, layout: Layout, labels: Tensor) -> Tensor:
        scores, own = self.scores, self.own
        taught = self.frozen(tokens, layout)
        pruning = self.step < self.last
        units = scores.masks.clone().requires_grad_(pruning)
        self.passes.masks = scores.encoder_masks(units)
        states, logits = states_and_logits(self.student, tokens, layout)
        answers = soft_cross_entropy(logits, taught.answers, own.temperature)
        if own.alpha_hard:
            answers = answers + own.alpha_hard * hard_loss(logits, labels)
        hidden = logits.new_zeros((), dtype=torch.float32)
        for place in self.frozen.places:
            mine = self.projections[str(place)](layout.tokens(states[place])).float()
            hidden = hidden + F.mse_loss(mine, layout.tokens(taught.states[place]).float())
        total = answers + own.alpha_hidden * hidden
        self.step += 1
        if pruning:
            (gradient,) = torch.autograd.grad(answers if own.separate else total, units, retain_graph=True)
            scores.learn(gradient)
            scores.prune(density_at(self.step, self.first, self.last, own.density))
            # A backward pass without gradients of weights costs as much as the forward pass.
            shape = self.student.encoder.shape
            scores.flops += shape.layers * layer_cost(shape).flops(layout.tally(), "linear")
        return total

    def dev_score(self, dev: Split) -> DevScore:
        """Return the dev score under the masks of now."""
        self.passes.masks = self.scores.encoder_masks()
        return full_depth_score(self.student, dev)


class Grain(PruningMethod[GrainSettings]):
    """A student of the teacher's size learns its answers and every second state, while units inside heads and inner layers go.

    Units are the inner units, and single dimensions of heads, of queries (with keys) and of values. All are ranked together. The
    density falls with the cube of the remaining steps between ``prune_from`` and ``prune_until``, at every step; then the small
    model trains to the end. Its best dev epoch after pruning is kept.

    Not as released: the student starts from the fine-tuned teacher (``start = "backbone"``: as released), embeddings are not
    factorised (looking rows up takes no product), clipping includes the projections, and masks are final only at ``prune_until``,
    where the density is reached exactly. The density counts weights of units, as published.
    """

    name = "grain"
    settings = GrainSettings

    def learn(self, own: GrainSettings, task: Task, backbone: Backbone, teachers: Teachers, seed: int) -> FullDepth:
        tuned = checked_teacher(self.name, teachers, task, backbone)
        teacher, name = tuned.model, f"{task.name} {self.name}"
        student = self.first_student(own, teacher, task, backbone, seed)
        rows = rows_to_teach(task, own.unlabelled, self.name)
        places = matched_places(teacher.depth) if own.alpha_hidden else []
        frozen = FrozenStates(teacher, rows.tokens, places, own, name=name)
        stored = frozen.store() if own.epochs > 1 else None

        per_epoch = math.ceil(len(rows) / own.batch_size)
        loss = GrainLoss(student, frozen, own, per_epoch * own.epochs)
        report = train(
            loss.trained,
            loss,
            Split(frozen.rows, rows.labels),
            own,
            seed=seed,
            name=name,
            evaluate=lambda: loss.dev_score(task.dev),
            teachers=[teacher],
            first_kept=math.ceil(loss.last / per_epoch),
        )
        loss.passes.remove()
        report = replace(report, flops=report.flops + float(loss.scores.flops))
        small = self.small_model(student, loss.scores.encoder_masks(), task)
        # The teacher is part of the cost of a student that uses it.
        return FullDepth(small, total_cost(tuned.training, stored, report))
