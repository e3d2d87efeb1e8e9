"""Token exits: the answers equal the masked form and samples alone, and the work is counted exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from harness.contracts import Execution
from harness.core.errors import ConfigError
from harness.core.tokens import TokenSet
from harness.core.work import Work
from harness.encoder.device_kernels.packed_linear import PackedLinear, can_pack
from harness.encoder.layout import Layout
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.shape import EncoderShape
from harness.execution.executors import run_full
from harness.execution.token_exits import TokenExits, masked_state, run_token_exits

N, DEPTH, WORDS = 23, 4, 50
EXECUTIONS = st.builds(
    Execution,
    batch_size=st.integers(1, N),
    protocol=st.sampled_from(["modern", "paper"]),
    order=st.sampled_from(["arrival", "length"]),
    window=st.one_of(st.just(0), st.integers(1, N + 2)),
    max_length=st.integers(12, 16),
)
SHARED = settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
TABLES = st.lists(st.integers(0, DEPTH - 1), min_size=WORDS, max_size=WORDS)


def by_hand(model: MultiExitModel, ids: list[int], segments: list[int], exits: list[int]) -> tuple[Tensor, float]:
    """Return logits and mean layers of one sample by a loop over tokens with its own attention code."""
    encoder = model.encoder
    exits = [DEPTH - 1, *exits[1:]]
    state = encoder.norm(
        encoder.word.weight[ids] + encoder.position.weight[: len(ids)] + encoder.segment.weight[segments]
    )
    for index, layer in enumerate(encoder.layers):
        q, k, v = layer.qkv(state).chunk(3, -1)
        new = state.clone()
        for row, leaves in enumerate(exits):
            if leaves < index:
                continue
            heads = []
            for head in range(layer.heads):
                part = slice(head * 8, head * 8 + 8)
                weights = (k[:, part] @ q[row, part] / 8**0.5).softmax(0)
                heads.append(weights @ v[:, part])
            x = layer.norm_attention(state[row] + layer.out(torch.cat(heads)))
            new[row] = layer.norm_output(x + layer.down(F.gelu(layer.up(x))))
        state = new
    layout = Layout(np.array([len(ids)]), None, "cpu")
    return model.teacher(state, layout)[0], float(np.mean(exits)) + 1


@dataclass
class World:
    model: MultiExitModel
    tokens: TokenSet

    def sample(self, i: int) -> tuple[list[int], list[int]]:
        rows = slice(int(self.tokens.offsets[i]), int(self.tokens.offsets[i + 1]))
        return self.tokens.ids[rows].tolist(), self.tokens.segments[rows].tolist()


@pytest.fixture(scope="module")
def world(tiny_model: MultiExitModel, tokens: TokenSet) -> World:
    return World(tiny_model, tokens)


@SHARED
@given(execution=EXECUTIONS, table=TABLES)
def test_equal_to_the_masked_form_in_every_execution(world: World, execution: Execution, table: list[int]) -> None:
    """Any exits in any batch, order, window and layout give the logits of the masked form used in training."""
    exits = TokenExits.of(torch.tensor(table), DEPTH)
    found = run_token_exits(world.model, world.tokens, exits, execution)
    layout = Layout(world.tokens.lengths.numpy(), 16, "cpu")
    with torch.no_grad():
        hidden = masked_state(world.model.encoder, world.tokens, layout, exits)
        expected = world.model.teacher(hidden, layout).numpy()
    np.testing.assert_allclose(found.logits, expected, rtol=1e-3, atol=1e-4)
    assert found.exit_layer.tolist() == [DEPTH - 1] * N
    assert found.predicted_exit is None
    assert found.work.rows("head") == N


@pytest.mark.parametrize("on_cuda", [False, True])
@pytest.mark.parametrize("protocol", ["modern", "paper"])
def test_windows_are_around_every_token(
    make_model: Callable[..., MultiExitModel],
    tiny_shape: EncoderShape,
    tokens: TokenSet,
    pretend_cuda: Callable[[pytest.MonkeyPatch], Any],
    monkeypatch: pytest.MonkeyPatch,
    protocol: str,
    on_cuda: bool,
) -> None:
    """With rotary positions and windows, tokens that still run attend to those near them, whichever have left."""
    windows: dict[str, Any] = {
        "norm_first": True,
        "gated": True,
        "biases": False,
        "rotary": (1e5, 1e2),
        "windows": (0, 2, 3, 0),
    }
    model = make_model(shape=replace(tiny_shape, type_vocab=0, **windows))
    exits = TokenExits.of(torch.arange(WORDS) * 7 % DEPTH, DEPTH)
    layout = Layout(tokens.lengths.numpy(), 16, "cpu")
    with torch.no_grad():
        expected = model.teacher(masked_state(model.encoder, tokens, layout, exits), layout).numpy()
    if on_cuda:
        pretend_cuda(monkeypatch)
    execution = Execution(batch_size=4, protocol=protocol, max_length=12)  # type: ignore[arg-type]
    np.testing.assert_allclose(run_token_exits(model, tokens, exits, execution).logits, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("protocol", ["modern", "paper"])
def test_equal_to_a_loop_over_tokens(world: World, protocol: str) -> None:
    """A loop over the tokens of a single sample gives the same logits and mean layers."""
    table = torch.arange(WORDS) * 7 % DEPTH
    execution = Execution(batch_size=4, protocol=protocol, max_length=12)  # type: ignore[arg-type]
    found = run_token_exits(world.model, world.tokens, TokenExits.of(table, DEPTH), execution)
    layers = []
    with torch.no_grad():
        for i in range(N):
            ids, segments = world.sample(i)
            logits, mean = by_hand(world.model, ids, segments, table[ids].tolist())
            np.testing.assert_allclose(found.logits[i], logits.numpy(), rtol=1e-3, atol=1e-4)
            layers.append(mean)
    assert found.work.rows("layer") / N == pytest.approx(np.mean(layers), abs=1e-5)


@SHARED
@given(execution=EXECUTIONS, other=EXECUTIONS, table=TABLES)
def test_mean_layers_do_not_depend_on_batches(
    world: World, execution: Execution, other: Execution, table: list[int]
) -> None:
    """The mean layers of samples are exactly the same in any batches."""
    exits = TokenExits.of(torch.tensor(table), DEPTH)
    one, two = (run_token_exits(world.model, world.tokens, exits, how).work for how in (execution, other))
    assert one.rows("layer") == two.rows("layer")


def test_work_is_counted_token_by_token(world: World) -> None:
    """Half of the ids exit after layer 0: from then on their rows count as ``keys``, all others as ``layer``."""
    table = torch.where(torch.arange(WORDS) < 25, 0, DEPTH - 1)
    work = run_token_exits(world.model, world.tokens, TokenExits.of(table, DEPTH), Execution(batch_size=5)).work
    stays = table[world.tokens.ids.long()] > 0
    stays[world.tokens.offsets[:-1]] = True
    total, running = len(stays), int(stays.sum())
    assert 0 < running < total
    assert work.blocks["layer.0"].tokens == total
    assert "keys.0" not in work.blocks
    for index in range(1, DEPTH):
        assert work.blocks[f"layer.{index}"].tokens == work.blocks[f"layer.{index}"].valid == running
        assert work.blocks[f"keys.{index}"].tokens == total - running
        assert work.blocks[f"keys.{index}"].rows == 0


def test_padding_exits_in_proportion(world: World) -> None:
    """With padding to 12, the share of rows that run equals that of the tokens up to rounding."""
    table = torch.where(torch.arange(WORDS) % 3 > 0, 0, DEPTH - 1)
    exits = TokenExits.of(table, DEPTH)
    lengths = world.tokens.lengths.numpy()
    packed, padded = (
        run_token_exits(world.model, world.tokens, exits, Execution(protocol=p, max_length=12)).work.blocks["layer.2"]
        for p in ("modern", "paper")
    )
    assert padded.valid == packed.valid
    exact = sum(12 * running / n for running, n in zip(_running(world, table), lengths, strict=True))
    assert exact - N < padded.tokens <= exact


def _running(world: World, table: Tensor) -> list[int]:
    ids = [world.sample(i)[0] for i in range(N)]
    return [1 + int((table[row[1:]] > 0).sum()) for row in ids]


def test_without_token_exits_the_pass_is_full_depth(world: World) -> None:
    """If no token exits, the pass equals the ordinary pass bit for bit and block by block."""
    exits = TokenExits.of(torch.full((WORDS,), DEPTH - 1), DEPTH)
    found, full = (
        run(Execution(batch_size=6))
        for run in (
            lambda how: run_token_exits(world.model, world.tokens, exits, how),
            lambda how: run_full(world.model, world.tokens, how),
        )
    )
    np.testing.assert_array_equal(found.logits, full.logits)
    assert found.work.blocks == full.work.blocks


def test_the_first_token_never_exits(world: World, make_tokens: Callable[..., TokenSet]) -> None:
    """The head reads the first token, so it runs all layers for any id, also as the only token."""
    exits = TokenExits.of(torch.zeros(WORDS, dtype=torch.int64), DEPTH)
    work = run_token_exits(world.model, make_tokens([1, 1, 1]), exits, Execution()).work
    assert work.rows("layer") == 3 * DEPTH
    assert exits.places(world.tokens)[world.tokens.offsets[:-1]].tolist() == [1] * N


def test_gradients_reach_exited_tokens(world: World) -> None:
    """Later layers attend to a token that exited after layer 0, so the loss changes its embedding."""
    exits = TokenExits.of(torch.zeros(WORDS, dtype=torch.int64), DEPTH)
    tokens = world.tokens.select([0, 1])
    layout = Layout(tokens.lengths.numpy(), None, "cpu")
    weight = world.model.encoder.word.weight
    world.model.teacher(masked_state(world.model.encoder, tokens, layout, exits), layout).sum().backward()
    assert weight.grad is not None
    assert (weight.grad[tokens.ids.long().unique()].abs().sum(-1) > 0).all()
    world.model.zero_grad(set_to_none=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("compute", ["eager", "compiled"])
def test_in_the_engines_type_and_compiled(world: World, dtype: str, compute: str) -> None:
    """With bfloat16 weights and compiled blocks, answers equal float32 up to bfloat16 rounding."""
    exits = TokenExits.of(torch.arange(WORDS) % DEPTH, DEPTH)
    exact = run_token_exits(world.model, world.tokens, exits, Execution())
    found = run_token_exits(world.model, world.tokens, exits, Execution(dtype=dtype, compute=compute))  # type: ignore[arg-type]
    assert np.median(np.abs(found.logits - exact.logits)) < (1e-5 if dtype == "float32" else 0.05)


@pytest.mark.parametrize("compute", ["eager", "graphs"])
@pytest.mark.parametrize("protocol", ["modern", "paper"])
def test_like_on_cuda(
    world: World, like_cuda: object, make_model: Callable[..., MultiExitModel], protocol: str, compute: str
) -> None:
    """With the kernel for any lengths, and whole layers in graphs: the same logits."""
    exits = TokenExits.of(torch.arange(WORDS) * 3 % DEPTH, DEPTH)
    layout = Layout(world.tokens.lengths.numpy(), 16, "cpu")
    model = make_model()  # engines are kept by model
    with torch.no_grad():
        expected = model.teacher(masked_state(model.encoder, world.tokens, layout, exits), layout).numpy()
    execution = Execution(batch_size=5, protocol=protocol, max_length=12, compute=compute)  # type: ignore[arg-type]
    for _ in range(2):
        found = run_token_exits(model, world.tokens, exits, execution)
        np.testing.assert_allclose(found.logits, expected, rtol=1e-3, atol=1e-4)


def test_no_samples(world: World, make_tokens: Callable[..., TokenSet]) -> None:
    """Without samples, the result is empty."""
    exits = TokenExits.of(torch.arange(WORDS) % DEPTH, DEPTH)
    assert run_token_exits(world.model, make_tokens([]), exits, Execution()).logits.shape == (0, 3)


def test_unsuitable_exits_are_rejected(world: World, make_tokens: Callable[..., TokenSet]) -> None:
    """A wrong depth or vocabulary, an exit that no layer has and an id without embedding each give a one-line error."""
    with pytest.raises(ConfigError, match=r"not all in 0\.\.3"):
        TokenExits.of(torch.tensor([4]), DEPTH)
    for exits in (TokenExits.of(torch.zeros(WORDS), 3), TokenExits.of(torch.zeros(9), DEPTH)):
        with pytest.raises(ConfigError, match="do not fit 4 layers and 50 ids"):
            run_token_exits(world.model, world.tokens, exits, Execution())
    exits = TokenExits.of(torch.zeros(WORDS), DEPTH)
    with pytest.raises(ConfigError, match="has no embedding"):
        run_token_exits(world.model, make_tokens([9, 9], vocab=500), exits, Execution())
    empty = TokenSet.from_lists([[1, 2], []])
    with pytest.raises(ConfigError, match="sample 1 has no token"):
        run_token_exits(world.model, empty, exits, Execution())


@pytest.mark.gpu
@pytest.mark.parametrize("protocol", ["modern", "paper"])
def test_cuda_gives_the_answers_of_the_cpu(
    world: World, make_model: Callable[..., MultiExitModel], protocol: str
) -> None:
    """A GPU gives the CPU's labels in float32 and, with the CUDA kernel, nearly its logits in bfloat16."""
    execution = Execution(batch_size=5, protocol=protocol, max_length=12)  # type: ignore[arg-type]
    exits = TokenExits.of(torch.arange(WORDS) % DEPTH, DEPTH)
    expected = run_token_exits(world.model, world.tokens, exits, execution)
    model, tokens = make_model().to("cuda"), world.tokens.to("cuda")
    found = run_token_exits(model, tokens, exits.to("cuda"), execution)
    np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-2, atol=1e-3)
    for compute in ("eager", "graphs"):
        half = Execution(batch_size=5, protocol=protocol, max_length=12, dtype="bfloat16", compute=compute)  # type: ignore[arg-type]
        found = run_token_exits(model, tokens, exits.to("cuda"), half)
        np.testing.assert_allclose(found.logits, expected.logits, rtol=0.3, atol=0.3)


def test_packed_weights_run_what_is_counted(
    tiny_model: MultiExitModel, tokens: TokenSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers of packed weights run on rows rounded up: the linear FLOPs of layers and of kept keys are those of all products."""
    if not can_pack(torch.float32):
        pytest.skip("this CPU runs no packed weights")
    ran: list[int] = []

    def counting(name: str) -> None:
        plain = getattr(PackedLinear, name)

        def run(self: PackedLinear, x: Tensor, *more: Any) -> Tensor:
            ran.append(2 * len(x) * self._weight.numel())
            return plain(self, x, *more)

        monkeypatch.setattr(PackedLinear, name, run)

    for name in ("forward", "activated"):
        counting(name)
    exits = TokenExits.of(torch.arange(WORDS) % DEPTH, DEPTH)
    with torch.inference_mode():
        found = run_token_exits(tiny_model, tokens, exits, Execution(batch_size=N, compute="packed"))
    kinds = ("layer", "keys")
    blocks = {name: tally for name, tally in found.work.blocks.items() if name.split(".")[0] in kinds}
    assert tiny_model.cost().flops(Work(blocks), "linear") == sum(ran)
