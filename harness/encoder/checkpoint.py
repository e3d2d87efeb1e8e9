"""Read and write weights in Hugging Face's naming, BERT's and DistilBERT's; safetensors only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness.core.errors import BackboneError
from harness.encoder.model import Encoder
from harness.encoder.shape import EncoderShape

EMBEDDINGS = {
    "word.weight": "embeddings.word_embeddings.weight",
    "position.weight": "embeddings.position_embeddings.weight",
    "segment.weight": "embeddings.token_type_embeddings.weight",
    "norm.weight": "embeddings.LayerNorm.weight",
    "norm.bias": "embeddings.LayerNorm.bias",
}
QKV = tuple(f"attention.self.{part}" for part in ("query", "key", "value"))
LAYER = {
    "out": "attention.output.dense",
    "norm_attention": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "norm_output": "output.LayerNorm",
}
# Masked-word head: names in harness.encoder.masked_words and in Hugging Face checkpoints.
HEAD = {
    "dense": "cls.predictions.transform.dense",
    "norm": "cls.predictions.transform.LayerNorm",
    "bias": "cls.predictions.bias",
    "decoder": "cls.predictions.decoder.weight",
}
_DISTILBERT_QKV = tuple(f"attention.{part}_lin" for part in "qkv")
_DISTILBERT_LAYER = {
    "out": "attention.out_lin",
    "norm_attention": "sa_layer_norm",
    "up": "ffn.lin1",
    "down": "ffn.lin2",
    "norm_output": "output_layer_norm",
}
_DISTILBERT_HEAD = {
    "dense": "vocab_transform",
    "norm": "vocab_layer_norm",
    "bias": "vocab_projector.bias",
    "decoder": "vocab_projector.weight",
}


@dataclass(frozen=True)
class Checkpoint:
    """The contents of a folder.

    Attributes:
        shape: dimensions.
        state: of :class:`~harness.encoder.model.Encoder`, float32 on the CPU.
        head: of the masked-word head (``dense``, ``norm``, ``bias`` of
            :class:`~harness.encoder.masked_words.MaskedWordModel`); ``None`` if there is none, if its decoder is not the
            word embeddings, and in TinyBERT's general students, whose head is untrained.
    """

    shape: EncoderShape
    state: dict[str, Tensor]
    head: dict[str, Tensor] | None = None


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefix of task checkpoints, and rename gamma and beta of very old ones."""
    return {
        name.removeprefix("distilbert.")
        .removeprefix("bert.")
        .replace("LayerNorm.gamma", "LayerNorm.weight")
        .replace("LayerNorm.beta", "LayerNorm.bias"): tensor
        for name, tensor in tensors.items()
    }


def from_hf(tensors: Mapping[str, Tensor], shape: EncoderShape) -> dict[str, Tensor]:
    """Convert Hugging Face tensors of BERT or DistilBERT to the state of :class:`~harness.encoder.model.Encoder`, in float32.

    DistilBERT has no segment embeddings; it gets one segment of zeros.

    Raises:
        BackboneError: a tensor is missing, or its shape differs from the config.
    """
    plain = _plain(tensors)
    distilled = any(name.startswith("transformer.layer.") for name in plain)
    layers, qkv, names = (
        ("transformer.layer.", _DISTILBERT_QKV, _DISTILBERT_LAYER) if distilled else ("encoder.layer.", QKV, LAYER)
    )

    def take(name: str) -> Tensor:
        if name not in plain:
            raise BackboneError(f"the checkpoint has no tensor '{name}': it is not BERT-shaped, choose another one")
        return plain[name].float()

    if distilled:
        plain.setdefault(EMBEDDINGS["segment.weight"], torch.zeros(1, shape.width))
    state = {ours: take(theirs) for ours, theirs in EMBEDDINGS.items()}
    for i in range(shape.layers):
        prefix = f"{layers}{i}."
        for kind in ("weight", "bias"):
            state[f"layers.{i}.qkv.{kind}"] = torch.cat([take(f"{prefix}{part}.{kind}") for part in qkv])
            for ours, theirs in names.items():
                state[f"layers.{i}.{ours}.{kind}"] = take(f"{prefix}{theirs}.{kind}")
    with torch.device("meta"):
        expected = {name: tuple(t.shape) for name, t in Encoder(shape).state_dict().items()}
    for name, size in expected.items():
        if tuple(state[name].shape) != size:
            raise BackboneError(
                f"tensor '{name}' is {tuple(state[name].shape)}, config.json says {size}: use the config of these weights"
            )
    return state


def head_from_hf(tensors: Mapping[str, Tensor], shape: EncoderShape) -> dict[str, Tensor] | None:
    """Return the masked-word head among Hugging Face tensors, in float32; ``None`` as in :class:`Checkpoint`."""
    plain = _plain(tensors)
    names = HEAD if HEAD["bias"] in plain else _DISTILBERT_HEAD
    parts = {f"{part}.{kind}": f"{names[part]}.{kind}" for part in ("dense", "norm") for kind in ("weight", "bias")}
    parts["bias"] = names["bias"]
    # "fit_dense" is a matrix of TinyBERT's general distillation, which does not train the masked-word head.
    if any(name.startswith("fit_dense.") for name in plain) or not all(theirs in plain for theirs in parts.values()):
        return None
    words = plain[EMBEDDINGS["word.weight"]]
    if not torch.equal(plain.get(names["decoder"], words), words):
        return None
    head = {ours: plain[theirs].float().contiguous() for ours, theirs in parts.items()}
    fits = head["bias"].shape == (shape.vocab_size,) and head["dense.weight"].shape == (shape.width, shape.width)
    return head if fits else None


def to_hf(state: Mapping[str, Tensor], shape: EncoderShape) -> dict[str, Tensor]:
    """Invert :func:`from_hf`, for ``transformers.BertModel``."""
    tensors = {theirs: state[ours].contiguous() for ours, theirs in EMBEDDINGS.items()}
    for i in range(shape.layers):
        prefix = f"encoder.layer.{i}."
        for kind in ("weight", "bias"):
            for part, value in zip(QKV, state[f"layers.{i}.qkv.{kind}"].chunk(3), strict=True):
                tensors[f"{prefix}{part}.{kind}"] = value.clone()
            for ours, theirs in LAYER.items():
                tensors[f"{prefix}{theirs}.{kind}"] = state[f"layers.{i}.{ours}.{kind}"].contiguous()
    return tensors


def _config(folder: Path) -> Path:
    """Return the config file.

    Raises:
        BackboneError: there is none.
    """
    config = folder / "config.json"
    if not config.is_file():
        raise BackboneError(f"no config.json in {folder}: give a folder as written by transformers' save_pretrained")
    return config


def _weights(folder: Path) -> list[Path]:
    """Return the files of weights.

    Raises:
        BackboneError: there is none.
    """
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        pickled = next(folder.glob("pytorch_model*.bin"), None)
        there = f", only {pickled.name}, which may hold code and is never read" if pickled else ""
        raise BackboneError(
            f"no model.safetensors in {folder}{there}: convert the weights to safetensors, with transformers' "
            "AutoModelForMaskedLM.from_pretrained(A).save_pretrained(B)"
        )
    return files


def read_shape(folder: Path) -> EncoderShape:
    """Return the dimensions in a folder's ``config.json``.

    Raises:
        BackboneError: the file is missing, damaged or not that of a BERT-shaped encoder.
    """
    config = _config(folder)
    try:
        return EncoderShape.from_hf(json.loads(config.read_text(encoding="utf-8")))
    except (ValueError, OSError) as error:
        raise BackboneError(f"{config} is not valid JSON ({error}): fetch it again") from error


def read(folder: Path) -> Checkpoint:
    """Read a folder in ``save_pretrained`` layout (one file or sharded).

    Raises:
        BackboneError: a file is missing or damaged, or the checkpoint is not BERT-shaped.
    """
    shape = read_shape(folder)
    tensors: dict[str, Tensor] = {}
    try:
        for file in _weights(folder):
            tensors.update(load_file(file))
    except (ValueError, OSError, SafetensorError) as error:
        raise BackboneError(f"cannot read the checkpoint in {folder}: {error}: fetch it again") from error
    return Checkpoint(shape, from_hf(tensors, shape), head_from_hf(tensors, shape))


def content_of(folder: Path) -> str:
    """Return 16 hex digits that change with config, weights or vocabulary of a folder.

    Raises:
        BackboneError: a file is missing.
    """
    extra = [folder / name for name in ("vocab.txt", "tokenizer.json")]
    files = [_config(folder), *_weights(folder), *(path for path in extra if path.is_file())]
    hashes = [f"{path.name} {_hash(path, path.stat().st_size, path.stat().st_mtime_ns)}" for path in files]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()[:16]


@lru_cache(maxsize=256)
def _hash(path: Path, size: int, changed: int) -> str:
    """Return the hash of a file, cached by its size and time of change."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_folder(folder: Path, shape: EncoderShape, state: Mapping[str, Tensor]) -> None:
    """Write ``config.json`` and ``model.safetensors`` into an existing folder."""
    (folder / "config.json").write_text(json.dumps(shape.to_hf(), indent=1), encoding="utf-8")
    save_file(to_hf(state, shape), folder / "model.safetensors", metadata={"format": "pt"})
