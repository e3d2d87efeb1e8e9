"""Sequential exit: run a head after every exit layer, let confident samples leave, continue with the rest.

:func:`run_sequential` is the tuned loop, for any rule. :func:`run_faithful` is the loop that FastBERT released; comparing the two
shows what the tuning is worth.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import torch

from harness.contracts import Execution, Predictions
from harness.core.tokens import TokenSet
from harness.core.work import Tally, record
from harness.encoder import transfer
from harness.encoder.multi_exit import MultiExitModel
from harness.execution.engine_cache import without_compiler
from harness.execution.exit_rules import ExitRule
from harness.execution.run_pass import BatchRun, LeaveRule, Pass, inference, interleave


def run_sequential(model: MultiExitModel, tokens: TokenSet, execution: Execution, rule: ExitRule) -> Predictions:
    """Run batches that shrink layer by layer. Results equal those at batch size 1.

    Hidden states, lengths, mask and the rule's memory shrink together on the device. The host receives one bool per active
    sample, exit layer and batch; meanwhile another batch computes.
    """
    with inference(model):
        run = Pass(model, tokens, execution)
        with run.phases("layers"):
            interleave((partial(_shrink, run, rule, first, last) for first, last in run.batches()), run.device)
        return run.predictions()


def _shrink(run: Pass, rule: ExitRule, first: int, last: int, lane: int) -> BatchRun:
    """Run one batch of :func:`run_sequential`."""
    hidden, layout = run.begin(first, last, lane)
    memory = rule.begin(last - first, run.device)
    samples: slice | np.ndarray = slice(first, last)
    for index in range(run.model.depth):
        hidden = run.layer(index, hidden, layout, lane)
        end = index == run.model.depth - 1
        if index not in run.model.answers or not (end or rule.asks(run.model.answers.index(index))):
            continue
        logits = run.head(index, hidden, layout, lane)
        # All samples are answered, and staying ones again later, so none has to be picked out.
        run.answer(samples, logits, index)
        if end:
            return
        doubt = None if rule.gate is None else run.gate(index, rule.gate, hidden, layout)
        record("decide", Tally(len(logits)))
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
    """Run the loop of FastBERT's released code, its cost included: the host reads every sample after every exit layer.

    Hidden states and indices of staying samples are filtered by index lists that the host builds sample by sample from
    scalars on the device, and batches do not overlap. Blocks run one by one. Data, layout, batches and order are those of all
    methods, and the answers are those of :func:`run_sequential`.
    """
    with inference(model):
        run = Pass(model, tokens, replace(execution, compute=without_compiler(execution.compute)))
        with run.phases("layers"):
            for first, last in run.batches():
                _shrink_faithfully(run, leaves, first, last)
        return run.predictions()


def _shrink_faithfully(run: Pass, leaves: LeaveRule, first: int, last: int) -> None:
    """Run one batch of :func:`run_faithful`."""
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
        record("decide", Tally(len(logits)))
        going, staying = _by_one(leaves(logits))
        if going:
            run.answer(samples[going], logits[torch.tensor(going, device=logits.device)], index)
        if not staying:
            return
        # The release filters even if no sample left.
        hidden, layout = layout.select(hidden, np.array(staying))
        samples = samples[staying]


def _by_one(leaving: torch.Tensor) -> tuple[list[int], list[int]]:
    """Return the samples that leave and those that stay, read one by one: on CUDA the host waits for each."""
    record("read", count=len(leaving))
    going: list[int] = []
    staying: list[int] = []
    for sample, leaves in enumerate(leaving):
        (going if bool(leaves) else staying).append(sample)
    return going, staying
