"""ModernBERT (Warner et al. 2024, arXiv 2412.13663): pre-norm layers with gates, rotary positions, and windows in two of three.

There are no biases, no segments and no position embeddings. The first layer's attention reads the embeddings as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.core.errors import BackboneError
from harness.encoder.families.family import Family

_WHOLE, _NEAR = "full_attention", "sliding_attention"  # kinds of layers in config.json


def _refuse(key: str, value: Any) -> BackboneError:
    return BackboneError(
        f"config.json has {key} {value!r}, which is not supported: choose another ModernBERT checkpoint"
    )


def _modern(config: Mapping[str, Any]) -> Mapping[str, Any]:
    for key in ("attention_bias", "mlp_bias", "norm_bias", "rope_scaling"):
        if config.get(key):
            raise _refuse(key, config[key])
    layers, window = int(config["num_hidden_layers"]), int(config.get("local_attention", 128)) // 2
    every = int(config.get("global_attn_every_n_layers", 3))
    kinds = config.get("layer_types") or [_NEAR if layer % every else _WHOLE for layer in range(layers)]
    if len(kinds) != layers or set(kinds) - {_WHOLE, _NEAR}:
        raise _refuse("layer_types", kinds)
    angles = config.get("rope_parameters") or {
        _WHOLE: {"rope_theta": config.get("global_rope_theta", 160_000.0)},
        _NEAR: {"rope_theta": config.get("local_rope_theta", 10_000.0)},
    }
    if any(angles[kind].get("rope_type", "default") != "default" for kind in kinds):
        raise _refuse("rope_parameters", angles)
    return {
        "norm_first": True,
        "bare_start": True,
        "gated": True,
        "biases": False,
        "rotary": tuple(float(angles[kind]["rope_theta"]) for kind in (_WHOLE, _NEAR)),
        "windows": tuple(window if kind == _NEAR else 0 for kind in kinds),
    }


MODERNBERT = Family(
    name="ModernBERT",
    kind="modernbert",
    prefix="model.",
    dimensions={
        "layers": "num_hidden_layers",
        "width": "hidden_size",
        "heads": "num_attention_heads",
        "intermediate": "intermediate_size",
        "vocab_size": "vocab_size",
        "max_positions": "max_position_embeddings",
        "norm_eps": "norm_eps",
        "activation": "hidden_activation",
        "dropout": "attention_dropout",
    },
    usual={"norm_eps": 1e-5, "activation": "gelu", "dropout": 0.0},
    fixed={"type_vocab": 0},
    differences=_modern,
    embeddings={
        "word.weight": "embeddings.tok_embeddings.weight",
        "norm.weight": "embeddings.norm.weight",
        "final_norm.weight": "final_norm.weight",
    },
    layer="layers.{}.",
    qkv=("attn.Wqkv",),
    parts={
        "out": "attn.Wo",
        "norm_attention": "attn_norm",
        "up": "mlp.Wi",
        "down": "mlp.Wo",
        "norm_output": "mlp_norm",
    },
    head={"dense": "head.dense", "norm": "head.norm", "bias": "decoder.bias", "decoder": "decoder"},
)
