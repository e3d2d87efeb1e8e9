"""Blocks replayed in fixed memory equal blocks run directly; stand-ins replace CUDA's kernel and graphs."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.contracts import Execution, Predictions
from harness.core.tokens import TokenSet
from harness.encoder.layout import Layout
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.shape import EncoderShape
from harness.execution.arrangement import cut
from harness.execution.engine import rounded
from harness.execution.executors import exit_logits, run_assigned, run_full
from harness.execution.exit_rules import Entropy
from harness.execution.graphs import Bounds, CudaRecorder
from harness.execution.regrouping.look_once import run_look_once
from harness.execution.sequential import run_faithful, run_sequential
from harness.execution.verified import run_verified

N, DEPTH = 23, 4
SHAPE = EncoderShape(layers=DEPTH, width=32, heads=4, intermediate=48, vocab_size=50, max_positions=16)
SHARED_LAYERS, WINDOWS = "narrow embeddings, shared layers", "gates, windows"
STRUCTURES = {
    SHARED_LAYERS: replace(SHAPE, embedding=8, shared=True),
    WINDOWS: replace(
        SHAPE,
        type_vocab=0,
        norm_first=True,
        bare_start=True,
        gated=True,
        biases=False,
        rotary=(1e5, 1e2),
        windows=(0, 2, 3, 0),
    ),
}
EXECUTIONS = st.builds(
    Execution,
    batch_size=st.integers(1, N),
    protocol=st.sampled_from(["modern", "paper"]),
    order=st.sampled_from(["arrival", "length"]),
    window=st.one_of(st.just(0), st.integers(1, N + 2)),
    executor=st.sampled_from(["ladder", "exact-k"]),
    max_length=st.integers(12, 16),
    batch_tokens=st.sampled_from([0, 0, 13, 40]),
)
SHARED = settings(
    max_examples=8,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def model(make_model: Callable[..., MultiExitModel]) -> MultiExitModel:
    return make_model(shape=SHAPE)


def by_length(logits: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Choose an exit after the look at the second layer, by the length."""
    return (1 + lengths % (DEPTH - 1)).to(torch.int16)


def every_run(
    model: MultiExitModel, tokens: TokenSet, exits: np.ndarray, execution: Execution
) -> dict[str, Callable[[], Predictions]]:
    """Return all executors for the same samples, exits and threshold."""
    given_exits = torch.from_numpy(exits).to(torch.int16)
    looks = torch.stack([given_exits, given_exits.clamp(min=2)], 1)
    rule = Entropy(0.93)
    return {
        "full": lambda: run_full(model, tokens, execution),
        "assigned": lambda: run_assigned(model, tokens, given_exits, execution),
        "shared": lambda: run_assigned(model, tokens, given_exits, execution, answer="shared"),
        "shrink": lambda: run_sequential(model, tokens, execution, rule),
        "faithful": lambda: run_faithful(model, tokens, execution, rule),
        "verified": lambda: run_verified(model, tokens, looks, execution, rule),
        "look once": lambda: run_look_once(model, tokens, 1, by_length, execution),
    }


@SHARED
@given(execution=EXECUTIONS, exits=st.lists(st.integers(0, DEPTH - 1), min_size=N, max_size=N))
def test_graphs_equal_eager_blocks(
    model: MultiExitModel, tokens: TokenSet, like_cuda: Any, execution: Execution, exits: list[int]
) -> None:
    """Any batches give the same exits, logits and heads; padding rows may cost time but are not counted."""
    plain = every_run(model, tokens, np.array(exits), execution)
    graphs = every_run(model, tokens, np.array(exits), replace(execution, compute="graphs"))
    for name, run in plain.items():
        expected, found = run(), graphs[name]()
        assert found.exit_layer.tolist() == expected.exit_layer.tolist(), name
        np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-3, atol=1e-4, err_msg=name)
        for kind in ("layer", "head"):
            assert found.work.rows(kind) == expected.work.rows(kind), name
        for block, tally in expected.work.blocks.items():
            ours = found.work.blocks[block]
            assert (ours.valid, ours.rows) == (tally.valid, tally.rows)
            assert ours.tokens >= tally.tokens


@pytest.mark.parametrize(
    ("structure", "protocol"), [(SHARED_LAYERS, "modern"), (WINDOWS, "modern"), (WINDOWS, "paper")]
)
def test_structures_unlike_berts_run_on_every_path(
    make_model: Callable[..., MultiExitModel], tokens: TokenSet, like_cuda: Any, structure: str, protocol: Any
) -> None:
    """Shared layers, rotary positions and windows give the answers of samples alone, on the kernel, on grids and in graphs, and
    the tally has the pairs that the kernel processed."""
    model, exits = make_model(shape=STRUCTURES[structure]), np.arange(N) % DEPTH
    one = Execution(batch_size=1, order="arrival")
    alone = {name: run() for name, run in every_run(model, tokens, exits, one).items()}
    given = Execution(batch_size=5, protocol=protocol, max_length=14)
    for compute in ("eager", "graphs"):
        for name, run in every_run(model, tokens, exits, replace(given, compute=compute)).items():
            expected, found = alone[name], run()
            assert found.exit_layer.tolist() == expected.exit_layer.tolist(), (name, compute)
            np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-3, atol=1e-4, err_msg=name)
            before = like_cuda.pairs
            work = run().work
            if protocol == "modern":
                assert like_cuda.pairs - before == sum(tally.pairs for tally in work.blocks.values()), (name, compute)


@pytest.mark.parametrize("name", ["full", "assigned", "shrink", "verified", "look once"])
def test_a_second_pass_records_nothing(model: MultiExitModel, tokens: TokenSet, like_cuda: Any, name: str) -> None:
    """Graphs are made once per block and size; another order of the samples reuses them."""
    exits = np.arange(N) % DEPTH
    execution = Execution(batch_size=7, compute="graphs")
    first = every_run(model, tokens, exits, execution)[name]()
    made = like_cuda.recorded
    assert 0 < made <= 2 * sum(1 for _ in first.work.blocks) * 7
    order = np.random.default_rng(0).permutation(N)
    again = every_run(model, tokens.select(order), exits[order], execution)[name]()
    assert like_cuda.recorded == made
    np.testing.assert_allclose(again.logits, first.logits[order], rtol=1e-3, atol=1e-4)


def test_new_weights_get_new_graphs(
    make_model: Callable[..., MultiExitModel], tokens: TokenSet, like_cuda: Any
) -> None:
    """Graphs and copies are made again after a model's weights change."""
    model = make_model(shape=SHAPE)
    execution = Execution(batch_size=7, compute="graphs")
    run_full(model, tokens, execution)
    model.load_state_dict(make_model(shape=SHAPE, seed=9).state_dict())
    expected = run_full(model, tokens, Execution(batch_size=7)).logits
    np.testing.assert_allclose(run_full(model, tokens, execution).logits, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("compute", ["eager", "graphs"])
def test_heads_of_any_width_give_the_same_attention(
    make_model: Callable[..., MultiExitModel], tokens: TokenSet, like_cuda: Any, compute: Any
) -> None:
    """The kernel supports multiples of eight; other widths, such as TinyBERT's 26, are padded without changing answers."""
    odd = make_model(shape=replace(SHAPE, width=20, heads=2))
    expected = exit_logits(odd, tokens, Execution(batch_size=1))[-1].numpy()
    like_cuda.widths.clear()
    found = run_full(odd, tokens, Execution(batch_size=7, compute=compute)).logits
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    assert like_cuda.widths == {16, 8}  # heads of 10 and of 5


def test_attention_is_counted_as_executed(model: MultiExitModel, tokens: TokenSet, like_cuda: Any) -> None:
    """The tally has the query-key pairs that the kernel processed, eagerly and in graphs."""
    exits = np.arange(N) % DEPTH
    for compute in ("eager", "graphs"):
        for name, run in every_run(model, tokens, exits, Execution(batch_size=5, compute=compute)).items():  # type: ignore[arg-type]
            run()  # recording runs a block more than once
            before = like_cuda.pairs
            work = run().work
            assert like_cuda.pairs - before == sum(tally.pairs for tally in work.blocks.values()), (name, compute)


@settings(max_examples=200)
@given(st.integers(1, 1 << 20), st.sampled_from([1, 64]))
def test_rounded_sizes(size: int, least: int) -> None:
    """Sizes are rounded up to a multiple of the least, by at most 1/16 of the next power of two; rounding is idempotent."""
    up = rounded(size, least)
    assert size <= up
    assert up % least == 0
    assert up - size < max(least, 2 ** (size - 1).bit_length() / 16)
    assert rounded(up, least) == up


def test_there_are_few_sizes() -> None:
    """Batches of up to 32,768 rows have only 96 sizes."""
    assert len({rounded(size, 64) for size in range(1, 32769)}) == 96


@settings(max_examples=100)
@given(
    st.lists(st.integers(1, 128), min_size=1, max_size=40),
    st.integers(1, 40),
    st.sampled_from([0, 100, 1000]),
    st.sampled_from(["modern", "paper"]),
)
def test_every_batch_fits(lengths: list[int], batch_size: int, batch_tokens: int, protocol: Any) -> None:
    """No batch of an execution exceeds its buffers."""
    execution = Execution(batch_size, protocol, batch_tokens=batch_tokens)
    bounds = Bounds.of(execution, max(lengths))
    for begin, end in cut(np.array(lengths), 0, len(lengths), execution):
        layout = Layout(np.array(lengths[begin:end]), bounds.pad_to, "cpu")
        assert layout.count <= bounds.slots
        assert layout.rows <= bounds.size(layout) <= bounds.rows
        assert max(lengths[begin:end]) <= bounds.longest


@dataclass
class Streams:
    """Stand-ins for CUDA's streams and graphs that record each action and its stream."""

    log: list[str]
    current: str = "main"

    def pretend(self, patch: pytest.MonkeyPatch) -> None:
        streams = self

        class Stream:
            def __init__(self, name: Any) -> None:
                self.name = name if isinstance(name, str) else "side"

            def wait_stream(self, other: Stream) -> None:
                streams.log.append(f"{self.name} waits for {other.name}")

        class Graph:
            def capture_begin(self, pool: str, capture_error_mode: str) -> None:
                streams.log.append(f"begin on {streams.current} in {pool}")

            def capture_end(self) -> None:
                streams.log.append("end")

            def replay(self) -> None:
                streams.log.append(f"replay on {streams.current}")

        @contextmanager
        def stream(one: Stream) -> Iterator[None]:
            before, streams.current = streams.current, one.name
            try:
                yield
            finally:
                streams.current = before

        patch.setattr(torch.cuda, "Stream", Stream)
        patch.setattr(torch.cuda, "CUDAGraph", Graph)
        patch.setattr(torch.cuda, "stream", stream)
        patch.setattr(torch.cuda, "current_stream", lambda device: Stream(streams.current))
        patch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")


def test_captures_run_on_one_ordered_side_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Warm-up and capture run on the same side stream, after earlier work and before later work."""
    streams = Streams([])
    streams.pretend(monkeypatch)
    replay = CudaRecorder(torch.device("cuda", 0)).record(lambda: streams.log.append(f"run on {streams.current}"))
    assert streams.log == [
        "side waits for main",
        "run on side",
        "begin on side in pool",
        "run on side",
        "end",
        "main waits for side",
    ]
    replay()
    assert streams.log[-1] == "replay on main"


def test_a_failed_capture_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The original error is raised, and the stream can be used again."""
    streams, runs = Streams([]), iter([None, RuntimeError("no memory")])
    streams.pretend(monkeypatch)

    def run() -> None:
        if (error := next(runs)) is not None:
            raise error

    with pytest.raises(RuntimeError, match="no memory"):
        CudaRecorder(torch.device("cuda", 0)).record(run)
    assert streams.log[-1] == "end"
    assert streams.current == "main"
    assert gc.isenabled()


@pytest.mark.parametrize("on", [True, False])
def test_the_collector_is_off_during_a_capture(monkeypatch: pytest.MonkeyPatch, on: bool) -> None:
    """Freeing a CUDA graph during another's capture is an error, so collection is off then and restored afterwards."""
    Streams([]).pretend(monkeypatch)
    monkeypatch.setattr(gc, "isenabled", lambda: states[-1])
    monkeypatch.setattr(gc, "disable", lambda: states.append(False))
    monkeypatch.setattr(gc, "enable", lambda: states.append(True))
    states, seen = [on], []
    CudaRecorder(torch.device("cuda", 0)).record(lambda: seen.append(gc.isenabled()))
    assert seen == [on, False]
    assert states[-1] == on
