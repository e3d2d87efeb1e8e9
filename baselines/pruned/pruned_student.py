"""What methods that prune share: settings, the student to start from, checks of its teacher, and the compact model at the end."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Generic, Literal

import torch
from pydantic import Field
from typing_extensions import TypeVar

from harness.core.errors import ConfigError
from harness.core.tokens import Task
from harness.encoder.backbone import Backbone
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.pruning.compaction import compacted
from harness.encoder.pruning.unit_masks import EncoderMasks, check_prunable
from harness.toolkit.base_method import StagedMethod, Teachers
from harness.toolkit.distillation import Unlabelled, fitted_teacher, take_layers
from harness.toolkit.fitted import FittedModel, FullDepth
from harness.toolkit.method_settings import MethodSettings


class PrunedSettings(MethodSettings):
    """Settings of a method that prunes a student while it learns from ``bert``."""

    density: float = Field(0.2, gt=0, le=1, description="share of the layers' weights that is left")
    start: Literal["teacher", "backbone"] = Field(
        "teacher", description="model that the student starts from; backbone: as released, with a new head"
    )
    temperature: float = Field(
        1.0, gt=0, description="temperature of the teacher's and the student's softmax in the loss"
    )
    alpha_hard: float = Field(0.0, ge=0, description="weight of the labels, beside the soft answers")
    unlabelled: Unlabelled = Field(
        "no", description="whether the teacher also answers rows without labels; auto: if there are any"
    )


P = TypeVar("P", bound=PrunedSettings, default=PrunedSettings)


def checked_teacher(method: str, teachers: Teachers, task: Task, backbone: Backbone) -> FittedModel:
    """Return the fine-tuned ``bert``.

    Raises:
        ConfigError: it has other labels or another vocabulary, is pruned already, or cannot be pruned.
    """
    tuned = fitted_teacher(teachers)
    model, shape = tuned.model, tuned.model.encoder.shape
    if model.labels != task.num_labels:
        raise ConfigError(
            f"{method}: its teacher answers {model.labels} labels, '{task.name}' has {task.num_labels}: name a teacher of this task"
        )
    if shape.vocab_size != backbone.shape.vocab_size:
        raise ConfigError(
            f"{method}: its teacher has {shape.vocab_size} token ids, backbone {backbone.name} {backbone.shape.vocab_size}: name "
            "a teacher made from that backbone"
        )
    check_prunable(shape, "its teacher", method)
    return tuned


class PruningMethod(StagedMethod[P], Generic[P]):
    """A method that removes units of a student of ``bert`` and returns it compacted, at full depth."""

    needs: tuple[str, ...] = ("bert",)
    fitted = FullDepth

    def uses_unlabelled(self, config: Mapping[str, Any]) -> bool:
        """Return whether the teacher answers rows without labels, too."""
        return config.get("unlabelled", "no") != "no"

    def first_student(
        self, own: P, teacher: MultiExitModel, task: Task, backbone: Backbone, seed: int
    ) -> MultiExitModel:
        """Return the student before pruning, of the teacher's size.

        Raises:
            ConfigError: it starts from the backbone, which has another shape than the teacher.
        """
        torch.manual_seed(seed)
        if own.start == "backbone":
            if backbone.shape != teacher.encoder.shape:
                raise ConfigError(
                    f'{self.name}: start = "backbone" needs a teacher of the backbone\'s shape, so that states can be compared: '
                    'use start = "teacher"'
                )
            encoder = backbone.encoder()
        else:
            encoder = take_layers(teacher.encoder, range(teacher.depth))
        student = MultiExitModel(encoder, task.num_labels, (), own.head or teacher.head_kind)
        if own.start == "teacher" and student.head_kind == teacher.head_kind:
            student.teacher.load_state_dict(teacher.teacher.state_dict())
        return student

    def small_model(self, student: MultiExitModel, masks: EncoderMasks, task: Task) -> MultiExitModel:
        """Return the compact student; says on stderr which parts of layers are gone."""
        gone = list(masks.gone())
        if gone:
            print(
                f"{task.name} {self.name}: nothing is left of {', '.join(gone)}; their bias and norm stay",
                file=sys.stderr,
            )
        return compacted(student, masks)
