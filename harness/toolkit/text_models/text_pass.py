"""How a model without Transformer layers runs: in the same order and batches as all others, and counted as they are."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from harness.contracts import Execution, Predictions
from harness.core.clock import Phases
from harness.core.tokens import Split, TokenSet
from harness.core.work import BEFORE, Work
from harness.encoder import transfer
from harness.encoder.layout import Layout
from harness.execution.arrangement import arrange, cut
from harness.toolkit.dev_scores import EVALUATION
from harness.toolkit.text_models.text_model import TextModel
from harness.toolkit.training import DevScore


@torch.inference_mode()
def run_text(model: TextModel, tokens: TokenSet, execution: Execution) -> Predictions:
    """Answer all samples: from ids on the device to logits on the host, in input order.

    Samples are sorted and cut into batches as the execution says. In protocol ``paper``, layouts are padded to ``max_length``.
    """
    phases, work = Phases(tokens.device), Work()
    model.eval()
    with phases("schedule"):
        arranged = arrange(tokens, execution, model.limits)
    found = torch.zeros(len(tokens), model.labels, device=tokens.device)
    pad_to = execution.max_length if execution.protocol == "paper" else None
    with phases("layers"):
        for begin, end in arranged.windows(execution.window):
            for first, last in cut(arranged.lengths, begin, end, execution):
                batch, _ = arranged.batch(first, last)
                layout = Layout(arranged.lengths[first:last], pad_to, tokens.device, batch.offsets)
                for block, tally in model.tallies(layout).items():
                    work.add(block, tally)
                found[first:last] = model(batch, layout)
    with phases("copy"):
        answers = transfer.download(found).wait()
    logits = np.empty_like(answers)
    logits[arranged.order] = answers
    return Predictions(logits, np.full(len(tokens), BEFORE, dtype=np.int16), work, None, phases.seconds())


def text_logits(model: TextModel, tokens: TokenSet) -> Tensor:
    """Return logits of all samples, float32 [N, C] on the host, e.g. for scores on dev."""
    return torch.from_numpy(run_text(model, tokens, EVALUATION).logits)


def text_score(model: TextModel, dev: Split) -> DevScore:
    """Return the dev accuracy as score."""
    accuracy = float((text_logits(model, dev.tokens).argmax(-1) == dev.labels).float().mean())
    return DevScore(accuracy, (accuracy,))
