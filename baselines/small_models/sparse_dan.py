"""Sparse distillation (Ye et al., NAACL 2022, arXiv 2110.08536): the mean of n-gram vectors, taught by ``bert``.

Read in the released code (INK-USC/sparse-distillation): n-grams of one to four tokens with their multiplicity, their
mean, a dense layer with tanh between two dropouts, a label layer; the loss with weights per class; SparseAdam for the
table and Adam for the rest. Read in the paper: three stages, which are a teacher on train, distillation on texts
without labels and train, then labels.

Our interpretation: n-grams are those of word pieces, hashed to the rows of a table inside the timed region, instead of
the million most frequent ones of words; the table starts at zero, so that n-grams that training never saw add nothing;
sizes and epochs are smaller; the two texts of a pair share no n-grams.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from harness.core.tokens import Task, TokenSet
from harness.core.work import BlockCost, MatrixCost, SumCost, Tally
from harness.encoder.backbone import Backbone
from harness.encoder.layout import Layout
from harness.toolkit.base_method import StagedMethod, Teachers
from harness.toolkit.text_models.bags import mean_of_rows
from harness.toolkit.text_models.fitted_text import FittedText
from harness.toolkit.text_models.table_optimizer import check_room
from harness.toolkit.text_models.teaching import SoftLoss, TaughtSettings, needs_unlabelled, teach
from harness.toolkit.text_models.text_model import TextLimits, TextModel

# Odd 64-bit numbers: the multiplier of Knuth's MMIX generator, and 2^64 over the golden ratio (Fibonacci hashing).
MULTIPLIER, GOLDEN = 6364136223846793005, -7046029254386353131
NOTHING = 0  # row of the table that stands for no n-gram


class SparseDanSettings(TaughtSettings):
    """Settings of the sparse student. Published values that need weeks of training are marked in the docs."""

    epochs: int = Field(10, ge=1, description="passes over train and rows without labels, with the teacher's answers")
    learning_rate: float = Field(
        3e-3, gt=0, description="peak learning rate of the table (SparseAdam) and the rest (AdamW)"
    )
    label_epochs: int = Field(3, ge=0, description="epochs on labels alone afterwards; the better one on dev is kept")
    rows: int = Field(18, ge=4, le=30, description="rows of the table, as a power of two: 18 are 262,144")
    width: int = Field(256, ge=1, description="width of the vectors")
    ngrams: int = Field(4, ge=1, le=8, description="longest n-gram")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout of the mean and of the dense layer")
    feature_dropout: float = Field(0.1, ge=0, lt=1, description="share of n-grams that are left out, in training")
    class_weights: bool = Field(
        True,
        description="multiply the loss of a class by the root of the share of other classes in train, as the release does",
    )


class HashedNgrams(TextModel):
    """N-grams of a text -> rows of a table -> their mean -> dense layer, tanh -> label layer.

    Args:
        rows: of the table, as a power of two. Row 0 stands for no n-gram and stays zero.
        width: of the vectors.
        ngrams: longest n-gram.
        dropout: of the mean and of the dense layer.
        feature_dropout: share of n-grams that are left out.
    """

    words: Tensor  # bool [V], whether an id is a word; [CLS], [SEP] and [PAD] are none

    def __init__(
        self,
        limits: TextLimits,
        labels: int,
        rows: int = 18,
        width: int = 256,
        ngrams: int = 4,
        dropout: float = 0.1,
        feature_dropout: float = 0.1,
    ) -> None:
        super().__init__(limits, labels)
        self.rows, self.width, self.ngrams = rows, width, ngrams
        self.dropout, self.feature_dropout = dropout, feature_dropout
        self.table = nn.EmbeddingBag(2**rows, width, mode="mean", sparse=True, padding_idx=NOTHING)
        nn.init.zeros_(self.table.weight)
        self.dense, self.label = nn.Linear(width, width), nn.Linear(width, labels)
        words = torch.ones(limits.vocab_size, dtype=torch.bool)
        words[[one for one in limits.special if one < limits.vocab_size]] = False
        self.register_buffer("words", words, persistent=False)

    def hashed(self, tokens: TokenSet) -> Tensor:
        """Return the row of the table for every token and size of n-gram, which starts there: int64 [total, n].

        It is :data:`NOTHING` for an n-gram that leaves its text or has a special token. The hash of an n-gram is a polynomial
        of its ids modulo 2^64, of which the highest bits are taken.
        """
        ids, total = tokens.ids.long() + 1, len(tokens.ids)
        words = self.words.index_select(0, tokens.ids)
        inside = words.index_fill(0, tokens.offsets[:-1], False)  # a text goes on
        code, there = tokens.segments.long() + 1, words
        found = ids.new_full((total, self.ngrams), NOTHING)
        for size in range(min(self.ngrams, total)):
            after = slice(size, None)
            if size:
                code, there = code[:-1], there[:-1] & inside[after]
            code = code * MULTIPLIER + ids[after]
            row = (code * GOLDEN >> 64 - self.rows) & 2**self.rows - 1
            found[: total - size, size] = torch.where(there, row.clamp(min=1), NOTHING)
        return found

    def forward(self, tokens: TokenSet, layout: Layout) -> Tensor:
        rows = self.hashed(tokens)
        starts = tokens.offsets[:-1] * self.ngrams
        if self.training:  # the table has a gradient, of which the row for nothing has no part
            dropped = torch.rand(rows.shape, device=rows.device) < self.feature_dropout
            mean = self.table(rows.masked_fill(dropped, NOTHING).view(-1), starts)
        else:
            mean = mean_of_rows(self.table.weight, rows.view(-1), starts, NOTHING)
        hidden = torch.tanh(self.dense(F.dropout(mean, self.dropout, self.training)))
        logits: Tensor = self.label(F.dropout(hidden, self.dropout, self.training))
        return logits

    def tallies(self, layout: Layout) -> Mapping[str, Tally]:
        """Count n-grams by length, [CLS] and the last [SEP] left out; of pairs, those across the first [SEP] count, too."""
        sizes = np.arange(self.ngrams)[:, None]
        found = int(np.maximum(layout.lengths - 2 - sizes, 0).sum())
        whole = Tally(layout.count, layout.count, layout.count)
        return {"ngrams.0": Tally(layout.count, found, found), "dense.0": whole, "label.0": whole}

    def blocks(self) -> Mapping[str, BlockCost]:
        return {
            "ngrams": SumCost(self.width),
            "dense": MatrixCost(self.width**2, "sample"),
            "label": MatrixCost(self.width * self.labels, "sample"),
        }

    def facts(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("rows", "width", "ngrams", "dropout", "feature_dropout")}


class FittedSparseDan(FittedText):
    """A trained sparse student."""

    kind = HashedNgrams


def class_weighted_kl(weights: Tensor, temperature: float) -> SoftLoss:
    """Return the release's loss, mean over rows: ``T^2 sum_c w_c KL(softmax(t / T) || softmax(s / T))_c``.

    Args:
        weights: float32 [C]; the release has ``(1 - share of the class in train) ** 0.5``.
    """

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        log_p = F.log_softmax(teacher.detach().float() / temperature, -1)
        log_q = F.log_softmax(student.float() / temperature, -1)
        terms = F.kl_div(log_q, log_p, log_target=True, reduction="none")
        return (terms * weights.to(terms.device)).sum(-1).mean() * temperature**2

    return loss


class SparseDan(StagedMethod[SparseDanSettings, FittedSparseDan]):
    """The mean of hashed n-gram vectors, taught by ``bert`` on train and on texts without labels."""

    name = "sparse-dan"
    needs = ("bert",)
    settings = SparseDanSettings
    fitted = FittedSparseDan

    def uses_unlabelled(self, config: Mapping[str, Any]) -> bool:
        """Return whether the teacher answers rows without labels, too."""
        return needs_unlabelled(SparseDanSettings, config)

    def learn(
        self, own: SparseDanSettings, task: Task, backbone: Backbone, teachers: Teachers, seed: int
    ) -> FittedSparseDan:
        what = f"{self.name}: training a table of {2**own.rows:,} rows (rows = {own.rows}) and width {own.width}"
        check_room(what, own.width * 2**own.rows, backbone.device, "lower rows or width")
        torch.manual_seed(seed)
        shape = own.model_dump(include={"rows", "width", "ngrams", "dropout", "feature_dropout"})
        model = HashedNgrams(TextLimits.of(task, backbone), task.num_labels, **shape).to(backbone.device)
        soft = None
        if own.class_weights and own.loss == "kl":
            counts = torch.bincount(task.train.labels, minlength=task.num_labels)
            soft = class_weighted_kl((1 - counts / counts.sum()).sqrt(), own.temperature)
        return FittedSparseDan(model, teach(self.name, model, own, task, teachers, seed, soft))
