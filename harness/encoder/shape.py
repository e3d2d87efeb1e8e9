"""Dimensions of BERT-shaped encoders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from harness.core.errors import BackboneError

ACTIVATIONS = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "relu": "relu"}

# Names of the dimensions in config.json.
_BERT = {
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "intermediate": "intermediate_size",
    "activation": "hidden_act",
    "dropout": "hidden_dropout_prob",
}
_DISTILBERT = {
    "layers": "n_layers",
    "width": "dim",
    "heads": "n_heads",
    "intermediate": "hidden_dim",
    "activation": "activation",
    "dropout": "dropout",
}


@dataclass(frozen=True)
class EncoderShape:
    """Dimensions of an encoder; names as in Hugging Face's ``BertConfig`` where those are clear."""

    layers: int
    width: int
    heads: int
    intermediate: int
    vocab_size: int
    max_positions: int = 512
    type_vocab: int = 2
    norm_eps: float = 1e-12
    activation: str = "gelu"
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if min(self.layers, self.width, self.heads, self.intermediate, self.vocab_size) < 1:
            raise BackboneError(f"encoder shape {self} has a dimension below 1: correct the checkpoint's config.json")
        if self.width % self.heads:
            raise BackboneError(
                f"width {self.width} is not divisible by {self.heads} attention heads: correct the checkpoint's config.json"
            )
        if self.activation not in ACTIVATIONS:
            raise BackboneError(
                f"activation '{self.activation}' is not supported: use a checkpoint with one of {', '.join(ACTIVATIONS)}"
            )

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> EncoderShape:
        """Read a ``config.json`` of a BERT-shaped checkpoint, BERT's or DistilBERT's.

        Raises:
            BackboneError: a dimension is missing or the architecture is not BERT's.
        """
        if not isinstance(config, Mapping):
            raise BackboneError("config.json is not a JSON object: choose a BERT-shaped checkpoint")
        # RoBERTa and similar models name tensors as BERT does but count positions from 2, so results would be wrong.
        kind = config.get("model_type", "bert")
        if kind not in ("bert", "distilbert"):
            raise BackboneError(
                f"config.json is that of '{kind}': choose a checkpoint whose model_type is 'bert' or 'distilbert'"
            )
        names = _DISTILBERT if kind == "distilbert" else _BERT
        if config.get("position_embedding_type", "absolute") != "absolute" or config.get("is_decoder"):
            raise BackboneError("only encoders with absolute positions are supported: choose a BERT-shaped checkpoint")
        try:
            return cls(
                layers=int(config[names["layers"]]),
                width=int(config[names["width"]]),
                heads=int(config[names["heads"]]),
                intermediate=int(config[names["intermediate"]]),
                vocab_size=int(config["vocab_size"]),
                max_positions=int(config["max_position_embeddings"]),
                # DistilBERT has no segments; it gets one, of zeros (see harness.encoder.checkpoint).
                type_vocab=int(config.get("type_vocab_size", 2)) if kind == "bert" else 1,
                norm_eps=float(config.get("layer_norm_eps", 1e-12)) if kind == "bert" else 1e-12,
                activation=str(config.get(names["activation"], "gelu")),
                dropout=float(config.get(names["dropout"], 0.1)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BackboneError(
                f"config.json is not that of a BERT-shaped encoder ({error!r}): choose another checkpoint"
            ) from error

    def to_hf(self) -> dict[str, Any]:
        """Return the ``config.json`` that ``transformers.BertModel`` reads."""
        return {
            "architectures": ["BertModel"],
            "model_type": "bert",
            "num_hidden_layers": self.layers,
            "hidden_size": self.width,
            "num_attention_heads": self.heads,
            "intermediate_size": self.intermediate,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_positions,
            "type_vocab_size": self.type_vocab,
            "layer_norm_eps": self.norm_eps,
            "hidden_act": self.activation,
            "hidden_dropout_prob": self.dropout,
            "attention_probs_dropout_prob": self.dropout,
            "pad_token_id": 0,
        }

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def _bert(layers: int, width: int, vocab_size: int = 30522) -> EncoderShape:
    return EncoderShape(layers, width, width // 64, 4 * width, vocab_size)


# Shapes of public checkpoints (from their config.json), so that FLOPs can be computed offline.
KNOWN_SHAPES: dict[str, EncoderShape] = {
    "bert-base-uncased": _bert(12, 768),
    "bert-large-uncased": _bert(24, 1024),
    "bert-base-chinese": _bert(12, 768, 21128),
    "bert-base-multilingual-cased": _bert(12, 768, 119547),
    "hfl/chinese-roberta-wwm-ext": _bert(12, 768, 21128),
    "distilbert-base-uncased": EncoderShape(6, 768, 12, 3072, 30522, type_vocab=1),
    "distilbert-base-multilingual-cased": EncoderShape(6, 768, 12, 3072, 119547, type_vocab=1),
    "huawei-noah/TinyBERT_General_4L_312D": EncoderShape(4, 312, 12, 1200, 30522),
    "huawei-noah/TinyBERT_General_6L_768D": EncoderShape(6, 768, 12, 3072, 30522),
    "google/bert_uncased_L-2_H-128_A-2": _bert(2, 128),
    "google/bert_uncased_L-4_H-256_A-4": _bert(4, 256),
    "google/bert_uncased_L-4_H-512_A-8": _bert(4, 512),
    "google/bert_uncased_L-8_H-512_A-8": _bert(8, 512),
}
