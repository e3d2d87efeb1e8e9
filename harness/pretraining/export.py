"""Export of a pretrained model or a distilled student, as a folder for ``--backbone`` and for transformers (``AutoModel``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from harness.core.errors import ResultError
from harness.core.files import write_atomic, write_json, write_text
from harness.encoder import checkpoint
from harness.encoder.families.bert_family import BERT
from harness.encoder.families.family import Family
from harness.encoder.masked_words import MaskedWordModel
from harness.encoder.model import Encoder, parameters_of
from harness.encoder.shape import EncoderShape
from harness.pretraining.text import vocabulary

PIECE = 16 * 2**20  # bytes; weight files stay smaller, for hosts that limit the size of files
_HEADER = 64 * 2**10  # bytes; upper bound of a file's header
INDEX = "model.safetensors.index.json"


def tensors_of(
    model: MaskedWordModel | Encoder, shape: EncoderShape, family: Family = BERT, *, one_segment: bool = True
) -> dict[str, Tensor]:
    """Return all weights in float16 under the names of ``BertForMaskedLM``, or of ``BertModel`` without a masked-word head.

    The tied decoder is left out.

    Args:
        family: whose names they get instead of BERT's.
        one_segment: no text was in the second segment, so that it is written as a copy of the first.
    """
    encoder, prefix = (model, "") if isinstance(model, Encoder) else (model.encoder, family.prefix)
    state = {name: value.detach().cpu() for name, value in encoder.state_dict().items()}
    if one_segment:
        state["segment.weight"] = state["segment.weight"][:1].repeat(shape.type_vocab, 1)
    found = {f"{prefix}{name}": value for name, value in checkpoint.to_hf(state, family).items()}
    if isinstance(model, MaskedWordModel):
        for part in ("dense", "norm"):
            for kind in ("weight", "bias"):
                found[f"{family.head[part]}.{kind}"] = getattr(getattr(model, part), kind)
        found[family.head["bias"]] = model.bias
    return {name: value.detach().cpu().half().contiguous() for name, value in found.items()}


def round_to_half(model: nn.Module) -> None:
    """Round all weights to float16, so that the evaluated weights are the written ones."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half())


def write(
    folder: Path,
    model: MaskedWordModel | Encoder,
    shape: EncoderShape,
    tokenizer: Any,
    limit: int = PIECE,
    *,
    family: Family = BERT,
    one_segment: bool = True,
) -> list[str]:
    """Write config, tokenizer and weights into an existing folder. The config is last: without it the folder is not valid.

    Args:
        shape: for the config, with the dropout for fine-tuning.
        limit: upper bound of the size of weight files, in bytes.
        family: that the folder is of.
        one_segment: see :func:`tensors_of`.

    Returns:
        Names of the weight files.

    Raises:
        ResultError: the folder cannot be written.
    """
    tensors = tensors_of(model, shape, family, one_segment=one_segment)
    split = split_torch_state_dict_into_shards(
        tensors, filename_pattern="model{suffix}.safetensors", max_shard_size=limit - _HEADER
    )
    for old in [folder / "config.json", folder / INDEX, *folder.glob("model*.safetensors")]:
        old.unlink(missing_ok=True)
    for name, part in split.filename_to_tensors.items():
        content = to_bytes({tensor: tensors[tensor] for tensor in part}, {"format": "pt"})
        write_atomic(folder / name, lambda place, content=content: place.write_bytes(content))  # type: ignore[misc]
    if split.is_sharded:
        write_json(folder / INDEX, {"metadata": split.metadata, "weight_map": split.tensor_to_filename})
    write_tokenizer(folder, tokenizer, shape.max_positions)
    # Stored in half precision to be small, but computed in float32 by default.
    config = family.config(shape, "Model" if isinstance(model, Encoder) else "ForMaskedLM")
    config |= {"dtype": "float32", "tie_word_embeddings": True}
    text = json.dumps(config, indent=1)
    write_text(folder / "config.json", text)
    return list(split.filename_to_tensors)


def write_tokenizer(folder: Path, tokenizer: Any, longest: int) -> None:
    """Write a tokenizer for texts of at most ``longest`` tokens into an existing folder.

    Raises:
        ResultError: the folder cannot be written.
    """
    try:
        vocabulary.save(tokenizer, folder, longest)
    except OSError as error:
        raise ResultError(f"cannot write {folder}: {error.strerror}: free space, then run again") from error


def described(model: MaskedWordModel | Encoder, shape: EncoderShape, family: Family) -> dict[str, Any]:
    """Return the facts of a model card about a written encoder: family, dimensions and parameters."""
    return {
        "family": {"name": family.name, "kind": family.kind},
        "shape": shape.to_dict(),
        "parameters": parameters_of(model),
    }
