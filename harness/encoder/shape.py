"""Dimensions of an encoder, and where its structure differs from BERT's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any, NamedTuple, Self

from harness.core.errors import BackboneError
from harness.core.work import LayerCost

ACTIVATIONS = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "relu": "relu"}
# Fields that say where an encoder differs from BERT. They are shown and stored only where it does, so that keys of earlier
# results stay valid.
DIFFERENCES = (
    "embedding",
    "shared",
    "norm_first",
    "bare_start",
    "gated",
    "biases",
    "rotary",
    "windows",
    "sizes",
    "unpruned_width",
)


@dataclass(frozen=True)
class Reach:
    """What a token attends to in a layer with rotary positions (Su et al. 2021, arXiv 2104.09864).

    Attributes:
        base: of the angles.
        window: tokens on either side; 0 for the whole text.
    """

    base: float
    window: int = 0

    def within(self, longest: int) -> bool:
        """Return whether all tokens of texts of this length see each other."""
        return not self.window or longest <= self.window + 1

    def pairs(self, length: int) -> int:
        """Return the query-key pairs of a text."""
        if self.within(length):
            return length**2
        return length * (2 * self.window + 1) - self.window * (self.window + 1)


class LayerSize(NamedTuple):
    """Sizes of one layer.

    Attributes:
        queries: dimensions of the queries and keys of every head; empty without attention.
        values: dimensions of the values of every head.
        intermediate: inner units; 0 without an inner layer.
    """

    queries: tuple[int, ...]
    values: tuple[int, ...]
    intermediate: int

    @property
    def heads(self) -> int:
        """Number of attention heads."""
        return len(self.values)

    @property
    def head_width(self) -> int:
        """Width of the widest head, of queries or values; 0 without heads."""
        return max((*self.queries, *self.values), default=0)

    @property
    def attention(self) -> int:
        """Width of all heads together in attention, where all are as wide as the widest one."""
        return self.heads * self.head_width

    @property
    def even(self) -> bool:
        """Whether all heads are equally wide, so that their projections are a matrix."""
        return sum(self.queries) == sum(self.values) == self.attention


@dataclass(frozen=True, repr=False)
class EncoderShape:
    """Dimensions of an encoder; names as in Hugging Face's ``BertConfig`` where those are clear.

    The other attributes say where it differs from BERT (:data:`DIFFERENCES`):

    Attributes:
        max_positions: tokens of the longest text.
        type_vocab: segments; 0 if it has no segment embeddings.
        embedding: width of the embeddings if a matrix projects them to ``width``; 0 if they are as wide.
        shared: all layers have one set of weights.
        norm_first: each half of a layer normalises its input, not its output, and what reads the states normalises them.
        bare_start: the first layer's attention reads the embeddings as they are, though ``norm_first``.
        gated: one half of the inner layer, through the activation, multiplies the other.
        biases: of linear layers and norms.
        rotary: bases of the rotary positions, of layers that attend to the whole text and of those with a window; empty: the
            encoder has position embeddings.
        windows: for each layer, tokens on either side that a token attends to, 0 for all; empty: all, in every layer.
        sizes: of every layer, if structured pruning made them differ; empty: all as ``heads``, ``width`` and ``intermediate`` say.
        unpruned_width: the width before pruning, to which heads belong; 0 if it was not pruned.
    """

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
    embedding: int = 0
    shared: bool = False
    norm_first: bool = False
    bare_start: bool = False
    gated: bool = False
    biases: bool = True
    rotary: tuple[float, ...] = ()
    windows: tuple[int, ...] = ()
    sizes: tuple[LayerSize, ...] = ()
    unpruned_width: int = 0

    def __post_init__(self) -> None:
        if min(self.layers, self.width, self.heads, self.intermediate, self.vocab_size, self.max_positions) < 1:
            raise BackboneError(f"encoder shape {self} has a dimension below 1: correct the checkpoint's config.json")
        if self.sizes:
            object.__setattr__(self, "sizes", tuple(LayerSize(tuple(q), tuple(v), n) for q, v, n in self.sizes))
            if len(self.sizes) != self.layers or any(
                len(q) != len(v) or min(*q, *v, n, 0) < 0 for q, v, n in self.sizes
            ):
                raise BackboneError(
                    f"sizes {self.sizes} do not fit {self.layers} layers: give queries, values and inner units of each"
                )
        if self.width % self.heads and not self.sizes:
            raise BackboneError(
                f"width {self.width} is not divisible by {self.heads} attention heads: correct the checkpoint's config.json"
            )
        if self.activation not in ACTIVATIONS:
            raise BackboneError(
                f"activation '{self.activation}' is not supported: use a checkpoint with one of {', '.join(ACTIVATIONS)}"
            )
        if self.rotary and self.head_width % 2:
            raise BackboneError(
                f"attention heads {self.head_width} wide cannot have rotary positions: correct the checkpoint's config.json"
            )
        for name in ("rotary", "windows"):  # lists in stored models
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def __repr__(self) -> str:
        return f"EncoderShape({', '.join(f'{name}={value!r}' for name, value in self._said().items())})"

    def _said(self) -> dict[str, Any]:
        usual = {field.name: field.default for field in fields(self) if field.default is not MISSING}
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {n: value for n, value in values.items() if n not in DIFFERENCES or value != usual[n]}

    @property
    def head_width(self) -> int:
        """Width of one attention head; of the widest one if layers differ."""
        return max(size.head_width for size in self.sizes) if self.sizes else self.width // self.heads

    @property
    def blocks(self) -> int:
        """Number of layers with weights of their own."""
        return 1 if self.shared else self.layers

    @property
    def differences(self) -> frozenset[str]:
        """Those of :data:`DIFFERENCES` that there are."""
        return frozenset(DIFFERENCES) & self._said().keys()

    def size(self, layer: int) -> LayerSize:
        """Return the sizes of a layer."""
        if self.sizes:
            return self.sizes[layer]
        heads = (self.head_width,) * self.heads
        return LayerSize(heads, heads, self.intermediate)

    def reach(self, layer: int) -> Reach | None:
        """Return what a token attends to in a layer; ``None`` for the whole text without rotary positions."""
        if not self.rotary:
            return None
        window = self.windows[layer] if self.windows else 0
        return Reach(self.rotary[-1] if window else self.rotary[0], window)

    def of_layers(self, chosen: Sequence[int]) -> Self:
        """Return the shape of an encoder of some of the layers, in that order."""
        windows = tuple(self.windows[layer] for layer in chosen) if self.windows else ()
        start = self.bare_start and chosen[0] == 0
        sizes = tuple(self.sizes[layer] for layer in chosen) if self.sizes else ()
        return replace(self, layers=len(chosen), windows=windows, bare_start=start, sizes=sizes)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields; those that equal BERT's are left out."""
        return {name: value for name, value in asdict(self).items() if name in self._said()}


def layer_cost(shape: EncoderShape, layer: int = 0) -> LayerCost:
    """Return the cost of a layer of an encoder."""
    size = shape.size(layer)
    pruned = (size.attention, 2 * (sum(size.queries) + sum(size.values))) if shape.sizes else (None, None)
    return LayerCost(shape.width, size.intermediate, 1 + shape.gated, *pruned)


def _bert(layers: int, width: int, vocab_size: int = 30522) -> EncoderShape:
    return EncoderShape(layers, width, width // 64, 4 * width, vocab_size)


_ROBERTA = EncoderShape(12, 768, 12, 3072, 50265, type_vocab=1, norm_eps=1e-5)
_MODERNBERT = EncoderShape(
    layers=22,
    width=768,
    heads=12,
    intermediate=1152,
    vocab_size=50368,
    max_positions=8192,
    type_vocab=0,
    norm_eps=1e-5,
    dropout=0.0,
    norm_first=True,
    bare_start=True,
    gated=True,
    biases=False,
    rotary=(160_000.0, 10_000.0),
    windows=tuple(64 if layer % 3 else 0 for layer in range(22)),
)

# Shapes of public checkpoints (from their config.json), so that FLOPs can be computed offline.
KNOWN_SHAPES: dict[str, EncoderShape] = {
    "bert-base-uncased": _bert(12, 768),
    "bert-large-uncased": _bert(24, 1024),
    "bert-base-chinese": _bert(12, 768, 21128),
    "bert-base-multilingual-cased": _bert(12, 768, 119547),
    "hfl/chinese-roberta-wwm-ext": _bert(12, 768, 21128),
    "roberta-base": _ROBERTA,
    "xlm-roberta-base": replace(_ROBERTA, vocab_size=250002),
    "google/electra-small-discriminator": replace(_bert(12, 256), embedding=128),
    "google/electra-base-discriminator": _bert(12, 768),
    "albert-base-v2": replace(_bert(12, 768, 30000), activation="gelu_new", dropout=0.0, embedding=128, shared=True),
    "answerdotai/ModernBERT-base": _MODERNBERT,
    "distilbert-base-uncased": EncoderShape(6, 768, 12, 3072, 30522, type_vocab=1),
    "distilbert-base-multilingual-cased": EncoderShape(6, 768, 12, 3072, 119547, type_vocab=1),
    "huawei-noah/TinyBERT_General_4L_312D": EncoderShape(4, 312, 12, 1200, 30522),
    "huawei-noah/TinyBERT_General_6L_768D": EncoderShape(6, 768, 12, 3072, 30522),
    "google/bert_uncased_L-2_H-128_A-2": _bert(2, 128),
    "google/bert_uncased_L-4_H-256_A-4": _bert(4, 256),
    "google/bert_uncased_L-4_H-512_A-8": _bert(4, 512),
    "google/bert_uncased_L-8_H-512_A-8": _bert(8, 512),
}
