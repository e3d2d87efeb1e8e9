"""How a model runs over many samples: full depth, shrinking batches, or depths known beforehand.

All of them take packed ids in any order and return in input order, count what they execute, and give every sample the
same logits (up to float rounding) whatever batch it falls into. Layers are counted by index, 0 .. L-1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from harness.contracts import Execution, Predictions, TokenSet
from harness.encoder.layout import Layout
from harness.encoder.model import Encoder
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.schedule import schedule
from harness.errors import ConfigError
from harness.measure.clock import Phases
from harness.measure.work import Work

LeaveRule = Callable[[Tensor], Tensor]
Answer = Literal["student", "shared"]


class Pass:
    """What one pass over a token set collects, and the lengths every executor needs on the host.

    Attributes:
        lengths: int64 [N] on the host (one small copy; on CUDA the only one before the answers).
        logits: float32 [N, C] on the device, filled as samples are answered.
        exits: int16 [N] on the host.
    """

    def __init__(self, tokens: TokenSet, labels: int, execution: Execution, phases: Phases | None = None) -> None:
        self.tokens, self.execution = tokens, execution
        self.phases = phases or Phases(tokens.device)
        self.lengths = tokens.lengths.cpu().numpy()
        self.logits = torch.zeros(len(tokens), labels, dtype=torch.float32, device=tokens.device)
        self.exits = np.zeros(len(tokens), dtype=np.int16)
        self.work = Work()

    def layout(self, samples: np.ndarray) -> Layout:
        """Layout of the given samples under this pass's protocol."""
        pad_to = self.execution.max_length if self.execution.protocol == "paper" else None
        return Layout(self.lengths[samples], pad_to, self.tokens.device)

    def begin(self, encoder: Encoder, samples: np.ndarray) -> tuple[Tensor, Layout]:
        """Embeddings h^0 and layout of the given samples."""
        layout = self.layout(samples)
        return encoder.embed(self.tokens.select(samples), layout), layout

    def layer(self, encoder: Encoder, index: int, hidden: Tensor, layout: Layout) -> Tensor:
        """Run and count layer ``index``."""
        self.work.add(f"layer.{index}", layout.tally())
        return encoder.layers[index](hidden, layout)

    def head(self, model: MultiExitModel, exit_layer: int, hidden: Tensor, layout: Layout) -> Tensor:
        """Run and count the head after layer ``exit_layer``: float32 [B, C]."""
        self.work.add(f"head.{exit_layer}", layout.tally(queries="first"))
        return model.student(exit_layer)(hidden, layout).float()

    def answer(self, samples: np.ndarray, logits: Tensor, exit_layer: int) -> None:
        """Store the logits of samples that leave after ``exit_layer``; this is also what undoes the sorting."""
        self.logits[torch.from_numpy(samples).to(self.logits.device)] = logits.float()
        self.exits[samples] = exit_layer

    def predictions(self, predicted: Tensor | None = None) -> Predictions:
        """Copy to the host."""
        with self.phases("copy"):
            logits = self.logits.cpu().numpy()
        return Predictions(
            logits,
            self.exits,
            self.work,
            None if predicted is None else predicted.cpu().numpy().astype(np.int16),
            self.phases.seconds(),
        )


def in_batches(order: np.ndarray, size: int, window: int = 0) -> Iterator[np.ndarray]:
    """Cut ``order`` into pieces of at most ``size``, none of which spans two windows (0: there is only one)."""
    window = window or max(1, len(order))
    for begin in range(0, len(order), window):
        end = min(begin + window, len(order))
        for start in range(begin, end, size):
            yield order[start : min(start + size, end)]


def plain_order(run: Pass) -> np.ndarray:
    """Arrival order, or longest first within each window."""
    if run.execution.order == "arrival":
        return np.arange(len(run.lengths))
    alike = torch.zeros(len(run.lengths), dtype=torch.int16)
    return schedule(alike, torch.from_numpy(run.lengths), window=run.execution.window).numpy()


@torch.inference_mode()
def run_full(model: MultiExitModel, tokens: TokenSet, execution: Execution) -> Predictions:
    """Every layer and the teacher head for every sample."""
    model.eval()
    run = Pass(tokens, model.labels, execution)
    last = model.depth - 1
    with run.phases("schedule"):
        order = plain_order(run)
    with run.phases("layers"):
        for samples in in_batches(order, execution.batch_size, execution.window):
            hidden, layout = run.begin(model.encoder, samples)
            for index in range(model.depth):
                hidden = run.layer(model.encoder, index, hidden, layout)
            run.answer(samples, run.head(model, last, hidden, layout), last)
    return run.predictions()


@torch.inference_mode()
def run_sequential(model: MultiExitModel, tokens: TokenSet, execution: Execution, leaves: LeaveRule) -> Predictions:
    """FastBERT's inference: after every exit layer ask its head, let the sure ones leave, shrink the batch.

    Batched correctly: hidden states, lengths and mask shrink together, and there is one host copy (a bool per active
    sample) per exit layer and batch. Equal to batch size 1.

    Args:
        leaves: logits [B, C] -> bool [B], true for samples that leave.
    """
    model.eval()
    run = Pass(tokens, model.labels, execution)
    last = model.depth - 1
    with run.phases("schedule"):
        order = plain_order(run)
    with run.phases("layers"):
        for batch in in_batches(order, execution.batch_size, execution.window):
            samples = batch
            hidden, layout = run.begin(model.encoder, samples)
            for index in range(model.depth):
                hidden = run.layer(model.encoder, index, hidden, layout)
                if index == last:
                    run.answer(samples, run.head(model, index, hidden, layout), index)
                elif index in model.exits:
                    logits = run.head(model, index, hidden, layout)
                    leaving = leaves(logits)
                    stay = ~leaving.cpu().numpy()
                    if stay.all():
                        continue
                    run.answer(samples[~stay], logits[leaving], index)
                    if not stay.any():
                        break
                    hidden, layout = layout.select(hidden, np.flatnonzero(stay))
                    samples = samples[stay]
    return run.predictions()


def exit_batches(exits: np.ndarray, order: np.ndarray, execution: Execution) -> Iterator[np.ndarray]:
    """Batches of scheduled samples: ``ladder`` cuts anywhere, ``exact-k`` also where the exit changes.

    Within a batch the exits never rise, so that the samples active at any layer are a prefix.
    """
    for window in in_batches(order, execution.window or max(1, len(order))):
        borders = np.flatnonzero(np.diff(exits[window])) + 1
        for group in np.split(window, borders) if execution.executor == "exact-k" else [window]:
            yield from in_batches(group, execution.batch_size)


def run_assigned(
    model: MultiExitModel,
    tokens: TokenSet,
    exits: Tensor,
    execution: Execution,
    *,
    answer: Answer = "student",
    phases: Phases | None = None,
) -> Predictions:
    """Run every sample to the exit it was assigned beforehand, and answer with one head.

    Samples are ordered by (exit, length). The samples active at a layer are then a prefix of the batch: a view, whose
    size the host knows; nothing is gathered and nothing is waited for.

    Args:
        exits: int16 [N], layer indices out of ``model.answers`` (``answer="shared"``: any layer index).
        answer: ``"student"`` is C_k(h^k), ``"shared"`` is C_T(F_L(h^k)), one layer more.

    Raises:
        ConfigError: a sample is sent to a layer without a trained head.
    """
    run = Pass(tokens, model.labels, execution, phases)
    with run.phases("schedule"):
        # One copy to the host: the exits; the order follows from them and from the lengths, which are there already.
        host_exits = exits.cpu()
        allowed = set(model.answers) if answer == "student" else set(range(model.depth))
        unknown = set(torch.unique(host_exits).tolist()) - allowed
        if unknown:
            raise ConfigError(f"no trained head after layer index {sorted(unknown)}: heads are at {sorted(allowed)}")
        lengths = run.lengths if execution.order == "length" else np.zeros_like(run.lengths)
        order = schedule(host_exits, torch.from_numpy(lengths), window=execution.window).numpy()
    with run.phases("layers"):
        climb(model, run, host_exits.numpy(), order, answer)
    return run.predictions(exits)


@torch.inference_mode()
def climb(model: MultiExitModel, run: Pass, exits: np.ndarray, order: np.ndarray, answer: Answer) -> None:
    """The loop of :func:`run_assigned`: batches in scheduled order, each a ladder."""
    model.eval()
    last = model.depth - 1
    for samples in exit_batches(exits, order, run.execution):
        hidden, layout = run.begin(model.encoder, samples)
        depths = exits[samples]  # never rising
        for index in range(int(depths[0]) + 1):
            active = int((depths >= index).sum())
            hidden, layout_now = layout.slice(hidden, 0, active)
            hidden = run.layer(model.encoder, index, hidden, layout_now)
            staying = int((depths > index).sum())
            if staying == active:
                continue
            leaving, its_layout = layout_now.slice(hidden, staying, active)
            if answer == "shared" and index != last:
                leaving = run.layer(model.encoder, last, leaving, its_layout)
                logits = run.head(model, last, leaving, its_layout)
            else:
                logits = run.head(model, index, leaving, its_layout)
            run.answer(samples[staying:active], logits, index)


@torch.inference_mode()
def exit_logits(model: MultiExitModel, tokens: TokenSet, execution: Execution, *, answer: Answer = "student") -> Tensor:
    """Logits of every answering layer for every sample, float32 [len(model.answers), N, C] on the host.

    Not a way to predict but the material to tune thresholds and to build tables with: one pass serves all of them.
    """
    model.eval()
    run = Pass(tokens, model.labels, execution)
    out = torch.zeros(len(model.answers), len(tokens), model.labels)
    for samples in in_batches(plain_order(run), execution.batch_size):
        hidden, layout = run.begin(model.encoder, samples)
        for index, layer in enumerate(model.encoder.layers):
            hidden = layer(hidden, layout)
            if index in model.answers:
                shared = answer == "shared" and index != model.depth - 1
                logits = model.shared_answer(hidden, layout) if shared else model.student(index)(hidden, layout)
                out[model.answers.index(index), samples] = logits.float().cpu()
    return out
