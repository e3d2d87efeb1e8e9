"""Where weights come from: drawn at random, or some of a teacher's layers."""

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
    """Dimensions as asked for; heads of 64 and an inner width of four times the width unless said otherwise.

    Raises:
        ConfigError: they do not fit together.
    """
    heads = heads or max(1, width // 64)
    if width % heads:
        raise ConfigError(
            f"--width {width} is not divisible by --heads {heads}: choose a width that is a multiple of it"
        )
    return EncoderShape(layers, width, heads, intermediate or 4 * width, vocab, max_positions=length)


def spread(count: int, depth: int) -> list[int]:
    """``count`` layers out of ``depth``, evenly spread, first and last among them (the last, if it is one)."""
    if count == 1:
        return [depth - 1]
    return [int(layer) for layer in np.rint(np.linspace(0, depth - 1, count))]


def fresh(shape: EncoderShape, dropout: float, seed: int) -> MaskedWordModel:
    """Random weights. The second segment begins as the first; without pairs it is written as it, too
    (see :mod:`harness.pretraining.export`)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MaskedWordModel(Encoder(replace(shape, dropout=dropout)))
    with torch.no_grad():
        model.encoder.segment.weight[1:] = model.encoder.segment.weight[0]
    return model


def _words(folder: Path) -> list[str] | None:
    """The vocabulary of a folder, if it tells."""
    if (folder / "vocab.txt").is_file():
        return (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    if (folder / "tokenizer.json").is_file():
        return vocabulary.words(vocabulary.load(folder))
    return None


def take_from(model: MaskedWordModel, folder: Path, words: list[str]) -> dict[str, Any]:
    """Copy evenly spread layers of the teacher in ``folder``; if its vocabulary is ``words``, also its embeddings, and its
    masked-word head, where it has one.

    A teacher with fewer layers gives some of them twice.

    Returns:
        Its ``name``, which of its ``layers`` (from 0) were taken, and whether ``embeddings`` and ``head`` were.

    Raises:
        BackboneError: the teacher cannot be read, or its layers are of another width, inner width, or number of heads.
    """
    found = checkpoint.read(folder)
    theirs, state = found.shape, found.state
    ours = model.encoder.shape
    for name in ("width", "heads", "intermediate", "activation"):
        if getattr(theirs, name) != getattr(ours, name):
            raise BackboneError(
                f"--init-from {folder}: its {name} is {getattr(theirs, name)}, this model's {getattr(ours, name)}: choose the "
                "same, or leave --init-from out"
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
