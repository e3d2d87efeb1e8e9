"""A cascade of models: the small model answers confident samples and the whole model the others, in any batches."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.contracts import Execution
from harness.core.tokens import TokenSet
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.shape import EncoderShape
from harness.execution.cascade import confidence, confidence_rule, run_cascade
from harness.execution.executors import run_full

N, DEPTH = 23, 4
ALONE = Execution(batch_size=1, order="arrival", max_length=12)
EXECUTIONS = st.builds(
    Execution,
    batch_size=st.integers(1, N),
    protocol=st.sampled_from(["modern", "paper"]),
    order=st.sampled_from(["arrival", "length"]),
    window=st.one_of(st.just(0), st.integers(1, N + 2)),
    max_length=st.integers(12, 16),
    batch_tokens=st.sampled_from([0, 20]),
)


@pytest.fixture(scope="module")
def small(make_model: Callable[..., MultiExitModel]) -> MultiExitModel:
    """Two layers of the same width."""
    shape = EncoderShape(layers=2, width=16, heads=2, intermediate=24, vocab_size=50, max_positions=16)
    return make_model(exits=(), shape=shape, seed=9)


@pytest.fixture(scope="module")
def said(small: MultiExitModel, tiny_model: MultiExitModel, tokens: TokenSet) -> tuple[np.ndarray, np.ndarray]:
    """Return the logits of both models, computed sample by sample."""
    return run_full(small, tokens, ALONE).logits, run_full(tiny_model, tokens, ALONE).logits


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(execution=EXECUTIONS, at=st.floats(0, 1))
def test_equal_to_samples_one_by_one(
    small: MultiExitModel,
    tiny_model: MultiExitModel,
    tokens: TokenSet,
    said: tuple[np.ndarray, np.ndarray],
    execution: Execution,
    at: float,
) -> None:
    """Confident samples get the small model's answer, others the whole model's, and both models' layers are counted."""
    sure = confidence(torch.from_numpy(said[0]))
    known = sure.unique()  # sorted; the threshold lies between two confidences, so rounding cannot change a decision
    edges = [0.0, *[float(a + b) / 2 for a, b in pairwise(known) if b - a > 1e-5], 1.0]
    edge = edges[round(at * (len(edges) - 1))]
    found = run_cascade(small, tiny_model, tokens, execution, confidence_rule(edge))
    stays = sure.numpy() <= edge
    going = int(stays.sum())
    np.testing.assert_allclose(found.logits, np.where(stays[:, None], said[1], said[0]), rtol=1e-3, atol=1e-4)
    assert found.exit_layer.tolist() == np.where(stays, DEPTH - 1, 1).tolist()
    assert found.work.rows("layer") == 2 * N + DEPTH * going
    assert found.work.rows("head") == N + going


@pytest.mark.parametrize("window", [0, 6])
def test_second_batches_are_full(
    small: MultiExitModel, tiny_model: MultiExitModel, tokens: TokenSet, window: int
) -> None:
    """Samples that are not confident are batched again, window by window, so batches do not shrink."""

    def most(logits: Tensor) -> Tensor:
        return torch.arange(len(logits)) % 2 == 0  # every other sample of a batch is confident

    found = run_cascade(small, tiny_model, tokens, Execution(batch_size=3, window=window), most)
    work = found.work.blocks[f"layer.{DEPTH - 1}"]
    unsure = int((found.exit_layer == DEPTH - 1).sum())
    assert work.rows == unsure
    assert work.calls == (-(-unsure // 3) if not window else 4)


def test_compiled_and_in_bfloat16(small: MultiExitModel, tiny_model: MultiExitModel, tokens: TokenSet) -> None:
    """Both models run in the execution's type."""
    never = confidence_rule(1.0)
    exact = run_cascade(small, tiny_model, tokens, Execution(), never)
    half = run_cascade(small, tiny_model, tokens, Execution(dtype="bfloat16"), never)
    assert half.logits.dtype == np.float32
    assert not np.array_equal(half.logits, exact.logits)
    assert np.median(np.abs(half.logits - exact.logits)) < 0.05


@pytest.mark.parametrize("window", [0, 5])
def test_with_graphs_as_on_cuda(
    like_cuda: object,
    make_model: Callable[..., MultiExitModel],
    small: MultiExitModel,
    tokens: TokenSet,
    said: tuple[np.ndarray, np.ndarray],
    window: int,
) -> None:
    """With several windows in flight and both models in graphs, no window overwrites answers of another."""
    middle = float(confidence(torch.from_numpy(said[0])).median()) + 1e-5
    execution = Execution(batch_size=4, window=window, compute="graphs", max_length=12)
    for _ in range(2):
        found = run_cascade(small, make_model(), tokens, execution, confidence_rule(middle))
        stays = found.exit_layer == DEPTH - 1
        assert 0 < stays.sum() < N
        np.testing.assert_allclose(found.logits, np.where(stays[:, None], said[1], said[0]), rtol=1e-3, atol=1e-4)


def test_no_samples(small: MultiExitModel, tiny_model: MultiExitModel, make_tokens: Callable[..., TokenSet]) -> None:
    """Without samples, the cascade returns no answers."""
    found = run_cascade(small, tiny_model, make_tokens([]), Execution(), confidence_rule(0.5))
    assert found.logits.shape == (0, 3)


def test_confidence_is_the_largest_probability() -> None:
    """Confidence is the largest softmax probability; higher temperatures flatten it, and it never reaches 1."""
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert confidence(logits).tolist() == pytest.approx([np.e**2 / (np.e**2 + 2), 1 / 3])
    assert confidence(logits, 2.0)[0].item() == pytest.approx(np.e / (np.e + 2))
    assert confidence_rule(0.5)(logits).tolist() == [True, False]
    assert not confidence_rule(1.0)(torch.tensor([[900.0, 0.0]])).any()
