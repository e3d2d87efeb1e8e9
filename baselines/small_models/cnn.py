"""Filters over word vectors (Kim, EMNLP 2014, arXiv 1408.5882), as one of the students of Nityasya et al. (2201.00558).

Read in the released code (yoonkim/CNN_sentence): filters of 3, 4 and 5 words with 100 maps each, ReLU, the largest value over the
text, dropout 0.5, a label layer; four zeros before a text and after it, so that windows may begin before the first word and end
after the last.

Our interpretation: words are word pieces with [CLS] and [SEP], whose vectors start from the backbone's, instead of word2vec; all
of them are trained; AdamW instead of AdaDelta, without a limit on the norm of label weights; no text is padded to the longest; two
texts are read one by one and compared as Tang et al.'s LSTM does (:mod:`baselines.small_models.bilstm`); the teacher and augmented
rows are as there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn
from torch.nn import functional as F

from harness.core.tokens import Task
from harness.core.work import BlockCost, MatrixCost, Tally
from harness.encoder.backbone import Backbone
from harness.encoder.layout import Layout
from harness.toolkit.base_method import Teachers
from harness.toolkit.text_models.fitted_text import FittedText
from harness.toolkit.text_models.text_model import TextLimits
from harness.toolkit.text_models.word_reader import WIDTH, WordReader, WordReaderMethod, WordReaderSettings


def _distinct(sizes: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(sizes)) < len(sizes):
        raise ValueError("a filter is given twice: sizes must differ")
    return sizes


class CnnSettings(WordReaderSettings):
    """Settings of the CNN."""

    filters: Annotated[
        tuple[Annotated[int, Field(ge=1, le=32)], ...], Field(strict=False, min_length=1), AfterValidator(_distinct)
    ] = Field((3, 4, 5), description="words that a filter reads")
    maps: int = Field(100, ge=1, description="filters of each size")
    dropout: float = Field(0.5, ge=0, lt=1, description="dropout of the largest values")


class CnnModel(WordReader):
    """Word vectors -> filters of several sizes -> largest values over the text, ReLU -> label layer.

    Texts stay packed, with zeros between them, which the windows of both sides share: nothing is padded to a common length.

    Args:
        width: of word vectors.
        pairs: samples have two texts, which are read one by one.
        filters: words that a filter reads.
        maps: of each size of filter.
        dropout: of the largest values.
    """

    def __init__(
        self,
        limits: TextLimits,
        labels: int,
        width: int = WIDTH,
        pairs: bool = False,
        filters: tuple[int, ...] = (3, 4, 5),
        maps: int = 100,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(limits, labels, width, pairs)
        self.filters, self.maps, self.dropout = tuple(filters), maps, dropout
        self.gap = max(filters) - 1  # zeros before every text and after the last
        self.maps_of = nn.ModuleList(nn.Linear(size * width, maps) for size in filters)
        self.label = nn.Linear(len(filters) * maps * (4 if pairs else 1), labels)

    def read(self, ids: Tensor, bounds: Tensor, layout: Layout) -> Tensor:
        numbers = torch.arange(len(bounds) - 1, device=ids.device)
        rows = len(ids) + len(numbers) * self.gap  # windows: they begin at words and at zeros before them
        text = torch.repeat_interleave(numbers, bounds.diff(), output_size=len(ids))
        place = torch.arange(len(ids), device=ids.device) + (text + 1) * self.gap
        vectors = self.words(ids)
        spread = vectors.new_zeros(rows + self.gap, self.width).index_copy(0, place, vectors)
        windows = torch.cat([spread[first : first + rows] for first in range(self.gap + 1)], 1)
        # Every size reads the first columns of the same windows.
        found = [one(windows[:, : one.in_features]) for one in self.maps_of]
        begins = bounds[:-1] + numbers * self.gap
        every = torch.arange(rows, device=ids.device)
        return F.relu(F.embedding_bag(every, torch.cat(found, 1).float(), begins, mode="max"))

    def answer(self, vectors: Tensor) -> Tensor:
        logits: Tensor = self.label(F.dropout(vectors, self.dropout, self.training))
        return logits

    def tallies(self, layout: Layout) -> Mapping[str, Tally]:
        windows = layout.valid + layout.count * (2 if self.pairs else 1) * self.gap
        filters = {f"filter.{size}": Tally(layout.count, windows, layout.valid) for size in self.filters}
        return {**filters, "label.0": Tally(layout.count, layout.count, layout.count)}

    def blocks(self) -> Mapping[str, BlockCost]:
        filters = {f"filter.{size}": MatrixCost(size * self.width * self.maps) for size in self.filters}
        return {**filters, "label": MatrixCost(self.label.weight.numel(), "sample")}

    def facts(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("width", "pairs", "filters", "maps", "dropout")}


class FittedCnn(FittedText):
    """A trained CNN."""

    kind = CnnModel


class Cnn(WordReaderMethod[CnnSettings, FittedCnn]):
    """Filters of several sizes over word vectors, and their largest values, taught by ``bert``."""

    name = "cnn"
    settings = CnnSettings
    fitted = FittedCnn

    def learn(self, own: CnnSettings, task: Task, backbone: Backbone, teachers: Teachers, seed: int) -> FittedCnn:
        shape = self.shape(own, task, backbone) | own.model_dump(include={"filters", "maps", "dropout"})
        torch.manual_seed(seed)
        model = CnnModel(TextLimits.of(task, backbone), task.num_labels, **shape)
        return FittedCnn(model, self.taught(model, own, task, backbone, teachers, seed))
