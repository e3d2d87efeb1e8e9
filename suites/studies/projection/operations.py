"""What the steps of a pass are made of: products, attention, and moves of elements, in closed form from shapes.

One :class:`Operation` is one launch. Views cost nothing here. The counts follow the code of ``harness.encoder.model``; a test
compares them with the operators that torch runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from harness.core.errors import ConfigError
from harness.core.work import (
    BlockCost,
    FastBertHeadCost,
    GateCost,
    KeyValueCost,
    LayerCost,
    LinearHeadCost,
    Step,
    Tally,
)

MoveKind = Literal["stream", "gather", "lookup", "norm", "activation", "tanh"]


@dataclass(frozen=True)
class Product:
    """A linear layer: [rows, inputs] -> [rows, outputs]."""

    rows: float
    inputs: int
    outputs: int


@dataclass(frozen=True)
class Attend:
    """Attention over ``pairs`` of queries and keys with values of ``width`` in all heads, of samples of ``tokens``."""

    pairs: float
    width: int
    tokens: float
    first: bool = False


@dataclass(frozen=True)
class Move:
    """An operation whose time is that of its memory: ``elements`` are read or written, inputs and outputs together."""

    kind: MoveKind
    elements: float


Operation = Product | Attend | Move
SMALL = Move("stream", 0)  # a launch with next to no work


def smalls(count: int) -> list[Operation]:
    """Return ``count`` launches with next to no work."""
    return [SMALL] * count


def operations(step: Step, blocks: Mapping[str, BlockCost], *, ragged: bool, fewest: bool = False) -> list[Operation]:
    """Return the operations of one step, in order.

    Args:
        blocks: kind of block -> its cost, which holds its dimensions; ``"layer"`` at least.
        ragged: attention runs over each sample's own tokens, without moving them onto a grid.
        fewest: with ``ragged`` and counts of a grid, take the fewest pairs that samples of these tokens can have; else the
            grid's, which are the most.

    Raises:
        ConfigError: a block of a kind that cannot be projected.
    """
    layer = blocks["layer"]
    assert isinstance(layer, LayerCost)
    width, tally, kind = layer.width, step.tally, step.what.split(".")[0]
    match kind:
        case "embed":
            # Three look-ups, two additions, a norm.
            word, other = Move("lookup", 2 * tally.tokens * width), Move("gather", 2 * tally.tokens * width)
            add = Move("stream", 3 * tally.tokens * width)
            padding = smalls(6) if tally.tokens > tally.valid else []
            return [*padding, word, other, add, other, add, Move("norm", 2 * tally.tokens * width)]
        case "gather":
            return [*smalls(8), Move("gather", 2 * tally.tokens * width)]
        case "join":
            return [*smalls(2), Move("stream", 2 * tally.tokens * width)]
        case "answer":
            return smalls(1)
        case "decide":
            return smalls(8)  # softmax, entropy, comparison
        case "predict":
            return [*smalls(10), Move("gather", 2 * 16 * tally.tokens)]
        case "sort":
            return smalls(8)
        case "arrange":
            return [*smalls(16), Move("gather", 10 * tally.tokens)]
        case "upload" | "download" | "wait" | "read":
            return []
    if kind not in blocks:
        known = ", ".join(sorted(blocks))
        raise ConfigError(
            f"blocks of kind '{kind}' cannot be projected, only {known}: describe it in suites/studies/projection/operations.py"
        )
    return _block(tally, blocks[kind], ragged, fewest)


def _block(tally: Tally, cost: BlockCost, ragged: bool, fewest: bool) -> list[Operation]:
    rows, tokens = tally.rows, tally.tokens
    match cost:
        case LayerCost(width, intermediate):
            return [
                Product(tokens, width, 3 * width),
                *_attention(tally, width, 3 * width, ragged, fewest),
                Product(tokens, width, width),
                Move("stream", 3 * tokens * width),
                Move("norm", 2 * tokens * width),
                Product(tokens, width, intermediate),
                Move("activation", 2 * tokens * intermediate),
                Product(tokens, intermediate, width),
                Move("stream", 3 * tokens * width),
                Move("norm", 2 * tokens * width),
            ]
        case FastBertHeadCost(width, inner, labels):
            return [
                Product(tokens, width, inner),
                Move("tanh", 2 * tokens * inner),
                Move("gather", 2 * rows * inner),
                Product(rows, inner, inner),
                Product(tokens, inner, 2 * inner),
                *_first_attention(tally, inner, ragged),
                Product(rows, inner, inner),
                Product(rows, inner, inner),
                Move("tanh", 2 * rows * inner),
                Product(rows, inner, labels),
                SMALL,
            ]
        case LinearHeadCost(width, labels):
            return [
                Move("gather", 2 * rows * width),
                Product(rows, width, width),
                Move("tanh", 2 * rows * width),
                Product(rows, width, labels),
                SMALL,
            ]
        case GateCost(width):
            return [Move("gather", 2 * rows * width), Product(rows, width, 1), SMALL]
        case KeyValueCost(width):
            return [Product(tokens, width, 2 * width)]
    raise ConfigError(
        f"blocks of {type(cost).__name__} cannot be projected: describe them in suites/studies/projection/operations.py"
    )


def _attention(tally: Tally, width: int, moved: int, ragged: bool, fewest: bool) -> list[Operation]:
    """Attention of all queries: on a grid, rows are moved there and back unless they are that grid already."""
    rows = max(tally.rows, 1.0)
    if ragged:
        pairs = tally.valid**2 / rows if fewest else tally.pairs
        return [Attend(pairs, width, tally.valid / rows)]
    longest = (tally.pairs / rows) ** 0.5
    grid: list[Operation] = [Attend(tally.pairs, width, longest)]
    cells = rows * longest
    if cells <= tally.tokens:
        return grid
    return [Move("gather", 2 * cells * moved), *grid, Move("gather", 2 * tally.tokens * width)]


def _first_attention(tally: Tally, width: int, ragged: bool) -> list[Operation]:
    """Attention of one query per sample."""
    rows = max(tally.rows, 1.0)
    one = Attend(tally.valid if ragged else tally.pairs, width, tally.pairs / rows, first=True)
    if ragged or tally.pairs <= tally.tokens:
        return [one]
    return [Move("gather", 2 * tally.pairs * 2 * width), one]
