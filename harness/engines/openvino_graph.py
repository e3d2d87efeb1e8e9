"""OpenVINO, Intel's way to serve networks on CPUs: the exported ONNX graph, in float32 or int8.

Products are float32 (``INFERENCE_PRECISION_HINT``): by default OpenVINO takes bfloat16 where the CPU has it. One stream answers
one batch at a time. In int8, NNCF quantises weights per output channel and activations with fixed scales, found on unlabelled
training rows (its preset for transformers, with SmoothQuant); an answer does not depend on its batch. Requires the extra
``openvino``.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from harness.core.errors import MethodError
from harness.core.tokens import TokenSet
from harness.encoder.multi_exit import MultiExitModel
from harness.engines.onnx_export import GRAPH, INPUTS, export
from harness.engines.whole_model import Files, WholeModel, needed

IR, IR_WEIGHTS = "graph.xml", "graph.bin"
# Bounds on what OpenVINO may change; threads are added.
OPTIONS = {
    "INFERENCE_PRECISION_HINT": "f32",
    "PERFORMANCE_HINT": "LATENCY",
    "NUM_STREAMS": 1,
    "ENABLE_CPU_PINNING": False,  # threads bound to cores would stay bound for the methods that are measured next
}


def _library(name: str) -> Any:
    """Import OpenVINO or NNCF without their usage statistics, which they send over the network when imported."""
    os.environ.setdefault("NNCF_CI", "1")
    absent = "openvino_telemetry"
    if absent not in sys.modules:
        sys.modules[absent] = None  # type: ignore[assignment]  # both work without it
    return needed(name, "openvino")


@dataclass
class OpenVino(WholeModel):
    """A fit as a float32 graph."""

    executor = "openvino"
    extra = "openvino"
    modules: ClassVar[tuple[str, ...]] = ("openvino", "onnx", "onnxscript")

    @classmethod
    def check(cls) -> None:
        for module in cls.modules:
            _library(module)

    @classmethod
    def convert(cls, model: MultiExitModel, rows: TokenSet | None) -> Files:
        return {GRAPH: export(model)}

    def _read(self, core: Any) -> Any:
        return core.read_model(io.BytesIO(self.files[GRAPH]))

    def _start(self) -> None:
        core = _library("openvino").Core()
        options = {**OPTIONS, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        compiled = core.compile_model(self._read(core), "CPU", options)
        self._request = compiled.create_infer_request()

    def _logits(self, ids: np.ndarray, segments: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        found = self._request.infer(_inputs(ids, segments, lengths), share_inputs=True)
        logits: np.ndarray = found[0]
        return logits


@dataclass
class OpenVinoInt8(OpenVino):
    """The same graph, quantised by NNCF."""

    executor = "openvino-int8"
    modules = (*OpenVino.modules, "nncf")
    calibrates = True

    @classmethod
    def convert(cls, model: MultiExitModel, rows: TokenSet | None) -> Files:
        if rows is None:
            raise MethodError("openvino-int8 chooses its scales on training rows: give some")
        nncf, openvino = _library("nncf"), _library("openvino")
        nncf.set_log_level("ERROR")
        graph = openvino.Core().read_model(io.BytesIO(OpenVino.files_of(model)[GRAPH]))
        samples = [_inputs(*_single(rows, number)) for number in range(len(rows))]
        transformer = nncf.ModelType.TRANSFORMER
        with redirect_stdout(io.StringIO()):  # progress bars
            graph = nncf.quantize(graph, nncf.Dataset(samples), model_type=transformer, subset_size=len(samples))
        with tempfile.TemporaryDirectory() as folder:
            openvino.save_model(graph, Path(folder) / IR, compress_to_fp16=False)
            return {name: (Path(folder) / name).read_bytes() for name in (IR, IR_WEIGHTS)}

    def _read(self, core: Any) -> Any:
        return core.read_model(self.files[IR], self.files[IR_WEIGHTS])


def _inputs(ids: np.ndarray, segments: np.ndarray, lengths: np.ndarray) -> dict[str, np.ndarray]:
    mask = np.arange(ids.shape[1]) < lengths[:, None]
    return dict(zip(INPUTS, (ids, segments, mask), strict=True))


def _single(rows: TokenSet, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    one = rows.sample(number)
    return one.ids.numpy()[None], one.segments.int().numpy()[None], one.lengths.numpy()
