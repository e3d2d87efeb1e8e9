"""LEAD (Sun et al., WSDM 2024, arXiv 2212.05225): random layers of the teacher teach random layers of the student.

Read in the released code (microsoft/SimXNS, LEAD): in every step, K pairs of layers are drawn and sorted; the loss of a pair is the
divergence between what both layers say about the candidates, weighted by a softmax over the teacher's own losses, tau = 10, without
a gradient; the cross-entropy and the divergence of the last outputs are added with weight 1.

Our interpretation: the original ranks documents. For classification, what a layer says is either a distribution over labels
(``reading = "label"``: heads on all layers, which the teacher must have, as ``elasticbert`` has) or over the other samples of the
batch (``"relation"``: scaled products of the states of [CLS], which need no heads and no equal widths). The teacher is frozen; the
released code trains it, too.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from harness.core import clock
from harness.core.errors import ConfigError
from harness.core.tokens import Split, Task, TokenSet
from harness.encoder.backbone import Backbone
from harness.encoder.layout import Layout
from harness.encoder.model import LinearHead
from harness.encoder.multi_exit import MultiExitModel
from harness.toolkit.base_method import StagedMethod, Teachers
from harness.toolkit.dev_scores import full_depth_score
from harness.toolkit.distillation import fitted_teacher, soft_kl, spread_layers, take_heads, take_layers
from harness.toolkit.fitted import FullDepth
from harness.toolkit.frozen.frozen_states import FrozenStates
from harness.toolkit.joint_training import exit_answers
from harness.toolkit.method_settings import MethodSettings
from harness.toolkit.teachers.relations import relation_logs, relation_nll
from harness.toolkit.training import LayerPasses, TrainingReport, total_cost, train, training_layout


class LeadSettings(MethodSettings):
    """Settings of LEAD. All losses have weight 1, as released."""

    layers: int | None = Field(None, ge=1, description="layers of the student; by default half of the teacher's")
    reading: Literal["relation", "label"] = Field(
        "relation",
        description="what a layer says: relation: which samples of the batch are alike; label: the answer of a head, for teachers "
        "with heads",
    )
    pairs: int = Field(5, ge=1, description="pairs of layers in a step, at most those of the student")
    tau: float = Field(10.0, gt=0, description="temperature of the weights of pairs")


def drawn_layers(count: int, of: int) -> list[int]:
    """Return different layers in order, from torch's global generator, whose state a resumed training restores."""
    return torch.randperm(of)[:count].sort().values.tolist()


def pair_weights(losses: Tensor, tau: float) -> Tensor:
    """Return the weights of pairs from the losses of the teacher's layers: float32 [K], sum 1, without a gradient."""
    return F.softmax(-losses.detach().float() / tau, 0)


def pairs_loss(ours: Sequence[Tensor], theirs: Sequence[Tensor], losses: Tensor, tau: float) -> Tensor:
    """Return ``sum_i lambda_i KL(teacher_i || student_i)``, mean over samples, of log-probabilities [B, n] of K pairs."""
    each = [
        F.kl_div(one, other.detach(), log_target=True, reduction="batchmean")
        for one, other in zip(ours, theirs, strict=True)
    ]
    return (pair_weights(losses, tau) * torch.stack(each)).sum()


class Lead(StagedMethod[LeadSettings, FullDepth]):
    """A student of half the layers, which start from the teacher's, learns from labels, answers and random layers."""

    name = "lead"
    needs: tuple[str, ...] = ("bert",)
    settings = LeadSettings
    fitted = FullDepth

    def learn(self, own: LeadSettings, task: Task, backbone: Backbone, teachers: Teachers, seed: int) -> FullDepth:
        tuned = fitted_teacher(teachers)
        teacher, by_label = tuned.model, own.reading == "label"
        if by_label and not teacher.exits:
            raise ConfigError(
                f'{self.name}: reading = "label" needs a teacher with heads on its layers: needs = {{bert = "elasticbert"}}'
            )
        torch.manual_seed(seed)
        layers = own.layers or max(1, teacher.depth // 2)
        student = MultiExitModel(
            take_layers(teacher.encoder, spread_layers(teacher.depth, layers)),
            task.num_labels,
            (),
            own.head or teacher.head_kind,
        )
        take_heads(student, teacher)
        width = student.encoder.shape.width
        below = nn.ModuleList(LinearHead(width, task.num_labels) for _ in range(layers - 1) if by_label)
        if student.encoder.shape.norm_first:  # states between layers are not normalised
            for one in below:
                one.norm = copy.deepcopy(student.encoder.final_norm)
        below.to(student.encoder.device)

        places = [] if by_label else list(range(1, teacher.depth + 1))
        frozen = FrozenStates(teacher, task.train.tokens, places, own, name=f"{task.name} {self.name}", first_only=True)
        stored = frozen.store()
        heads, asked = self._of_heads(teacher, frozen.rows) if by_label else (None, None)
        taught = len(teacher.answers) if by_label else teacher.depth
        count = min(own.pairs, layers, taught)

        def loss(tokens: TokenSet, layout: Layout, labels: Tensor) -> Tensor:
            said = frozen(tokens, layout)
            states = list(student.encoder.states(tokens, layout))[1:]
            logits = student.teacher(states[-1], layout).float()
            total = F.cross_entropy(logits, labels) + soft_kl(logits, said.answers, 1.0)
            ours, theirs = drawn_layers(count, layers), drawn_layers(count, taught)
            if heads is not None:
                answers = heads[:, tokens.numbers]  # type: ignore[attr-defined]
                logs = [answers[place].log_softmax(-1) for place in theirs]
                mine = [
                    (logits if i == layers - 1 else below[i](states[i], layout).float()).log_softmax(-1) for i in ours
                ]
                wrong = torch.stack([F.nll_loss(one, labels) for one in logs])
            elif layout.count < 2:  # a sample alone has no relations
                return total
            else:
                logs = [relation_logs(said.states[place + 1].index_select(0, said.layout.first)) for place in theirs]
                mine = [relation_logs(states[i].index_select(0, layout.first)) for i in ours]
                wrong = torch.stack([relation_nll(one, labels) for one in logs])
            return total + pairs_loss(mine, logs, wrong, own.tau)

        report = train(
            nn.ModuleList([student, below]),
            loss,
            Split(frozen.rows, task.train.labels),
            own,
            seed=seed,
            name=f"{task.name} {self.name}",
            evaluate=lambda: full_depth_score(student, task.dev),
            teachers=[teacher],
        )
        return FullDepth(student, total_cost(tuned.training, stored, asked, report))

    @staticmethod
    @torch.no_grad()
    def _of_heads(teacher: MultiExitModel, tokens: TokenSet, batch: int = 64) -> tuple[Tensor, TrainingReport]:
        """Return the logits of all heads, [A, N, C], and what they cost."""
        begin, found = clock.now(), []
        with LayerPasses([teacher]) as passes:
            for rows in torch.arange(len(tokens)).split(batch):
                part = tokens.select(rows)
                found.append(torch.stack(exit_answers(teacher, part, training_layout(part))[1]))
        report = TrainingReport(clock.now() - begin, 0, passes.count, 0, flops=passes.flops)
        return torch.cat(found, 1), report
