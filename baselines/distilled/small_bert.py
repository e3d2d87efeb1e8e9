"""Small BERTs (Turc et al. 2019, arXiv 1908.08962), as the students of Nityasya et al. (2201.00558): from scratch or from a folder.

As published: shapes of BERT-Tiny (2 layers of width 128), BERT-Mini (4 x 256) and BERT-Small (4 x 512), heads of width 64, an inner
width of four times the width; the pretrained ones are google/bert_uncased_L-2_H-128_A-2 and so on (``student``, which must have the
backbone's vocabulary). The teacher is the fine-tuned ``bert``.

Our interpretation: without ``student``, nothing is pretrained. Embeddings then start from the backbone's, projected on the leading
directions of its word vectors as TinyBERT's do, and layers at random; if the student is wider than the backbone, zeros fill the
rest. Words are those of the backbone's tokenizer, so that the number of parameters is the published one with its vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch.nn import functional as F

from harness.core.errors import ConfigError
from harness.core.tokens import Task
from harness.encoder.backbone import Backbone
from harness.encoder.model import Encoder
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.shape import EncoderShape
from harness.toolkit.base_method import Teachers
from harness.toolkit.fitted import FullDepth
from harness.toolkit.method_settings import Head
from harness.toolkit.student_start import StartSettings, StudentMethod, leading_directions
from harness.toolkit.text_models.teaching import needs_unlabelled
from harness.toolkit.text_models.word_reader import SmallStudentSettings, augmented


class SmallBertSettings(SmallStudentSettings, StartSettings):
    """Settings of a small BERT."""

    learning_rate: float = Field(3e-4, gt=0, description="peak learning rate of AdamW")
    head: Head = Field("linear", description="kind of classifier head; linear is BERT's pooler and classifier")


@torch.no_grad()
def start_tables(student: Encoder, backbone: Backbone) -> None:
    """Start embeddings from a backbone's, projected on the leading directions of its word vectors."""
    wide = backbone.encoder().to("cpu")
    basis = leading_directions(wide, student.shape.width)
    for part, table in wide.tables().items():
        rows = F.linear(table.weight, wide.project.weight) if wide.shape.embedding else table.weight
        own = student.tables()[part].weight
        own.copy_(rows @ basis)


class SmallBert(StudentMethod[SmallBertSettings]):
    """A BERT of a published small shape, taught by ``bert``. The best dev epoch is kept.

    Attributes:
        layers: of its shape.
        width: of its shape.
    """

    settings = SmallBertSettings
    shaping = ()
    layers: ClassVar[int]
    width: ClassVar[int]

    def uses_unlabelled(self, config: Mapping[str, Any]) -> bool:
        """Return whether the teacher answers rows without labels, too."""
        return needs_unlabelled(SmallBertSettings, config)

    def shape(self, backbone: EncoderShape) -> EncoderShape:
        """Return the published shape with the vocabulary, positions and segments of a backbone."""
        return EncoderShape(
            self.layers,
            self.width,
            self.width // 64,
            4 * self.width,
            backbone.vocab_size,
            backbone.max_positions,
            backbone.type_vocab,
        )

    def learn(self, own: SmallBertSettings, task: Task, backbone: Backbone, teachers: Teachers, seed: int) -> FullDepth:
        given = self.pretrained(own, None, backbone, task)
        torch.manual_seed(seed)
        if given is None:
            encoder = Encoder(self.shape(backbone.shape))
            if own.embeddings == "backbone":
                start_tables(encoder, backbone)
        else:
            self._check(own, given)
            encoder = given.encoder()
        student = MultiExitModel(encoder.to(backbone.device), task.num_labels, (), own.head)
        return FullDepth(student, augmented(student, self.name, own, task, backbone, teachers, seed))

    def _check(self, own: SmallBertSettings, given: Backbone) -> None:
        """Check that a student has the size of this row; raises :class:`ConfigError`."""
        size = given.shape.layers, given.shape.width
        if size != (self.layers, self.width):
            raise ConfigError(
                f"{self.name}: student '{given.name}' has {size[0]} layers of width {size[1]}, not {self.layers} of width "
                f"{self.width}: name one of that size, or use distilbert, which takes any"
            )
        if "embeddings" in own.model_fields_set:
            raise ConfigError(
                f"{self.name}: student and embeddings both say where word vectors come from: leave one out"
            )


class BertTiny(SmallBert):
    """BERT-Tiny: 2 layers of width 128, two heads; 4,385,920 parameters with 30,522 words and BERT's pooler."""

    name = "bert-tiny"
    layers, width = 2, 128


class BertMini(SmallBert):
    """BERT-Mini: 4 layers of width 256, four heads; 11,170,560 parameters with 30,522 words and BERT's pooler."""

    name = "bert-mini"
    layers, width = 4, 256


class BertSmall(SmallBert):
    """BERT-Small: 4 layers of width 512, eight heads; 28,763,648 parameters with 30,522 words and BERT's pooler."""

    name = "bert-small"
    layers, width = 4, 512
