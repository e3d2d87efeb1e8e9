"""The operations of a block are those that torch runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

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
from harness.encoder.layout import Layout
from harness.encoder.model import EncoderLayer, FastBertHead
from harness.encoder.shape import EncoderShape
from suites.studies.projection.counting import block_costs
from suites.studies.projection.operations import Attend, Operation, Product, operations

UNEVEN, EVEN = np.array([7, 5, 2]), np.array([6, 6])


def flops(found: list[Operation]) -> float:
    """FLOPs of products and attention."""
    products = sum(2 * one.rows * one.inputs * one.outputs for one in found if isinstance(one, Product))
    return products + sum(4 * one.pairs * one.width for one in found if isinstance(one, Attend))


@pytest.mark.parametrize(
    "cost",
    [LayerCost(8, 32), FastBertHeadCost(8, 4, 3), LinearHeadCost(8, 3), GateCost(8)],
    ids=lambda cost: type(cost).__name__,
)
@pytest.mark.parametrize("lengths", [UNEVEN, EVEN], ids=["uneven", "even"])
@pytest.mark.parametrize("pad_to", [None, 9], ids=["packed", "padded"])
def test_operations_have_the_flops_of_their_block(cost: BlockCost, lengths: np.ndarray, pad_to: int | None) -> None:
    """Products and attention add up to what the block's cost counts, which equals torch's own count."""
    queries = "all" if isinstance(cost, LayerCost) else "first"
    tally = Layout(lengths, pad_to, "cpu").tally(queries)
    blocks: dict[str, BlockCost] = {"layer": LayerCost(8, 32), "block": cost}
    found = operations(Step("block.0", tally), blocks, ragged=False)
    assert flops(found) == cost.flops(tally, "full")


def test_keys_of_tokens_that_have_left_are_one_product() -> None:
    """Keys and values of six rows: one product of width 8 to 16."""
    blocks: dict[str, BlockCost] = {"layer": LayerCost(8, 32), "keys": KeyValueCost(8)}
    assert operations(Step("keys.1", Tally(0, 6, 6)), blocks, ragged=False) == [Product(6, 8, 16)]


class _Launched(TorchDispatchMode):
    """Collects the operators that compute something."""

    VIEWS = ("t", "view", "permute", "unbind", "transpose", "select", "slice", "detach", "unsqueeze", "squeeze", "expand",
             "as_strided", "_unsafe_view", "alias")  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in self.VIEWS:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("lengths", [UNEVEN, EVEN], ids=["uneven", "even"])
def test_a_layer_launches_as_many_operators_as_it_has_operations(lengths: np.ndarray) -> None:
    """Per layer of a packed batch, the operations are the operators that torch runs, and as many of them are products."""
    shape = EncoderShape(1, 8, 2, 32, 10)
    layer, layout = EncoderLayer(shape).eval(), Layout(lengths, None, "cpu")
    with torch.no_grad():
        layer(torch.randn(layout.rows, 8), layout)  # makes the indices of the grid
        with _Launched() as seen:
            layer(torch.randn(layout.rows, 8), layout)
    # Attention converts its mask, and is calibrated with that.
    computed = [name for name in seen.names if name not in ("randn", "clone", "scalar_tensor", "where")]
    found = operations(Step("layer.0", layout.tally()), block_costs(shape), ragged=False)
    assert len(found) == len(computed), computed
    assert computed.count("addmm") == sum(isinstance(one, Product) for one in found)
    assert computed.count("index_select") == 2 * (lengths is UNEVEN)


def test_a_head_has_the_products_that_torch_runs() -> None:
    """FastBERT's head runs six linear layers, three of them on all tokens or on first tokens as counted."""
    head, layout = FastBertHead(8, 3).eval(), Layout(UNEVEN, None, "cpu")
    with torch.no_grad(), _Launched() as seen:
        head(torch.randn(layout.rows, 8), layout)
    blocks: dict[str, BlockCost] = {"layer": LayerCost(8, 32), "head": head.cost()}
    found = operations(Step("head.0", layout.tally("first")), blocks, ragged=False)
    assert seen.names.count("addmm") == sum(isinstance(one, Product) for one in found) == 6
