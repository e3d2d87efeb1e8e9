"""An additional token in every sample, after the first: for a second head that reads it (DeiT's distillation token)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from harness.contracts import Execution, OperatingPoint, Predictions
from harness.core.tokens import Split, TokenSet
from harness.encoder.layout import Layout
from harness.encoder.multi_exit import MultiExitModel
from harness.execution.run_pass import Pass, inference
from harness.toolkit.fitted import FittedModel

Tokens = TypeVar("Tokens", bound=TokenSet)
PLACE = 0  # the second head is stored as that of this layer


def with_token(tokens: Tokens, token: int) -> Tokens:
    """Return the samples with the id ``token`` behind their first token; other tokens move up by one position."""
    count, device = len(tokens), tokens.device
    sample = torch.repeat_interleave(torch.arange(count, device=device), tokens.lengths, output_size=len(tokens.ids))
    rows = torch.arange(len(tokens.ids), device=device)
    target = rows + sample + (rows > tokens.offsets[:-1].index_select(0, sample))
    ids = tokens.ids.new_full((len(tokens.ids) + count,), token).index_copy(0, target, tokens.ids)
    segments = tokens.segments.new_zeros(len(ids)).index_copy(0, target, tokens.segments)
    offsets = tokens.offsets + torch.arange(count + 1, device=device)
    return replace(tokens, ids=ids, segments=segments, offsets=offsets)


class SecondRows:
    """A layout whose heads read the second token of every sample in place of the first."""

    def __init__(self, layout: Layout) -> None:
        self.first = layout.first + 1
        self.attend_first = layout.attend_first


def two_heads(model: MultiExitModel, hidden: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Return the logits of the head on [CLS] and of that on the token, [B, C] each."""
    second: Layout = SecondRows(layout)  # type: ignore[assignment]
    return model.teacher(hidden, layout), model.student(PLACE)(hidden, second)


class TokenStudent(FittedModel):
    """A model whose samples have one more token, with the last id of its vocabulary; the answer is the mean of both heads."""

    executor = "full"
    is_stack = False

    def operating_points(self, dev: Split) -> Sequence[OperatingPoint]:
        return [OperatingPoint("full")]

    def predict(self, tokens: TokenSet, *, at: OperatingPoint) -> Predictions:
        return run_with_token(self.model, tokens, at.execution)


def run_with_token(model: MultiExitModel, tokens: TokenSet, execution: Execution) -> Predictions:
    """Insert the token, run all layers and both heads; logits are the logarithm of their mean probability."""
    with inference(model):
        longer = with_token(tokens, model.encoder.shape.vocab_size - 1)
        run = Pass(model, longer, replace(execution, max_length=execution.max_length + 1))
        final = model.depth - 1
        with run.phases("layers"):
            for first, last in run.batches():
                hidden, layout = run.begin(first, last)
                for index in range(final + 1):
                    hidden = run.layer(index, hidden, layout)
                hidden = run.keep(hidden)
                whole = run.keep(run.head(final, hidden, layout)).log_softmax(-1)
                run.work.add(f"head.{PLACE}", run.engine.head_tally(layout))
                second: Layout = SecondRows(layout)  # type: ignore[assignment]
                other = run.engine.run_head(PLACE, hidden, second).log_softmax(-1)
                run.answer(slice(first, last), torch.stack([whole, other]).exp().mean(0).log(), final)
        return run.predictions()
