"""CTranslate2, a library that serves Transformers on CPUs: the encoder in its own code, in float32 or int8.

The specification is built from the model's weights. Linear layers skip padding; the head runs in torch on the encoder's output.
In int8, weights are rounded per output and activations per token at run time, so that an answer does not depend on its batch.
Requires the extra ``ctranslate2``.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from harness.core.errors import MethodError
from harness.core.tokens import TokenSet
from harness.encoder.layout import Layout
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.shape import ACTIVATIONS
from harness.engines.whole_model import Files, WholeModel, needed

_LIBRARY = "ctranslate2"
ACTIVATION = {"none": "GELU", "tanh": "GELUTanh", "relu": "RELU"}


def _library(module: str = _LIBRARY) -> Any:
    """Import the library, or a module of it, with its own copy of OpenMP.

    It would find the names of torch's copy first, which then counts the threads of both. With more threads than CPUs they no
    longer wait for each other awake, and both libraries are slower in this process from then on: with batches of one text (six
    layers of width 384, two cores) torch took 1.5 times OpenVINO's time in the same rounds, and 1.2 times with a copy of its own.
    """
    if _LIBRARY in sys.modules or not hasattr(os, "RTLD_DEEPBIND"):  # glibc's
        return needed(module, _LIBRARY)
    before = sys.getdlopenflags()
    sys.setdlopenflags(os.RTLD_NOW | os.RTLD_DEEPBIND)
    try:
        return needed(module, _LIBRARY)
    finally:
        sys.setdlopenflags(before)


@dataclass
class CTranslate2(WholeModel):
    """A fit whose encoder runs in float32."""

    executor = "ctranslate2"
    extra = _LIBRARY
    modules = (_LIBRARY,)
    skips_padding = True

    compute_type: ClassVar[str] = "float32"

    @classmethod
    def check(cls) -> None:
        able = _library().get_supported_compute_types("cpu")
        if cls.compute_type not in able:
            raise MethodError(
                f"ctranslate2 has no {cls.compute_type} on this CPU, only {', '.join(sorted(able))}: use another engine"
            )

    @classmethod
    def convert(cls, model: MultiExitModel, rows: TokenSet | None) -> Files:
        spec = _specification(model)
        spec.validate()
        spec.optimize(quantization=cls.compute_type)
        with tempfile.TemporaryDirectory() as folder:
            spec.save(folder)
            return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}

    def _start(self) -> None:
        library = _library()
        self._view = library.StorageView.from_array
        self._encoder = library.Encoder(
            self.executor,  # a name; files come from memory
            compute_type=self.compute_type,
            intra_threads=torch.get_num_threads(),
            inter_threads=1,
            files=dict(self.files),
        )

    def _logits(self, ids: np.ndarray, segments: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        types = segments.tolist() if self.model.encoder.shape.type_vocab > 1 else None
        found = self._encoder.forward_batch(self._view(ids), self._view(lengths.astype(np.int32)), token_type_ids=types)
        hidden = torch.from_numpy(np.asarray(found.last_hidden_state))  # [B, T, D]
        with torch.inference_mode():
            logits: np.ndarray = self.model.teacher(hidden.flatten(0, 1), Layout(lengths, ids.shape[1], "cpu")).numpy()
        return logits


@dataclass
class CTranslate2Int8(CTranslate2):
    """The same encoder with linear layers in int8; the head stays in float32."""

    executor = "ctranslate2-int8"
    compute_type = "int8_float32"


def _specification(model: MultiExitModel) -> Any:
    """Return the encoder as CTranslate2 describes BERT."""
    specs = _library("ctranslate2.specs")
    common = _library("ctranslate2.specs.common_spec")
    encoder, shape = model.encoder, model.encoder.shape
    if shape.differences:
        raise MethodError("ctranslate2 runs encoders of BERT's structure only: use onnx or openvino")
    typed = shape.type_vocab > 1
    body = specs.TransformerEncoderSpec(
        shape.layers,
        shape.heads,
        pre_norm=False,
        activation=getattr(common.Activation, ACTIVATION[ACTIVATIONS[shape.activation]]),
        layernorm_embedding=True,
        num_source_embeddings=2 if typed else 1,
        embeddings_merge=common.EmbeddingsMerge.ADD,
    )
    body.scale_embeddings = False
    body.embeddings[0].weight = _array(encoder.word.weight)
    positions = encoder.position.weight
    if typed:
        body.embeddings[1].weight = _array(encoder.segment.weight)
    elif (segment := encoder.only_segment()) is not None:  # of all tokens
        positions = positions + segment
    body.position_encodings.encodings = _array(positions)
    _norm(body.layernorm_embedding, encoder.norm)
    for theirs, ours in zip(body.layer, encoder.layers, strict=True):
        attention, block = theirs.self_attention, theirs.ffn
        _linear(attention.linear[0], ours.qkv)
        _linear(attention.linear[1], ours.out)
        _norm(attention.layer_norm, ours.norm_attention)
        _linear(block.linear_0, ours.up)
        _linear(block.linear_1, ours.down)
        _norm(block.layer_norm, ours.norm_output)
    spec = specs.TransformerEncoderModelSpec(body)
    spec.config.layer_norm_epsilon = shape.norm_eps
    spec.register_vocabulary([str(number) for number in range(shape.vocab_size)])  # only ids are given
    return spec


def _array(weight: Tensor) -> np.ndarray:
    found: np.ndarray = weight.detach().float().numpy().copy()  # quantising changes the array itself
    return found


def _linear(theirs: Any, ours: nn.Linear) -> None:
    theirs.weight, theirs.bias = _array(ours.weight), _array(ours.bias)


def _norm(theirs: Any, ours: nn.LayerNorm) -> None:
    theirs.gamma, theirs.beta = _array(ours.weight), _array(ours.bias)
