"""The execution code on a CUDA device: what stand-ins cannot show. The tests are skipped without a device."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from harness.contracts import Execution, Predictions
from harness.core.tokens import TokenSet
from harness.encoder.device_kernels import varlen
from harness.encoder.model import ExitGate, ExitPolicy, HaltingGate
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.shape import EncoderShape
from harness.encoder.transfer import download, upload
from harness.execution.cascade import run_cascade
from harness.execution.engine_cache import engine_for
from harness.execution.executors import run_assigned, run_full
from harness.execution.exit_rules import Entropy, Learned, Patience, PatienceSimilarity, Policy, QExit
from harness.execution.graphs import GraphEngine
from harness.execution.regrouping.look_once import run_look_once
from harness.execution.regrouping.rebatch import run_rebatched
from harness.execution.sequential import run_sequential
from harness.execution.token_exits import TokenExits, run_token_exits
from harness.execution.verified import run_verified

pytestmark = pytest.mark.gpu

DEPTH, COUNT = 6, 300
SHAPE = EncoderShape(layers=DEPTH, width=128, heads=4, intermediate=256, vocab_size=500, max_positions=64)
RULE = Entropy(0.9)
DECIDING = ("shrink", "rebatch", "rebatch patience", "patience", "learned", "verified")
EXECUTIONS = [
    Execution(batch_size=32, max_length=48, dtype="bfloat16"),
    Execution(batch_size=7, max_length=48, dtype="bfloat16", batch_tokens=100, executor="exact-k"),
    Execution(batch_size=64, max_length=48, dtype="bfloat16", window=100, order="arrival"),
    Execution(batch_size=16, max_length=48, dtype="bfloat16", protocol="paper"),
]


@pytest.fixture(scope="module")
def model(make_model: Callable[..., MultiExitModel]) -> MultiExitModel:
    return make_model(shape=SHAPE).to("cuda")


@pytest.fixture(scope="module")
def tokens(make_tokens: Callable[..., TokenSet]) -> TokenSet:
    lengths = np.random.default_rng(0).integers(1, 49, COUNT).tolist()
    return make_tokens(lengths).to("cuda")


def every_run(model: MultiExitModel, tokens: TokenSet, execution: Execution) -> dict[str, Callable[[], Predictions]]:
    exits = (torch.arange(len(tokens), device="cuda") % DEPTH).to(torch.int16)
    looks = torch.stack([exits, exits.clamp(min=3)], 1)
    hashed = TokenExits.of(torch.arange(SHAPE.vocab_size) % DEPTH, DEPTH).to("cuda")
    torch.manual_seed(2)
    gate = ExitGate(SHAPE.width).to("cuda")
    policy, halting = ExitPolicy(SHAPE.width, DEPTH - 1).to("cuda"), HaltingGate(SHAPE.width).to("cuda").eval()
    return {
        "full": lambda: run_full(model, tokens, execution),
        "assigned": lambda: run_assigned(model, tokens, exits, execution),
        "shared": lambda: run_assigned(model, tokens, exits, execution, answer="shared"),
        "shrink": lambda: run_sequential(model, tokens, execution, RULE),
        "patience": lambda: run_sequential(model, tokens, execution, Patience(1)),
        "learned": lambda: run_sequential(model, tokens, execution, Learned(0.5, gate)),
        "policy": lambda: run_sequential(model, tokens, execution, Policy(0.5, policy)),
        "q-exit": lambda: run_sequential(model, tokens, execution, QExit(0.75, halting)),
        "similar": lambda: run_sequential(model, tokens, execution, PatienceSimilarity(0.1, 1)),
        "rebatch": lambda: run_rebatched(model, tokens, execution, RULE),
        "rebatch patience": lambda: run_rebatched(model, tokens, execution, Patience(1)),
        "verified": lambda: run_verified(model, tokens, looks, execution, RULE),
        "look once": lambda: run_look_once(
            model, tokens, 0, lambda logits, lengths: (lengths % DEPTH).to(torch.int16), execution
        ),
        "tokens": lambda: run_token_exits(model, tokens, hashed, execution),
        "cascade": lambda: run_cascade(model, model, tokens, execution, RULE),
    }


@contextmanager
def no_synchronisation() -> Iterator[None]:
    """Make every synchronising call of torch raise; waiting for an executor's own copy is allowed."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("compute", ["eager", "graphs"])
@pytest.mark.parametrize("execution", EXECUTIONS, ids=lambda e: f"{e.protocol}-{e.batch_size}")
def test_no_synchronisation(model: MultiExitModel, tokens: TokenSet, execution: Execution, compute: Any) -> None:
    """After the preparation, a pass waits only for its own copies."""
    for name, run in every_run(model, tokens, replace(execution, compute=compute)).items():
        first = run()
        torch.cuda.synchronize()
        with no_synchronisation():
            again = run()
        np.testing.assert_allclose(again.logits, first.logits, rtol=3e-2, atol=3e-2, err_msg=name)


@pytest.mark.parametrize("compute", ["graphs", "compiled", "compiled-graphs"])
@pytest.mark.parametrize("execution", EXECUTIONS, ids=lambda e: f"{e.protocol}-{e.batch_size}")
def test_graphs_and_compiled_blocks_equal_eager_ones(
    model: MultiExitModel, tokens: TokenSet, execution: Execution, compute: Any
) -> None:
    """Graphs and compiled blocks give the logits of eager blocks, three passes in a row."""
    runs = every_run(model, tokens, replace(execution, compute=compute))
    for name, eager in every_run(model, tokens, execution).items():
        expected = eager()
        for _ in range(3):
            found = runs[name]()
            assert np.isfinite(found.logits).all()
            same = found.exit_layer == expected.exit_layer  # bf16 may change decisions near the threshold
            assert same.mean() > (0.9 if name in DECIDING else 0.999), name
            error = np.linalg.norm(found.logits[same] - expected.logits[same]) / np.linalg.norm(expected.logits[same])
            assert error < 3e-2, name


@pytest.mark.parametrize("execution", EXECUTIONS, ids=lambda e: f"{e.protocol}-{e.batch_size}")
def test_half_precision_is_near_the_cpu(model: MultiExitModel, tokens: TokenSet, execution: Execution) -> None:
    """In bfloat16, logits on the device are close to those of float32 on the CPU, and differ from them."""
    found = run_full(model, tokens, replace(execution, compute="graphs"))
    there = MultiExitModel(type(model.encoder)(SHAPE), model.labels, model.exits, model.head_kind)
    there.load_state_dict({key: value.cpu() for key, value in model.state_dict().items()})
    expected = run_full(there, tokens.to("cpu"), replace(execution, dtype="float32"))
    error = np.linalg.norm(found.logits - expected.logits) / np.linalg.norm(expected.logits)
    assert 1e-4 < error < 5e-2


@pytest.mark.parametrize("head_width", [6, 8, 16, 26, 32, 64, 128])
def test_the_kernel_is_attention(head_width: int) -> None:
    """The kernel equals scaled dot products in float64 per sequence, with empty sequences and rows after the last one."""
    heads, sizes = 2, [5, 0, 1, 64, 17, 0, 0]
    bounds = torch.tensor([0, *np.cumsum(sizes)], dtype=torch.int32, device="cuda")
    rows = sum(sizes) + 9
    draw = torch.Generator("cuda").manual_seed(0)
    qkv = torch.randn(rows, 3 * heads * head_width, device="cuda", generator=draw).bfloat16()
    query = torch.randn(len(sizes), heads * head_width, device="cuda", generator=draw).bfloat16()
    found = varlen.attend(qkv, heads, bounds, 128)
    first = varlen.attend_first(query, qkv[:, heads * head_width :].contiguous(), heads, bounds, 128)
    start = 0
    for number, size in enumerate(sizes):
        if size:
            q, k, v = (
                part.double().view(size, heads, head_width).transpose(0, 1)
                for part in qkv[start : start + size].chunk(3, 1)
            )
            expected = F.scaled_dot_product_attention(q, k, v).transpose(0, 1).reshape(size, -1)
            torch.testing.assert_close(found[start : start + size].double(), expected, rtol=3e-2, atol=3e-2)
            one = query[number].double().view(heads, 1, head_width)
            expected = F.scaled_dot_product_attention(one, k, v).reshape(-1)
            torch.testing.assert_close(first[number].double(), expected, rtol=3e-2, atol=3e-2)
        start += size


def test_compiled_blocks_are_compiled_once(model: MultiExitModel, tokens: TokenSet) -> None:
    """After the first pass nothing is compiled, whatever the batches are."""
    execution = Execution(batch_size=32, max_length=48, dtype="bfloat16", compute="compiled")
    run_full(model, tokens, execution)
    with torch.compiler.set_stance("fail_on_recompile"):
        for batch_size in (5, 32, 100):
            run_full(model, tokens, replace(execution, batch_size=batch_size))
            run_sequential(model, tokens, replace(execution, batch_size=batch_size), RULE)


def test_memory_does_not_grow(model: MultiExitModel, tokens: TokenSet) -> None:
    """Further passes over the same samples use no more memory than the first two."""
    execution = Execution(batch_size=32, max_length=48, dtype="bfloat16", compute="graphs")
    runs = every_run(model, tokens, execution)
    for run in [*runs.values()] * 2:
        run()
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated()
    for run in [*runs.values()] * 3:
        run()
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= held


def test_stale_values_are_never_read(model: MultiExitModel, tokens: TokenSet) -> None:
    """Answers are the same, bit for bit, when the fixed buffers hold NaN between passes."""
    execution = Execution(batch_size=32, max_length=48, dtype="bfloat16", compute="graphs")
    for name, run in every_run(model, tokens, execution).items():
        first = run().logits
        made = engine_for(model, execution, 48)
        assert isinstance(made, GraphEngine)
        for lane in made._lanes.values():
            lane.states.fill_(float("nan"))
            lane.logits.fill_(float("nan"))
        assert np.array_equal(run().logits, first), name


def test_graphs_survive_other_work(model: MultiExitModel, tokens: TokenSet) -> None:
    """Answers stay the same after emptying the cache, other work that allocates memory, and on another current stream."""
    execution = Execution(batch_size=32, max_length=48, dtype="bfloat16", compute="graphs")
    first = run_full(model, tokens, execution).logits
    torch.cuda.empty_cache()
    other = torch.nn.Linear(512, 512, device="cuda")
    other(torch.randn(64, 512, device="cuda")).square().mean().backward()
    assert np.array_equal(run_full(model, tokens, execution).logits, first)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        assert np.array_equal(run_full(model, tokens, execution).logits, first)
    torch.cuda.current_stream().wait_stream(stream)


def test_replays_draw_no_random_numbers(model: MultiExitModel, tokens: TokenSet) -> None:
    """The state of the device's random generator does not change."""
    execution = Execution(batch_size=32, max_length=48, dtype="bfloat16", compute="graphs")
    run_full(model, tokens, execution)
    before = torch.cuda.get_rng_state()
    run_full(model, tokens, execution)
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_discarded_graphs_do_not_break_a_capture(make_model: Callable[..., MultiExitModel], tokens: TokenSet) -> None:
    """Engines of deleted models may wait for the garbage collector while another model's graphs are captured."""
    execution = Execution(batch_size=32, max_length=48, dtype="bfloat16", compute="graphs")
    expected = None
    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for _ in range(3):
            model = make_model(shape=SHAPE).to("cuda")
            found = run_full(model, tokens, execution).logits
            expected = found if expected is None else expected
            assert np.array_equal(found, expected)
            knot: list[object] = [engine_for(model, execution, 48)]
            knot.append(knot)
            del model, knot
    finally:
        gc.set_threshold(*threshold)


def test_copies_arrive_complete() -> None:
    """Copies in both directions keep their values while the device is busy, a thousand times."""
    device = torch.device("cuda")
    flying = []
    for number in range(1000):
        torch.cuda._sleep(10_000)
        values = np.full(257, number, dtype=np.int64)
        flying.append((number, download(upload(values, device) + 1)))
        values[:] = -1
        if len(flying) > 3:
            sent, copy = flying.pop(0)
            assert (copy.wait() == sent + 1).all()


def test_compiled_blocks_are_not_compiled_inside_a_capture(model: MultiExitModel, tokens: TokenSet) -> None:
    """Graphs of new shapes use code that is already compiled."""
    execution = Execution(batch_size=32, max_length=48, dtype="bfloat16", compute="compiled-graphs")
    run_full(model, tokens, execution)
    with torch.compiler.set_stance("fail_on_recompile"):
        run_full(model, tokens, replace(execution, batch_size=9))
