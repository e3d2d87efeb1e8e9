"""All known families, and which one a checkpoint belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.core.errors import BackboneError
from harness.encoder.families.albert_family import ALBERT
from harness.encoder.families.bert_family import BERT
from harness.encoder.families.distilbert_family import DISTILBERT
from harness.encoder.families.electra_family import ELECTRA
from harness.encoder.families.family import Family
from harness.encoder.families.modernbert_family import MODERNBERT
from harness.encoder.families.roberta_family import ROBERTA, XLM_R
from harness.encoder.shape import EncoderShape

FAMILIES: dict[str, Family] = {
    family.kind: family for family in (BERT, ROBERTA, XLM_R, ELECTRA, DISTILBERT, ALBERT, MODERNBERT)
}


def family_of(config: Any) -> Family:
    """Return the family of a ``config.json``.

    Raises:
        BackboneError: it is not known.
    """
    if not isinstance(config, Mapping):
        raise BackboneError("config.json is not a JSON object: choose another checkpoint")
    kind = config.get("model_type", BERT.kind)
    if kind not in FAMILIES:
        raise BackboneError(
            f"config.json has model_type {kind!r}, which is not known: choose a checkpoint of one of {', '.join(FAMILIES)}"
        )
    return FAMILIES[kind]


def written_as(family: Family, shape: EncoderShape) -> Family:
    """Return the family in whose form a model is written: its own, else BERT.

    Raises:
        BackboneError: it can be written in neither.
    """
    for one in (family, BERT):
        if one.writes(shape):
            return one
    able = ", ".join(one.name for one in (BERT, ROBERTA, XLM_R, ELECTRA, DISTILBERT))
    raise BackboneError(f"models of {family.name}'s structure are not written: choose one of {able}")


def check_weights(family: Family, names: Mapping[str, Any]) -> None:
    """Check that the tensors of a checkpoint can be those of its ``config.json``.

    Args:
        names: of the tensors.

    Raises:
        BackboneError: their names are those of another family.
    """
    if family.owns(names):
        return
    others = [one.name for one in FAMILIES.values() if one.owns(names)]
    if others:
        raise BackboneError(
            f"config.json has model_type {family.kind!r}, but the weights are those of {' or '.join(others)}: use the config of "
            "these weights"
        )
