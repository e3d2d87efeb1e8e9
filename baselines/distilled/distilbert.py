"""DistilBERT (Sanh et al. 2019, arXiv 1910.01108), distilled on the task, on raw text, or both.

The paper distils during pretraining on raw text: :meth:`DistilBert.general_distillation` makes such a student. It (or a public
one, ``student = "distilbert-base-uncased"``) is then fine-tuned, from the teacher or from labels alone. Without a pretrained
student, the teacher is the fine-tuned BERT and the text is the task's train split, as in FastBERT's DistilBERT rows; a loss on
labels then replaces masked language modelling, and embeddings, alternate layers and the head are copies of the teacher's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from baselines.distilled.word_distillation import (
    CompactBertGeneralSettings,
    DistilBertGeneralSettings,
    DistilBertLossSettings,
    WordDistillation,
    compact_distillation,
)
from harness.core.errors import ConfigError
from harness.core.tokens import Split, Task, TokenSet
from harness.encoder.backbone import Backbone
from harness.encoder.layout import Layout
from harness.encoder.multi_exit import MultiExitModel
from harness.pretraining.general_distillation import Distillation, check_soft_words
from harness.toolkit.augmentation import augment
from harness.toolkit.base_method import Teachers
from harness.toolkit.distillation import (
    Unlabelled,
    cosine_distance,
    fitted_teacher,
    hard_loss,
    rows_to_teach,
    soft_kl,
    spread_layers,
    states_and_logits,
    take_layers,
)
from harness.toolkit.fitted import FullDepth
from harness.toolkit.frozen.frozen_states import FrozenStates
from harness.toolkit.method_settings import Layers
from harness.toolkit.student_start import StudentMethod, StudentSettings
from harness.toolkit.teachers.loss_schedule import Scheduled
from harness.toolkit.teachers.relations import class_relations, contrastive_distance, focused_kl
from harness.toolkit.training import total_cost


class DistilBertSettings(DistilBertLossSettings, StudentSettings):
    """Settings of DistilBERT on a task."""

    alpha_hard: float = Field(2.0, ge=0, description="weight of the labels; of masked words in the released run")
    alpha_ckd: float = Field(0.0, ge=0, description="weight of contrastive distillation of the states of [CLS] (DisCo)")
    alpha_relation: float = Field(
        0.0,
        ge=0,
        description="weight of the difference between both models' similarities of classes (as HIRE's relations)",
    )
    focus: float = Field(
        0.0,
        ge=0,
        description="exponent of the sample weights (1 - the teacher's p(label)) in the loss on soft answers; 0: equal weights",
    )
    layer_map: Layers | None = Field(None, description="teacher layers to start from, rising; by default evenly spread")
    start: Literal["teacher", "backbone"] = Field("teacher", description="model whose layers are copied")
    unlabelled: Unlabelled = Field(
        "no", description="whether the teacher also answers rows without labels; auto: if there are any"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.layer_map is not None:
            if self.layers not in (None, len(self.layer_map)):
                raise ValueError(
                    f"layer_map has {len(self.layer_map)} entries, layers = {self.layers}: make them equal"
                )
            if sorted(set(self.layer_map)) != list(self.layer_map):
                raise ValueError(f"layer_map = {list(self.layer_map)} does not rise: give each layer once, in order")
        return self


def starting_layers(depth: int, layers: int | None, layer_map: Sequence[int] | None = None) -> list[int]:
    """Return the teacher layers to copy.

    Raises:
        ConfigError: more layers than the teacher has.
    """
    if layer_map is None:
        return spread_layers(depth, layers or max(1, depth // 2))
    if layer_map[-1] >= depth:
        raise ConfigError(
            f"distilbert: layer_map = {list(layer_map)} does not fit {depth} layers: give indices in 0..{depth - 1}"
        )
    return list(layer_map)


class DistilBert(StudentMethod[DistilBertSettings]):
    """A student of half the layers, taken from the fine-tuned teacher, learns its answers, its states and the labels.

    ``alpha_ce T^2 KL(teacher_T || student_T) + alpha_hard CE(labels) + alpha_cos (1 - cos(last hidden states))``. With
    ``alpha_ce = alpha_cos = 0`` it learns from labels alone, and the teacher is not run. The head is by default of the
    teacher's kind, and starts from the teacher's if the layers do. The best dev epoch is kept. A ``schedule`` replaces the loss.
    """

    name = "distilbert"
    settings = DistilBertSettings
    shaping = ("layers", "layer_map")

    def uses_unlabelled(self, config: Mapping[str, Any]) -> bool:
        """Return whether the teacher answers rows without labels, too."""
        return config.get("unlabelled", "no") != "no"

    def learn(
        self, own: DistilBertSettings, task: Task, backbone: Backbone, teachers: Teachers, seed: int
    ) -> FullDepth:
        tuned = fitted_teacher(teachers)
        teacher = tuned.model
        given = self.pretrained(own, teacher.encoder.shape, backbone, task)
        if given is not None and own.start != "teacher":
            raise ConfigError("distilbert: start and student both say where layers come from: leave one out")
        if (
            given is not None
            and own.alpha_cos
            and not own.scheduled
            and given.shape.width != teacher.encoder.shape.width
        ):
            raise ConfigError(
                f"distilbert: student '{given.name}' is {given.shape.width} wide, its teacher "
                f"{teacher.encoder.shape.width}, and the cosine loss compares their states: set alpha_cos = 0"
                f"{' and alpha_ckd = 0' if own.alpha_ckd else ''}, or choose a student of equal width"
            )
        copied = given is None and own.start == "teacher"
        compared = own.alpha_cos > 0 or own.alpha_ckd > 0 or own.alpha_relation > 0
        taught = own.scheduled or own.alpha_ce > 0 or compared

        torch.manual_seed(seed)
        if given is not None:
            encoder = given.encoder()
        else:
            chosen = starting_layers(teacher.depth, own.layers, own.layer_map)
            encoder = take_layers(teacher.encoder if copied else backbone.encoder(), chosen)
        head = own.head or teacher.head_kind
        student = MultiExitModel(encoder, task.num_labels, (), head)
        if copied and head == teacher.head_kind:
            student.teacher.load_state_dict(teacher.teacher.state_dict())

        train = rows_to_teach(task, own.unlabelled, self.name) if taught else task.train
        hard: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy if train is task.train else hard_loss
        split, made = augment(train, backbone, own.augmentation, seed=seed, name=f"{task.name} {self.name}")
        last = [teacher.depth] if compared and not own.scheduled else []
        frozen = FrozenStates(teacher, split.tokens, last, own, name=f"{task.name} {self.name}")
        stored = frozen.store() if taught and own.epochs > 1 else None

        def loss(tokens: TokenSet, layout: Layout, labels: Tensor) -> Tensor:
            if not taught:
                return own.alpha_hard * F.cross_entropy(states_and_logits(student, tokens, layout)[1].float(), labels)
            said = frozen(tokens, layout)
            states, logits = states_and_logits(student, tokens, layout)
            if own.focus:
                soft = focused_kl(logits, said.answers, labels, own.temperature, own.focus)
            else:
                soft = soft_kl(logits, said.answers, own.temperature)
            total = own.alpha_ce * soft
            total = total + own.alpha_hard * hard(logits.float(), labels)
            for place in last:
                if own.alpha_cos:
                    wanted = layout.tokens(said.states[place])
                    total = total + own.alpha_cos * cosine_distance(layout.tokens(states[-1]), wanted)
                ours, theirs = (one.index_select(0, layout.first) for one in (states[-1], said.states[place]))
                if own.alpha_ckd:
                    total = total + own.alpha_ckd * contrastive_distance(ours, theirs)
                if own.alpha_relation:
                    total = total + own.alpha_relation * class_relations(ours, theirs, labels)
            return total

        def at(tokens: TokenSet, layout: Layout, labels: Tensor, time: float) -> Tensor:
            said = frozen(tokens, layout).answers
            return own.changing_loss(states_and_logits(student, tokens, layout)[1], said, labels, time)

        chosen_loss = Scheduled(at, len(split), own) if own.scheduled else loss
        report = self.train_student(student, chosen_loss, Split(frozen.rows, split.labels), own, task, seed, tuned)
        # The teacher is part of the cost of a student that uses it.
        return FullDepth(student, total_cost(tuned.training if copied or taught else None, made, stored, report))

    # Of the released reference run. Its masking prefers rare words, ours takes whole words; its position embeddings are
    # frozen, and so are ours (harness.pretraining.general_distillation).
    general_recipe: Mapping[str, Any] = {
        "learning_rate": 5e-4,
        "warmup": 0.05,
        "weight_decay": 0.0,
        "clip": 5.0,
        "dropout": 0.1,
    }

    def general_distillation(self, teacher: Backbone, *, config: Mapping[str, Any], dropout: float) -> Distillation:
        """Make a student that learns on raw text: soft words, masked words and cosine, or as CompactBioBERT.

        Raises:
            ConfigError: a setting is wrong, or the teacher has no masked-word head.
        """
        where = f"method '{self.name}'"
        if config.get("objective") == "compactbert":
            compact = CompactBertGeneralSettings.read(config, where)
            check_soft_words(self.name, teacher, compact.alpha_ce)
            return compact_distillation(teacher, compact, dropout)
        own = DistilBertGeneralSettings.read(config, where)
        check_soft_words(self.name, teacher, own.alpha_ce)
        chosen = starting_layers(teacher.shape.layers, own.layers)
        weights = own.alpha_ce, own.alpha_mlm, own.alpha_cos
        return WordDistillation(teacher, chosen, weights, own.temperature, own.soft_on == "masked", dropout)
