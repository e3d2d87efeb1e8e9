"""Speed-up factors: their values, their product and their explanations."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.core.work import FastBertHeadCost, KeyValueCost, LayerCost, ModelCost, Tally, Work
from harness.measure.speedup_factors import Side, speedup_factors

COST = ModelCost({"layer": LayerCost(8, 32), "head": FastBertHeadCost(8, 4, 3)}, depth=4, params=1)
NARROW = ModelCost({"layer": LayerCost(4, 16), "head": FastBertHeadCost(4, 2, 3)}, depth=2, params=1)
SECONDS = st.floats(1e-4, 1e3)


def side(
    depth: int,
    seconds: float,
    *,
    rows: int = 10,
    tokens: int = 5,
    pad: int = 0,
    cost: ModelCost = COST,
    **phases: float,
) -> Side:
    """Return a pass of some layers over ``rows`` samples of ``tokens`` tokens each, padded by ``pad``, and one head."""
    work = Work()
    for layer in range(depth):
        work.add(f"layer.{layer}", Tally(rows, rows * (tokens + pad), rows * tokens, rows * (tokens + pad) ** 2))
    work.add("head.0", Tally(rows, rows * (tokens + pad), rows * tokens, rows * (tokens + pad)))
    return Side(seconds, work, phases, cost)


def factors(own: Side, reference: Side) -> dict[str, float]:
    return {factor.name: factor.ratio for factor in speedup_factors(own, reference, 10).factors}


@settings(max_examples=100)
@given(data=st.data())
def test_factors_multiply_to_the_measured_ratio(data: st.DataObject) -> None:
    """The product is always the ratio of wall times, and the product of the first factors is the ratio of FLOPs."""

    def draw() -> Side:
        parts = {
            name: data.draw(SECONDS) for name in ("layers", "predict", "schedule", "copy") if data.draw(st.booleans())
        }
        return side(
            data.draw(st.integers(1, 12)),
            sum(parts.values()) + data.draw(SECONDS),
            rows=data.draw(st.integers(1, 99)),
            tokens=data.draw(st.integers(1, 128)),
            pad=data.draw(st.integers(0, 64)),
            cost=data.draw(st.sampled_from([COST, NARROW])),
            **parts,
        )

    own, reference = draw(), draw()
    found = speedup_factors(own, reference, 10)
    assert found.measured == pytest.approx(reference.seconds / own.seconds)
    assert found.product == pytest.approx(found.measured)
    before = [factor.ratio for factor in found.factors]
    flops = math.prod(before[: [factor.name for factor in found.factors].index("kernels")])
    assert flops == pytest.approx(reference.cost.flops(reference.work, "full") / own.cost.flops(own.work, "full"))


def test_a_method_against_itself_has_factors_of_one() -> None:
    """A method compared with itself has only factors of one."""
    own = side(4, 3.0, layers=2.0, predict=0.5)
    assert all(ratio == pytest.approx(1) for ratio in factors(own, own).values())


def test_each_cause_has_its_factor() -> None:
    """Fewer layers, smaller width, shorter samples, padding, slower kernels and time outside blocks have one factor each."""
    reference = side(4, 4.0, layers=4.0)
    assert factors(side(2, 4.0, layers=4.0), reference)["layers"] == 2
    assert "width" not in factors(side(2, 4.0), reference)
    assert factors(side(4, 4.0, cost=NARROW), reference)["width"] == 4
    assert factors(side(4, 4.0, tokens=10), reference)["length"] == pytest.approx(0.5)
    assert factors(side(4, 4.0, pad=5), reference)["attention and padding"] < 0.5
    assert factors(side(4, 8.0, layers=8.0), reference)["kernels"] == pytest.approx(0.5)
    predicted = factors(side(4, 5.0, layers=4.0, predict=1.0), reference)
    assert predicted["prediction"] == pytest.approx(4 / 5)
    assert predicted["rest"] == pytest.approx(1)
    assert factors(side(4, 5.0, layers=4.0), reference)["rest"] == pytest.approx(4 / 5)


def test_kept_tokens_have_their_own_factor() -> None:
    """Keys and values of tokens that have exited are a separate factor, which is left out if there are none."""
    cost = ModelCost({**COST.blocks, "keys": KeyValueCost(8)}, depth=4, params=1)
    own = side(4, 4.0, layers=4.0, cost=cost)
    layers = cost.flops(own.of("layer"), "full")
    own.work.add("keys.1", Tally(0, 20, 20))
    found = factors(own, side(4, 4.0, layers=4.0))
    assert found["kept tokens"] == pytest.approx(layers / (layers + 4 * 8 * 8 * 20))
    assert found["attention and padding"] == pytest.approx(1)
    assert "kept tokens" not in factors(side(2, 4.0), side(4, 4.0))


def test_explanations_name_layers_and_samples() -> None:
    """The explanations name layers per sample and samples per launch."""
    words = {factor.name: factor.what for factor in speedup_factors(side(2, 4.0), side(4, 4.0), 10).factors}
    assert words["layers"] == "4.00 to 2.00 layers per sample"
    assert "with 10.0 samples per launch" in words["kernels"]


def test_blocks_of_another_kind_have_one_factor() -> None:
    """A method without layers has one factor for all FLOPs."""
    work = Work()
    work.add("cell.0", Tally(10, 50, 50, 0))
    cost: Any = ModelCost({"cell": LayerCost(2, 2)}, depth=1, params=1)
    own = Side(2.0, work, {}, cost)
    found = speedup_factors(own, side(4, 4.0), 10)
    assert [factor.name for factor in found.factors] == ["FLOPs", "kernels", "rest"]
    assert found.product == pytest.approx(2.0)
