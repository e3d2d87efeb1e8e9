"""Packed linear layers compute what linear layers compute, epilogues included."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from harness.contracts import Execution
from harness.core.errors import ConfigError
from harness.core.tokens import TokenSet
from harness.encoder.device_kernels.packed_linear import PackedLinear, activated, can_pack, packed, plus
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.shape import ACTIVATIONS
from harness.execution.engine_cache import LAYERS, engine_for
from harness.execution.executors import run_assigned, run_full
from harness.execution.exit_rules import Entropy
from harness.execution.sequential import run_faithful, run_sequential
from harness.execution.token_exits import TokenExits, run_token_exits

pytestmark = pytest.mark.skipif(not can_pack(torch.float32), reason="this build of torch has no packed weights")

PACKED = Execution(batch_size=5, compute="packed")


@given(
    rows=st.integers(0, 40),
    sizes=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    bias=st.booleans(),
    strided=st.booleans(),
    half=st.booleans(),
    many=st.booleans(),
    seed=st.integers(0, 99),
)
def test_packed_layers_equal_linear_layers(
    rows: int, sizes: tuple[int, int], bias: bool, strided: bool, half: bool, many: bool, seed: int
) -> None:
    """For any numbers of rows and features, with and without bias, plain, with each activation and with a residual.

    ``many``: by torch's own product, as for many rows on some CPUs.
    """
    dtype = torch.bfloat16 if half and can_pack(torch.bfloat16) else torch.float32
    torch.manual_seed(seed)
    linear = nn.Linear(*sizes, bias=bias, dtype=dtype)
    x = torch.randn(rows, 2 * sizes[0], dtype=dtype)[:, ::2] if strided else torch.randn(rows, sizes[0], dtype=dtype)
    residual = torch.randn(rows, sizes[1], dtype=dtype)
    exact = nn.Linear(*sizes, bias=bias).requires_grad_(False)
    exact.load_state_dict(linear.state_dict())
    made = PackedLinear(linear.weight, linear.bias)
    made._plain_from = 0 if many else math.inf
    few = slice(sizes[1] // 2, None)

    def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
        torch.testing.assert_close(ours.float(), theirs, rtol=2e-2 if half else 1e-4, atol=3e-2 if half else 1e-5)

    with torch.inference_mode():
        close(made(x), exact(x.float()))
        close(made.part(few)(x), exact(x.float())[:, few])
        close(plus(made, x, residual, nn.Identity()), residual.float() + exact(x.float()))
        for name in set(ACTIVATIONS.values()):
            close(activated(made, x, name), activated(exact, x.float(), name))


def test_the_model_stays_and_shares_what_is_not_packed(tiny_model: MultiExitModel) -> None:
    """Only linear layers are new; embeddings and norms are those of the model, whose layers stay as they are."""
    before = {name: weight.clone() for name, weight in tiny_model.state_dict().items()}
    new = packed(tiny_model, LAYERS)
    assert not any(isinstance(module, nn.Linear) for module in new.encoder.modules())
    assert any(isinstance(module, nn.Linear) for module in new.students.modules())
    assert any(isinstance(module, nn.Linear) for module in tiny_model.modules())
    assert new.encoder.word.weight is tiny_model.encoder.word.weight
    assert all(torch.equal(before[name], weight) for name, weight in tiny_model.state_dict().items())


def test_all_executors_answer_as_with_plain_weights(tiny_model: MultiExitModel, tokens: TokenSet) -> None:
    """Full depth, assigned exits, exit rules, FastBERT's loop and exits of single tokens."""
    plain = Execution(batch_size=5)
    exits = torch.arange(len(tokens), dtype=torch.int16) % tiny_model.depth
    by_token = TokenExits.of(torch.arange(50) % tiny_model.depth, tiny_model.depth)
    runs: list[Callable[[Execution], torch.Tensor]] = [
        lambda how: run_full(tiny_model, tokens, how).logits,
        lambda how: run_assigned(tiny_model, tokens, exits, how).logits,
        lambda how: run_sequential(tiny_model, tokens, how, Entropy(0.9)).logits,
        lambda how: run_token_exits(tiny_model, tokens, by_token, how).logits,
        lambda how: run_faithful(tiny_model, tokens, how, Entropy(0.9)).logits,
    ]
    for run in runs:
        torch.testing.assert_close(torch.as_tensor(run(PACKED)), torch.as_tensor(run(plain)), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not can_pack(torch.bfloat16), reason="this CPU has no bfloat16 products")
def test_heads_stay_in_float32(make_model: Callable[..., MultiExitModel], tokens: TokenSet) -> None:
    """Layers in bfloat16 have heads in float32, whose answers are theirs on the rounded states."""
    model = make_model()
    made = engine_for(model, replace(PACKED, dtype="bfloat16")).model
    assert {weight.dtype for weight in made.encoder.parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in (*made.students.parameters(), *made.teacher.parameters())} == {torch.float32}
    plain = engine_for(model, Execution(dtype="bfloat16")).model
    assert {weight.dtype for weight in plain.parameters()} == {torch.bfloat16}
    found, rounded, exact = (
        torch.as_tensor(run_full(model, tokens, how).logits)
        for how in (replace(PACKED, dtype="bfloat16"), Execution(dtype="bfloat16"), Execution())
    )
    assert not torch.equal(found.bfloat16().float(), found), "not rounded themselves"
    errors = [float((logits - exact).abs().mean() / exact.abs().mean()) for logits in (found, rounded)]
    assert 0 < errors[0] < 1.5 * errors[1] < 0.1, errors


def test_new_weights_are_packed_again(make_model: Callable[..., MultiExitModel], tokens: TokenSet) -> None:
    """A weight that training changed in place is not answered from its old layout."""
    model = make_model()
    run_full(model, tokens, PACKED)
    with torch.no_grad():
        model.encoder.layers[0].up.weight.add_(1.0)
    torch.testing.assert_close(
        run_full(model, tokens, PACKED).logits,
        run_full(model, tokens, Execution(batch_size=5)).logits,
        rtol=1e-3,
        atol=1e-4,
    )


def test_they_are_refused_where_nothing_runs_them(make_model: Callable[..., MultiExitModel]) -> None:
    """One line says what to choose."""
    with pytest.raises(
        ConfigError, match="compute 'packed' of torch.float32 does not run on a CUDA device: choose auto"
    ):
        engine_for(make_model().to("meta"), PACKED)
