"""Run to a predicted exit, look there, and let only the sure ones leave; the rest go on (DESIGN section 3).

Prediction decides *when to look*, not when to stop. Samples that stay are compacted once per chunk, with one copy of a
bool per sample to the host, and then run from wherever they stand.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from harness.contracts import Execution, Predictions, TokenSet
from harness.encoder.executors import LeaveRule, Pass, in_batches
from harness.encoder.layout import Layout
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.schedule import schedule
from harness.errors import ConfigError
from harness.measure.clock import Phases

# Samples whose hidden states are kept until the host knows who stays: bounds the memory of the second pass.
CHUNK = 1024


@torch.inference_mode()
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
    """Every sample runs to ``looks[:, 0]`` and asks that head; the unsure go on to ``looks[:, 1]``, ..., and to the end.

    Args:
        looks: int16 [N, S], layer indices out of ``model.answers``, not falling along S. Mode ``once`` is S = 1. A look
            that does not lie deeper than the one before is skipped.
        leaves: logits [B, C] -> bool [B], true for samples that may leave.
        end: layer index out of ``model.answers`` at which whoever is still there is answered, sure or not; the last
            layer by default. A sample whose first look lies deeper is answered there.

    Raises:
        ConfigError: a look, or the end, at a layer without a head.
    """
    model.eval()
    run = Pass(tokens, model.labels, execution, phases)
    end = model.depth - 1 if end is None else end
    with run.phases("schedule"):
        host_looks = looks.cpu()
        unknown = {*torch.unique(host_looks).tolist(), end} - set(model.answers)
        if unknown:
            raise ConfigError(
                f"no trained head after layer index {sorted(unknown)}: heads are at {list(model.answers)}"
            )
        lengths = torch.from_numpy(run.lengths if execution.order == "length" else np.zeros_like(run.lengths))
        order = schedule(host_looks[:, 0].contiguous(), lengths, window=execution.window).numpy()
    targets = host_looks.numpy().astype(np.int64)
    targets[:, 1:] = np.minimum(targets[:, 1:], end)
    with run.phases("layers"):
        for chunk in in_batches(order, max(CHUNK, execution.batch_size), execution.window):
            _climb_chunk(model, run, chunk, targets, leaves, end)
    return run.predictions(looks[:, 0])


class _Parked:
    """Hidden states of samples that asked a head at the same layer and wait for the verdict."""

    def __init__(
        self, samples: np.ndarray, depth: int, hidden: Tensor, layout: Layout, logits: Tensor, sure: Tensor
    ) -> None:
        self.samples, self.depth, self.hidden, self.layout = samples, depth, hidden, layout
        self.logits, self.sure = logits, sure


def _climb_chunk(
    model: MultiExitModel, run: Pass, chunk: np.ndarray, targets: np.ndarray, leaves: LeaveRule, end: int
) -> None:
    """First looks from the embeddings, then round after round from where the unsure ones stand."""
    parked: list[_Parked] = []
    for samples in in_batches(chunk, run.execution.batch_size):
        hidden, layout = run.begin(model.encoder, samples)
        parked += _look(model, run, samples, hidden, layout, -1, targets[samples, 0], leaves)
    for column in range(1, targets.shape[1] + 1):
        # Whoever is unsure after the last look goes to the end, and there is nothing to be sure of at the end.
        goal = targets[:, column] if column < targets.shape[1] else np.full(len(targets), end)
        waiting = _release(run, parked, end)
        parked = []
        for depth, groups in waiting.items():
            for samples, hidden, layout in _batches(groups, goal, run.execution.batch_size):
                ends = np.maximum(goal[samples], depth)
                ready = int((ends > depth).sum())  # those whose next look lies deeper come first
                if ready:
                    part, part_layout = layout.slice(hidden, 0, ready)
                    parked += _look(model, run, samples[:ready], part, part_layout, depth, ends[:ready], leaves)
                if ready < len(samples):
                    part, part_layout = layout.slice(hidden, ready, len(samples))
                    nobody = torch.zeros(len(samples) - ready, dtype=torch.bool, device=hidden.device)
                    blank = torch.zeros(len(samples) - ready, model.labels, device=hidden.device)
                    parked.append(_Parked(samples[ready:], depth, part, part_layout, blank, nobody))
    _release(run, parked, end)


def _look(
    model: MultiExitModel,
    run: Pass,
    samples: np.ndarray,
    hidden: Tensor,
    layout: Layout,
    depth: int,
    ends: np.ndarray,
    leaves: LeaveRule,
) -> list[_Parked]:
    """Run samples that stand after layer ``depth`` to their ``ends`` (not rising) and ask the head there."""
    parked = []
    for index in range(depth + 1, int(ends[0]) + 1):
        active = int((ends >= index).sum())
        hidden, layout = layout.slice(hidden, 0, active)
        hidden = run.layer(model.encoder, index, hidden, layout)
        staying = int((ends > index).sum())
        if staying < active:
            part, its_layout = layout.slice(hidden, staying, active)
            logits = run.head(model, index, part, its_layout)
            parked.append(_Parked(samples[staying:active], index, part, its_layout, logits, leaves(logits)))
    return parked


_Group = tuple[np.ndarray, Tensor, Layout]


def _release(run: Pass, parked: list[_Parked], end: int) -> dict[int, list[_Group]]:
    """Answer the sure ones; the others, compacted, by the layer they stand at. One copy to the host for all."""
    if not parked:
        return {}
    sure_all = torch.cat([group.sure for group in parked]).cpu().numpy()
    waiting: dict[int, list[_Group]] = {}
    start = 0
    for group in parked:
        sure = sure_all[start : start + len(group.samples)] | (group.depth >= end)
        start += len(group.samples)
        if sure.any():
            logits = (
                group.logits
                if sure.all()
                else group.logits[torch.from_numpy(np.flatnonzero(sure)).to(group.logits.device)]
            )
            run.answer(group.samples[sure], logits, group.depth)
        if not sure.all():
            stay = np.flatnonzero(~sure)
            hidden, layout = group.layout.select(group.hidden, stay)
            waiting.setdefault(group.depth, []).append((group.samples[stay], hidden, layout))
    return dict(sorted(waiting.items()))


def _batches(groups: list[_Group], goal: np.ndarray, size: int) -> list[_Group]:
    """Join groups that stand at one layer into batches of about ``size``, deepest goal first."""
    samples = np.concatenate([group[0] for group in groups])
    hidden = groups[0][1] if len(groups) == 1 else torch.cat([group[1] for group in groups])
    lengths = np.concatenate([group[2].lengths for group in groups])
    whole = Layout(lengths, groups[0][2].pad_to, groups[0][2].device)
    order = np.lexsort((-lengths, -goal[samples]))
    batches = []
    for part in in_batches(order, size):
        rows, layout = whole.select(hidden, part)
        batches.append((samples[part], rows, layout))
    return batches
