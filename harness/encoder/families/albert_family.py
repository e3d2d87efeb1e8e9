"""ALBERT (Lan et al. 2020, arXiv 1909.11942): one layer's weights serve all layers, and embeddings are narrow.

A matrix brings embeddings to the width of the layers, also where it is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from harness.core.errors import BackboneError
from harness.encoder.families.bert_family import BERT


def _shared(config: Mapping[str, Any]) -> Mapping[str, Any]:
    for key in ("num_hidden_groups", "inner_group_num"):
        if config.get(key, 1) != 1:
            raise BackboneError(
                f"config.json has {key} {config[key]!r}; only encoders whose layers all share one set of weights are supported: "
                "choose another checkpoint"
            )
    return {"embedding": int(config.get("embedding_size", 128)), "shared": True}


ALBERT = replace(
    BERT,
    name="ALBERT",
    kind="albert",
    prefix="albert.",
    usual={"type_vocab": 2, "norm_eps": 1e-12, "activation": "gelu_new", "dropout": 0.0},
    differences=_shared,
    embeddings={
        **BERT.embeddings,
        "project.weight": "encoder.embedding_hidden_mapping_in.weight",
        "project.bias": "encoder.embedding_hidden_mapping_in.bias",
    },
    layer="encoder.albert_layer_groups.{}.albert_layers.0.",
    qkv=("attention.query", "attention.key", "attention.value"),
    parts={
        "out": "attention.dense",
        "norm_attention": "attention.LayerNorm",
        "up": "ffn",
        "down": "ffn_output",
        "norm_output": "full_layer_layer_norm",
    },
    head={
        "dense": "predictions.dense",
        "norm": "predictions.LayerNorm",
        "bias": "predictions.bias",
        "decoder": "predictions.decoder",
    },
    architecture="",
)
