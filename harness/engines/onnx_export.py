"""A model at full depth as an ONNX graph of any batch size and length, in standard operations. Requires the extra ``onnx``."""

from __future__ import annotations

import logging
import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from harness.encoder.layout import rotary_angles, rotated
from harness.encoder.local_attention import in_window
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.shape import Reach

GRAPH = "graph.onnx"
INPUTS = ("ids", "segments", "mask")


class PaddedGrid:
    """Attention over samples padded to one length, in operations that export to a graph of any batch size and length."""

    def __init__(self, mask: Tensor) -> None:
        self.count, self.longest = mask.shape
        self.first = torch.arange(self.count) * self.longest
        self._mask = mask[:, None, None, :]
        self._bias = self._bias_of(self._mask)

    def _bias_of(self, mask: Tensor) -> Tensor:
        return torch.zeros(mask.shape).masked_fill(~mask, -math.inf)

    def _parts(self, x: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
        return x.view(self.count, self.longest, parts, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias
        return scores.softmax(-1) @ v  # [B, heads, queries, D / heads]

    def attend(self, qkv: Tensor, heads: int, dropout: float = 0.0, reach: Reach | None = None) -> Tensor:
        bias = self._bias
        if reach is not None:
            width, places = qkv.shape[1] // 3, torch.arange(self.longest)
            qkv = rotated(qkv, rotary_angles(places.repeat(self.count), reach.base, width // heads), 2 * width)
            if reach.window:
                bias = self._bias_of(in_window(places[None, None], self.longest, reach.window, self._mask))
        q, k, v = self._parts(qkv, 3, heads)
        out = self._attend(q, k, v, bias)
        return out.transpose(1, 2).reshape(self.count * self.longest, -1)

    def attend_first(self, query: Tensor, kv: Tensor, heads: int, dropout: float = 0.0) -> Tensor:
        k, v = self._parts(kv, 2, heads)
        return self._attend(query.view(self.count, heads, 1, -1), k, v, self._bias).reshape(self.count, -1)


class _Padded(nn.Module):
    """Encoder and last head over a padded batch: ids, segments int32 [B, T] and mask bool [B, T] -> logits [B, C]."""

    def __init__(self, model: MultiExitModel, grid: type[PaddedGrid]) -> None:
        super().__init__()
        self.encoder, self.head, self.grid = model.encoder, model.teacher, grid

    def forward(self, ids: Tensor, segments: Tensor, mask: Tensor) -> Tensor:
        encoder, grid = self.encoder, self.grid(mask)
        # As in Encoder.embed.
        segment = encoder.segment(segments) if encoder.shape.type_vocab > 1 else encoder.only_segment()
        position = None if encoder.position is None else encoder.position.weight[: grid.longest]
        hidden = encoder.combined(encoder.word(ids), position, segment).flatten(0, 1)
        for layer in encoder.layers:
            hidden = layer(hidden, grid)
        return self.head(hidden, grid)


def export(model: MultiExitModel, grid: type[PaddedGrid] = PaddedGrid) -> bytes:
    """Export the model at full depth as an ONNX graph of any batch size and length.

    Args:
        grid: how attention runs in the graph.
    """
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=model.encoder.shape.max_positions)}
    example = (*torch.zeros(2, 2, 3, dtype=torch.int32), torch.ones(2, 3, dtype=torch.bool))
    chatter = logging.getLogger("torch.onnx")
    level = chatter.level
    chatter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                _Padded(model, grid).eval(),
                example,
                dynamo=True,
                verbose=False,
                input_names=INPUTS,
                output_names=["logits"],
                dynamic_shapes=[sizes] * 3,
            )
    finally:
        chatter.setLevel(level)
    assert program is not None
    model_proto: Any = program.model_proto
    graph = model_proto.graph
    for part in (model_proto, graph, *graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output):
        del part.metadata_props[:]  # file names of this machine
        part.doc_string = ""
    return model_proto.SerializeToString()
