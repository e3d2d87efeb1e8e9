"""CMOW/CBOW-Hybrid, bidirectional (Galke et al., IJCNN 2022, arXiv 2109.08449): products of matrices and a sum of vectors.

Read in the released code (lgalke/cross-architecture-distillation): every token has a matrix for the forward product
M_1 M_2 .. M_n, one of a separate table for the backward product M'_n .. M'_1, and a vector. Matrices start as the identity plus
N(0, 0.01), vectors as N(0, 0.01); there is no norm and no activation. A text is [sum of vectors; forward; backward], special
tokens included; padding is the identity. The texts of a pair are one sequence (``joint``), or two whose representations are
combined: ``hadamard`` u v, ``concat`` [u; v], ``diffcat`` [u; v; |u - v|]. "SBERT-like" in the release is ``diffcat`` for
classes, with dropout; its cosine is for regression only. The loss to the teacher weighs 0.9, labels 0.1.

Our interpretation: products run as a balanced tree, not one after another; dropout acts on the representation of a text and in
the classifier, not on matrices, where a few tokens would leave nothing of the identity; one hidden layer, as the classifier of
the released runs has two with a norm, and that of its configurations none (``hidden = 0``); temperature 2 instead of 10; tables
are trained by row (SparseAdam); without ``student`` there is no general distillation first: expect less
than the published figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.small_models.cmow_distillation import CmowDistillation, CmowGeneralSettings, read_tables, tables_content
from baselines.small_models.cmow_tables import MatrixTables
from baselines.small_models.matrix_products import ProductCost
from harness.core.errors import ConfigError
from harness.core.tokens import Task, TokenSet
from harness.core.work import BlockCost, MatrixCost, SumCost, Tally
from harness.encoder.backbone import Backbone
from harness.encoder.layout import Layout
from harness.pretraining.general_distillation import check_soft_words
from harness.toolkit.base_method import StagedMethod, Teachers
from harness.toolkit.student_start import named_student
from harness.toolkit.text_models.fitted_text import FittedText
from harness.toolkit.text_models.table_optimizer import check_room
from harness.toolkit.text_models.teaching import TaughtSettings, needs_unlabelled, teach
from harness.toolkit.text_models.text_model import TextLimits, TextModel
from harness.toolkit.text_models.two_texts import text_bounds

Pairs = Literal["joint", "hadamard", "concat", "diffcat"]
PARTS = {"joint": 1, "hadamard": 1, "concat": 2, "diffcat": 3}  # widths of a text in what the classifier reads


class CmowSettings(TaughtSettings):
    """Settings of CMOW/CBOW-Hybrid; the published values of its settings are in profile ``paper``."""

    epochs: int = Field(10, ge=1, description="passes over train and rows without labels, with the teacher's answers")
    learning_rate: float = Field(
        1e-3, gt=0, description="peak learning rate of the tables (SparseAdam) and the classifier (AdamW)"
    )
    temperature: float = Field(2.0, gt=0, description="temperature of the teacher's and the student's softmax")
    alpha_soft: float = Field(0.9, gt=0, description="weight of the teacher's answers")
    alpha_hard: float = Field(0.1, ge=0, description="weight of labels beside them, for rows that have one")
    matrix: int = Field(20, ge=1, description="rows and columns of a token's matrices")
    width: int = Field(400, ge=1, description="width of a token's vector")
    student: str | dict[str, str] = Field(
        "", description="folder of geep-bench distill cmow-hybrid to start from, or a table with one per language"
    )
    hidden: int = Field(512, ge=0, description="width of the classifier's hidden layer; 0: a label layer alone")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout of a text's representation and of the hidden layer")
    pairs: Pairs = Field(
        "diffcat",
        description="what the classifier reads of a pair: joint: both texts as one sequence; or of their representations u and "
        "v: hadamard: u v; concat: [u; v]; diffcat: [u; v; |u - v|]. Single texts have one sequence in any case",
    )


class CmowClassifier(TextModel):
    """Tables -> [sum; forward product; backward product] of each text -> hidden layer, ReLU -> label layer.

    Args:
        matrix: rows and columns of a token's matrices.
        width: of a token's vector.
        hidden: width of the hidden layer; 0 for none.
        dropout: of the representation and of the hidden layer.
        pairs: how samples of two texts are read; ``joint`` for single texts.
    """

    def __init__(
        self,
        limits: TextLimits,
        labels: int,
        matrix: int = 20,
        width: int = 400,
        hidden: int = 512,
        dropout: float = 0.1,
        pairs: Pairs = "joint",
    ) -> None:
        super().__init__(limits, labels)
        self.matrix, self.width, self.hidden, self.dropout, self.pairs = matrix, width, hidden, dropout, pairs
        self.words = MatrixTables(limits.vocab_size, matrix, width)
        self.read = PARTS[pairs] * (2 * matrix**2 + width)
        self.dense = nn.Linear(self.read, hidden) if hidden else None
        self.label = nn.Linear(hidden or self.read, labels)

    @property
    def texts(self) -> int:
        """Sequences of a sample."""
        return 1 if self.pairs == "joint" else 2

    def representation(self, tokens: TokenSet, layout: Layout) -> Tensor:
        """Return what the classifier reads: [B, read]."""
        bounds = tokens.offsets if self.texts == 1 else text_bounds(tokens)
        starts, ends = bounds[:-1], bounds[1:]
        # Padding repeats the last token of its text (or, of an empty text, the one before), so that the gradient has no other rows.
        places = starts[:, None] + torch.arange(layout.longest, device=tokens.device)
        ids = tokens.ids[torch.minimum(places, ends[:, None] - 1).clamp(min=0)]
        inside = None if layout.even and self.texts == 1 else places < ends[:, None]
        found = torch.cat([self.words.vectors(tokens.ids, starts), *self.words.products(ids, inside)], 1)
        if self.texts == 1:
            return found
        u, v = found.view(layout.count, 2, -1).unbind(1)
        if self.pairs == "hadamard":
            return u * v
        return torch.cat([u, v] if self.pairs == "concat" else [u, v, (u - v).abs()], 1)

    def forward(self, tokens: TokenSet, layout: Layout) -> Tensor:
        found = F.dropout(self.representation(tokens, layout), self.dropout, self.training)
        if self.dense is not None:
            found = F.dropout(torch.relu(self.dense(found)), self.dropout, self.training)
        logits: Tensor = self.label(found)
        return logits

    def tallies(self, layout: Layout) -> Mapping[str, Tally]:
        """Count padding to the longest sample; the host does not know how long both texts of a pair are."""
        whole = Tally(layout.count, layout.count, layout.count)
        found = {
            "vectors.0": Tally(layout.count, layout.valid, layout.valid),
            "products.0": Tally(layout.count, self.texts * layout.count * layout.longest, layout.valid),
            "label.0": whole,
        }
        return found if self.dense is None else {**found, "dense.0": whole}

    def blocks(self) -> Mapping[str, BlockCost]:
        found: dict[str, BlockCost] = {
            "vectors": SumCost(self.width),
            "products": ProductCost(self.matrix, self.texts),
            "label": MatrixCost(self.label.weight.numel(), "sample"),
        }
        return found if self.dense is None else {**found, "dense": MatrixCost(self.dense.weight.numel(), "sample")}

    def facts(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("matrix", "width", "hidden", "dropout", "pairs")}


class FittedCmow(FittedText):
    """A trained CMOW/CBOW-Hybrid."""

    kind = CmowClassifier


class CmowHybrid(StagedMethod[CmowSettings, FittedCmow]):
    """Products of token matrices in both directions and the sum of token vectors, taught by ``bert``."""

    name = "cmow-hybrid"
    needs = ("bert",)
    settings = CmowSettings
    fitted = FittedCmow

    def uses_unlabelled(self, config: Mapping[str, Any]) -> bool:
        """Return whether the teacher answers rows without labels, too."""
        return needs_unlabelled(CmowSettings, config)

    def named_content(self, config: Mapping[str, Any]) -> Any:
        """Return the content hash of the tables to start from, or one per language; a bare name may be a folder, too."""
        named = config.get("student", "")
        if isinstance(named, Mapping):
            content: Any = {language: found for language, place in named.items() if (found := tables_content(place))}
        else:
            content = tables_content(named)
        return {"student": content} if content else None

    def learn(self, own: CmowSettings, task: Task, backbone: Backbone, teachers: Teachers, seed: int) -> FittedCmow:
        limits = TextLimits.of(task, backbone)
        size = MatrixTables.parameters_for(limits.vocab_size, own.matrix, own.width)
        what = f"{self.name}: training {size:,} parameters (matrix = {own.matrix}, width = {own.width})"
        check_room(what, size, backbone.device, "lower matrix or width")
        named, tables = named_student(self.name, own.student, task.language), None
        if named:
            facts, tables = read_tables(Path(named).expanduser(), backbone, self.name)
            for key in ("matrix", "width"):
                if facts[key] != getattr(own, key):
                    raise ConfigError(
                        f"{self.name}: student '{named}' has {key} = {facts[key]}, the settings {getattr(own, key)}: set {key} = "
                        f"{facts[key]}"
                    )
        torch.manual_seed(seed)
        shape: dict[str, Any] = own.model_dump(include={"matrix", "width", "hidden", "dropout"})
        shape["pairs"] = own.pairs if bool((task.train.tokens.segments > 0).any()) else "joint"
        model = CmowClassifier(limits, task.num_labels, **shape)
        if tables is not None:
            model.words.load_state_dict(tables)
        model.to(backbone.device)
        return FittedCmow(model, teach(self.name, model, own, task, teachers, seed))

    # Of the released script; its batches have 512 rows.
    general_recipe: Mapping[str, Any] = {"learning_rate": 5e-4, "warmup": 0.05, "weight_decay": 0.0, "clip": 1.0}

    def general_distillation(self, teacher: Backbone, *, config: Mapping[str, Any], dropout: float) -> CmowDistillation:
        """Make tables to train on raw text with soft and masked words; they have no dropout.

        Raises:
            ConfigError: a setting is wrong, or the teacher has no masked-word head.
        """
        own = CmowGeneralSettings.read(config, f"method '{self.name}'")
        check_soft_words(self.name, teacher, own.alpha_ce)
        return CmowDistillation(teacher, own)
