"""A table of labels: the class of a text from its words alone, distilled from the answers of a model's last head.

Keys are single tokens and bigrams, as in GEEP's exit table, and the rows hold label columns (:mod:`geep.exit_table.columns`): a
small n-gram model, distilled from the answers of the last head. The mean of the rows of a sample's keys is its posterior, and
its confidence the margin: the largest entry less the second. A rare or unknown key adds the row of all samples, which lowers
the margin. On four datasets (Yahoo, Amazon, THUCNews, LCQMC) weights by inverse document frequency and sums of logarithms (naive
Bayes) ranked samples no better.

Margins are whole numbers, so every backend of the exit table is sure of the same samples.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from geep.exit_table import ExitTable
from geep.exit_table.columns import TableColumns
from geep.exit_table.rows import SCALE
from harness.core.text_formats import read_json
from harness.core.tokens import TokenSet
from harness.execution.run_pass import Answered

VOTES = 8  # of a sample, divided among the classes by their probability
UNREACHABLE = SCALE + 1  # a margin that no sample reaches
PERCENT = 100.0  # what temperatures are relative to, because they are bounded
FACTS = "labels.json"


def soft_votes(logits: Tensor, votes: int = VOTES) -> Tensor:
    """Divide the votes of each sample among the classes by their probability, by largest remainders: int64 [votes, N].

    Args:
        logits: [N, C].
    """
    shares = logits.double().softmax(-1) * votes
    counts = shares.floor().long()
    left = votes - counts.sum(1, keepdim=True)
    rank = (shares - counts).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    counts += rank < left
    classes = torch.arange(logits.shape[1]).repeat(len(logits))
    return torch.repeat_interleave(classes, counts.flatten()).view(len(logits), votes).T.contiguous()


class LabelTable:
    """An n-gram model of labels.

    Args:
        table: frozen, of label columns alone.
        temperature: divides the posterior in per cent, so that its softmax fits dev.
    """

    def __init__(self, table: ExitTable, temperature: float = 1.0) -> None:
        self.table, self.temperature = table, temperature

    @classmethod
    def fill(
        cls,
        parts: Sequence[tuple[TokenSet, Tensor]],
        *,
        ngram: int,
        min_count: int,
        smoothing: int,
        backend: str = "auto",
    ) -> Self:
        """Count what a model answers to some samples.

        Args:
            parts: samples, and the logits [N, C] of its last head.
            ngram: longest key, in tokens.
            min_count: samples that a key needs for its own row.
            smoothing: weight of the row of all samples in every row, in samples.

        Raises:
            ConfigError: there is no sample, or there are more classes than a row has room for.
        """
        table = ExitTable(TableColumns(labels=parts[0][1].shape[1]), ngram, backend)
        for tokens, logits in parts:
            for votes in soft_votes(logits):
                table.insert(tokens, votes)
        table.freeze(min_count=min_count * VOTES, smoothing=smoothing * VOTES)
        return cls(table)

    def posterior(self, tokens: TokenSet) -> tuple[Tensor, Tensor]:
        """Return the posterior, float64 [N, C], and the margin in 1 / :data:`SCALE`, int64 [N]; the host does not wait.

        A sample without keys has margin -1: nothing is known about it.
        """
        sums = self.table.distribution(tokens)
        keys = sums.sum(1) // SCALE  # each adds exactly that much
        best = sums.topk(2, dim=1).values
        margin = torch.where(keys > 0, (best[:, 0] - best[:, 1]) // keys.clamp(min=1), -1)
        return sums.double() / (keys.clamp(min=1) * SCALE)[:, None], margin

    def logits(self, posterior: Tensor) -> Tensor:
        """Return answers, float32 [N, C], whose softmax is the calibrated probability."""
        return (posterior * (PERCENT / self.temperature)).float()

    def answered(self, tokens: TokenSet, margin: int) -> Answered:
        """Answer the samples whose margin is at least ``margin``; the host does not wait."""
        posterior, margins = self.posterior(tokens)
        return Answered(margins >= margin, self.logits(posterior))

    def save(self, folder: Path) -> None:
        """Write the table and ``labels.json`` into a folder."""
        self.table.save(folder)
        (folder / FACTS).write_text(json.dumps({"temperature": self.temperature}), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, backend: str = "auto") -> Self:
        """Read what :meth:`save` wrote; raises what reading raises, or KeyError if the file is another."""
        return cls(ExitTable.load(folder, backend), read_json(folder / FACTS)["temperature"])
