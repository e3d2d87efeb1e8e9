"""Times on a card, added up by hand, and what must hold on any card."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.core.errors import ConfigError
from harness.core.work import BlockCost, GateCost, LayerCost, LinearHeadCost, Step, Tally
from suites.studies.projection.device_card import DeviceCard, parse_device_card, read_device_card
from suites.studies.projection.operations import operations
from suites.studies.projection.timeline import project
from tests.suites.studies.projection.conftest import CUDA

BLOCKS: dict[str, BlockCost] = {"layer": LayerCost(4, 16), "head": LinearHeadCost(4, 2), "gate": GateCost(4)}
LAYER = Step("layer.0", Tally(2, 10, 10, 50))


def layer_seconds(tokens: float) -> float:
    """Device seconds of a layer of width 4 and 16 without attention: products at 1e9 FLOP/s, moves at 1e8 B/s of float32."""
    products = 2 * tokens * (4 * 4 * 4 + 2 * 4 * 16) / 1e9
    moves = 4 * tokens * (2 * 3 * 4 + 2 * 2 * 4 + 2 * 16) / 1e8
    return products + moves


def test_a_layer_on_a_cpu(card: Callable[..., DeviceCard]) -> None:
    """Ten operations at 1 us each, products, attention and moves add up."""
    found = project([LAYER], BLOCKS, 1, card("cpu"), "float32")
    attention = 4 * 4 * 50 / 5e8
    assert found.seconds == pytest.approx(10e-6 + layer_seconds(10) + attention)
    assert found.counts == {"launch": 10}
    assert sum(found.parts.values()) == pytest.approx(found.seconds)
    assert found.parts["attention"] == pytest.approx(attention)


def test_uneven_samples_move_onto_a_grid_and_back(card: Callable[..., DeviceCard]) -> None:
    """Two samples of 7 and 3 tokens attend on a grid of 2 x 7: queries, keys and values are moved there, and results back."""
    found = project([Step("layer.0", Tally(2, 10, 10, 2 * 7 * 7))], BLOCKS, 1, card("cpu"), "float32")
    moves = 4 * (2 * 14 * 12 + 2 * 10 * 4) / 1e8
    assert found.seconds == pytest.approx(12e-6 + layer_seconds(10) + 4 * 4 * 98 / 5e8 + moves)


def test_a_slow_host_hides_a_fast_device(card: Callable[..., DeviceCard]) -> None:
    """If launches take longer than the work, the time is that of the launches and of the last operation."""
    slow = card("cuda", launch={"unit": "s", "source": "x", "value": 1e-3})
    found = project([LAYER] * 3, BLOCKS, 1, slow, "float32")
    last = max(4 * 2 * 10 * 4 / 1e8, 1e-7)
    assert found.seconds == pytest.approx(30e-3 + last)
    graphs = project([LAYER] * 3, BLOCKS, 1, slow, "float32", "graphs")
    assert graphs.counts == {"graph_launch": 3}
    assert graphs.seconds < found.seconds / 3


def test_a_fast_host_queues_until_it_waits(card: Callable[..., DeviceCard]) -> None:
    """The device's time counts; a wait adds its latency after the work before the copy, and what follows is launched later."""
    quick = card("cuda", launch={"unit": "s", "source": "x", "value": 1e-12}, attention="grid")
    work = layer_seconds(10) + 4 * 4 * 50 / 5e8
    plain = project([LAYER] * 2, BLOCKS, 1, quick, "float32")
    assert plain.seconds == pytest.approx(2 * work, rel=1e-3)
    waiting = project(
        [LAYER, Step("download", Tally(), 100), Step("wait", Tally(), 1), LAYER], BLOCKS, 1, quick, "float32"
    )
    assert waiting.seconds == pytest.approx(2 * work + 100 / 1e7 + 1e-3, rel=1e-3)
    assert waiting.counts["waits"] == 1


def test_another_batch_hides_a_wait(card: Callable[..., DeviceCard]) -> None:
    """If work of another batch is queued before the wait, the device is busy meanwhile."""
    quick = card("cuda", launch={"unit": "s", "source": "x", "value": 1e-12})
    copy, wait = Step("download", Tally(), 100), Step("wait", Tally(), 1)
    idle = project([LAYER, copy, wait, LAYER, LAYER], BLOCKS, 1, quick, "float32")
    busy = project([LAYER, copy, LAYER, wait, LAYER], BLOCKS, 1, quick, "float32")
    assert busy.seconds < idle.seconds


def test_single_values_are_waited_for_one_by_one(card: Callable[..., DeviceCard]) -> None:
    """Reading five values costs five launches and five waits."""
    found = project([Step("read", Tally(), 5)], BLOCKS, 1, card("cpu"), "float32")
    assert found.seconds == pytest.approx(5 * (1e-6 + 1e-3))


def test_weights_that_fit_the_cache_use_its_rates(card: Callable[..., DeviceCard]) -> None:
    """Products are faster if all layers' weights fit; 192 weights of 4 bytes are 768 bytes a layer."""
    rates = card("cpu").model_dump()["rates"]
    rates["float32"]["cached"] = {**rates["float32"]["matrix"], "low": [[2e9]], "high": [[2e9]]}
    two = card("cpu", rates=rates, cache_bytes=2 * 768)
    one, three = (project([LAYER], BLOCKS, depth, two, "float32").parts["products"] for depth in (2, 3))
    assert three == pytest.approx(2 * one)


def test_ranges_bound_each_other() -> None:
    """On the H200 card, the favourable end is faster for every executor's steps, and float32 is refused."""
    h200 = read_device_card("h200")
    blocks: dict[str, BlockCost] = {"layer": LayerCost(768, 3072)}
    steps = [Step("layer.0", Tally(32, 1600, 1600, 32 * 60 * 60))]
    fast, slow = (project(steps, blocks, 12, h200, "bfloat16", fast=fast).seconds for fast in (True, False))
    assert 0 < fast < slow
    with pytest.raises(ConfigError, match="has no rates of float32"):
        project(steps, blocks, 12, h200, "float32")


def test_bad_requests_are_refused(card: Callable[..., DeviceCard]) -> None:
    """Graphs without a device that has them, and blocks of unknown kinds, are named."""
    with pytest.raises(ConfigError, match="compute 'graphs' cannot be projected on 'hand-made CPU': choose eager"):
        project([LAYER], BLOCKS, 1, card("cpu"), "float32", "graphs")
    with pytest.raises(ConfigError, match="blocks of kind 'cell' cannot be projected, only gate, head, layer"):
        project([Step("cell.0", Tally(1, 1, 1, 1))], BLOCKS, 1, card("cpu"), "float32")


def test_ragged_attention_has_bounds_from_counts_of_a_grid() -> None:
    """With counts of a grid, samples of 10 tokens in all have between 10^2 / 2 and the grid's pairs."""
    step = Step("layer.0", Tally(2, 10, 10, 98))
    few, many = (operations(step, BLOCKS, ragged=True, fewest=fewest)[1] for fewest in (True, False))
    assert (few.pairs, many.pairs) == (50, 98)  # type: ignore[union-attr]


sizes = st.integers(1, 64)
amounts = st.builds(lambda rows, each: Tally(rows, rows * each, rows * each, rows * each**2), sizes, sizes)
blocks = st.builds(lambda kind, tally: Step(f"{kind}.0", tally), st.sampled_from(["layer", "head", "gate"]), amounts)
KINDS = ("cpu", "cuda")


@settings(max_examples=60, deadline=None)
@given(st.lists(blocks, min_size=1, max_size=8), st.data())
def test_more_work_and_more_waits_never_make_it_faster(steps: list[Step], data: st.DataObject) -> None:
    """On a CPU, a GPU and the H200 card: more samples in a launch, one more launch, or one more wait never take less time."""
    cards = [parse_device_card(CUDA, "x"), read_device_card("h200")]
    place = data.draw(st.integers(0, len(steps) - 1))
    tally = steps[place].tally
    rows = tally.rows + data.draw(st.integers(1, 64))
    share = rows / tally.rows
    larger = Tally(rows, round(tally.tokens * share), round(tally.valid * share), round(tally.pairs * share))
    grown = [*steps[:place], replace(steps[place], tally=larger), *steps[place + 1 :]]
    waiting = [*steps[:place], Step("download", Tally(), 8), Step("wait", Tally(), place), *steps[place:]]
    for card in cards:
        dtype = next(iter(card.rates))
        for compute in ("eager", "graphs"):
            plain, *others = (
                project(some, BLOCKS, 2, card, dtype, compute).seconds  # type: ignore[arg-type]
                for some in (steps, grown, waiting, [*steps, steps[0]])
            )
            assert min(others) >= plain * (1 - 1e-4)
