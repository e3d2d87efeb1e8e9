"""Static embeddings of a backbone (Model2Vec's recipe): a vector for every token, their mean, and a linear head.

The recipe (MinishLab/model2vec, 2024; recalled, not read in code): every token of the vocabulary goes through the
backbone by itself, and its output is its vector; PCA; vectors are weighted by Zipf's law, ``log(1 + rank)`` for tokens
by falling frequency; a text is the mean of its vectors. Our interpretation: frequencies are those in train, and tokens
that do not occur there share the last rank; the output is that of the token between [CLS] and [SEP], which are no part
of a text's mean; the head of a pair reads ``[u; v; |u - v|; u * v]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from sklearn.decomposition import PCA
from torch import Tensor, nn

from harness.core import clock
from harness.core.errors import ConfigError
from harness.core.tokens import Task, TokenSet
from harness.core.work import BlockCost, MatrixCost, SumCost, Tally
from harness.encoder.backbone import Backbone
from harness.encoder.layout import Layout
from harness.encoder.model import Encoder
from harness.toolkit.base_method import StagedMethod, Teachers
from harness.toolkit.text_models.bags import mean_of_rows
from harness.toolkit.text_models.fitted_text import FittedText
from harness.toolkit.text_models.teaching import TaughtSettings, needs_unlabelled, teach
from harness.toolkit.text_models.text_model import TextLimits, TextModel
from harness.toolkit.text_models.two_texts import compared, text_bounds
from harness.toolkit.training import LayerPasses, TrainingReport, total_cost

WIDTH = 256
_BATCH = 256  # tokens of the vocabulary that go through the backbone at a time


class StaticSettings(TaughtSettings):
    """Settings of static embeddings; only the head is trained."""

    epochs: int = Field(
        20, ge=1, description="passes over train, and over rows without labels if a teacher answers them"
    )
    learning_rate: float = Field(1e-2, gt=0, description="peak learning rate of AdamW")
    loss: Literal["kl", "mse", "ce"] = Field(
        "ce",
        description="what the head learns: ce: labels alone, as is usual; kl, mse: what bert says, as sparse-dan may",
    )
    width: int | None = Field(
        None,
        ge=1,
        description="width of the vectors after PCA; by default 256, or that of the backbone if it is smaller",
    )


class MeanOfVectors(TextModel):
    """Token vectors that do not change -> their mean, for each text -> label layer.

    Args:
        width: of the vectors.
        pairs: samples have two texts.
    """

    rows: Tensor  # int64 [V], row of the table of every id; V for [CLS], [SEP] and [PAD], which stand for no word

    def __init__(self, limits: TextLimits, labels: int, width: int, pairs: bool = False) -> None:
        super().__init__(limits, labels)
        self.width, self.pairs = width, pairs
        size = limits.vocab_size
        self.table = nn.Embedding(size + 1, width, padding_idx=size)
        self.table.weight.requires_grad_(False)
        self.label = nn.Linear(width * (4 if pairs else 1), labels)
        rows = torch.arange(size)
        rows[[one for one in limits.special if one < size]] = size
        self.register_buffer("rows", rows, persistent=False)

    def forward(self, tokens: TokenSet, layout: Layout) -> Tensor:
        # Of a pair, every sample is two bags: its first segment, then its second.
        starts = text_bounds(tokens)[:-1] if self.pairs else tokens.offsets[:-1]
        mean = mean_of_rows(self.table.weight, self.rows.index_select(0, tokens.ids), starts, self.limits.vocab_size)
        if self.pairs:
            mean = compared(mean)
        logits: Tensor = self.label(mean)
        return logits

    def tallies(self, layout: Layout) -> Mapping[str, Tally]:
        return {
            "vectors.0": Tally(layout.count, layout.valid, layout.valid),
            "label.0": Tally(layout.count, layout.count, layout.count),
        }

    def blocks(self) -> Mapping[str, BlockCost]:
        return {"vectors": SumCost(self.width), "label": MatrixCost(self.label.weight.numel(), "sample")}

    def facts(self) -> dict[str, Any]:
        return {"width": self.width, "pairs": self.pairs}


class FittedStatic(FittedText):
    """Static embeddings and a trained head."""

    kind = MeanOfVectors


@torch.inference_mode()
def token_outputs(encoder: Encoder, special: tuple[int, ...]) -> Tensor:
    """Return the last layer's state of every id between [CLS] and [SEP], or alone without them: float32 [V, width]."""
    encoder.eval()
    around = special[:2] if len(special) > 1 else ()
    found = torch.empty(encoder.shape.vocab_size, encoder.shape.width, device=encoder.device)
    for some in torch.arange(len(found)).split(_BATCH):
        rows = [[*around[:1], one, *around[1:]] for one in some.tolist()]
        tokens = TokenSet.from_lists(rows).to(encoder.device)
        layout = Layout(np.full(len(rows), len(rows[0])), None, encoder.device)
        *_, hidden = encoder.states(tokens, layout)
        found[some] = hidden.view(len(rows), len(rows[0]), -1)[:, len(around) // 2].float()
    return found


def zipf_weights(ids: Tensor, vocab_size: int) -> Tensor:
    """Return ``log(1 + rank)`` of every id by falling frequency (ids [total]); those that do not occur share the last rank: [V]."""
    counts = torch.bincount(ids.long().cpu(), minlength=vocab_size)
    order = counts.argsort(descending=True, stable=True)
    ranks = torch.empty(vocab_size)
    ranks[order] = torch.arange(1, vocab_size + 1, dtype=torch.float32)
    ranks[counts == 0] = float(max(1, int((counts > 0).sum()) + 1))
    return torch.log1p(ranks)


class StaticEmbedding(StagedMethod[StaticSettings, FittedStatic]):
    """Token vectors of the backbone, after PCA and weighted by Zipf's law, and a linear head on their mean (Model2Vec's recipe)."""

    name = "static"
    needs = ("bert",)
    settings = StaticSettings
    fitted = FittedStatic

    def uses_unlabelled(self, config: Mapping[str, Any]) -> bool:
        """Return whether a teacher answers rows without labels."""
        return needs_unlabelled(StaticSettings, config)

    def learn(self, own: StaticSettings, task: Task, backbone: Backbone, teachers: Teachers, seed: int) -> FittedStatic:
        width = own.width or min(WIDTH, backbone.shape.width)
        if width > backbone.shape.width:
            raise ConfigError(
                f"{self.name}: width = {width}, but the vectors of {backbone.name} have {backbone.shape.width}: lower width"
            )
        encoder, tokens, begin = backbone.encoder(), task.train.tokens, clock.now()
        with LayerPasses([encoder]) as passes:
            vectors = token_outputs(encoder, tokens.special).cpu()
        reduced = torch.from_numpy(PCA(width, svd_solver="full").fit_transform(vectors.numpy())).float()
        made = TrainingReport(clock.now() - begin, 0, passes.count, 0, flops=passes.flops)

        torch.manual_seed(seed)
        pairs = bool((tokens.segments > 0).any())
        model = MeanOfVectors(TextLimits.of(task, backbone), task.num_labels, width, pairs)
        weighted = reduced * zipf_weights(tokens.ids, len(reduced))[:, None]
        with torch.no_grad():  # one scale for all, so that a learning rate means the same for every backbone
            model.table.weight[:-1] = weighted / weighted.std()
            model.table.weight[-1] = 0
        model.to(backbone.device)
        return FittedStatic(model, total_cost(made, teach(self.name, model, own, task, teachers, seed)))
