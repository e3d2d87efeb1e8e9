"""The description of a family: names in ``config.json``, names of tensors, and where its structure differs from BERT's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.core.errors import BackboneError
from harness.encoder.shape import EncoderShape

_TYPES: Mapping[str, Callable[[Any], Any]] = {"activation": str, "norm_eps": float, "dropout": float}  # others: int


def _no_differences(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True)
class Family:
    """A family of encoders.

    Attributes:
        name: for people.
        kind: ``model_type`` in ``config.json``.
        prefix: of tensor names in task checkpoints.
        dimensions: attributes of :class:`EncoderShape` -> names in ``config.json``.
        usual: values of those that ``config.json`` may leave out.
        fixed: values of those that it never has.
        differences: returns further attributes of :class:`EncoderShape` for a ``config.json``; raises ``BackboneError`` if
            it says something that is not supported.
        skipped: rows of the position embeddings before that of a text's first token.
        embeddings: our names of tensors before and after the layers -> theirs. Segments without a name are zeros.
        layer: names of a layer's tensors, with a place for its number.
        qkv: names of the projections of queries, keys and values, or of one matrix of all.
        parts: our names of a layer's other modules -> theirs.
        head: names of the masked-word head's modules ``dense`` and ``norm``, its ``bias`` and its ``decoder``.
        head_activation: of that head if it is not that of the layers.
        architecture: names of the classes of ``transformers`` without what they are for; empty: models are not written like this.
        unlike_bert: differences from BERT (:data:`harness.encoder.shape.DIFFERENCES`) that a written model may have.
        written: returns what ``config.json`` has beside the dimensions.
    """

    name: str
    kind: str
    prefix: str
    dimensions: Mapping[str, str]
    embeddings: Mapping[str, str]
    layer: str
    qkv: tuple[str, ...]
    parts: Mapping[str, str]
    head: Mapping[str, str]
    usual: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    differences: Callable[[Mapping[str, Any]], Mapping[str, Any]] = _no_differences
    skipped: int = 0
    head_activation: str = ""
    architecture: str = ""
    unlike_bert: frozenset[str] = frozenset()
    written: Callable[[EncoderShape], Mapping[str, Any]] = lambda shape: {"pad_token_id": 0}

    def shape(self, config: Mapping[str, Any]) -> EncoderShape:
        """Return the dimensions in a ``config.json`` of this family.

        Raises:
            BackboneError: a dimension is missing or wrong, or the structure is not supported.
        """
        if config.get("position_embedding_type", "absolute") != "absolute" or config.get("is_decoder"):
            raise BackboneError(
                "only encoders with absolute positions are supported, not relative ones and no decoders: choose another checkpoint"
            )
        try:
            values = {
                ours: _TYPES.get(ours, int)(
                    config.get(theirs, self.usual[ours]) if ours in self.usual else config[theirs]
                )
                for ours, theirs in self.dimensions.items()
            }
            values["max_positions"] -= self.skipped
            return EncoderShape(**values, **self.fixed, **self.differences(config))
        except (KeyError, TypeError, ValueError) as error:
            raise BackboneError(
                f"config.json is not that of a {self.name} encoder ({error!r}): choose another checkpoint"
            ) from error

    def writes(self, shape: EncoderShape) -> bool:
        """Return whether a model of this shape can be written as one of this family."""
        return bool(self.architecture) and shape.differences <= self.unlike_bert

    def config(self, shape: EncoderShape, purpose: str = "Model") -> dict[str, Any]:
        """Return the ``config.json`` of a model that is written (:meth:`writes`); :meth:`shape` reads the same shape from it.

        Args:
            purpose: end of the class's name in ``transformers``.
        """
        assert self.writes(shape)
        sizes = {theirs: getattr(shape, ours) for ours, theirs in self.dimensions.items()}
        sizes[self.dimensions["max_positions"]] += self.skipped
        first = {"architectures": [f"{self.architecture}{purpose}"], "model_type": self.kind}
        return {**first, **sizes, "attention_probs_dropout_prob": shape.dropout, **self.written(shape)}

    def sources(self, name: str) -> tuple[str, ...]:
        """Return the tensors that make up one of :class:`~harness.encoder.model.Encoder`, by name; none if it is zeros."""
        part, _, kind = name.rpartition(".")
        if not part.startswith("layers."):
            return (self.embeddings[name],) if name in self.embeddings else ()
        _, number, part = part.split(".")
        parts = self.qkv if part == "qkv" else (self.parts[part],)
        return tuple(f"{self.layer.format(number)}{one}.{kind}" for one in parts)

    def owns(self, names: Mapping[str, Any]) -> bool:
        """Return whether tensor names are those of this family."""
        first = f"{self.layer.format(0)}{self.qkv[0]}.weight"
        return first in names or f"{self.prefix}{first}" in names
