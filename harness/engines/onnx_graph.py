"""ONNX Runtime, a common way to serve BERT on CPUs: the whole network as one graph, over padded batches.

The graph is exported when a fit is loaded, and holds the weights. Batches are those of every other row of a table (ordered by
length, cut the same way), padded to their longest sample. ONNX Runtime has as many threads as torch. Requires the extra ``onnx``.
"""

from __future__ import annotations

import importlib
import logging
import math
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from harness.contracts import OperatingPoint, Predictions
from harness.core.clock import Phases
from harness.core.errors import MethodError
from harness.core.tokens import TokenSet
from harness.core.work import Tally, Work
from harness.encoder.layout import Layout, near, turned, turns
from harness.encoder.model import PROJECTION
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.shape import Reach
from harness.execution.arrangement import arrange, cut, windows
from harness.toolkit.fitted import FullDepth

MODULES = ("onnxruntime", "onnx", "onnxscript")  # of the extra
GRAPH = "graph.onnx"
INPUTS = ("ids", "segments", "mask")


def needed(name: str) -> Any:
    """Import a module of the extra ``onnx``.

    Raises:
        MethodError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MethodError(f"it needs {name} ({error}): pip install 'geep-bench[onnx]'") from error


class _Grid:
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
            qkv = turned(qkv, turns(places.repeat(self.count), reach.base, width // heads), 2 * width)
            if reach.window:
                bias = self._bias_of(near(places[None, None], self.longest, reach.window, self._mask))
        q, k, v = self._parts(qkv, 3, heads)
        out = self._attend(q, k, v, bias)
        return out.transpose(1, 2).reshape(self.count * self.longest, -1)

    def attend_first(self, query: Tensor, kv: Tensor, heads: int, dropout: float = 0.0) -> Tensor:
        k, v = self._parts(kv, 2, heads)
        return self._attend(query.view(self.count, heads, 1, -1), k, v, self._bias).reshape(self.count, -1)


class _Padded(nn.Module):
    """Encoder and last head over a padded batch: ids, segments int32 [B, T] and mask bool [B, T] -> logits [B, C]."""

    def __init__(self, model: MultiExitModel) -> None:
        super().__init__()
        self.encoder, self.head = model.encoder, model.teacher

    def forward(self, ids: Tensor, segments: Tensor, mask: Tensor) -> Tensor:
        encoder, grid = self.encoder, _Grid(mask)
        # As in Encoder.embed.
        segment = encoder.segment(segments) if encoder.shape.type_vocab > 1 else encoder.only_segment()
        position = None if encoder.position is None else encoder.position.weight[: grid.longest]
        hidden = encoder.combined(encoder.word(ids), position, segment).flatten(0, 1)
        for layer in encoder.layers:
            hidden = layer(hidden, grid)
        return self.head(hidden, grid)


def export(model: MultiExitModel) -> bytes:
    """Export the model at full depth as an ONNX graph of any batch size and length."""
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=model.encoder.shape.max_positions)}
    example = (*torch.zeros(2, 2, 3, dtype=torch.int32), torch.ones(2, 3, dtype=torch.bool))
    chatter = logging.getLogger("torch.onnx")
    level = chatter.level
    chatter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                _Padded(model).eval(),
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


@dataclass
class OnnxGraph(FullDepth):
    """A graph and its session; ``model`` is the source, for counting FLOPs."""

    executor = "onnxruntime"
    compute = "eager"

    graph: bytes = field(default=b"", repr=False)

    def __post_init__(self) -> None:
        runtime = needed("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
        # Threads that keep spinning after the answer would slow down the next measurement.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._session = runtime.InferenceSession(self.graph, options, providers=["CPUExecutionProvider"])

    @classmethod
    def of(cls, fitted: FullDepth) -> OnnxGraph:
        """Export a fitted method."""
        return cls(fitted.model, fitted.training, export(fitted.model))

    def predict(self, tokens: TokenSet, *, at: OperatingPoint) -> Predictions:
        execution, depth = at.execution, self.model.depth
        phases, work = Phases(tokens.device), Work()
        with phases("schedule"):
            arranged = arrange(tokens, execution, self.model.encoder.shape)
        logits = np.zeros((len(tokens), self.model.labels), np.float32)
        with phases("layers"):
            for begin, end in windows(len(tokens), execution.window):
                for first, last in cut(arranged.lengths, begin, end, execution):
                    lengths, packed = arranged.lengths[first:last], arranged.batch(first, last)[0]
                    longest = execution.max_length if execution.protocol == "paper" else int(lengths.max())
                    mask = np.arange(longest) < lengths[:, None]  # [B, T]
                    ids, segments = np.zeros((2, *mask.shape), np.int32)
                    # Both are ordered by sample, so the true cells of the mask are the packed tokens, in order.
                    ids[mask], segments[mask] = packed.ids.numpy(), packed.segments.numpy()
                    (found,) = self._session.run(None, dict(zip(INPUTS, (ids, segments, mask), strict=True)))
                    logits[arranged.order[first:last]] = found
                    layout = Layout(lengths, longest, tokens.device)
                    if self.model.encoder.shape.embedding:
                        work.add(f"{PROJECTION}.0", Tally(layout.count, layout.rows, layout.valid))
                    for index in range(depth):
                        work.add(f"layer.{index}", layout.tally())
                    work.add(f"head.{depth - 1}", layout.tally("first"))
        exits = np.full(len(tokens), depth - 1, np.int16)
        return Predictions(logits, exits, work, phases=phases.seconds())

    def save(self, folder: Path) -> None:
        """Write the graph, which holds the weights."""
        (folder / GRAPH).write_bytes(self.graph)
