"""What a student is taught, in one stage: answers, labels, embeddings, states, attention and relations between tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from operator import add
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.distilled.axes.layer_matching import Matching, Pairs
from harness.core.settings import StrictSettings
from harness.core.tokens import TokenSet
from harness.encoder.layout import Layout, Scored
from harness.encoder.model import Encoder
from harness.encoder.multi_exit import MultiExitModel
from harness.toolkit.distillation import (
    cosine_distance,
    layer_pairs,
    layer_scores,
    score_distance,
    soft_cross_entropy,
    soft_kl,
)
from harness.toolkit.frozen.frozen_states import FrozenOutput, FrozenStates
from harness.toolkit.teachers.relations import class_relations, contrastive_distance, focused_kl
from harness.toolkit.teachers.token_relations import queries_keys_values, relation_kl, relation_scores


class SampleLosses(StrictSettings):
    """Losses of other papers that compare samples or classes; 0 for none."""

    alpha_ckd: float = Field(
        default=0.0, ge=0, description="weight of contrastive distillation of the states of [CLS] (DisCo)"
    )
    alpha_relation: float = Field(
        default=0.0,
        ge=0,
        description="weight of the difference between both models' similarities of classes (as HIRE's relations)",
    )
    focus: float = Field(
        default=0.0,
        ge=0,
        description="exponent of the sample weights (1 - the teacher's p(label)) in the loss on soft answers; 0: equal weights",
    )


class Knowledge(SampleLosses):
    """What one stage teaches; a weight of 0 leaves a part out."""

    alpha_logits: float = Field(default=0.0, ge=0, description="weight of the teacher's answers")
    logits: Literal["kl", "ce", "mse"] = Field(
        default="kl",
        description="kl: T^2 KL of soft answers; ce: their cross-entropy; mse: squared difference of logits",
    )
    temperature: float = Field(default=1.0, gt=0, description="softens the answers of both in the loss")
    alpha_hard: float = Field(default=0.0, ge=0, description="weight of the labels")
    alpha_embeddings: float = Field(default=0.0, ge=0, description="weight of the squared difference of embeddings")
    alpha_hidden: float = Field(default=0.0, ge=0, description="weight of the hidden states of matched layers")
    hidden: Literal["mse", "cos"] = Field(
        default="mse", description="mse: squared difference of states; cos: 1 - cosine"
    )
    project: Literal["if-needed", "always"] = Field(
        default="if-needed",
        description="when trained matrices bring the student's embeddings and states to the teacher's width; if-needed: at "
        "unlike widths",
    )
    alpha_attention: float = Field(default=0.0, ge=0, description="weight of the attention of matched layers")
    attention: Literal["scores", "probabilities"] = Field(
        default="scores", description="scores: squared difference before softmax (TinyBERT); probabilities: KL (MiniLM)"
    )
    alpha_token_relations: float = Field(
        default=0.0, ge=0, description="weight of relations between a text's tokens in matched layers"
    )
    token_relations: Literal["value", "qkv"] = Field(
        default="value", description="value: of values (MiniLM); qkv: of queries, of keys and of values (MiniLMv2)"
    )
    relation_heads: int | None = Field(
        default=None,
        ge=1,
        description="heads of these relations, in both models; by default the teacher's attention heads",
    )
    matching: Matching = Field(
        default="uniform",
        description="which layers teach: uniform: evenly spread; last: the last one alone; top, first: as many of the last or "
        "first ones as the student has; random: as many, drawn once from the seed",
    )

    @property
    def by_layer(self) -> bool:
        """Whether layers are compared."""
        return max(self.alpha_hidden, self.alpha_attention, self.alpha_token_relations) > 0

    @property
    def answers(self) -> bool:
        """Whether the student's answers have a loss."""
        return max(self.alpha_logits, self.alpha_hard) > 0

    @property
    def taught(self) -> bool:
        """Whether the teacher has to run."""
        others = max(self.alpha_logits, self.alpha_embeddings, self.alpha_ckd, self.alpha_relation)
        return others > 0 or self.by_layer


def taught_places(own: Knowledge, pairs: Pairs, depth: int) -> list[int]:
    """Return the i of the teacher's states h^i that a stage reads: what teaches, and the inputs of layers that are compared.

    Args:
        depth: layers of the teacher.
    """
    places: set[int] = {0} if own.alpha_embeddings else set()
    if own.alpha_hidden:
        places |= {n for _, n in pairs}
    if own.alpha_attention or own.alpha_token_relations:
        places |= {n - 1 for _, n in pairs}
    return sorted(places | ({depth} if own.alpha_ckd or own.alpha_relation else set()))


class Teaching(nn.Module):
    """A student and the matrices that bring its states to the teacher's width, with the loss of one stage.

    The matrices start from the directions on which the student's embeddings are projected, scaled to the teacher's length. Losses
    are means over samples, tokens or pairs of tokens without padding; layers add up.

    Attributes:
        student: its encoder alone in a stage without answers, so that its head is not trained.
        places: of the teacher's states that the loss reads.

    Args:
        pairs: of layers.
        basis: orthonormal directions [teacher's width, student's width]; unused if nothing is projected.
        frozen: the teacher's states and answers; by default its encoder runs for every batch, for a loss of states alone.
        hard: the loss of labels: logits [B, C], labels [B].
    """

    embedding: nn.Linear | None
    hidden: nn.Linear | None

    def __init__(
        self,
        student: Encoder | MultiExitModel,
        teacher: Encoder,
        own: Knowledge,
        pairs: Pairs,
        basis: Tensor | None = None,
        frozen: FrozenStates | None = None,
        hard: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    ) -> None:
        super().__init__()
        self.student, self.own, self.pairs = student, own, pairs
        self._teacher = [teacher]  # in a list, so that it is not a submodule and never trained
        self._frozen, self._hard = frozen, hard
        self.places = taught_places(own, pairs, teacher.depth)
        projected = projects(own, self.encoder, teacher)
        self.embedding = self._matrix(basis) if projected and own.alpha_embeddings else None
        self.hidden = self._matrix(basis) if projected and own.alpha_hidden else None

    @staticmethod
    def _matrix(basis: Tensor | None) -> nn.Linear:
        assert basis is not None
        wide, narrow = basis.shape
        matrix = nn.Linear(narrow, wide, bias=False)
        matrix.weight.data.copy_(basis * (wide / narrow) ** 0.5)
        return matrix.to(basis.device)

    @property
    def encoder(self) -> Encoder:
        """The student's encoder."""
        return self.student.encoder if isinstance(self.student, MultiExitModel) else self.student

    @property
    def trained(self) -> nn.Module:
        """What is trained: the student alone if there are no matrices beside it."""
        return self.student if self.embedding is None and self.hidden is None else self

    def loss(self, tokens: TokenSet, layout: Layout, labels: Tensor) -> Tensor:
        """Return the loss of a batch."""
        said = self._said(tokens, layout)
        states = list(self.encoder.states(tokens, layout))
        parts: list[Tensor] = []
        if self.own.answers:
            assert isinstance(self.student, MultiExitModel)
            parts += self._answers(self.student.teacher(states[-1], layout), said.answers, labels)
        parts += self._states(states, said.states, layout, layout.tokens)
        if self.own.alpha_ckd or self.own.alpha_relation:
            ours, theirs = (one.index_select(0, layout.first) for one in (states[-1], said.states[self.places[-1]]))
            parts += self._samples(ours, theirs, labels)
        return reduce(add, parts)

    def _said(self, tokens: TokenSet, layout: Layout) -> FrozenOutput:
        none = tokens.ids.new_empty(0)
        if not self.own.taught:
            return FrozenOutput({}, none, layout)
        if self._frozen is not None:
            return self._frozen(tokens, layout, self.places)
        with torch.no_grad():
            return FrozenOutput(dict(enumerate(self._teacher[0].states(tokens, layout))), none, layout)

    def _answers(self, logits: Tensor, soft: Tensor, labels: Tensor) -> Iterator[Tensor]:
        own = self.own
        if own.alpha_logits:
            if own.focus:
                found = focused_kl(logits, soft, labels, own.temperature, own.focus)
            elif own.logits == "kl":
                found = soft_kl(logits, soft, own.temperature)
            elif own.logits == "ce":
                found = soft_cross_entropy(logits, soft, own.temperature)
            else:
                found = F.mse_loss(logits.float(), soft.detach().float())
            yield own.alpha_logits * found
        if own.alpha_hard:
            yield own.alpha_hard * self._hard(logits.float(), labels)

    def _samples(self, ours: Tensor, theirs: Tensor, labels: Tensor) -> Iterator[Tensor]:
        own = self.own
        if own.alpha_ckd:
            yield own.alpha_ckd * contrastive_distance(ours, theirs)
        if own.alpha_relation:
            yield own.alpha_relation * class_relations(ours, theirs, labels)

    def distance(
        self,
        states: list[Tensor],
        taught: Mapping[int, Tensor] | Sequence[Tensor],
        layout: Scored,
        valid: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Return the distance of the student's states h^0 .. h^M [rows, width] from the teacher's h^0 .. h^N.

        Args:
            taught: with the teacher's states at :attr:`places` at least.
            valid: selects the rows of states that are tokens; the layout has the pairs of tokens.
        """
        return reduce(add, self._states(states, taught, layout, valid))

    def _states(
        self,
        states: list[Tensor],
        taught: Mapping[int, Tensor] | Sequence[Tensor],
        layout: Scored,
        valid: Callable[[Tensor], Tensor],
    ) -> Iterator[Tensor]:
        own, teacher = self.own, self._teacher[0]
        if own.alpha_embeddings:
            found = _wide(self.embedding, valid(states[0])).float()
            yield own.alpha_embeddings * F.mse_loss(found, valid(taught[0]).float())
        for m, n in self.pairs if own.by_layer else ():
            if own.alpha_attention:
                with torch.no_grad():
                    wanted = layer_scores(teacher, n - 1, taught, layout)
                scores = layer_scores(self.encoder, m - 1, states, layout)
                compare = score_distance if own.attention == "scores" else relation_kl
                yield own.alpha_attention * compare(scores, wanted, layer_pairs(teacher, n - 1, layout))
            if own.alpha_token_relations:
                yield own.alpha_token_relations * self._relations(m, n, states, taught, layout)
            if own.alpha_hidden:
                found, goal = _wide(self.hidden, valid(states[m])), valid(taught[n])
                if own.hidden == "cos":
                    yield own.alpha_hidden * cosine_distance(found, goal)
                else:
                    yield own.alpha_hidden * F.mse_loss(found.float(), goal.float())

    def _relations(
        self,
        m: int,
        n: int,
        states: list[Tensor],
        taught: Mapping[int, Tensor] | Sequence[Tensor],
        layout: Scored,
    ) -> Tensor:
        """Return the sum over relations of values, or of queries, keys and values, of two layers."""
        teacher, first = self._teacher[0], 0 if self.own.token_relations == "qkv" else 2
        heads = self.own.relation_heads or teacher.shape.heads
        with torch.no_grad():
            theirs = [
                relation_scores(one, heads, layout) for one in queries_keys_values(teacher, n - 1, taught)[first:]
            ]
        ours = [relation_scores(one, heads, layout) for one in queries_keys_values(self.encoder, m - 1, states)[first:]]
        return reduce(add, (relation_kl(one, other, layout.pairs) for one, other in zip(ours, theirs, strict=True)))


def projects(own: Knowledge, student: Encoder, teacher: Encoder) -> bool:
    """Return whether matrices bring the student's embeddings or states to the teacher's width."""
    compared = own.alpha_embeddings > 0 or own.alpha_hidden > 0
    return compared and (own.project == "always" or student.shape.width != teacher.shape.width)


def _wide(matrix: nn.Linear | None, hidden: Tensor) -> Tensor:
    found: Tensor = hidden if matrix is None else matrix(hidden)
    return found
