"""Initial weights: random, or evenly spread layers of another backbone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.core.errors import BackboneError, ConfigError
from harness.encoder import checkpoint
from harness.encoder.masked_words import MaskedWordModel
from harness.encoder.model import Encoder
from harness.encoder.shape import EncoderShape
from harness.pretraining.text import vocabulary


def shape_for(
    layers: int, width: int, heads: int | None, intermediate: int | None, vocab: int, length: int
) -> EncoderShape:
    """Return the shape of a model. Default: heads of width 64 and an inner width of four times the width.

    Raises:
        ConfigError: the dimensions do not fit together.
    """
    heads = heads or max(1, width // 64)
    if width % heads:
        raise ConfigError(f"--width {width} is not divisible by --heads {heads}: choose a multiple of it")
    return EncoderShape(layers, width, heads, intermediate or 4 * width, vocab, max_positions=length)


def spread(count: int, depth: int) -> list[int]:
    """Return ``count`` of ``depth`` layers, evenly spread with the first and the last; only the last if ``count`` is 1."""
    if count == 1:
        return [depth - 1]
    return [int(layer) for layer in np.rint(np.linspace(0, depth - 1, count))]


def fresh(shape: EncoderShape, dropout: float, seed: int) -> MaskedWordModel:
    """Return a model with random weights, except that the embedding of the second segment is a copy of the first."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MaskedWordModel(Encoder(replace(shape, dropout=dropout)))
    with torch.no_grad():
        model.encoder.segment.weight[1:] = model.encoder.segment.weight[0]
    return model


def _words(folder: Path) -> list[str] | None:
    """Return the vocabulary of a folder, if it has one; as in transformers, ``tokenizer.json`` counts before ``vocab.txt``."""
    names = {path.name for path in checkpoint.tokenizer_files(folder)}
    if "tokenizer.json" in names:
        return vocabulary.words(vocabulary.load(folder))
    return (folder / "vocab.txt").read_text(encoding="utf-8").splitlines() if "vocab.txt" in names else None


def take_from(model: MaskedWordModel, folder: Path, words: list[str]) -> dict[str, Any]:
    """Copy evenly spread layers of the backbone in ``folder``, some of them twice if it has fewer than ``model``.

    If its vocabulary is ``words``, its embeddings and its masked-word head (if it has one) are copied, too.

    Returns:
        Facts: its ``name``, the copied ``layers`` (from 0), and whether ``embeddings`` and ``head`` were copied.

    Raises:
        BackboneError: the folder cannot be read, or has another width, inner width, number of heads or activation.
    """
    found = checkpoint.read(folder)
    theirs, state = found.shape, found.state
    if not theirs.is_bert:
        raise BackboneError(
            f"--init-from {folder}: its structure is not BERT's: name another backbone, or leave it out"
        )
    ours = model.encoder.shape
    for name in ("width", "heads", "intermediate", "activation"):
        if getattr(theirs, name) != getattr(ours, name):
            raise BackboneError(
                f"--init-from {folder}: its {name} is {getattr(theirs, name)}, but this model's is {getattr(ours, name)}: use "
                "the same, or leave --init-from out"
            )
    chosen = spread(ours.layers, theirs.layers)
    same = _words(folder) == words
    with torch.no_grad():
        for number, layer in enumerate(chosen):
            prefix = f"layers.{layer}."
            own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            model.encoder.layers[number].load_state_dict(own)
        if same:
            model.encoder.word.weight.copy_(state["word.weight"])
            known = min(ours.max_positions, theirs.max_positions)
            model.encoder.position.weight[:known] = state["position.weight"][:known]
            segments = state["segment.weight"]
            model.encoder.segment.weight[:] = segments[: ours.type_vocab] if len(segments) > 1 else segments[0]
            model.encoder.norm.load_state_dict({kind: state[f"norm.{kind}"] for kind in ("weight", "bias")})
            if found.head is not None:
                model.load_state_dict({**model.state_dict(), **found.head})
    return {
        "name": folder.resolve().name,
        "layers": chosen,
        "embeddings": same,
        "head": same and found.head is not None,
    }
