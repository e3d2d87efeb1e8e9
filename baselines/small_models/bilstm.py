"""A BiLSTM taught by BERT (Tang et al. 2019, arXiv 1903.12136), as one of the students of Nityasya et al. (2201.00558).

As published (recalled; no code was read): one layer of 2 x 150 or 2 x 300 units over word vectors of width 300, the last state
of both directions, a dense layer of 200 or 400 with ReLU, a label layer; two texts are read one by one and compared as
``[u; v; |u - v|; u * v]``; the loss is the squared difference of logits alone (``alpha_hard`` adds labels).

Our interpretation: words are word pieces with [CLS] and [SEP], whose vectors start from the backbone's, instead of word2vec; all
of them are trained; AdamW instead of AdaDelta; dropout; augmented rows are TinyBERT's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from harness.core.tokens import Task
from harness.core.work import BlockCost, MatrixCost, Tally
from harness.encoder import transfer
from harness.encoder.backbone import Backbone
from harness.encoder.layout import Layout
from harness.toolkit.base_method import Teachers
from harness.toolkit.text_models.fitted_text import FittedText
from harness.toolkit.text_models.text_model import TextLimits
from harness.toolkit.text_models.word_reader import WIDTH, WordReader, WordReaderMethod, WordReaderSettings


class BiLstmSettings(WordReaderSettings):
    """Settings of the BiLSTM."""

    hidden: int = Field(150, ge=1, description="units of each direction; 150 or 300 as published")
    dense: int = Field(200, ge=1, description="units of the layer before the label layer; 200 or 400 as published")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout of word vectors and of the dense layer")


class BiLstmModel(WordReader):
    """Word vectors -> last states of an LSTM in both directions -> dense layer, ReLU -> label layer.

    Args:
        width: of word vectors.
        pairs: samples have two texts, which are read one by one.
        hidden: units of each direction.
        dense: units of the dense layer.
        dropout: of word vectors and of the dense layer.
    """

    def __init__(
        self,
        limits: TextLimits,
        labels: int,
        width: int = WIDTH,
        pairs: bool = False,
        hidden: int = 150,
        dense: int = 200,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(limits, labels, width, pairs)
        self.hidden, self.dropout = hidden, dropout
        self.lstm = nn.LSTM(width, hidden, batch_first=True, bidirectional=True)
        self.dense = nn.Linear(2 * hidden * (4 if pairs else 1), dense)
        self.label = nn.Linear(dense, labels)

    def read(self, ids: Tensor, bounds: Tensor, layout: Layout) -> Tensor:
        """Run packed rows, without padding. An empty text has zeros; of pairs, the host waits for the lengths of texts."""
        lengths = transfer.download(bounds.diff()).wait() if self.pairs else layout.lengths
        sizes = torch.from_numpy(lengths).clamp(min=1)
        places = torch.arange(int(sizes.max()), device=ids.device)
        grid = ids[(bounds[:-1, None] + places).clamp(max=len(ids) - 1)]
        packed = pack_padded_sequence(grid, sizes, batch_first=True, enforce_sorted=False)
        vectors = F.dropout(self.words(packed.data), self.dropout, self.training)
        _, (last, _) = self.lstm(PackedSequence(vectors, *packed[1:]))
        return torch.cat([*last], 1) * (bounds.diff() > 0)[:, None]

    def answer(self, vectors: Tensor) -> Tensor:
        hidden = F.relu(self.dense(vectors))
        logits: Tensor = self.label(F.dropout(hidden, self.dropout, self.training))
        return logits

    def tallies(self, layout: Layout) -> Mapping[str, Tally]:
        whole = Tally(layout.count, layout.count, layout.count)
        return {"lstm.0": Tally(layout.count, layout.valid, layout.valid), "dense.0": whole, "label.0": whole}

    def blocks(self) -> Mapping[str, BlockCost]:
        """Return the cost of matrices: four gates of both directions, which read the word and the state before."""
        return {
            "lstm": MatrixCost(2 * 4 * self.hidden * (self.width + self.hidden)),
            "dense": MatrixCost(self.dense.weight.numel(), "sample"),
            "label": MatrixCost(self.label.weight.numel(), "sample"),
        }

    def facts(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("width", "pairs", "hidden", "dropout")}
        return {**own, "dense": self.dense.out_features}


class FittedBiLstm(FittedText):
    """A trained BiLSTM."""

    kind = BiLstmModel


class BiLstm(WordReaderMethod[BiLstmSettings, FittedBiLstm]):
    """A bidirectional LSTM over word vectors, taught by ``bert``."""

    name = "bilstm"
    settings = BiLstmSettings
    fitted = FittedBiLstm

    def learn(self, own: BiLstmSettings, task: Task, backbone: Backbone, teachers: Teachers, seed: int) -> FittedBiLstm:
        shape = self.shape(own, task, backbone) | own.model_dump(include={"hidden", "dense", "dropout"})
        torch.manual_seed(seed)
        model = BiLstmModel(TextLimits.of(task, backbone), task.num_labels, **shape)
        return FittedBiLstm(model, self.taught(model, own, task, backbone, teachers, seed))
