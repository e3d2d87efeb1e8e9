"""Verified exits: run to a predicted exit, apply one head, and let only confident samples leave; the rest continue.

Prediction decides *when to look*, not when to stop. Staying samples are compacted once per chunk and look, with one copy of a
bool per sample to the host, and continue from their layer; meanwhile another chunk computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from harness.contracts import Execution, Predictions
from harness.core.clock import Phases
from harness.core.tokens import TokenSet
from harness.core.work import Tally, record
from harness.encoder import transfer
from harness.encoder.layout import Layout
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.transfer import HostCopy
from harness.execution.arrangement import cut
from harness.execution.run_pass import BatchRun, LeaveRule, Pass, inference, interleave

# Samples whose hidden states are kept until the host knows which stay; bounds the memory of the second pass.
CHUNK = 1024


def run_verified(
    model: MultiExitModel,
    tokens: TokenSet,
    looks: Tensor,
    execution: Execution,
    leaves: LeaveRule,
    *,
    end: int | None = None,
    phases: Phases | None = None,
) -> Predictions:
    """Run every sample to ``looks[:, 0]`` and apply that head; unsure samples continue to ``looks[:, 1]``, ..., and to the end.

    Args:
        looks: int16 [N, S], layer indices out of ``model.answers``, not falling along S. Mode ``once`` is S = 1. A look
            that is not deeper than the one before is skipped.
        leaves: logits [B, C] -> bool [B], true for samples that may leave.
        end: layer index out of ``model.answers`` at which all remaining samples are answered; by default the last layer.
            A sample whose first look is deeper is answered there.

    Raises:
        ConfigError: a look, or the end, is at a layer without a head.
    """
    with inference(model):
        run = Pass(model, tokens, execution, looks, phases)
        stop = model.depth - 1 if end is None else end
        run.check_heads(model.answers, stop)
        targets = run.columns.copy()
        targets[:, 1:] = np.minimum(targets[:, 1:], stop)
        with run.phases("layers"):
            interleave(
                (partial(_run_chunk, run, first, last, targets, leaves, stop) for first, last in _chunks(run)),
                run.device,
            )
        return run.predictions()


def _chunks(run: Pass) -> Iterator[tuple[int, int]]:
    size = max(CHUNK, run.execution.batch_size)
    for begin, end in run.windows():
        for first in range(begin, end, size):
            yield first, min(first + size, end)


@dataclass
class _Group:
    """Samples after the same layer, with their hidden states."""

    samples: np.ndarray
    hidden: Tensor
    layout: Layout


@dataclass
class _Parked(_Group):
    """Samples whose head at layer ``depth`` has run and whose decision is not on the host yet."""

    depth: int
    logits: Tensor
    sure: Tensor


def _run_chunk(
    run: Pass, first: int, last: int, targets: np.ndarray, leaves: LeaveRule, end: int, lane: int
) -> BatchRun:
    """Run one chunk: first looks from the embeddings, then round after round for the unsure samples.

    Whatever is needed after a wait is copied, so all chunks can share one lane and its graphs.
    """
    parked: list[_Parked] = []
    for begin, stop in cut(run.lengths, first, last, run.execution):
        samples = np.arange(begin, stop)
        hidden, layout = run.begin(begin, stop)
        parked += _look(run, _Group(samples, hidden, layout), -1, targets[samples, 0], leaves)
    for column in range(1, targets.shape[1] + 1):
        if not parked:
            return
        # Samples that are unsure after the last look run to the end, where no confidence is needed.
        goal = targets[:, column] if column < targets.shape[1] else np.full(len(targets), end)
        waiting = _release(run, parked, (yield _verdicts(parked)), end)
        parked = []
        for depth, groups in waiting.items():
            for group in _batches(groups, goal, run.execution):
                ends = np.maximum(goal[group.samples], depth)
                ready = int((ends > depth).sum())  # samples whose next look is deeper come first
                if ready:
                    hidden, layout = group.layout.slice(group.hidden, 0, ready)
                    some = _Group(group.samples[:ready], hidden, layout)
                    parked += _look(run, some, depth, ends[:ready], leaves)
                if ready < len(ends):
                    hidden, layout = group.layout.slice(group.hidden, ready, len(ends))
                    none_leave = torch.zeros(len(ends) - ready, dtype=torch.bool, device=hidden.device)
                    blank = torch.zeros(len(ends) - ready, run.model.labels, device=hidden.device)
                    parked.append(_Parked(group.samples[ready:], hidden, layout, depth, blank, none_leave))
    if parked:
        _release(run, parked, (yield _verdicts(parked)), end)


def _look(run: Pass, group: _Group, depth: int, ends: np.ndarray, leaves: LeaveRule) -> list[_Parked]:
    """Run samples from after layer ``depth`` to their ``ends`` (not rising) and apply the head there."""
    parked = []
    for index, ended, hidden, layout in run.ladder(group.hidden, group.layout, ends, depth + 1):
        logits = run.keep(run.head(index, hidden, layout))
        record("decide", Tally(len(logits)))
        parked.append(_Parked(group.samples[ended], run.keep(hidden), layout, index, logits, leaves(logits)))
    return parked


def _verdicts(parked: list[_Parked]) -> HostCopy:
    """Start one copy to the host of all decisions."""
    return transfer.download(torch.cat([group.sure for group in parked]))


def _release(run: Pass, parked: list[_Parked], sure_all: np.ndarray, end: int) -> dict[int, list[_Group]]:
    """Answer all parked samples; return the unsure ones, compacted, by layer. They are answered again later."""
    waiting: dict[int, list[_Group]] = {}
    start = 0
    for group in parked:
        sure = sure_all[start : start + len(group.samples)] | (group.depth >= end)
        start += len(group.samples)
        run.answer(group.samples, group.logits, group.depth)
        if not sure.all():
            stay = np.flatnonzero(~sure)
            hidden, layout = group.layout.select(group.hidden, stay)
            waiting.setdefault(group.depth, []).append(_Group(group.samples[stay], hidden, layout))
    return dict(sorted(waiting.items()))


def _batches(groups: list[_Group], goal: np.ndarray, execution: Execution) -> Iterator[_Group]:
    """Join groups after one layer into batches of the execution's size, deepest goal first."""
    samples = np.concatenate([group.samples for group in groups])
    lengths = np.concatenate([group.layout.lengths for group in groups])
    first = groups[0]
    if len(groups) > 1:
        record("join", Tally(len(samples), sum(group.layout.rows for group in groups)))
    hidden = first.hidden if len(groups) == 1 else torch.cat([group.hidden for group in groups])
    layout = first.layout if len(groups) == 1 else Layout(lengths, first.layout.pad_to, first.layout.device)
    order = np.lexsort((-lengths, -goal[samples]))
    for begin, stop in cut(lengths[order], 0, len(order), execution):
        part = order[begin:stop]
        yield _Group(samples[part], *layout.select(hidden, part))
