"""ONNX Runtime, a common way to serve BERT on CPUs: the whole network as one graph, in float32 or int8.

Attention is ONNX Runtime's own fused operation, and its transformer optimiser fuses what else it can. In int8, weights are
quantised per output channel and activations at run time (``quantize_dynamic``), with one scale for all tokens of a batch: an
answer depends on its batch. On CPUs without VNNI, where sums of products would overflow, weights have 7 bits. Requires the extra
``onnx``.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from harness.core.tokens import TokenSet
from harness.encoder.device_kernels.int8_linear import sums_overflow
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.shape import Reach
from harness.engines.onnx_export import GRAPH, INPUTS, PaddedGrid, export
from harness.engines.whole_model import Files, WholeModel, needed


class _FusedGrid(PaddedGrid):
    """Self-attention as one operation of ONNX Runtime."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask)
        self._valid = mask.int()

    def attend(self, qkv: Tensor, heads: int, dropout: float = 0.0, reach: Reach | None = None) -> Tensor:
        if reach is not None:
            return super().attend(qkv, heads, dropout, reach)
        q, k, v = qkv.view(self.count, self.longest, -1).chunk(3, -1)
        out = torch.onnx.ops.symbolic(
            "com.microsoft::MultiHeadAttention",
            (q, k, v, None, self._valid),
            {"num_heads": heads},
            dtype=q.dtype,
            shape=q.shape,
            version=1,
        )
        return out.flatten(0, 1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep progress reports of the optimiser off the terminal; errors are raised."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@dataclass
class OnnxGraph(WholeModel):
    """A fit as an optimised float32 graph."""

    executor = "onnxruntime"
    extra = "onnx"
    modules = ("onnxruntime", "onnx", "onnxscript")

    @classmethod
    def convert(cls, model: MultiExitModel, rows: TokenSet | None) -> Files:
        optimizer, onnx = needed("onnxruntime.transformers.optimizer", cls.extra), needed("onnx", cls.extra)
        shape = model.encoder.shape
        content = export(model, _FusedGrid)
        if not shape.biases:  # the optimiser fails on norms without a bias; the session's own one runs anyway
            return {GRAPH: content}
        graph = onnx.load_from_string(content)
        with _quiet():
            found = optimizer.optimize_model(
                graph, model_type="bert", num_heads=shape.heads, hidden_size=shape.width, opt_level=0
            )
        return {GRAPH: found.model.SerializeToString()}

    def _start(self) -> None:
        runtime = needed("onnxruntime", self.extra)
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
        # Threads that spin while they wait take time from each other and from the next measurement: on two cores, 67 samples/s
        # without against 58 with it (six layers of width 384, batch 32).
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = runtime.InferenceSession(self.files[GRAPH], options, providers=["CPUExecutionProvider"])

    def _logits(self, ids: np.ndarray, segments: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        mask = np.arange(ids.shape[1]) < lengths[:, None]
        found: np.ndarray = self._session.run(None, dict(zip(INPUTS, (ids, segments, mask), strict=True)))[0]
        return found


@dataclass
class OnnxInt8(OnnxGraph):
    """The same graph with matrix products of weights in int8."""

    executor = "onnxruntime-int8"

    @classmethod
    def convert(cls, model: MultiExitModel, rows: TokenSet | None) -> Files:
        quantization, onnx = needed("onnxruntime.quantization", cls.extra), needed("onnx", cls.extra)
        graph = onnx.load_from_string(OnnxGraph.files_of(model)[GRAPH])
        del graph.graph.value_info[:]  # shapes of weights, which the quantiser transposes
        with tempfile.TemporaryDirectory() as folder, _quiet():
            place = Path(folder) / GRAPH
            quantization.quantize_dynamic(
                graph,
                place,
                per_channel=True,
                weight_type=quantization.QuantType.QInt8,
                reduce_range=sums_overflow(),  # weights of 7 bits
                # Of what follows fused attention, about which shape inference knows nothing.
                extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
            )
            return {GRAPH: place.read_bytes()}
