"""ELECTRA (Clark et al. 2020, arXiv 2003.10555): BERT whose small models have narrower embeddings and a matrix behind them.

Discriminators have no masked-word head. Generators have one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from harness.encoder.families.bert_family import BERT


def _narrow(config: Mapping[str, Any]) -> Mapping[str, Any]:
    size = int(config.get("embedding_size", config["hidden_size"]))
    return {"embedding": size} if size != int(config["hidden_size"]) else {}


ELECTRA = replace(
    BERT,
    name="ELECTRA",
    kind="electra",
    prefix="electra.",
    differences=_narrow,
    embeddings={
        **BERT.embeddings,
        "project.weight": "embeddings_project.weight",
        "project.bias": "embeddings_project.bias",
    },
    head={
        "dense": "generator_predictions.dense",
        "norm": "generator_predictions.LayerNorm",
        "bias": "generator_lm_head.bias",
        "decoder": "generator_lm_head",
    },
    head_activation="gelu",
    architecture="Electra",
    unlike_bert=frozenset({"embedding"}),
    written=lambda shape: {"pad_token_id": 0, "embedding_size": shape.embedding or shape.width},
)
