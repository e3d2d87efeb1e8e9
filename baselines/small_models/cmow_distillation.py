"""General distillation of CMOW/CBOW-Hybrid on raw text (Galke et al., arXiv 2109.08449), and the folder that it writes.

Read in the released code: every token is represented by what its text has up to it and from it on, [sum; product] in both
directions; a decoder that is not tied to any table predicts words from that, and is thrown away afterwards. The loss is 5 x soft
words of all tokens at temperature 2 + 2 x masked words, without a cosine; 5e-4, 5 % warm-up, no weight decay, clipping at 1,
batches of 512. Our interpretation: the backward state of a token is that of the text from this token on (the release stacks these
states in reverse, so that the first token gets that of the last one); attention of the teacher, and our products, stay within a
piece of a row.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from baselines.small_models.cmow_tables import NOISE, MatrixTables
from baselines.small_models.matrix_products import up_to_each
from harness.core.digest import content_digest, read_tensors, write_tensors
from harness.core.errors import ConfigError
from harness.core.settings import StrictSettings
from harness.core.work import Tally
from harness.encoder.backbone import Backbone, load_tokenizer
from harness.encoder.masked_words import ABSENT, RowAttention, budget, guessing_loss, row_states
from harness.pretraining.general_distillation import TableDistillation, soft_words, some_loss

TABLES = "tables.safetensors"


class CmowGeneralSettings(StrictSettings):
    """Settings of general distillation on raw text. The defaults are the released run's: 5 : 2 at temperature 2."""

    matrix: int = Field(20, ge=1, description="rows and columns of a token's matrices")
    width: int = Field(400, ge=1, description="width of a token's vector")
    temperature: float = Field(
        2.0, gt=0, description="temperature of the teacher's and the student's softmax in the loss"
    )
    alpha_ce: float = Field(5.0, ge=0, description="weight of the teacher's soft words")
    alpha_mlm: float = Field(2.0, ge=0, description="weight of the masked words")
    soft_on: Literal["all", "masked"] = Field(
        "all", description="tokens on which the student learns the teacher's words"
    )

    @model_validator(mode="after")
    def _some_loss(self) -> Self:
        return some_loss(self)


class WordDecoder(nn.Linear):
    """Scores of all words from the state of a token."""

    def scores(self, hidden: Tensor) -> Tensor:
        found: Tensor = self(hidden)
        return found


def token_states(tables: MatrixTables, ids: Tensor, pieces: Tensor | None) -> Tensor:
    """Return [sum; product] of the piece up to every token, then from it on backwards: [B, T, 2 (width + matrix^2)].

    Args:
        ids: [B, T].
        pieces: [B, T], numbers of pieces, 0 for padding; ``None`` if every row is one piece.
    """
    begins = torch.zeros_like(ids, dtype=torch.bool)
    ends = begins.clone()
    if pieces is not None:
        other = pieces[:, 1:] != pieces[:, :-1]
        padding = pieces == 0
        begins[:, 1:], ends[:, :-1] = other | padding[:, 1:], other | padding[:, :-1]
    vectors = nn.functional.embedding(ids, tables.vectors.weight)
    found = []
    with torch.autocast(ids.device.type, enabled=False):
        for table, flags, backwards in ((tables.ahead, begins, False), (tables.back, ends, True)):
            matrices = table(ids).unflatten(2, (tables.matrix, tables.matrix))
            for values, join in ((vectors, torch.add), (matrices, torch.matmul)):
                if backwards:
                    found.append(up_to_each(values.flip(1), flags.flip(1), join).flatten(2).flip(1))
                else:
                    found.append(up_to_each(values, flags, join).flatten(2))
    return torch.cat(found, 2)


class CmowDistillation(TableDistillation):
    """``alpha_ce T^2 KL(soft words) + alpha_mlm CE(masked words)``, each a mean over tokens.

    Args:
        weights: alpha_ce, alpha_mlm.
    """

    def __init__(self, teacher: Backbone, own: CmowGeneralSettings) -> None:
        super().__init__(teacher)
        self.own, words = own, teacher.shape.vocab_size
        self.tables = MatrixTables(words, own.matrix, own.width, sparse=False)
        self.decoder = WordDecoder(2 * (own.width + own.matrix**2), words)
        nn.init.normal_(self.decoder.weight, std=NOISE)
        nn.init.zeros_(self.decoder.bias)
        self.objective = f"{own.alpha_ce:g} x soft words + {own.alpha_mlm:g} x masked words"
        self.objective += f" from the text before and after, temperature {own.temperature:g}"

    @property
    def student(self) -> MatrixTables:
        return self.tables

    def facts(self) -> dict[str, Any]:
        return {"matrix": self.own.matrix, "width": self.own.width, "vocab_size": len(self.decoder.bias)}

    @property
    def size(self) -> str:
        return f"matrices of {self.own.matrix} x {self.own.matrix}, vectors of {self.own.width}"

    def forward(
        self,
        ids: Tensor,
        positions: Tensor,
        pieces: Tensor | None,
        segments: Tensor | None,
        where: Tensor,
        labels: Tensor,
        every: bool = False,
    ) -> Tensor:
        own = self.own
        states = token_states(self.tables, ids, pieces).flatten(0, 1)
        total = states.new_zeros(())
        if own.alpha_ce:
            with torch.no_grad():
                attention = RowAttention(ids.shape[0], ids.shape[1], pieces, ids.device)
                taught = row_states(self.teacher.encoder, ids, positions, attention, segments)[-1]
            chosen = where[labels != ABSENT]
            if own.soft_on == "all":
                chosen = torch.arange(ids.numel(), device=ids.device)
                chosen = chosen if pieces is None else chosen[pieces.reshape(-1) > 0]
            if len(chosen):
                both = states.index_select(0, chosen), taught.index_select(0, chosen)
                total = total + own.alpha_ce * soft_words(self.decoder, self.teacher, *both, own.temperature)
        if own.alpha_mlm:
            total = total + own.alpha_mlm * guessing_loss(self.decoder, states, where, labels)
        return total.reshape(1)

    def training_flops(self, *, rows: int, length: int, share: float, every: bool) -> int:
        own, encoder, tokens = self.own, self.teacher.encoder, rows * length
        teacher = encoder.depth * encoder.cost().flops(Tally(rows, tokens, tokens, rows * length**2), "full")
        # Up to every token of T there are less than 2 T products in each direction.
        products = 2 * 2 * tokens * 2 * own.matrix**3
        scored = tokens if own.alpha_ce and own.soft_on == "all" else rows * budget(share, length)
        decoder = 2 * scored * self.decoder.weight.numel()
        return (teacher if own.alpha_ce else 0) + 3 * (products + decoder)

    def save(self, folder: Path) -> list[str]:
        write_tensors(folder / TABLES, self.tables.state_dict(), self.facts())
        return [TABLES]


def tables_content(named: str) -> str:
    """Return the content hash of a folder to start from; empty if there is none.

    Raises:
        ConfigError: a file cannot be read.
    """
    folder = os.path.expanduser(named)  # unlike that of Path, it takes any text
    try:
        return content_digest(Path(folder)) if named and os.path.exists(folder) else ""
    except OSError as error:
        raise ConfigError(
            f"'{named}', which a setting names, cannot be read ({error.strerror}): correct that"
        ) from error


def read_tables(folder: Path, backbone: Backbone, method: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the dimensions and the tables in a folder that ``geep-bench distill`` wrote.

    Raises:
        ConfigError: it is no such folder, it is damaged, or its vocabulary is not the backbone's.
    """
    if not (folder / TABLES).is_file():
        raise ConfigError(
            f"{method}: student '{folder}' has no {TABLES}: give a folder that geep-bench distill {method} wrote"
        )
    try:
        facts, tensors = read_tensors(folder / TABLES)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{method}: {folder / TABLES} cannot be read ({error}): distil again") from error
    backbone.check_words(load_tokenizer(folder), f"{method}: student '{folder.name}'")
    return facts, tensors
