"""Ask a head after every exit layer, let the samples leave that a rule lets go, go on with the others.

:func:`run_sequential` is the loop as we would tune it, for any rule. :func:`run_faithful` is the one that FastBERT released; it
exists to show what the tuning is worth.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from harness.contracts import Execution, Predictions
from harness.core.tokens import TokenSet
from harness.encoder import transfer
from harness.encoder.multi_exit import MultiExitModel
from harness.execution.exit_rules import ExitRule, Stateless
from harness.execution.run_pass import Climb, LeaveRule, Pass, inference, interleave


def run_sequential(
    model: MultiExitModel, tokens: TokenSet, execution: Execution, leaves: LeaveRule | ExitRule
) -> Predictions:
    """Batches shrink layer by layer. Equal to batch size 1.

    Hidden states, lengths, mask and whatever the rule remembers shrink together, on the device. The host gets one bool per
    active sample, exit layer and batch, and while it waits for it another batch computes.

    Args:
        leaves: a rule; or logits [B, C] -> bool [B], true for samples that leave.
    """
    rule = leaves if isinstance(leaves, ExitRule) else Stateless(leaves)
    with inference(model):
        run = Pass(model, tokens, execution)
        with run.phases("layers"):
            interleave((partial(_shrink, run, rule, first, last) for first, last in run.batches()), run.device)
        return run.predictions()


def _shrink(run: Pass, rule: ExitRule, first: int, last: int, lane: int) -> Climb:
    """One batch of :func:`run_sequential`."""
    hidden, layout = run.begin(first, last, lane)
    memory = rule.begin(last - first, run.device)
    samples: slice | np.ndarray = slice(first, last)
    for index in range(run.model.depth):
        hidden = run.layer(index, hidden, layout, lane)
        end = index == run.model.depth - 1
        if index not in run.model.answers or not (end or rule.asks(run.model.answers.index(index))):
            continue
        logits = run.head(index, hidden, layout, lane)
        # Everybody is answered; who stays is answered again later. So nobody has to be picked out.
        run.answer(samples, logits, index)
        if end:
            return
        doubt = None if rule.gate is None else run.gate(index, rule.gate, hidden, layout)
        leaves, memory = rule.look(run.model.answers.index(index), logits, doubt, memory)
        stay = ~(yield transfer.download(leaves))
        if stay.all():
            continue
        if not stay.any():
            return
        staying = np.flatnonzero(stay)
        hidden, layout = layout.select(hidden, staying)
        if memory:
            rows = transfer.upload(staying, run.device)
            memory = tuple(part.index_select(0, rows) for part in memory)
        samples = (np.arange(first, last) if isinstance(samples, slice) else samples)[stay]


def run_faithful(model: MultiExitModel, tokens: TokenSet, execution: Execution, leaves: LeaveRule) -> Predictions:
    """The loop of FastBERT's released code, its cost included: the host looks at every sample after every exit layer.

    Hidden states and indices of those who stay are filtered by lists of indices that the host makes sample by sample from
    scalars on the device, and a batch is over before the next one starts. Blocks run eagerly. Data, layout, batches and
    order are those of every other method. Answers are those of :func:`run_sequential`.

    Args:
        leaves: as there.
    """
    with inference(model):
        run = Pass(model, tokens, replace(execution, compute="eager"))
        with run.phases("layers"):
            for first, last in run.batches():
                _shrink_faithfully(run, leaves, first, last)
        return run.predictions()


def _shrink_faithfully(run: Pass, leaves: LeaveRule, first: int, last: int) -> None:
    """One batch of :func:`run_faithful`."""
    hidden, layout = run.begin(first, last)
    samples = np.arange(first, last)
    for index in range(run.model.depth):
        hidden = run.layer(index, hidden, layout)
        if index not in run.model.answers:
            continue
        logits = run.head(index, hidden, layout)
        if index == run.model.depth - 1:
            run.answer(samples, logits, index)
            return
        going, staying = _by_one(leaves(logits))
        if going:
            run.answer(samples[going], logits[torch.tensor(going, device=logits.device)], index)
        if not staying:
            return
        # The release filters whether anybody left or not.
        hidden, layout = layout.select(hidden, np.array(staying))
        samples = samples[staying]


def _by_one(leaving: torch.Tensor) -> tuple[list[int], list[int]]:
    """Who leaves and who stays, asked one by one: on CUDA the host waits for each."""
    verdicts: Iterator[bool] = (bool(verdict) for verdict in leaving)
    going: list[int] = []
    staying: list[int] = []
    for sample, leaves in enumerate(verdicts):
        (going if leaves else staying).append(sample)
    return going, staying
