"""Counts of what a pass executed, and their cost in FLOPs.

Executors count rows, tokens and attention pairs per block while they run; :class:`ModelCost` turns the counts
into FLOPs. Accuracy, time and FLOPs thus come from the same pass. Inside :func:`recorded`, every launch, copy and wait
is also kept by itself, in order: time on a device depends on the rows of each launch, not on their sum.

There are two conventions, and reports print both:

``linear``
    2 x multiply-accumulates of linear layers only, each over every token, as FastBERT counts (thop; label layer
    excepted): BERT-base at 128 tokens with FastBERT's head is 21,785,247,744. It is nominal: the head's query and output
    projections count for all tokens, although they are computed for [CLS] only.
``full``
    every matrix product that ran, attention products and label layer included; equal to
    ``torch.utils.flop_counter`` on the same pass.

A model without Transformer layers has no convention to follow. Here ``linear`` counts its label layer, too, which is no small
part of it, and ``full`` the additions of looked-up rows (:class:`SumCost`), which would otherwise be free.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

# Exit layer of a sample that is answered before layer 1. It runs no embedding, layer or head, so no tally counts it.
BEFORE = -1
Convention = Literal["linear", "full"]
# Shares of samples are rounded to multiples of this, so that their sums are exact in any order.
SHARE = 2.0**-20


@dataclass
class Tally:
    """Executed amounts of one block.

    Attributes:
        rows: samples; a sample whose tokens exit one by one counts with the share that ran (multiples of :data:`SHARE`).
        tokens: tokens that went through its linear layers, padding included.
        valid: tokens that are not padding.
        pairs: query-key pairs of its attention, padding included.
        calls: how often the block was run.
    """

    rows: float = 0
    tokens: int = 0
    valid: int = 0
    pairs: int = 0
    calls: int = field(default=0, compare=False)

    def add(self, other: Tally) -> None:
        """Add the amounts of another tally, except its calls."""
        self.rows += other.rows
        self.tokens += other.tokens
        self.valid += other.valid
        self.pairs += other.pairs


@dataclass(frozen=True)
class Step:
    """One operation that a pass requested from its device.

    Attributes:
        what: a block (``"layer.0"``), or ``"embed"``, ``"gather"`` (hidden states picked out), ``"join"`` (those of several
            batches joined), ``"answer"`` (logits stored), ``"decide"`` (an exit rule), ``"predict"``, ``"sort"``, ``"arrange"``
            (ids in running order), ``"upload"``, ``"download"`` (starts a copy to the host), ``"wait"`` (for such a copy), or
            ``"read"`` (single values that the host waits for, one by one).
        tally: amounts of a block, an embedding, a gather or a join; samples of the others.
        count: bytes of a copy, values of a read, and for ``"wait"`` the place of its ``"download"`` among the steps.
    """

    what: str
    tally: Tally
    count: int = 0


_steps: ContextVar[list[Step] | None] = ContextVar("steps", default=None)


@contextmanager
def recorded() -> Iterator[list[Step]]:
    """Collect the steps of all passes inside the ``with`` block, in the order in which the host asked for them."""
    steps: list[Step] = []
    token = _steps.set(steps)
    try:
        yield steps
    finally:
        _steps.reset(token)


def record(what: str, tally: Tally | None = None, count: int = 0) -> int:
    """Add a :class:`Step` if steps are being recorded; return its place among them, -1 if not."""
    steps = _steps.get()
    if steps is None:
        return -1
    steps.append(Step(what, Tally() if tally is None else replace(tally), count))
    return len(steps) - 1


@dataclass
class Work:
    """Tallies per block. Block names are kind, dot and number or name: ``"layer.0"``, ``"head.3"``, ``"head.teacher"``."""

    blocks: dict[str, Tally] = field(default_factory=dict)

    def add(self, block: str, tally: Tally) -> None:
        """Count ``tally`` for one run of ``block``."""
        record(block, tally)
        self._count(block, tally, 1)

    def merge(self, other: Work) -> None:
        """Count everything that ``other`` counted."""
        for block, tally in other.blocks.items():
            self._count(block, tally, tally.calls)

    def _count(self, block: str, tally: Tally, calls: int) -> None:
        total = self.blocks.setdefault(block, Tally())
        total.add(tally)
        total.calls += calls

    def rows(self, kind: str) -> float:
        """Return the sample passes through all blocks of a kind: ``rows("layer") / N`` is the mean number of layers.

        If tokens exit one by one, it is the mean over samples of the mean over their tokens.
        """
        return sum(tally.rows for block, tally in self.blocks.items() if block.split(".")[0] == kind)

    def valid_token_ratio(self) -> float:
        """Return valid / executed tokens of the layers, or of all blocks of a model without any (1.0: no padding)."""
        layers = [tally for block, tally in self.blocks.items() if block.split(".")[0] == "layer"]
        layers = layers or list(self.blocks.values())
        tokens = sum(tally.tokens for tally in layers)
        return sum(tally.valid for tally in layers) / tokens if tokens else 1.0


class BlockCost(Protocol):
    """FLOPs of one kind of block. A third-party architecture may define its own."""

    def flops(self, tally: Tally, convention: Convention) -> int:
        """Return the FLOPs of the amounts in ``tally``."""
        ...


@dataclass(frozen=True)
class LayerCost:
    """A Transformer layer: four ``width x width`` projections and a feed-forward of ``intermediate``.

    Attributes:
        ups: matrices from ``width`` to ``intermediate``; 2 in gated layers.
        attention: width of all heads in attention; ``None``: as wide as the layer.
        projected: dimensions of all heads' queries, keys, values and results; ``None``: four times the width.
    """

    width: int
    intermediate: int
    ups: int = 1
    attention: int | None = None
    projected: int | None = None

    def flops(self, tally: Tally, convention: Convention) -> int:
        attention = self.width if self.attention is None else self.attention
        projected = 4 * self.width if self.projected is None else self.projected
        linear = 2 * tally.tokens * self.width * (projected + (1 + self.ups) * self.intermediate)
        # Scores (Q K^T) and the weighted sum of V: 2 x width each per pair.
        return linear if convention == "linear" else linear + 4 * attention * tally.pairs


@dataclass(frozen=True)
class ProjectionCost:
    """A matrix that brings embeddings to the width of the layers (ALBERT: Lan et al. 2020, section 3.1)."""

    embedding: int
    width: int

    def flops(self, tally: Tally, convention: Convention) -> int:
        return 2 * self.embedding * self.width * tally.tokens


@dataclass(frozen=True)
class KeyValueCost:
    """Keys and values of tokens that have exited and are still attended to: two ``width x width`` projections.

    Attributes:
        projected: dimensions of all heads' keys and values; ``None``: twice the width.
    """

    width: int
    projected: int | None = None

    def flops(self, tally: Tally, convention: Convention) -> int:
        return 2 * self.width * (2 * self.width if self.projected is None else self.projected) * tally.tokens


@dataclass(frozen=True)
class FastBertHeadCost:
    """FastBERT's classifier: ``width -> inner`` on all tokens, self-attention at ``inner``, two layers on [CLS]."""

    width: int
    inner: int
    labels: int

    def flops(self, tally: Tally, convention: Convention) -> int:
        narrow, rows = 2 * self.width * self.inner * tally.tokens, int(tally.rows)
        square = 2 * self.inner**2
        if convention == "linear":
            return narrow + 4 * square * tally.tokens + square * rows
        executed = 2 * square * tally.tokens + 3 * square * rows + 4 * self.inner * tally.pairs
        return narrow + executed + 2 * self.inner * self.labels * rows


@dataclass(frozen=True)
class LinearHeadCost:
    """A dense layer and a label layer, both on [CLS].

    Attributes:
        inner: outputs of the dense layer; ``None``: the encoder's width.
    """

    width: int
    labels: int
    inner: int | None = None

    def flops(self, tally: Tally, convention: Convention) -> int:
        rows, inner = int(tally.rows), self.width if self.inner is None else self.inner
        dense = 2 * self.width * inner * rows
        return dense if convention == "linear" else dense + 2 * inner * self.labels * rows


@dataclass(frozen=True)
class GateCost:
    """Linear layers on the state of [CLS] that decide about an exit; ``weights`` is their total number of weights."""

    weights: int

    def flops(self, tally: Tally, convention: Convention) -> int:
        return 2 * self.weights * int(tally.rows)


@dataclass(frozen=True)
class MatrixCost:
    """Matrices of a model without Transformer layers, in both conventions: 2 FLOPs a weight, for every token or every sample.

    Attributes:
        weights: of all matrices of the block, biases left out.
        per: what they are multiplied with.
    """

    weights: int
    per: Literal["token", "sample"] = "token"

    def flops(self, tally: Tally, convention: Convention) -> int:
        return 2 * self.weights * (tally.tokens if self.per == "token" else int(tally.rows))


@dataclass(frozen=True)
class SumCost:
    """Vectors that are looked up and added: ``width`` additions for every token (looked-up row), in ``full`` only."""

    width: int

    def flops(self, tally: Tally, convention: Convention) -> int:
        return 0 if convention == "linear" else self.width * tally.tokens


@dataclass(frozen=True)
class ModelCost:
    """Cost of every block of one fitted method.

    Attributes:
        blocks: name of a block, or its kind (the part of the name before the dot) -> cost. The cost of a name comes first, so
            that layers may differ: ``{"layer": ..., "layer.3": ...}``.
        depth: Transformer layers of the model; 0 if it has none.
        params: parameters needed at inference, word embeddings included.
        looked_up: those in tables of which an answer reads single rows, such as word embeddings; all others are multiplied.
            ``None``: not said.
    """

    blocks: Mapping[str, BlockCost]
    depth: int
    params: int
    looked_up: int | None = None

    def knows(self, block: str) -> bool:
        """Return whether a block has a cost."""
        return block in self.blocks or block.split(".")[0] in self.blocks

    def of(self, block: str) -> BlockCost:
        """Return the cost of a block; raises ``KeyError`` if neither its name nor its kind has one."""
        return self.blocks[block] if block in self.blocks else self.blocks[block.split(".")[0]]

    def flops(self, work: Work, convention: Convention) -> int:
        """Return the FLOPs of everything in ``work``.

        Raises:
            KeyError: a block without a cost was executed.
        """
        return sum(self.of(block).flops(tally, convention) for block, tally in work.blocks.items())
