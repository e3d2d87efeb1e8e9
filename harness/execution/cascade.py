"""A cascade of complete models: the small one answers all samples, the large one those the small one is unsure of (CascadeBERT)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from harness.contracts import Execution, Predictions
from harness.core.tokens import TokenSet
from harness.core.work import Tally, record
from harness.encoder import transfer
from harness.encoder.multi_exit import MultiExitModel
from harness.execution.arrangement import cut, windows
from harness.execution.exit_rules import confidence
from harness.execution.run_pass import BatchRun, LeaveRule, Pass, inference, interleave


def confidence_rule(threshold: float, temperature: float = 1.0) -> Callable[[Tensor], Tensor]:
    """Return CascadeBERT's rule: stop if the largest probability is above ``threshold`` (1: never)."""

    def leaves(logits: Tensor) -> Tensor:
        return confidence(logits, temperature) > threshold

    return leaves


def run_cascade(
    small: MultiExitModel, whole: MultiExitModel, tokens: TokenSet, execution: Execution, leaves: LeaveRule
) -> Predictions:
    """Run the small model over all samples, then the whole model, in full batches again, over the unsure ones.

    The host gets one bool per sample and window; meanwhile another window computes. The second pass keeps the order of the
    first, so it is sorted by length if the first is. Results equal those at batch size 1.

    Layers of both models are counted; ``exit_layer`` counts layers of the model that answered.

    Args:
        small: of the same width, heads and labels as ``whole``, and with at most as many layers.
        leaves: logits [B, C] of the small model -> bool [B], true for samples that it answers.
    """
    with inference(small), inference(whole):
        run = Pass(small, tokens, execution)
        with run.phases("layers"):
            interleave(
                (partial(_run_window, run, whole, leaves, *ends) for ends in windows(len(tokens), execution.window)),
                run.device,
            )
        return run.predictions()


def _run_window(run: Pass, whole: MultiExitModel, leaves: LeaveRule, begin: int, end: int, lane: int) -> BatchRun:
    """Run samples ``begin`` .. ``end - 1``. Only answers outlive a batch, so all batches share one lane."""
    if begin == end:
        return
    sure = []
    for first, last in cut(run.lengths, begin, end, run.execution):
        run.run_to_the_end(first, last)
        record("decide", Tally(last - first))
        sure.append(leaves(run.logits[first:last]))
    going = np.flatnonzero(~(yield transfer.download(torch.cat(sure)))) + begin
    if not len(going):
        return
    second = Pass.over(whole, going, run)
    for first, last in second.batches():
        second.run_to_the_end(first, last)
    run.answer(going, second.logits, whole.depth - 1)
    run.work.merge(second.work)
