"""One look: every sample runs to the same layer and its head, and this answer decides how deep it runs and where it is answered.

All samples run to the look in batches of similar length. Exits are then decided on the device, and samples are sorted again as
exits known beforehand are (:mod:`harness.execution.schedule`). The host learns the order and the exits with one copy, the only
one besides those of every executor. From there on they run as a ladder, so no sample runs more than two heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from harness.contracts import Execution, Predictions
from harness.core.clock import Phases
from harness.core.errors import ConfigError
from harness.core.tokens import TokenSet
from harness.core.work import Tally, record
from harness.encoder import transfer
from harness.encoder.layout import Layout
from harness.encoder.multi_exit import MultiExitModel
from harness.execution.arrangement import cut, sort_by_exit
from harness.execution.executors import exit_batches
from harness.execution.run_pass import Answered, BatchRun, Pass, inference, interleave

# Returns the exits of samples after the look, layer indices, int16 [B], from its logits [B, C] and the lengths, int64 [B].
Decide = Callable[[Tensor, Tensor], Tensor]
# Hidden states that wait for their exits, in rows: 0.8 GB of float32 at the width of BERT-base.
ROWS = 1 << 18


def run_look_once(
    model: MultiExitModel,
    tokens: TokenSet,
    look: int,
    decide: Decide,
    execution: Execution,
    *,
    phases: Phases | None = None,
    answered: Answered | None = None,
) -> Predictions:
    """Run every sample to layer ``look`` and its head, then to the exit that ``decide`` chooses, where another head answers.

    A sample whose exit is the look has its answer already. Exits are decided once for all samples (per window, and per
    :data:`ROWS` rows of hidden states), so the host waits once for them.

    Args:
        look: layer index out of ``model.exits``.
        answered: answers some samples before layer 1; the others look.
        decide: may not wait for the device; its exits are layer indices out of ``model.answers``, none above the look.

    Raises:
        ConfigError: the look, or an exit, is at a layer without a head, or an exit is before the look.
    """
    if look not in model.exits:
        raise ConfigError(
            f"no head to look at after layer {look + 1}: exits are after layers {[e + 1 for e in model.exits]}"
        )
    with inference(model):
        run = Pass(model, tokens, execution, phases=phases, answered=answered)
        interleave((partial(_run_chunk, run, look, decide, batches) for batches in _chunks(run)), run.device)
        found = run.predictions()
        return replace(found, predicted_exit=found.exit_layer)


def _chunks(run: Pass) -> Iterator[list[tuple[int, int]]]:
    """Yield batches whose hidden states wait together; none spans two windows."""
    padded = run.execution.max_length if run.execution.protocol == "paper" else 0
    for begin, end in run.windows():
        chunk: list[tuple[int, int]] = []
        rows = 0
        for first, last in cut(run.lengths, begin, end, run.execution):
            more = padded * (last - first) or int(run.lengths[first:last].sum())
            if chunk and rows + more > ROWS:
                yield chunk
                chunk, rows = [], 0
            chunk.append((first, last))
            rows += more
        if chunk:
            yield chunk


def _run_chunk(run: Pass, look: int, decide: Decide, batches: list[tuple[int, int]], lane: int) -> BatchRun:
    """Run one chunk. Hidden states are copied before the wait, so all chunks can share one lane and its graphs."""
    first, last = batches[0][0], batches[-1][1]
    offsets = run.arranged.batch(first, last)[0].offsets
    pad_to = run.execution.max_length if run.execution.protocol == "paper" else None
    whole = Layout(run.lengths[first:last], pad_to, run.device, offsets)
    with run.phases("layers"):
        states = _to_the_look(run, look, batches, whole)
    with run.phases("predict"):
        record("decide", Tally(last - first))
        exits = decide(run.logits[first:last], whole.offsets[1:] - whole.offsets[:-1])
    with run.phases("schedule"):
        plan = _plan(run, exits, whole)
    order, ends = yield plan
    _check_exits(run.model, look, ends)
    with run.phases("layers"):
        _to_the_exits(run, look, first, whole, states, order, ends)


def _to_the_exits(
    run: Pass, look: int, first: int, whole: Layout, states: Tensor, order: np.ndarray, ends: np.ndarray
) -> None:
    """Run the samples of a chunk from the look to their ``ends``; ``order`` has their places in the chunk, deepest first."""
    going = int((ends > look).sum())
    ladder = replace(run.execution, executor="ladder")
    for begin, stop in exit_batches(ends[:going], whole.lengths[order[:going]], ladder):
        samples = order[begin:stop]
        hidden, layout = whole.select(states, samples)
        for index, ended, part, some in run.ladder(hidden, layout, ends[begin:stop], look + 1):
            run.answer(first + samples[ended].astype(np.int64), run.head(index, part, some), index)


def _to_the_look(run: Pass, look: int, batches: list[tuple[int, int]], whole: Layout) -> Tensor:
    """Run batches to the look, answer them there, and return their hidden states, [rows, width], one batch after another."""
    states: Tensor | None = None
    at = 0
    for begin, stop in batches:
        hidden, layout = run.begin(begin, stop)
        for index in range(look + 1):
            hidden = run.layer(index, hidden, layout)
        if states is None:
            states = hidden.new_empty(whole.rows, hidden.shape[1])
        record("gather", Tally(layout.count, layout.rows))
        states[at : at + layout.rows].copy_(hidden)
        at += layout.rows
        run.answer(slice(begin, stop), run.head(look, hidden, layout), look)
    assert states is not None  # a chunk has a batch
    return states


def _plan(run: Pass, exits: Tensor, whole: Layout) -> transfer.HostCopy:
    """Sort samples by exit and start one copy to the host: places in the chunk in the new order, and their exits, int32 [2, B]."""
    lengths = whole.offsets[1:] - whole.offsets[:-1]
    order = sort_by_exit(exits, lengths, run.execution, run.model.depth)
    return transfer.download(torch.stack([order.int(), exits[order].int()]))


def _check_exits(model: MultiExitModel, look: int, ends: np.ndarray) -> None:
    known = [answer for answer in model.answers if answer >= look]
    unknown = sorted(set(np.unique(ends).tolist()) - set(known))
    if unknown:
        raise ConfigError(f"no trained head after layer index {unknown} from the look on: heads are at {known}")
