"""What methods with a student share: settings, pretrained students, word vectors to start from, augmented data and the last
stage of training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import TypeVar

from harness.core.errors import ConfigError
from harness.core.tokens import Split, Task
from harness.encoder.backbone import Backbone, content_of, load_backbone
from harness.encoder.model import Encoder
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.shape import EncoderShape
from harness.toolkit.augmentation import Augmentation
from harness.toolkit.base_method import StagedMethod
from harness.toolkit.dev_scores import full_depth_score
from harness.toolkit.fitted import FittedModel, FullDepth
from harness.toolkit.method_settings import MethodSettings
from harness.toolkit.teachers.loss_schedule import ScheduleSettings, without_patience
from harness.toolkit.training import LossFn, TrainingReport, train


class AugmentSettings(MethodSettings):
    """Settings of a method whose train rows may be augmented."""

    augment: int = Field(0, ge=0, description="augmented copies of every train sample")
    augment_p: float = Field(0.4, gt=0, le=1, description="probability that a word is replaced in a copy")
    augment_candidates: int = Field(15, ge=1, description="candidates to replace a word by")

    @property
    def augmentation(self) -> Augmentation:
        return Augmentation(self.augment, self.augment_p, self.augment_candidates)


class StartSettings(AugmentSettings):
    """Settings of a method that may train a pretrained student."""

    student: str | dict[str, str] = Field(
        "", description="folder or hub id to start from, or a table with one per language"
    )


class StudentSettings(ScheduleSettings, StartSettings):
    """Settings of a method that trains a student of ``bert``."""

    layers: int | None = Field(None, ge=1, description="layers of the student")
    temperature: float = Field(
        1.0, gt=0, description="temperature of the teacher's and the student's softmax in the loss"
    )


@torch.no_grad()
def leading_directions(teacher: Encoder, width: int) -> Tensor:
    """Return the orthonormal directions [teacher width, width] that keep most of the word embeddings.

    At equal width they are the identity; a larger width has zeros in addition.
    """
    if width >= teacher.shape.width:
        return torch.eye(teacher.shape.width, width).to(teacher.device)
    word = own_words(teacher).double().cpu()
    return torch.linalg.eigh(word.T @ word).eigenvectors.flip(1)[:, :width].float().to(teacher.device)


def own_words(encoder: Encoder) -> Tensor:
    """Return the word vectors of an encoder at the width of its layers: float32 [V, width]."""
    table = encoder.word.weight
    return F.linear(table, encoder.project.weight) if encoder.shape.embedding else table


def named_student(method: str, named: str | dict[str, str], language: str) -> str:
    """Return the student that a setting names for a language, ``""`` if it names none at all.

    Raises:
        ConfigError: it names others only.
    """
    if not isinstance(named, str) and named and language not in named:
        raise ConfigError(
            f"{method}: student = {named!r} names none for language '{language}': add {language} = \"...\""
        )
    return named if isinstance(named, str) else named.get(language, "")


T = TypeVar("T", bound=StartSettings, default=StudentSettings)


class StudentMethod(StagedMethod[T], Generic[T]):
    """A method that trains a student of the fine-tuned ``bert``.

    Attributes:
        shaping: settings that shape a new student, and have no meaning for a pretrained one.
    """

    needs: tuple[str, ...] = ("bert",)
    version = 2
    weights_version = 2
    fitted = FullDepth
    shaping: tuple[str, ...] = ("layers",)

    def named_content(self, config: Mapping[str, Any]) -> Any:
        """Return the content hash of the pretrained student, or one per language; ``None`` without one.

        Raises:
            BackboneError: there is no such folder or repository, or a file is missing.
        """
        named = self.read(config).student
        if isinstance(named, str):
            return content_of(named, "en") if named else None
        return {language: content_of(name, language) for language, name in named.items()} or None

    def uses_word_head(self, config: Mapping[str, Any]) -> bool:
        """Return whether augmentation may use the backbone's masked-word head."""
        return self.read(config).augment > 0

    def pretrained(self, own: T, teacher: EncoderShape | None, backbone: Backbone, task: Task) -> Backbone | None:
        """Load the pretrained student that the settings name; ``None`` if they name none.

        Args:
            teacher: the student is no larger; ``None`` for a student of any size.

        Raises:
            ConfigError: there is none for the task's language, or it does not fit: another vocabulary, more layers or a
                larger width than the teacher, fewer positions than the longest sample; or settings shape it, too.
            BackboneError: it cannot be found or read.
        """
        name = named_student(self.name, own.student, task.language)
        if not name:
            return None
        for key in self.shaping:
            if getattr(own, key) is not None:
                raise ConfigError(
                    f"{self.name}: student '{name}' has a fixed shape: leave out {key} = {getattr(own, key)}"
                )
        found = load_backbone(name, task.language, device=backbone.device)
        backbone.check_words(found.tokenizer, f"{self.name}: student '{name}'")
        where = f"{self.name}: student '{name}' has"
        most_of = found.shape if teacher is None else teacher
        for what, size, most in (
            ("layers", found.shape.layers, most_of.layers),
            ("width", found.shape.width, most_of.width),
        ):
            if size > most:
                raise ConfigError(f"{where} {what} {size}, its teacher {most}: choose a student that is no larger")
        if found.shape.max_positions < task.max_length:
            raise ConfigError(
                f"{where} {found.shape.max_positions} positions, samples have up to {task.max_length} tokens: lower max_length"
            )
        return found

    def train_student(
        self,
        student: MultiExitModel,
        loss: LossFn,
        split: Split,
        own: T,
        task: Task,
        seed: int,
        teacher: FittedModel,
        stage: str = "",
        trained: nn.Module | None = None,
    ) -> TrainingReport:
        """Train a student and keep its best epoch on dev; the teacher's layer passes are counted.

        Args:
            trained: the student with what is trained beside it; by default the student alone.
        """
        if isinstance(own, ScheduleSettings) and own.scheduled:
            own = without_patience(own)
        return train(
            student if trained is None else trained,
            loss,
            split,
            own,
            seed=seed,
            name=f"{task.name} {self.name}{stage}",
            evaluate=lambda: full_depth_score(student, task.dev),
            teachers=[teacher.model],
        )
