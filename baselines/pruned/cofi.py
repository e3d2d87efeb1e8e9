"""CoFi (Xia et al., ACL 2022, arXiv 2204.00408): layers, heads, inner units and dimensions of the states are removed together.

Checked against the released code (princeton-nlp/CoFiPruning). The differences are stated in :class:`Cofi`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.pruned.l0_masks import L0Masks
from baselines.pruned.pruned_student import PrunedSettings, PruningMethod, checked_teacher
from harness.core.errors import ConfigError
from harness.core.tokens import Split, Task, TokenSet
from harness.encoder.backbone import Backbone
from harness.encoder.layout import Layout
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.pruning.masked_pass import MaskedPasses
from harness.encoder.pruning.unit_masks import EncoderMasks
from harness.toolkit.base_method import Teachers
from harness.toolkit.dev_scores import full_depth_score
from harness.toolkit.distillation import hard_loss, rows_to_teach, soft_kl, states_and_logits
from harness.toolkit.fitted import FullDepth
from harness.toolkit.frozen.frozen_states import FrozenStates
from harness.toolkit.training import total_cost, train


class CofiSettings(PrunedSettings):
    """Settings of CoFi. ``epochs`` and ``learning_rate`` are those of fine-tuning the small model, after pruning."""

    temperature: float = Field(
        2.0, gt=0, description="temperature of the teacher's and the student's softmax in the loss"
    )
    alpha_soft: float = Field(0.3, ge=0, description="weight of the teacher's soft answers")
    alpha_layers: float = Field(0.7, ge=0, description="weight of the layers' states")
    prune_epochs: int = Field(10, ge=1, description="epochs with masks, before those of fine-tuning")
    prune_learning_rate: float | None = Field(
        None, gt=0, description="learning rate of weights in these epochs; by default learning_rate"
    )
    mask_learning_rate: float = Field(
        0.1, gt=0, description="learning rate of masks; 0.01 as released, for long trainings"
    )
    prune_from: float = Field(0.05, ge=0, lt=1, description="share of the steps with masks before units are removed")
    prune_until: float = Field(
        0.25, gt=0, le=1, description="share of the steps with masks after which the target density stays"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.prune_from >= self.prune_until:
            raise ValueError(
                f"prune_from = {self.prune_from:g} is not before prune_until = {self.prune_until:g}: give pruning some steps"
            )
        if not self.alpha_soft + self.alpha_layers + self.alpha_hard:
            raise ValueError("alpha_soft, alpha_layers and alpha_hard are all 0: give one a value above 0")
        return self


def taught_layers(depth: int) -> list[int]:
    """Return the i of the teacher's states h^i that teach: the ends of four quarters, 3, 6, 9 and 12 of 12."""
    return sorted({-(-quarter * depth // 4) for quarter in (1, 2, 3, 4)})


def layer_loss(distances: Tensor, able: Sequence[bool]) -> Tensor:
    """Return the sum of the distances of each taught layer from its student layer.

    From the top down, each takes the nearest student layer below the one that was taken before; without any left, it teaches none.

    Args:
        distances: [taught, student layers].
        able: of the student's layers, those with attention left.
    """
    total, below = distances.new_zeros(()), distances.shape[1]
    known = distances.tolist()
    for taught in reversed(range(len(known))):
        free = [index for index in range(below) if able[index]]
        if not free:
            break
        below = min(free, key=known[taught].__getitem__)
        total = total + distances[taught, below]
    return total


class CofiLoss:
    """``alpha_soft T^2 KL + alpha_layers sum of MSE(W s_m(i), t_i)``, plus the constraint on density while there are masks.

    Attributes:
        step: of the next call, from 0.
        transform: W, one for all layers; it starts as the identity.
    """

    def __init__(self, student: MultiExitModel, frozen: FrozenStates, own: CofiSettings, transform: nn.Linear) -> None:
        self.student, self.frozen, self.own, self.transform = student, frozen, own, transform
        self.step = 0
        self.able: Sequence[bool] = [size.heads > 0 for size in map(student.encoder.shape.size, range(student.depth))]

    def __call__(self, tokens: TokenSet, layout: Layout, labels: Tensor) -> Tensor:
        own, taught = self.own, self.frozen(tokens, layout)
        states, logits = states_and_logits(self.student, tokens, layout)
        total = own.alpha_soft * soft_kl(logits, taught.answers, own.temperature)
        if own.alpha_hard:
            total = total + own.alpha_hard * hard_loss(logits, labels)
        if own.alpha_layers:
            mine = [self.transform(layout.tokens(state)).float() for state in states[1:]]
            his = [layout.tokens(taught.states[place]).float() for place in self.frozen.places]
            distances = torch.stack([torch.stack([F.mse_loss(one, other) for one in mine]) for other in his])
            total = total + own.alpha_layers * layer_loss(distances, self.able)
        self.step += 1
        return total


class MaskedLoss(CofiLoss):
    """The loss under sampled masks, which begin after some steps; the target density then falls linearly."""

    def __init__(
        self, student: MultiExitModel, frozen: FrozenStates, own: CofiSettings, transform: nn.Linear, steps: int
    ) -> None:
        super().__init__(student, frozen, own, transform)
        self.first, self.last = int(own.prune_from * steps), max(1, int(own.prune_until * steps))
        self.masks = L0Masks(student.encoder.shape, own.mask_learning_rate).to(student.encoder.device)
        self.passes = MaskedPasses(student.encoder, self.masks.sample())

    def __call__(self, tokens: TokenSet, layout: Layout, labels: Tensor) -> Tensor:
        self.masks.limit()
        step = self.step
        if step < self.first:
            self.passes.masks = EncoderMasks.full(self.student.encoder)
            return super().__call__(tokens, layout, labels)
        self.passes.masks = masks = self.masks.sample()
        gates = torch.stack([layer.attention for layer in masks.layers if layer.attention is not None])
        self.able = (gates > 0).tolist()
        share = min(1.0, (step - self.first) / max(1, self.last - self.first))
        target = 1 - share * (1 - self.own.density)
        return super().__call__(tokens, layout, labels) + self.masks.constraint(target)


class Cofi(PruningMethod[CofiSettings]):
    """A student of the teacher's size learns answers and states under masks of all sizes; then the small model is fine-tuned.

    Masks are over attention and inner layer of each layer as a whole, heads, inner units, and dimensions of the states, which all
    layers share. Their logits are trained under a constraint on the density, with multipliers of their own. The last epoch of
    pruning and the best dev epoch of fine-tuning are kept; embeddings are not trained, as released.

    Not as released: the student starts from the fine-tuned teacher (``start = "backbone"``: as released). Masks are fixed at the
    target (:meth:`~baselines.pruned.l0_masks.L0Masks.final`), because short trainings may miss it. The small model is compacted
    before it is fine-tuned. A half of a layer that is removed keeps its norm. The optimiser is not reset where pruning begins,
    rates decay in both stages, and padding is no part of the layers' loss.
    """

    name = "cofi"
    settings = CofiSettings

    def learn(self, own: CofiSettings, task: Task, backbone: Backbone, teachers: Teachers, seed: int) -> FullDepth:
        tuned = checked_teacher(self.name, teachers, task, backbone)
        teacher, name = tuned.model, f"{task.name} {self.name}"
        if teacher.encoder.shape.embedding:
            raise ConfigError(
                f"{self.name}: it removes dimensions of embeddings and states together, and those of {backbone.name} have widths "
                "of their own: choose another backbone"
            )
        student = self.first_student(own, teacher, task, backbone, seed)
        rows = rows_to_teach(task, own.unlabelled, self.name)
        places = taught_layers(teacher.depth) if own.alpha_layers else []
        frozen = FrozenStates(teacher, rows.tokens, places, own, name=name)
        stored, split = frozen.store(), Split(frozen.rows, rows.labels)

        width = teacher.encoder.shape.width
        transform = nn.Linear(width, width).to(backbone.device)
        nn.init.eye_(transform.weight)
        nn.init.zeros_(transform.bias)
        recipe = own.changed(epochs=own.prune_epochs, learning_rate=own.prune_learning_rate)
        loss = MaskedLoss(student, frozen, own, transform, math.ceil(len(rows) / own.batch_size) * recipe.epochs)
        trained = nn.ModuleList([student, loss.masks, transform])
        _freeze_embeddings(student)
        pruning = train(trained, loss, split, recipe, seed=seed, name=f"{name} masks", teachers=[teacher], keep="last")
        loss.passes.remove()
        loss.masks.limit()

        masks = loss.masks.final(own.density)
        small = self.small_model(student, masks, task)
        assert masks.hidden is not None
        narrow = _without_inputs(transform, masks.hidden.nonzero().squeeze(1))
        _freeze_embeddings(small)
        report = train(
            nn.ModuleList([small, narrow]),
            CofiLoss(small, frozen, own, narrow),
            split,
            own,
            seed=seed,
            name=f"{name} fine-tuning",
            evaluate=lambda: full_depth_score(small, task.dev),
            teachers=[teacher],
        )
        small.requires_grad_(True)
        # The teacher is part of the cost of a student that uses it.
        return FullDepth(small, total_cost(tuned.training, stored, pruning, report))


def _freeze_embeddings(model: MultiExitModel) -> None:
    for part in (*model.encoder.tables().values(), model.encoder.norm):
        part.requires_grad_(False)


def _without_inputs(linear: nn.Linear, kept: Tensor) -> nn.Linear:
    """Return a linear layer over some of the inputs."""
    new = nn.Linear(len(kept), linear.out_features).to(linear.weight.device)
    with torch.no_grad():
        new.weight.copy_(linear.weight[:, kept])
        new.bias.copy_(linear.bias)
    return new
