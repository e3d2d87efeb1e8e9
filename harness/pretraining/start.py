"""Initial weights: random, or evenly spread layers of another backbone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from harness.core.errors import BackboneError, ConfigError
from harness.encoder import checkpoint
from harness.encoder.checkpoint import Checkpoint
from harness.encoder.families.bert_family import BERT
from harness.encoder.families.family import Family
from harness.encoder.families.known_families import written_as
from harness.encoder.masked_words import MaskedWordModel
from harness.encoder.model import Encoder
from harness.encoder.shape import EncoderShape
from harness.pretraining.text import vocabulary

LAYERS, WIDTH = 12, 256  # of a model that starts at random


def shape_for(
    layers: int | None,
    width: int | None,
    heads: int | None,
    intermediate: int | None,
    vocab: int,
    length: int,
    origin: EncoderShape | None = None,
) -> EncoderShape:
    """Return the shape of a model. Default: heads of width 64 and an inner width of four times the width.

    Args:
        origin: of the backbone that it starts from; it replaces the defaults.

    Raises:
        ConfigError: the dimensions do not fit together.
    """
    if origin is not None:
        layers, width = layers or origin.layers, width or origin.width
        heads, intermediate = heads or origin.heads, intermediate or origin.intermediate
    layers, width = layers or LAYERS, width or WIDTH
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


@dataclass(frozen=True)
class Origin:
    """The backbone of ``--init-from``.

    Attributes:
        name: of its folder.
        checkpoint: what it holds.
        same_words: its vocabulary is that of the shards.
        family: of the model that starts from it.
    """

    name: str
    checkpoint: Checkpoint
    same_words: bool
    family: Family

    @classmethod
    def of(cls, folder: Path, words: list[str]) -> Self:
        """Read a folder.

        Raises:
            BackboneError: it cannot be read, or models of its structure are not written.
        """
        found = checkpoint.read(folder)
        same = _words(folder) == words
        try:
            family = written_as(found.family, found.shape)
        except BackboneError as error:
            raise BackboneError(f"--init-from {folder}: {error}, or leave it out") from error
        # RoBERTa's positions depend on the id of padding in its vocabulary; its structure is BERT's.
        return cls(folder.resolve().name, found, same, family if same or found.shape.differences else BERT)

    def shaped(self, shape: EncoderShape) -> EncoderShape:
        """Return a shape with what its origin fixes.

        That is its activation; its positions, which rows of text may be shorter than, if its vocabulary stays; and of another
        family than BERT: segments, widths of embeddings, norms.
        """
        theirs = self.checkpoint.shape
        shape = replace(shape, activation=theirs.activation)
        if self.same_words:
            shape = replace(shape, max_positions=max(shape.max_positions, theirs.max_positions))
        if self.family is BERT:
            return shape
        return replace(shape, embedding=theirs.embedding, type_vocab=theirs.type_vocab, norm_eps=theirs.norm_eps)


def take_from(model: MaskedWordModel, origin: Origin) -> dict[str, Any]:
    """Copy evenly spread layers of a backbone, some of them twice if it has fewer than ``model``.

    If its vocabulary is that of the shards, its embeddings and its masked-word head (if it has one) are copied, too.

    Returns:
        Facts: its ``name``, the copied ``layers`` (from 0), and whether ``embeddings`` and ``head`` were copied.

    Raises:
        BackboneError: it has another width, inner width, number of heads or activation.
    """
    theirs, state, head = origin.checkpoint.shape, origin.checkpoint.state, origin.checkpoint.head
    ours = model.encoder.shape
    for name in ("width", "heads", "intermediate", "activation"):
        if getattr(theirs, name) != getattr(ours, name):
            raise BackboneError(
                f"--init-from {origin.name}: its {name} is {getattr(theirs, name)}, but this model's is {getattr(ours, name)}: use "
                "the same, or leave --init-from out"
            )
    chosen = spread(ours.layers, theirs.layers)
    with torch.no_grad():
        for number, layer in enumerate(chosen):
            prefix = f"layers.{layer}."
            own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            model.encoder.layers[number].load_state_dict(own)
        if origin.same_words:
            model.encoder.word.weight.copy_(state["word.weight"])
            known = min(ours.max_positions, theirs.max_positions)
            model.encoder.position.weight[:known] = state["position.weight"][:known]
            segments = state["segment.weight"]
            model.encoder.segment.weight[:] = segments[: ours.type_vocab] if len(segments) > 1 else segments[0]
            rest = {name: value for name, value in state.items() if name.startswith(("norm.", "project."))}
            model.encoder.load_state_dict({**model.encoder.state_dict(), **rest})
            if head is not None:
                model.load_state_dict({**model.state_dict(), **head})
    return {
        "name": origin.name,
        "layers": chosen,
        "embeddings": origin.same_words,
        "head": origin.same_words and head is not None,
    }
