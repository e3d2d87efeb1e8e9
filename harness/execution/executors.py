"""Executors for full depth and for exits known beforehand (see ``sequential`` and ``verified`` for the others).

All executors take packed ids in any order and return in input order, count what they execute, and give every sample the
same logits (up to float rounding) in any batch. Layers are numbered 0 .. L-1.

On CUDA the host waits twice: for the execution order, and for the answers. Decisions on the way add their own waits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from math import log

import numpy as np
import torch
from torch import Tensor

from harness.contracts import Execution, Predictions
from harness.core.clock import Phases
from harness.core.tokens import TokenSet
from harness.encoder import transfer
from harness.encoder.model import Gate
from harness.encoder.multi_exit import MultiExitModel
from harness.execution.arrangement import cut, windows
from harness.execution.run_pass import Answer, Answered, Pass, inference


def run_full(model: MultiExitModel, tokens: TokenSet, execution: Execution) -> Predictions:
    """Run every layer and the teacher head for every sample."""
    with inference(model):
        run = Pass(model, tokens, execution)
        with run.phases("layers"):
            for first, last in run.batches():
                run.run_to_the_end(first, last)
        return run.predictions()


def run_branches(
    model: MultiExitModel, tokens: TokenSet, execution: Execution, shared: int, ends: Sequence[range]
) -> Predictions:
    """Run the first ``shared`` layers, then each end from their states; the answer is the mean of the ends' probabilities.

    Logits are the logarithm of that mean.

    Args:
        ends: layer indices of every end that runs; its last layer has a head.
    """
    with inference(model):
        run = Pass(model, tokens, execution)
        with run.phases("layers"):
            for first, last in run.batches():
                split, layout = run.begin(first, last)
                for index in range(shared):
                    split = run.layer(index, split, layout)
                split = run.keep(split)
                said = []
                for end in ends:
                    hidden = split
                    for index in end:
                        hidden = run.layer(index, hidden, layout)
                    said.append(run.keep(run.head(end[-1], hidden, layout)).log_softmax(-1))
                mean = torch.stack(said).logsumexp(0) - log(len(said)) if len(said) > 1 else said[0]
                run.answer(slice(first, last), mean, ends[-1][-1])
        return run.predictions()


def exit_batches(
    exits: np.ndarray, lengths: np.ndarray, execution: Execution, spans: Iterable[tuple[int, int]] | None = None
) -> Iterator[tuple[int, int]]:
    """Yield batches of arranged samples: ``ladder`` cuts anywhere, ``exact-k`` also where the exit changes.

    Exits never rise within a batch, so the samples active at any layer are a prefix.

    Args:
        spans: samples of each window that run (first, one past the last); by default all.
    """
    for begin, end in windows(len(exits), execution.window) if spans is None else spans:
        groups = [begin, end]
        if execution.executor == "exact-k":
            groups[1:1] = (np.flatnonzero(np.diff(exits[begin:end])) + begin + 1).tolist()
        for start, stop in pairwise(groups):
            yield from cut(lengths, start, stop, execution)


def run_assigned(
    model: MultiExitModel,
    tokens: TokenSet,
    exits: Tensor,
    execution: Execution,
    *,
    answer: Answer = "student",
    phases: Phases | None = None,
    answered: Answered | None = None,
) -> Predictions:
    """Run every sample to the exit it was assigned beforehand, and answer with one head.

    Samples are ordered by (exit, length), as :meth:`Pass.ladder` needs them.

    Args:
        exits: int16 [N], layer indices out of ``model.answers`` (``answer="shared"``: any layer index).
        answer: ``"student"`` is C_k(h^k), ``"shared"`` is C_T(F_L(h^k)), one layer more.
        answered: answers some samples before layer 1; the others run.

    Raises:
        ConfigError: an exit is at a layer without a trained head.
    """
    with inference(model):
        run = Pass(model, tokens, execution, exits[:, None], phases, answered)
        run.check_heads(model.answers if answer == "student" else range(model.depth))
        with run.phases("layers"):
            for first, last in exit_batches(run.columns[:, 0], run.lengths, execution, run.windows()):
                run_ladder_batch(run, first, last, answer)
        return run.predictions()


def run_ladder_batch(run: Pass, first: int, last: int, answer: Answer) -> None:
    """Run one batch of :func:`run_assigned`, a ladder."""
    final = run.model.depth - 1
    for index, ended, hidden, layout in run.ladder(*run.begin(first, last), run.columns[first:last, 0]):
        shared = answer == "shared" and index != final
        logits = run.shared(hidden, layout) if shared else run.head(index, hidden, layout)
        run.answer(slice(first + ended.start, first + ended.stop), logits, index)


def exit_logits(model: MultiExitModel, tokens: TokenSet, execution: Execution, *, answer: Answer = "student") -> Tensor:
    """Return logits of every answering layer for every sample, float32 [len(model.answers), N, C] on the host.

    For tuning thresholds and building tables, not for prediction: one pass serves all of them.
    """
    return exit_evidence(model, tokens, execution, answer=answer)[0]


def exit_evidence(
    model: MultiExitModel,
    tokens: TokenSet,
    execution: Execution,
    *,
    answer: Answer = "student",
    gate: Gate | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return :func:`exit_logits` and the gate's output of the same pass, float32 [A, N] or [A, N, D] for A answers."""
    with inference(model):
        # Weights may still change during training, so nothing is prepared for later passes.
        run = Pass(model, tokens, replace(execution, compute="eager"))
        labels = model.labels
        size = labels + (0 if gate is None else gate.size)
        out = torch.zeros(len(model.answers), len(tokens), size, device=tokens.device)
        for first, last in run.batches():
            hidden, layout = run.begin(first, last)
            for index in range(model.depth):
                hidden = run.layer(index, hidden, layout)
                if index in model.answers:
                    shared = answer == "shared" and index != model.depth - 1
                    logits = run.shared(hidden, layout) if shared else run.head(index, hidden, layout)
                    place = model.answers.index(index)
                    out[place, first:last, :labels] = logits
                    if gate is not None:
                        doubt = run.gate(index, gate, hidden, layout)
                        out[place, first:last, labels:] = doubt.view(last - first, gate.size)
        found = transfer.download(out.transpose(0, 1).contiguous()).wait()
        evidence = torch.from_numpy(run.in_input_order(found)).transpose(0, 1).contiguous()
        if gate is None:
            return evidence, None
        doubts = evidence[..., labels:].contiguous()
        return evidence[..., :labels].contiguous(), doubts.squeeze(-1) if gate.size == 1 else doubts
