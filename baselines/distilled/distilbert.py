"""DistilBERT (Sanh et al. 2019, arXiv 1910.01108), distilled on the task, on raw text, or both.

The paper distils while pre-training on raw text: :meth:`DistilBert.general_distillation`, whose student (or a public one,
``student = "distilbert-base-uncased"``) is then fine-tuned, with the teacher's help or by labels alone. Without a student, the
teacher is the fine-tuned BERT and the text is the task's train split, as in FastBERT's DistilBERT rows; so the loss on gold
labels stands in the place of masked language modelling. Embeddings with segments, alternate layers and the head are then
copied from the fine-tuned teacher.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from harness.contracts import Fitted, Kind
from harness.core.errors import ConfigError
from harness.core.tokens import Task, TokenSet
from harness.encoder.backbone import Backbone
from harness.encoder.layout import Layout
from harness.encoder.masked_words import ABSENT, MaskedWordModel, guessing_loss
from harness.encoder.model import Encoder
from harness.encoder.multi_exit import MultiExitModel
from harness.pretraining.general_distillation import Distillation, DistillationRows
from harness.registry import register
from harness.toolkit import augmentation
from harness.toolkit.distillation import (
    checked_temperature,
    checked_weights,
    cosine_distance,
    fitted_teacher,
    soft_kl,
    spread_layers,
    states_and_logits,
    take_layers,
)
from harness.toolkit.fitted import FullDepth, load_model
from harness.toolkit.student_start import load_student, student_identity
from harness.toolkit.training import Recipe, dev_accuracies, own_settings, train

# Temperature and 5 : 2 : 1 are those of the released reference run; the 2 was on masked language modelling there.
DEFAULTS: dict[str, Any] = {
    "layers": None,  # half of the teacher's
    "layer_map": None,  # teacher layer index each student layer starts from; evenly spread
    "student": {},  # a folder or hub id to start from instead, or one per language: {en = "...", zh = "..."}
    "start": "teacher",  # whose layers are copied: the fine-tuned "teacher"'s, or those of the pretrained "backbone"
    "temperature": 2.0,
    "alpha_ce": 5.0,
    "alpha_hard": 2.0,
    "alpha_cos": 1.0,
    **augmentation.SETTINGS,
}
STARTS = ("teacher", "backbone")
GENERAL: dict[str, Any] = {
    "layers": None,
    "temperature": 2.0,
    "alpha_ce": 5.0,
    "alpha_mlm": 2.0,
    "alpha_cos": 1.0,
    "soft_on": "all",  # tokens whose soft answers are learnt; "masked": the guessed ones only (--restrict_ce_to_mask)
}


def starting_layers(depth: int, layers: int | None, layer_map: list[int] | None) -> list[int]:
    """Teacher layers to copy.

    Raises:
        ConfigError: more layers than the teacher has, or a map that does not fit.
    """
    if layer_map is None:
        return spread_layers(depth, max(1, depth // 2) if layers is None else layers)
    if not isinstance(layer_map, list | tuple) or not layer_map or layers not in (None, len(layer_map)):
        raise ConfigError(
            f"distilbert: layer_map {layer_map} does not name {layers or 'any'} layers: list as many indices"
        )
    if not all(isinstance(i, int) and 0 <= i < depth for i in layer_map) or sorted(set(layer_map)) != list(layer_map):
        raise ConfigError(
            f"distilbert: layer_map {layer_map} does not fit the teacher: give rising layer indices in 0..{depth - 1}"
        )
    return list(layer_map)


class WordDistillation(Distillation):
    """The paper's loss on raw text.

    ``alpha_ce T^2 KL(teacher_T || student_T) + alpha_mlm CE(masked words) + alpha_cos (1 - cos(last hidden states))``, each a
    mean over tokens that are no padding (CE: over masked ones). The student has the named layers of the teacher, its
    embeddings and its masked-word head; of the head, a fresh one where the teacher has none.

    Args:
        weights: alpha_ce, alpha_mlm, alpha_cos.
        masked_only: soft words of masked tokens only.
    """

    _TOGETHER = 2**27  # scores of soft words that are computed at a time, for the sake of memory

    def __init__(
        self,
        teacher: Backbone,
        layers: list[int],
        weights: tuple[float, ...],
        temperature: float,
        masked_only: bool,
        dropout: float,
    ) -> None:
        encoder = take_layers(teacher.encoder(), layers, dropout)
        super().__init__(teacher, encoder)
        self.student = MaskedWordModel(encoder).to(encoder.device)
        if teacher.head is not None:
            self.student.load_state_dict({**self.student.state_dict(), **teacher.head})
        encoder.position.weight.requires_grad_(False)
        self.weights, self.temperature, self.masked_only = weights, temperature, masked_only
        self.objective = "{:g} x soft words + {:g} x masked words + {:g} x cosine of the last states".format(*weights)
        self.objective += f", temperature {temperature:g}"

    @property
    def encoder(self) -> Encoder:
        return self.student.encoder

    @property
    def words(self) -> MaskedWordModel:
        return self.student

    def _soft(self, states: Tensor, taught: Tensor) -> Tensor:
        """Mean of the soft loss over tokens [n, D], some at a time; the words' scores are made again for the gradient."""

        def part(own: Tensor, wanted: Tensor) -> Tensor:
            with torch.no_grad():
                soft = self.teacher.scores(wanted)
            return soft_kl(self.student.scores(own), soft, self.temperature) * len(own)

        size = max(1, self._TOGETHER // self.encoder.shape.vocab_size)
        parts = zip(states.split(size), taught.split(size), strict=True)
        sums = [checkpoint(part, *both, use_reentrant=False, preserve_rng_state=False) for both in parts]
        return torch.stack(sums).sum() / max(1, len(states))

    def loss(self, rows: DistillationRows) -> Tensor:
        soft, masked, cosine = self.weights
        last, taught = rows.states[-1], rows.taught[-1]
        total = last.new_zeros((), dtype=torch.float32)
        if soft:
            # Fewer may be masked than there are places: those behind them are numbered 0 and count for nothing.
            chosen = rows.where[rows.labels != ABSENT] if self.masked_only else None
            mine, his = (rows.tokens(h) if chosen is None else h.index_select(0, chosen) for h in (last, taught))
            if len(mine):
                total = total + soft * self._soft(mine, his)
        if masked:
            total = total + masked * guessing_loss(self.student, last, rows.where, rows.labels)
        if cosine:
            total = total + cosine * cosine_distance(rows.tokens(last), rows.tokens(taught))
        return total


@register
class DistilBert:
    """A student of half the layers, taken from the fine-tuned teacher, learns its answers, its states and the labels.

    ``alpha_ce T^2 KL(teacher_T || student_T) + alpha_hard CE(labels) + alpha_cos (1 - cos(last hidden states))``. With
    ``alpha_ce = alpha_cos = 0`` it learns from labels alone, and the teacher is not run.

    Config: :data:`DEFAULTS`, the keys of :class:`~harness.toolkit.training.Recipe`, and ``head`` (default: the teacher's kind,
    whose weights are then copied where its layers are).
    """

    name = "distilbert"
    kind: Kind = "method"
    needs: tuple[str, ...] = ("bert",)
    version = 2

    def named_content(self, config: Mapping[str, Any]) -> str | None:
        """Content of the student that is named, if one is."""
        return student_identity(config)

    def uses_word_head(self, config: Mapping[str, Any]) -> bool:
        """Return whether words are replaced by what the masked-word head predicts (``augment``)."""
        return bool(config.get("augment"))

    def fit(
        self,
        task: Task,
        backbone: Backbone,
        teachers: Mapping[str, Fitted],
        *,
        config: Mapping[str, Any],
        seed: int,
    ) -> FullDepth:
        """Distil on train, keep the best epoch on dev.

        Raises:
            ConfigError: a setting that makes no sense or that nobody reads, or a student that does not go with the teacher.
        """
        own = own_settings(self.name, config, DEFAULTS)
        temperature = checked_temperature(self.name, own["temperature"])
        weights = checked_weights(self.name, own, "alpha_ce", "alpha_hard", "alpha_cos")
        if own["start"] not in STARTS:
            raise ConfigError(f"distilbert: start = {own['start']!r} is unknown: choose one of {', '.join(STARTS)}")
        how = augmentation.Augmentation.of(self.name, own)
        tuned = fitted_teacher(teachers)
        teacher = tuned.model
        given = load_student(self.name, own, ("layers", "layer_map"), teacher.encoder.shape, backbone, task)
        if given is not None and own["start"] != "teacher":
            raise ConfigError("distilbert: start and student both say where layers come from: leave one out")
        if given is not None and weights[2] and given.shape.width != teacher.encoder.shape.width:
            raise ConfigError(
                f"distilbert: student '{given.name}' is {given.shape.width} wide, its teacher "
                f"{teacher.encoder.shape.width}, and the cosine loss compares their states: set alpha_cos = 0, or choose "
                "a student of equal width"
            )
        copied = given is None and own["start"] == "teacher"
        taught = weights[0] > 0 or weights[2] > 0
        recipe = Recipe.of(config)

        torch.manual_seed(seed)
        if given is not None:
            encoder = given.encoder()
        else:
            chosen = starting_layers(teacher.depth, own["layers"], own["layer_map"])
            encoder = take_layers(teacher.encoder if copied else backbone.encoder(), chosen)
        head = config.get("head", teacher.head_kind)
        student = MultiExitModel(encoder, task.num_labels, (), head)
        if copied and head == teacher.head_kind:
            student.teacher.load_state_dict(teacher.teacher.state_dict())

        def loss(tokens: TokenSet, layout: Layout, labels: Tensor) -> Tensor:
            if not taught:
                return weights[1] * F.cross_entropy(states_and_logits(student, tokens, layout)[1].float(), labels)
            with torch.no_grad():
                wanted, soft = states_and_logits(teacher, tokens, layout)
            states, logits = states_and_logits(student, tokens, layout)
            total = weights[0] * soft_kl(logits, soft, temperature) + weights[1] * F.cross_entropy(
                logits.float(), labels
            )
            if weights[2]:
                total = total + weights[2] * cosine_distance(layout.tokens(states[-1]), layout.tokens(wanted[-1]))
            return total

        told = f"{task.name} {self.name}"
        split, made = augmentation.augment(task.train, backbone, how, seed=seed, name=told)
        report = train(
            student,
            loss,
            split,
            recipe,
            seed=seed,
            name=told,
            evaluate=lambda: dev_accuracies(student, task.dev)[-1],
            teachers=[teacher],
        )
        if made is not None:
            report = made + report
        if tuned.training is not None and (copied or taught):
            report = tuned.training + report  # the teacher is part of what a student costs
        return FullDepth(student, report)

    def load(self, folder: Path, task: Task, backbone: Backbone, teachers: Mapping[str, Fitted]) -> FullDepth:
        """What ``save`` wrote."""
        return FullDepth(*load_model(folder, backbone.device))

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
        """The paper's objective on raw text: ``alpha_ce`` soft words + ``alpha_mlm`` masked words + ``alpha_cos`` cosine.

        Raises:
            ConfigError: a setting that makes no sense, or a teacher that does not score words.
        """
        own = own_settings(self.name, config, GENERAL)
        temperature = checked_temperature(self.name, own["temperature"])
        weights = checked_weights(self.name, own, "alpha_ce", "alpha_mlm", "alpha_cos")
        if own["soft_on"] not in ("all", "masked"):
            raise ConfigError(f"distilbert: soft_on = {own['soft_on']!r} is unknown: choose all or masked")
        if weights[0] and teacher.head is None:
            raise ConfigError(
                f"distilbert: '{teacher.name}' has no masked-word head, so that it has no soft answers to learn: say "
                "--alpha-ce 0 (masked words are then learnt by a fresh head), or choose a teacher that has one"
            )
        chosen = starting_layers(teacher.shape.layers, own["layers"], None)
        return WordDistillation(teacher, chosen, weights, temperature, own["soft_on"] == "masked", dropout)
