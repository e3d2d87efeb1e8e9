"""Evaluation on held-out documents: perplexity of masked words, and the loss of a student."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from harness.encoder.masked_words import ABSENT, MaskedWordModel
from harness.pretraining.general_distillation import Distillation
from harness.pretraining.text.batches import held_out
from harness.pretraining.text.shards import TRAIN_KINDS, Shards
from harness.pretraining.text.vocabulary import SPECIAL

MOST_ROWS = 4000
_ROWS = 64


def _frequencies(shards: Shards) -> np.ndarray:
    """Return the nats of every token by its frequency in the training rows, add-one smoothed: float64 [V]."""
    counts = np.ones(shards.vocab_size)
    for part in shards.rows(*TRAIN_KINDS):
        counts += np.bincount(part.reshape(-1), minlength=shards.vocab_size)
    counts[shards.kinds == SPECIAL] = 1
    return -np.log(counts / counts.sum())


@torch.no_grad()
def perplexity(model: MaskedWordModel, shards: Shards, *, share: float, every: bool) -> dict[str, Any]:
    """Compute the perplexity (e to the mean cross-entropy) of masked tokens in at most 4,000 held-out rows, in float32.

    Args:
        share: of tokens that are masked.
        every: also evaluate every layer with the decoder, which is meaningful after multi-exit pretraining.

    Returns:
        ``perplexity``, ``loss`` (nats) and ``guesses``; ``by_frequency``: the perplexity from word frequencies alone;
        ``by_layer`` if ``every``. Numbers are ``None`` if nothing could be masked.
    """
    model.eval()
    device = model.bias.device
    sums, guesses, blind = np.zeros(model.encoder.depth if every else 1), 0, 0.0
    nats = _frequencies(shards)
    for batch in held_out(shards, size=_ROWS, share=share, device=device, most=MOST_ROWS):
        count = int((batch.labels != ABSENT).sum())
        losses = model(*batch.inputs, every)
        sums += count * losses.double().cpu().numpy()
        blind += float(nats[batch.labels[:count].cpu().numpy()].sum())
        guesses += count
    if not guesses:
        return {"perplexity": None, "loss": None, "guesses": 0, "by_frequency": None}
    found: dict[str, Any] = {
        "perplexity": _exp(sums[-1] / guesses),
        "loss": float(sums[-1] / guesses),
        "guesses": guesses,
        "by_frequency": _exp(blind / guesses),
    }
    if every:
        found["by_layer"] = [_exp(value / guesses) for value in sums]
    return found


@torch.no_grad()
def held_out_loss(model: Distillation, shards: Shards, *, share: float) -> float | None:
    """Return the loss of a student on the same held-out rows: the mean over batches, weighted by tokens."""
    model.eval()
    total, tokens = 0.0, 0
    device = next(model.parameters()).device
    for batch in held_out(shards, size=_ROWS, share=share, device=device, most=MOST_ROWS):
        loss = model(*batch.inputs)
        total += batch.tokens * float(loss)
        tokens += batch.tokens
    return total / tokens if tokens else None


def _exp(nats: float) -> float:
    return math.exp(min(float(nats), 700.0))
