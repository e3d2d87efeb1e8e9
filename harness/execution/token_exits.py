"""Token-level exits: every token leaves after a layer that its id determines (HashEE: Sun et al., Findings of ACL 2022).

A token that has left keeps its last hidden state, and the others attend to it in all later layers. So a layer projects keys
and values of all rows, and computes everything else for the running tokens only. Exits follow from the ids: the host learns
the counts with the execution order, and no further synchronisation is needed.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from harness.contracts import Execution, Predictions
from harness.core.clock import Phases
from harness.core.errors import ConfigError
from harness.core.tokens import TokenSet
from harness.encoder import transfer
from harness.encoder.layout import Layout
from harness.encoder.model import Encoder
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.partial_attention import SomeQueries
from harness.execution.run_pass import Pass, inference


@dataclass(frozen=True, eq=False)
class TokenExits:
    """The layer after which each token id leaves. The first token of a sample ([CLS], which the head reads) never leaves.

    Attributes:
        layers: layer indices at which tokens leave, rising; the last is the model's last layer.
        table: int16 [V], place of every id's exit in ``layers``.
    """

    layers: tuple[int, ...]
    table: Tensor

    @classmethod
    def of(cls, exits: Tensor, depth: int) -> TokenExits:
        """Build from layer indices per id, integers [V], for an encoder of ``depth`` layers.

        Raises:
            ConfigError: an exit outside 0 .. depth - 1.
        """
        known = sorted({*exits.unique().tolist(), depth - 1})
        if known[0] < 0 or known[-1] >= depth:
            raise ConfigError(f"token exits {known} are not all in 0..{depth - 1}, the layers of this model")
        place = torch.searchsorted(torch.tensor(known), exits.cpu().long())
        return cls(tuple(int(layer) for layer in known), place.to(torch.int16).to(exits.device))

    def to(self, device: torch.device | str) -> TokenExits:
        """Return the same exits on another device."""
        return replace(self, table=self.table.to(device))

    def stage(self, layer: int) -> int:
        """Return the smallest place whose tokens still run through layer ``layer``."""
        return bisect_left(self.layers, layer)

    def places(self, tokens: TokenSet) -> Tensor:
        """Return the place of every token's exit in :attr:`layers`: int16 [total]."""
        # Invalid ids and empty samples are reported by ``arrange``; here they only must not crash the device.
        ids = tokens.ids.long().clamp(0, len(self.table) - 1)
        first = tokens.offsets[:-1].clamp(max=max(0, len(ids) - 1))
        return self.table[ids].index_fill_(0, first, len(self.layers) - 1)

    def columns(self, tokens: TokenSet) -> Tensor:
        """Return the last layer index, then the number of tokens beyond each exit but the last: int16 [N, S], to sort by."""
        count, stages = len(tokens), len(self.layers)
        sample = torch.arange(count, device=tokens.device)
        owner = torch.repeat_interleave(sample, tokens.lengths, output_size=len(tokens.ids))
        at = owner * stages + self.places(tokens)
        leaving = torch.zeros(count * stages, dtype=torch.int32, device=tokens.device)
        leaving.index_add_(0, at, torch.ones_like(at, dtype=torch.int32))
        running = leaving.view(count, stages).flip(1).cumsum(1).flip(1)  # [N, stages]
        running[:, 0] = self.layers[-1]
        return running.to(torch.int16)

    def rows(self, places: Tensor, layout: Layout, positions: Tensor) -> Tensor:
        """Return places of a batch's tokens as rows of its layout, -1 for padding: int16 [rows].

        Args:
            places: int16 [valid].
            positions: integers [valid], place of every token in its sample.
        """
        if not layout.pad_to:
            return places
        lengths = layout.offsets[1:] - layout.offsets[:-1]
        target = positions + torch.repeat_interleave(layout.first, lengths, output_size=layout.valid)
        return places.new_full((layout.rows,), -1).index_copy_(0, target, places)


def masked_state(encoder: Encoder, tokens: TokenSet, layout: Layout, exits: TokenExits) -> Tensor:
    """Return h^L if every token keeps the state it left with, [rows, width]: the form used in training.

    Every layer runs over all rows, and its output is ignored for tokens that have left: the same function, and gradient, as
    :func:`run_token_exits` computes on fewer rows.
    """
    total = len(tokens.ids)
    start = torch.repeat_interleave(tokens.offsets[:-1], tokens.lengths, output_size=total)
    positions = torch.arange(total, device=tokens.device) - start
    place = exits.rows(exits.places(tokens), layout, positions)[:, None]
    hidden = encoder.embed(tokens, layout)
    for index, layer in enumerate(encoder.layers):
        stage, new = exits.stage(index), layer(hidden, layout)
        hidden = torch.where(place >= stage, new, hidden) if stage else new
    return hidden


def run_token_exits(
    model: MultiExitModel,
    tokens: TokenSet,
    exits: TokenExits,
    execution: Execution,
    *,
    phases: Phases | None = None,
) -> Predictions:
    """Run every token to its own exit; the last layer's head answers.

    Results equal those at batch size 1, and those of :func:`masked_state`. Layers that all tokens run through use the engine,
    CUDA graphs included; the others run eagerly. Padding (protocol ``paper``) leaves in proportion to the tokens of its
    sample, so that it is neither an advantage nor a disadvantage of the method.

    In the work, ``layer.i`` counts the tokens that ran, and samples by the share of them (so mean layers are per token);
    ``keys.i`` counts keys and values of tokens that had left. ``exit_layer`` is the last layer, where the head reads [CLS].

    Raises:
        ConfigError: the exits belong to a model of another depth or vocabulary.
    """
    if exits.layers[-1] != model.depth - 1 or len(exits.table) != model.encoder.shape.vocab_size:
        raise ConfigError(
            f"exits after layers {exits.layers} of {len(exits.table)} token ids do not fit {model.depth} layers and "
            f"{model.encoder.shape.vocab_size} ids: make them for this model"
        )
    phases = phases or Phases(tokens.device)
    with inference(model):
        with phases("predict"):
            columns = exits.columns(tokens)
        run = Pass(model, tokens, execution, columns, phases)
        with run.phases("layers"):
            places = exits.places(run.arranged.tokens)
            for first, last in run.batches():
                _run_batch(run, first, last, exits, places)
        return replace(run.predictions(), predicted_exit=None)


def _run_batch(run: Pass, first: int, last: int, exits: TokenExits, places: Tensor) -> None:
    """Run one batch of :func:`run_token_exits`."""
    final = run.model.depth - 1
    hidden, layout = run.begin(first, last)
    whole = exits.layers[0] + 1
    for index in range(whole):
        hidden = run.layer(index, hidden, layout)
    if whole <= final:
        rows = slice(int(run.arranged.starts[first]), int(run.arranged.starts[last]))
        place = exits.rows(places[rows], layout, run.arranged.positions[rows])
        some, active, stage = None, hidden, 0
        for index in range(whole, final + 1):
            if some is None or exits.stage(index) != stage:
                stage = exits.stage(index)
                some = _running(place, layout, stage, run.columns[first:last, stage])
                active = hidden.index_select(0, some.index)
            run.work.add(f"layer.{index}", run.engine.some_tally(index, some))
            run.work.add(f"keys.{index}", run.engine.left_tally(some))
            active = run.engine.run_some(index, active, hidden, some)
            hidden.index_copy_(0, some.index, active)
    run.answer(slice(first, last), run.head(final, hidden, layout), final)


def _running(place: Tensor, layout: Layout, stage: int, tokens: np.ndarray) -> SomeQueries:
    """Return the rows that run beyond the exits before ``stage``; ``tokens`` (int64 [B]) of them are not padding."""
    active = place >= stage
    if not layout.pad_to:
        return SomeQueries(layout, active, tokens, tokens)
    padding = (layout.pad_to - layout.lengths) * tokens // layout.lengths
    ends = transfer.upload(layout.lengths + padding, layout.device)
    every = torch.arange(layout.pad_to, device=layout.device)
    lengths = layout.offsets[1:] - layout.offsets[:-1]
    padded = (every >= lengths[:, None]) & (every < ends[:, None])  # [B, T]
    return SomeQueries(layout, active | padded.view(-1), tokens + padding, tokens)
