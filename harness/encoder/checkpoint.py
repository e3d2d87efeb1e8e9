"""Read weights in Hugging Face's naming, of every family, and write them in BERT's; safetensors only."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness.core.digest import digest_of
from harness.core.errors import BackboneError
from harness.core.names import check_name
from harness.core.text_formats import read_json
from harness.encoder.families.bert_family import BERT
from harness.encoder.families.family import Family
from harness.encoder.families.known_families import check_weights, family_of
from harness.encoder.model import Encoder
from harness.encoder.shape import EncoderShape

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# Everything that tokenizers of transformers read, as patterns of file names.
TOKENIZER_FILES = (
    "tokenizer*.json",
    "vocab.*",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
_POINTER = b"version https://git-lfs.github.com/spec/"
# Keys of config.json that make transformers load other weights than those in the folder, and what to do about them.
_OTHER_WEIGHTS = {
    "quantization_config": "save the model in float32, float16 or bfloat16",
    "transformers_weights": f"rename the file that it names to {WEIGHTS}, and delete the key",
}


@dataclass(frozen=True)
class Checkpoint:
    """The contents of a folder.

    Attributes:
        family: of the encoder.
        shape: dimensions.
        state: of :class:`~harness.encoder.model.Encoder`, float32 on the CPU.
        head: of the masked-word head (``dense``, ``norm``, ``bias`` of
            :class:`~harness.encoder.masked_words.MaskedWordModel`); ``None`` if there is none, if its decoder is not the
            word embeddings, and in TinyBERT's general students, whose head is untrained.
    """

    family: Family
    shape: EncoderShape
    state: dict[str, Tensor]
    head: dict[str, Tensor] | None = None


def _plain(tensors: Mapping[str, Tensor], family: Family) -> dict[str, Tensor]:
    """Remove the prefix of task checkpoints, and rename gamma and beta of very old ones.

    Raises:
        BackboneError: two tensors get the same name.
    """
    names = {
        name: name.removeprefix(family.prefix)
        .replace("LayerNorm.gamma", "LayerNorm.weight")
        .replace("LayerNorm.beta", "LayerNorm.bias")
        for name in tensors
    }
    if len(set(names.values())) < len(names):
        twice = Counter(names.values()).most_common(1)[0][0]
        raise BackboneError(f"the checkpoint has tensor '{twice}' under two names: save it again with transformers")
    return {names[name]: tensor for name, tensor in tensors.items()}


def _take(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """Return a tensor in float32.

    Raises:
        BackboneError: it is missing, is not made of floating-point numbers, or one of them is not finite.
    """
    if name not in tensors:
        prefix = next((other.removesuffix(name) for other in tensors if other.endswith(f".{name}")), "")
        if prefix:
            raise BackboneError(
                f"the names of all tensors begin with '{prefix}', so transformers would not load them: save the inner model "
                "(of torch.nn.DataParallel: model.module.save_pretrained(DIR))"
            )
        raise BackboneError(
            f"the checkpoint has no tensor '{name}', which config.json promises: use the config of these weights, or choose "
            "another checkpoint"
        )
    tensor = tensors[name]
    if not tensor.is_floating_point():
        raise BackboneError(f"tensor '{name}' holds {tensor.dtype}: save the model in float32, float16 or bfloat16")
    if not torch.isfinite(tensor).all():
        raise BackboneError(
            f"tensor '{name}' holds NaN or infinite numbers: its training diverged or the file is damaged; take another one"
        )
    return tensor.float()


def from_hf(tensors: Mapping[str, Tensor], shape: EncoderShape, family: Family = BERT) -> dict[str, Tensor]:
    """Convert Hugging Face tensors of a family to the state of :class:`~harness.encoder.model.Encoder`, in float32.

    Raises:
        BackboneError: a tensor is missing, holds NaN, or its shape differs from the config.
    """
    plain = _plain(tensors, family)
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in Encoder(shape).state_dict().items()}
    state = {}
    for name, size in expected.items():
        parts = [_take(plain, source) for source in family.sources(name)]
        found = torch.cat(parts) if parts else torch.zeros(size)
        skipped = family.skipped if name == "position.weight" else 0
        if found.shape != (size[0] + skipped, *size[1:]):
            raise BackboneError(
                f"tensor '{name}' is {tuple(found.shape)}, config.json says {(size[0] + skipped, *size[1:])}: use the config of "
                "these weights"
            )
        state[name] = found[skipped:]
    return state


def head_from_hf(tensors: Mapping[str, Tensor], shape: EncoderShape, family: Family = BERT) -> dict[str, Tensor] | None:
    """Return the masked-word head among Hugging Face tensors, in float32; ``None`` as in :class:`Checkpoint`.

    Raises:
        BackboneError: a tensor of it holds NaN.
    """
    plain, names = _plain(tensors, family), family.head
    kinds = ("weight", "bias") if shape.biases else ("weight",)
    parts = {f"{part}.{kind}": f"{names[part]}.{kind}" for part in ("dense", "norm") for kind in kinds}
    parts["bias"] = names["bias"]
    # "fit_dense" is a matrix of TinyBERT's general distillation, which does not train the masked-word head.
    if any(name.startswith("fit_dense.") for name in plain) or not all(theirs in plain for theirs in parts.values()):
        return None
    if family.head_activation not in ("", shape.activation):
        return None
    words = plain[family.embeddings["word.weight"]]
    if not torch.equal(plain.get(f"{names['decoder']}.weight", words), words):
        return None
    # transformers keeps a second bias that differs from the first one, and adds only that to the scores.
    second = plain.get(f"{names['decoder']}.bias")
    if second is not None and not torch.equal(second, plain[names["bias"]]):
        return None
    head = {ours: _take(plain, theirs).contiguous() for ours, theirs in parts.items()}
    narrow = shape.embedding or shape.width
    fits = head["bias"].shape == (shape.vocab_size,) and head["dense.weight"].shape == (narrow, shape.width)
    return head if fits else None


def to_hf(state: Mapping[str, Tensor], family: Family = BERT) -> dict[str, Tensor]:
    """Return the tensors of an encoder under a family's names, as a model of ``transformers`` has them.

    Args:
        state: of an encoder that the family writes (:meth:`Family.writes`).
    """
    tensors = {}
    for name, value in state.items():
        sources = family.sources(name)
        if name == "position.weight":
            value = torch.cat([value.new_zeros(family.skipped, value.shape[1]), value])
        for source, part in zip(sources, value.chunk(len(sources)), strict=True):
            tensors[source] = part.clone() if len(sources) > 1 else part.contiguous()
    return tensors


def _config(folder: Path) -> dict[str, Any]:
    """Return the content of ``config.json``.

    Raises:
        BackboneError: it is missing or damaged, or the weights that it describes are not those in the folder.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise BackboneError(f"no config.json in {folder}: give a folder as written by transformers' save_pretrained")
    _refuse_pointers([path])
    try:
        facts = read_json(path)
    except (ValueError, OSError) as error:
        raise BackboneError(f"{path} is not valid JSON ({error}): fetch it again") from error
    if not isinstance(facts, dict):
        raise BackboneError(f"{path} is not a JSON object: choose another checkpoint")
    for key, advice in _OTHER_WEIGHTS.items():
        if facts.get(key):
            raise BackboneError(f"{path} has the key '{key}', which is not supported: {advice}")
    return facts


def _weights(folder: Path) -> list[Path]:
    """Return the files of weights that transformers would load: ``model.safetensors``, else those that the index names.

    Raises:
        BackboneError: a file is missing, or transformers would load other weights.
    """
    if (folder / "adapter_config.json").is_file():
        raise BackboneError(
            f"{folder} has an adapter_config.json, so its weights are changes to another model: merge them into that model "
            "(peft: merge_and_unload) and save the result in a new folder"
        )
    index = folder / INDEX
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if index.is_file():
        _refuse_pointers([index])
        try:
            names = [check_name(name) for name in sorted(set(read_json(index)["weight_map"].values()))]
            if not names:
                raise ValueError("it names no file")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BackboneError(f"{index} is not an index of weights ({error!r}): fetch it again") from error
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise BackboneError(
                f"{folder} lacks {len(missing)} of the {len(names)} files of weights that {INDEX} names "
                f"({', '.join(missing[:3])}): fetch them again"
            )
        return [folder / name for name in names]
    others = sorted(folder.glob("*.safetensors"))
    if others:
        raise BackboneError(
            f"no {WEIGHTS} in {folder}, only {others[0].name}, which transformers would not load: fetch {INDEX} as well if the "
            f"weights are in several files, else rename the file to {WEIGHTS}"
        )
    pickled = next(folder.glob("pytorch_model*.bin"), None)
    there = f", only {pickled.name}, which may hold code and is never read" if pickled else ""
    raise BackboneError(
        f"no {WEIGHTS} in {folder}{there}: convert the weights to safetensors, with transformers' "
        "AutoModelForMaskedLM.from_pretrained(A).save_pretrained(B)"
    )


def tokenizer_files(folder: Path) -> list[Path]:
    """Return the files of the tokenizer, sorted.

    Raises:
        BackboneError: one of them is only a Git LFS pointer.
    """
    found = {path for pattern in TOKENIZER_FILES for path in folder.glob(pattern) if path.is_file()}
    _refuse_pointers(sorted(found))
    return sorted(found)


def _refuse_pointers(files: list[Path]) -> None:
    """Check that no file is what Git leaves where Git LFS is not installed.

    Raises:
        BackboneError: a file is.
    """
    for path in files:
        with path.open("rb") as handle:
            if handle.read(len(_POINTER)) == _POINTER:
                raise BackboneError(
                    f"{path} is only a Git LFS pointer, not the file itself: run 'git lfs pull' there, or download the file"
                )


def read_shape(folder: Path) -> EncoderShape:
    """Return the dimensions in a folder's ``config.json``.

    Raises:
        BackboneError: the file is missing, damaged or not that of a known family.
    """
    config = _config(folder)
    return family_of(config).shape(config)


def read(folder: Path) -> Checkpoint:
    """Read a folder in ``save_pretrained`` layout (one file or sharded): the same tensors that transformers loads from it.

    Raises:
        BackboneError: a file is missing or damaged, or the checkpoint is of no known family.
    """
    config = _config(folder)
    family = family_of(config)
    shape = family.shape(config)
    tensors: dict[str, Tensor] = {}
    files = _weights(folder)
    _refuse_pointers(files)
    for path in files:
        try:
            tensors.update(load_file(path))
        except (ValueError, OSError, SafetensorError) as error:
            raise BackboneError(f"cannot read the weights in {path}: {error}: fetch it again") from error
    try:
        check_weights(family, tensors)
        return Checkpoint(family, shape, from_hf(tensors, shape, family), head_from_hf(tensors, shape, family))
    except BackboneError as error:
        raise BackboneError(f"{folder}: {error}") from error


def content_of(folder: Path) -> str:
    """Return a hash (16 hex digits) of config, weights and tokenizer of a folder, and of nothing else.

    Raises:
        BackboneError: a file is missing.
    """
    _config(folder)
    return digest_of([folder / "config.json", *_weights(folder), *tokenizer_files(folder)], folder)


def tokenizer_content_of(folder: Path) -> str:
    """Return 16 hex digits that change with the tokenizer's files only."""
    return digest_of(tokenizer_files(folder), folder)


def write_folder(folder: Path, shape: EncoderShape, state: Mapping[str, Tensor]) -> None:
    """Write ``config.json`` and ``model.safetensors`` into an existing folder."""
    (folder / "config.json").write_text(json.dumps(BERT.config(shape), indent=1), encoding="utf-8")
    save_file(to_hf(state), folder / "model.safetensors", metadata={"format": "pt"})
