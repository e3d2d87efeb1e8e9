"""Weights in and out in Hugging Face's BERT naming; safetensors only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness.encoder.model import Encoder
from harness.encoder.shape import EncoderShape
from harness.errors import BackboneError

EMBEDDINGS = {
    "word.weight": "embeddings.word_embeddings.weight",
    "position.weight": "embeddings.position_embeddings.weight",
    "segment.weight": "embeddings.token_type_embeddings.weight",
    "norm.weight": "embeddings.LayerNorm.weight",
    "norm.bias": "embeddings.LayerNorm.bias",
}
LAYER = {
    "out": "attention.output.dense",
    "norm_attention": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "norm_output": "output.LayerNorm",
}


def from_hf(tensors: Mapping[str, Tensor], shape: EncoderShape) -> dict[str, Tensor]:
    """Hugging Face BERT tensors -> state of :class:`~harness.encoder.model.Encoder`, in float32.

    Raises:
        BackboneError: a tensor is missing or of another shape than the config says.
    """
    # Task checkpoints prefix the encoder with "bert."; very old ones call norms gamma and beta.
    plain = {
        name.removeprefix("bert.")
        .replace("LayerNorm.gamma", "LayerNorm.weight")
        .replace("LayerNorm.beta", "LayerNorm.bias"): t
        for name, t in tensors.items()
    }

    def take(name: str) -> Tensor:
        if name not in plain:
            raise BackboneError(f"the checkpoint has no tensor '{name}': it is not BERT-shaped, choose another one")
        return plain[name].float()

    state = {ours: take(theirs) for ours, theirs in EMBEDDINGS.items()}
    for i in range(shape.layers):
        prefix = f"encoder.layer.{i}."
        for kind in ("weight", "bias"):
            parts = [take(f"{prefix}attention.self.{part}.{kind}") for part in ("query", "key", "value")]
            state[f"layers.{i}.qkv.{kind}"] = torch.cat(parts)
            for ours, theirs in LAYER.items():
                state[f"layers.{i}.{ours}.{kind}"] = take(f"{prefix}{theirs}.{kind}")
    with torch.device("meta"):
        expected = {name: tuple(t.shape) for name, t in Encoder(shape).state_dict().items()}
    for name, size in expected.items():
        if tuple(state[name].shape) != size:
            raise BackboneError(
                f"tensor '{name}' is {tuple(state[name].shape)}, config.json says {size}: weights and config do not belong together"
            )
    return state


def to_hf(state: Mapping[str, Tensor], shape: EncoderShape) -> dict[str, Tensor]:
    """The inverse of :func:`from_hf`, for ``transformers.BertModel``."""
    tensors = {theirs: state[ours].contiguous() for ours, theirs in EMBEDDINGS.items()}
    for i in range(shape.layers):
        prefix = f"encoder.layer.{i}."
        for kind in ("weight", "bias"):
            for part, value in zip(("query", "key", "value"), state[f"layers.{i}.qkv.{kind}"].chunk(3), strict=True):
                tensors[f"{prefix}attention.self.{part}.{kind}"] = value.clone()
            for ours, theirs in LAYER.items():
                tensors[f"{prefix}{theirs}.{kind}"] = state[f"layers.{i}.{ours}.{kind}"].contiguous()
    return tensors


def read_folder(folder: Path) -> tuple[EncoderShape, dict[str, Tensor]]:
    """Shape and state from a folder in ``save_pretrained`` layout (one file or sharded).

    Raises:
        BackboneError: a file is missing or damaged, or the checkpoint is not BERT-shaped.
    """
    config = folder / "config.json"
    if not config.is_file():
        raise BackboneError(f"no config.json in {folder}: give a folder as written by transformers' save_pretrained")
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise BackboneError(f"no model.safetensors in {folder}: convert the weights to safetensors (no pickle is read)")
    try:
        shape = EncoderShape.from_hf(json.loads(config.read_text(encoding="utf-8")))
        tensors: dict[str, Tensor] = {}
        for file in files:
            tensors.update(load_file(file))
    except (ValueError, OSError, SafetensorError) as error:
        raise BackboneError(f"cannot read the checkpoint in {folder}: {error}: fetch it again") from error
    return shape, from_hf(tensors, shape)


def write_folder(folder: Path, shape: EncoderShape, state: Mapping[str, Tensor]) -> None:
    """``config.json`` and ``model.safetensors`` into an existing folder."""
    (folder / "config.json").write_text(json.dumps(shape.to_hf(), indent=1), encoding="utf-8")
    save_file(to_hf(state, shape), folder / "model.safetensors", metadata={"format": "pt"})
