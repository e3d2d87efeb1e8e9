"""Relations between the tokens of a text: those that a layer's attention has, and those of MiniLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from harness.encoder.layout import Scored
from harness.encoder.model import Encoder, EncoderLayer
from harness.toolkit.distillation import attention_divergence


def relation_kl(student: Tensor, teacher: Tensor, pairs: Tensor) -> Tensor:
    """Return ``KL(teacher's relations || student's)``, mean over heads and tokens (MiniLM, equations 4 and 6).

    Wang et al., NeurIPS 2020, arXiv 2002.10957. Relations of a token are a softmax over the tokens of its text.

    Args:
        student: scores before softmax, [B, heads, T, T].
        teacher: the same shape; it gets no gradient.
        pairs: bool [B, 1, T, T], true where both are tokens of one text.
    """
    return attention_divergence(student, teacher, pairs) / (pairs.any(-1).sum() * student.shape[1])


def queries_keys_values(
    encoder: Encoder, index: int, states: Mapping[int, Tensor] | Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what layer ``index`` projects its input h^index to, before rotary positions: three of [rows, width of all heads]."""
    layer = encoder.layers[index]
    assert isinstance(layer, EncoderLayer)
    query, key, value = layer.qkv(layer.attention_input(states[index])).chunk(3, -1)
    return query, key, value


def relation_scores(vectors: Tensor, heads: int, layout: Scored) -> Tensor:
    """Return the scaled products of a text's vectors with each other, by relation head: [rows, D] -> [B, heads, T, T].

    MiniLMv2 (Wang et al., Findings of ACL 2021, arXiv 2012.15828, equation 3): vectors of all attention heads are joined and split
    into relation heads, so that models with unlike attention heads and widths can be compared.
    """
    return layout.scores(torch.cat([vectors, vectors], -1), heads)
