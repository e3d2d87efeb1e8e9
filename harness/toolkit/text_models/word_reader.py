"""Base class of models that read the word vectors of a text in order, and what their methods share.

The axes are those of Nityasya et al. (arXiv 2201.00558): the loss, word vectors at random or given, texts without labels, and
augmented rows.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import Any, Generic, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import TypeVar

from harness.core.errors import ConfigError
from harness.core.tokens import Task, TokenSet
from harness.encoder.backbone import Backbone
from harness.encoder.layout import Layout
from harness.encoder.multi_exit import MultiExitModel
from harness.toolkit.augmentation import augment
from harness.toolkit.base_method import StagedMethod, Storable, Teachers
from harness.toolkit.student_start import AugmentSettings, leading_directions, own_words
from harness.toolkit.text_models.teaching import TaughtSettings, needs_unlabelled, teach
from harness.toolkit.text_models.text_model import TextLimits, TextModel
from harness.toolkit.text_models.two_texts import compared, text_bounds
from harness.toolkit.training import TrainingReport

WIDTH = 300  # of word vectors, as usual for word2vec and fastText


class SmallStudentSettings(TaughtSettings, AugmentSettings):
    """Settings of a small student; ``augment`` copies have the teacher's answers, or labels with loss ce."""

    epochs: int = Field(30, ge=1, description="passes over what it learns first, at most; the best on dev is kept")
    loss: Literal["kl", "mse", "ce"] = Field(
        "mse",
        description="what it learns first: kl: the teacher's probabilities; mse: its logits; ce: labels alone, and the teacher "
        "does not run",
    )
    embeddings: Literal["backbone", "random"] = Field(
        "backbone",
        description="word vectors to start from: those of the backbone, projected on their leading directions, or random ones",
    )


class WordReaderSettings(SmallStudentSettings):
    """Settings of a model that reads word vectors."""

    learning_rate: float = Field(
        1e-3, gt=0, description="peak learning rate of word vectors (SparseAdam) and the rest (AdamW)"
    )
    width: int | None = Field(
        None, ge=1, description="width of word vectors; by default 300, or that of the backbone if it is smaller"
    )
    pairs: Literal["siamese", "joint"] = Field(
        "siamese",
        description="how it reads two texts: siamese: one by one, and it compares them; joint: as one text. A tokenizer without "
        "segments always gives one text",
    )


class WordReader(TextModel):
    """Word vectors of a text -> one vector -> logits. Special tokens are read as words are.

    Args:
        width: of word vectors.
        pairs: samples have two texts, which are read one by one.
    """

    def __init__(self, limits: TextLimits, labels: int, width: int = WIDTH, pairs: bool = False) -> None:
        super().__init__(limits, labels)
        self.width, self.pairs = width, pairs
        self.words = nn.Embedding(limits.vocab_size, width, sparse=True)

    @abstractmethod
    def read(self, ids: Tensor, bounds: Tensor, layout: Layout) -> Tensor:
        """Return a vector for each of S texts: [S, n].

        Args:
            ids: of all texts, packed.
            bounds: int64 [S + 1]; text ``i`` is ``ids[bounds[i]:bounds[i + 1]]``, which may be empty in pairs.
            layout: of the samples.
        """

    @abstractmethod
    def answer(self, vectors: Tensor) -> Tensor:
        """Return logits [B, C] of the vectors of samples; of pairs those of :func:`compared`."""

    def forward(self, tokens: TokenSet, layout: Layout) -> Tensor:
        vectors = self.read(tokens.ids, text_bounds(tokens) if self.pairs else tokens.offsets, layout)
        return self.answer(compared(vectors) if self.pairs else vectors)


def start_words(table: nn.Embedding, backbone: Backbone) -> None:
    """Fill a table with the word vectors of a backbone, projected on their leading directions.

    They are scaled to the deviation of random ones (1), so that a learning rate means the same for every backbone.
    """
    encoder = backbone.encoder()
    with torch.no_grad():
        vectors = own_words(encoder) @ leading_directions(encoder, table.embedding_dim)
        table.weight.copy_(vectors / vectors.std())


def augmented(
    model: TextModel | MultiExitModel,
    method: str,
    own: SmallStudentSettings,
    task: Task,
    backbone: Backbone,
    teachers: Teachers,
    seed: int,
) -> TrainingReport:
    """Train a small student in place (:func:`~harness.toolkit.text_models.teaching.teach`), with augmented rows if asked for."""
    more = partial(augment, backbone=backbone, how=own.augmentation, seed=seed, name=f"{task.name} {method}")
    return teach(method, model, own, task, teachers, seed, more=more)


W = TypeVar("W", bound=WordReaderSettings)
M = TypeVar("M", bound=Storable)


class WordReaderMethod(StagedMethod[W, M], Generic[W, M]):
    """A method that trains a :class:`WordReader`."""

    needs = ("bert",)

    def uses_unlabelled(self, config: Mapping[str, Any]) -> bool:
        """Return whether the teacher answers rows without labels, too."""
        return needs_unlabelled(self.settings, config)

    def uses_word_head(self, config: Mapping[str, Any]) -> bool:
        """Return whether augmentation may use the backbone's masked-word head."""
        return self.read(config).augment > 0

    def shape(self, own: W, task: Task, backbone: Backbone) -> dict[str, Any]:
        """Return width and pairs of the model, see :class:`WordReader`.

        Raises:
            ConfigError: the backbone's vectors are narrower than ``width``.
        """
        width, widest = own.width or min(WIDTH, backbone.shape.width), backbone.shape.width
        if own.embeddings == "backbone" and width > widest:
            raise ConfigError(
                f"{self.name}: width = {width}, but the vectors of {backbone.name} have {widest}: lower width, or set "
                'embeddings = "random"'
            )
        return {"width": width, "pairs": own.pairs == "siamese" and bool((task.train.tokens.segments > 0).any())}

    def taught(
        self, model: WordReader, own: W, task: Task, backbone: Backbone, teachers: Teachers, seed: int
    ) -> TrainingReport:
        """Start the word vectors, move the model to the backbone's device, and train it."""
        if own.embeddings == "backbone":
            start_words(model.words, backbone)
        model.to(backbone.device)
        return augmented(model, self.name, own, task, backbone, teachers, seed)
