"""Hidden states and answers of a frozen model for the rows of a train split, computed once and read in every epoch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from harness.core import clock
from harness.core.tokens import TokenSet
from harness.encoder.layout import Layout, running_sums
from harness.encoder.multi_exit import MultiExitModel
from harness.toolkit.frozen.row_storage import room_for
from harness.toolkit.method_settings import Recipe
from harness.toolkit.training import LayerPasses, TrainingReport, resolved_precision, training_layout

_BATCH = 64  # rows


@dataclass(frozen=True)
class NumberedRows(TokenSet):
    """Samples with their row numbers in the set from which they were selected.

    Attributes:
        numbers: int64 [N], on their device.
    """

    numbers: Tensor = field(kw_only=True)

    @classmethod
    def of(cls, tokens: TokenSet) -> NumberedRows:
        """Number the samples of a set from 0."""
        numbers = torch.arange(len(tokens), device=tokens.device)
        return cls(tokens.ids, tokens.offsets, tokens.segments, tokens.special, numbers=numbers)

    def select(self, index: Tensor | np.ndarray | Sequence[int]) -> NumberedRows:
        chosen = torch.as_tensor(index, dtype=torch.int64, device=self.device)
        found = super().select(chosen)
        return NumberedRows(
            found.ids, found.offsets, found.segments, found.special, numbers=self.numbers.index_select(0, chosen)
        )


class FrozenOutput(NamedTuple):
    """Hidden states and answers of a frozen model for a batch.

    Attributes:
        states: h^i [rows, width] by i; 0 for embeddings.
        answers: of its last head, [B, C]; empty if they are not read.
        layout: of the states.
    """

    states: dict[int, Tensor]
    answers: Tensor
    layout: Layout


class FrozenStates:
    """States and answers of a frozen model for the rows of a token set.

    :meth:`store` computes all of them in one pass; batches of :attr:`rows` then read them. States are stored in the precision of
    matrix products in training, to which a head's first layer rounds them anyway. Rows are computed in batches of similar length,
    which differ from those of training, so numbers may differ in the last digits from those of a model that runs in every epoch.
    Without :meth:`store`, without room for the states, and for samples of another set, batches are computed when they are needed.

    Attributes:
        rows: the samples of the set, to train on.

    Args:
        model: its encoder and last head do not change; they run in eval mode or, with ``dropout``, in train mode.
        places: the i of the states h^i that are read, rising; 0 for embeddings.
        recipe: of the training.
        first_only: whether only the states of first tokens ([CLS]) are read.
        answers: whether the answers are read.
        dropout: whether the model runs with dropout, so that its output differs from call to call: nothing is stored.
    """

    def __init__(
        self,
        model: MultiExitModel,
        tokens: TokenSet,
        places: Sequence[int],
        recipe: Recipe,
        *,
        name: str,
        first_only: bool = False,
        answers: bool = True,
        dropout: bool = False,
    ) -> None:
        self.model, self.rows, self.places, self.name = model, NumberedRows.of(tokens), tuple(places), name
        self.first_only, self._answering, self.dropout = first_only, answers, dropout
        self.precision = resolved_precision(recipe.precision, tokens.device)
        self._states: Tensor | None = None  # [places, rows, width], samples by length
        self._starts = torch.zeros(len(tokens), dtype=torch.int64, device=tokens.device)  # first row of a sample
        self._answers: Tensor | None = None

    @property
    def stored_answers(self) -> Tensor | None:
        """Answers of all rows, float32 [N, C]; ``None`` unless :meth:`store` computed them."""
        return self._answers

    def store(self) -> TrainingReport | None:
        """Compute and store what is read, and return the cost; ``None`` if nothing can be stored."""
        tokens, model = self.rows, self.model
        lengths = tokens.lengths.cpu().numpy()
        order = np.argsort(lengths, kind="stable")
        starts = running_sums(np.ones_like(lengths) if self.first_only else lengths[order])
        if not self.dropout and self.places:
            shape = len(self.places), int(starts[-1]), model.encoder.shape.width
            self._states = room_for(shape, getattr(torch, self.precision), tokens.device)
            if self._states is None:
                print(f"{self.name}: no room for hidden states, so they are computed in every epoch", file=sys.stderr)
            self._starts[torch.from_numpy(order)] = torch.from_numpy(starts[:-1]).to(tokens.device)
        if not self.dropout and self._answering:
            self._answers = torch.empty(len(tokens), model.labels, device=tokens.device)
        if self._states is None and self._answers is None:
            return None
        places, begin = self.places if self._states is not None else (), clock.now()
        with LayerPasses([model]) as passes:
            for first in range(0, len(tokens), _BATCH):
                index = torch.from_numpy(order[first : first + _BATCH]).to(tokens.device)
                batch = tokens.select(index)
                layout = training_layout(batch)
                with torch.autocast(tokens.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
                    states, answers = self._run(batch, layout, places, self._answering)
                if self._answers is not None:
                    self._answers[index] = answers.float()
                rows = slice(int(starts[first]), int(starts[first + len(index)]))
                for place, hidden in states.items():
                    assert self._states is not None
                    kept = hidden.index_select(0, layout.first) if self.first_only else layout.tokens(hidden)
                    self._states[places.index(place), rows] = kept
        return TrainingReport(clock.now() - begin, 0, passes.count, 0, flops=passes.flops)

    def __call__(self, tokens: TokenSet, layout: Layout, places: Sequence[int] | None = None) -> FrozenOutput:
        """Return states and answers of a batch.

        Args:
            tokens: selected from :attr:`rows`, or others.
            layout: padded, as in training.
            places: of the states to return, out of those that are read; by default all.

        Returns:
            With a layout of its own if only the states of first tokens are stored.
        """
        wanted = self.places if places is None else tuple(places)
        if not isinstance(tokens, NumberedRows):
            return FrozenOutput(*self._run(tokens, layout, wanted, self._answering), layout)
        missing, answering = wanted if self._states is None else (), self._answering and self._answers is None
        states, answers = dict[int, Tensor](), tokens.ids.new_empty(0)
        if missing or answering:
            states, answers = self._run(tokens, layout, missing, answering)
        if self._answers is not None:
            answers = self._answers.index_select(0, tokens.numbers)
        if self._states is not None and wanted:
            index = self._starts.index_select(0, tokens.numbers)
            if self.first_only:
                layout = Layout(np.ones_like(layout.lengths), 1, layout.device)
            else:
                # Padding repeats the last token: attention ignores it.
                inside = torch.arange(layout.longest, device=layout.device)
                index = (index[:, None] + inside.minimum(tokens.lengths[:, None] - 1)).view(-1)
            states = {place: self._states[self.places.index(place)].index_select(0, index) for place in wanted}
        return FrozenOutput(states, answers, layout)

    @torch.no_grad()
    def _run(
        self, tokens: TokenSet, layout: Layout, places: Sequence[int], answering: bool
    ) -> tuple[dict[int, Tensor], Tensor]:
        """Compute the states after ``places`` and, if asked for, the answers; layers above both do not run."""
        encoder, head = self.model.encoder.train(self.dropout), self.model.teacher.train(self.dropout)
        found, hidden = dict[int, Tensor](), tokens.ids.new_empty(0)
        for place, hidden in enumerate(encoder.states(tokens, layout, encoder.depth if answering else max(places))):
            if place in places:
                found[place] = hidden
        return found, head(hidden, layout) if answering else hidden.new_empty(0)
