"""Joint training: losses per exit, their weights, and gradients in equilibrium."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from harness.core.tokens import TokenSet
from harness.encoder.layout import Layout
from harness.encoder.multi_exit import MultiExitModel
from harness.toolkit.joint_training import exit_answers, exit_losses, exit_states, rescaled, weighted_mean

LABELS = torch.tensor([0, 2, 1, 1, 0])


@pytest.fixture(scope="module")
def batch(tokens: TokenSet) -> tuple[TokenSet, Layout]:
    few = tokens.select(range(5))
    return few, Layout(few.lengths.numpy(), None, "cpu")


@pytest.mark.parametrize("exits", [[0, 1, 2], [1]])
def test_every_exit_is_asked_once(
    exits: list[int], make_model: Callable[..., MultiExitModel], batch: tuple[TokenSet, Layout]
) -> None:
    """States and logits are those of the answering layers, in order of depth, and losses are cross-entropies."""
    model = make_model(exits=exits)
    states, logits = exit_answers(model, *batch)
    expected = list(model.encoder.states(*batch))[1:]
    for place, index in enumerate(model.answers):
        assert torch.equal(states[place], expected[index])
        assert torch.equal(logits[place], model.student(index)(expected[index], batch[1]))
    losses = exit_losses(logits, LABELS)
    assert losses.tolist() == pytest.approx([F.cross_entropy(answer, LABELS).item() for answer in logits])


def test_weights_give_a_mean() -> None:
    """The weighted mean divides by the sum of the weights."""
    losses = torch.tensor([3.0, 5.0, 7.0])
    assert float(weighted_mean(losses, [1, 2, 3])) == pytest.approx((3 + 2 * 5 + 3 * 7) / 6)
    assert float(weighted_mean(losses, [1, 1, 1])) == pytest.approx(5)


def test_equilibrium_by_hand() -> None:
    """Three scalar layers x -> w x with an exit after each: layer i gets the mean of the gradients of exits i .. 3."""
    w, x = [2.0, 3.0, 5.0], 7.0
    weights = [torch.tensor(value, requires_grad=True) for value in w]
    hidden, outputs = torch.tensor(x, requires_grad=True), []
    start = hidden
    for place, weight in enumerate(weights):
        state = rescaled(weight * hidden, 1 / (3 - place))
        outputs.append(state)
        hidden = rescaled(state, 3 - place - 1)
    torch.stack(outputs).sum().backward()
    # d exit_j / d w_i = x * (product of the other weights up to j)
    assert float(weights[2].grad) == pytest.approx(x * 2 * 3)
    assert float(weights[1].grad) == pytest.approx((x * 2 + x * 2 * 5) / 2)
    assert float(weights[0].grad) == pytest.approx((x + x * 3 + x * 3 * 5) / 3)
    assert float(start.grad) == pytest.approx((2 + 2 * 3 + 2 * 3 * 5) / 3)


@pytest.mark.parametrize("exits", [[0, 1, 2], [0, 2], [1]])
def test_equilibrium_on_the_encoder(
    exits: list[int], make_model: Callable[..., MultiExitModel], batch: tuple[TokenSet, Layout]
) -> None:
    """Losses do not change; each layer gets the mean of the gradients of the exits above it, each head its own."""
    model = make_model(exits=exits)

    def gradients(loss: torch.Tensor) -> dict[str, torch.Tensor]:
        model.zero_grad()
        loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain = exit_losses(exit_answers(model, *batch)[1], LABELS)
    single = [
        gradients(exit_losses(exit_answers(model, *batch)[1], LABELS)[place]) for place in range(len(model.answers))
    ]
    balanced = exit_losses(exit_answers(model, *batch, equilibrium=True)[1], LABELS)
    assert torch.equal(balanced, plain)
    found = gradients(balanced.sum())
    for name, gradient in found.items():
        layer = int(name.split(".")[2]) if name.startswith("encoder.layers") else -1
        reached = [k for k, index in enumerate(model.answers) if index >= layer]
        share = len(reached) if name.startswith("encoder") else 1
        total = sum(one[name] for one in (single[k] for k in reached) if name in one)
        torch.testing.assert_close(gradient, total / share, rtol=1e-4, atol=1e-6)


def test_frozen_layers_need_no_equilibrium(
    make_model: Callable[..., MultiExitModel], batch: tuple[TokenSet, Layout]
) -> None:
    """Without gradients, states pass unchanged."""
    model = make_model()
    with torch.no_grad():
        states = list(exit_states(model, *batch, equilibrium=True))
    assert [state.requires_grad for state in states] == [False] * 4
