"""Tables are built from exits, and quantiles are chosen on dev."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geep.exit_table import ExitTable
from geep.method import TUNING, FittedGeep
from geep.predictor import DevView, budget_points, build_table, nearest
from geep.rule_choices import QUANTILES, Assignments
from harness.contracts import Execution
from harness.core.tokens import Task
from harness.execution.executors import exit_logits
from harness.execution.exit_rules import Entropy
from harness.execution.sequential import run_sequential


@pytest.fixture(scope="session")
def view(scattered_geep: FittedGeep, signal_task: Task) -> DevView:
    """Return the dev observations of the scattered model."""
    model = scattered_geep.model
    logits = exit_logits(model, signal_task.dev.tokens, TUNING)
    return DevView.of(logits, signal_task.dev.labels, model.answers, model.depth)


@given(speed=st.floats(0, 1))
@settings(max_examples=25)
def test_the_budget_is_that_of_the_sequential_exit(
    speed: float, view: DevView, scattered_geep: FittedGeep, signal_task: Task
) -> None:
    """The budget at any speed equals the mean layers that the sequential exit executes."""
    run = run_sequential(scattered_geep.model, signal_task.dev.tokens, Execution(batch_size=7), Entropy(speed))
    assert view.sequential_layers(speed) == pytest.approx(run.work.rows("layer") / 48, abs=1e-12)
    assert view.sequential_layers(speed) == pytest.approx(run.exit_layer.mean() + 1, abs=1e-12)


@pytest.mark.parametrize("speed", [0.2, 0.5, 0.9])
def test_table_counts_the_exits_of_sequential_exit(speed: float, scattered_geep: FittedGeep, signal_task: Task) -> None:
    """The table counts, key by key, the layers at which samples exit in the sequential exit."""
    model, tokens = scattered_geep.model, signal_task.train.tokens
    observed = exit_logits(model, tokens, TUNING)
    built = build_table(tokens, observed, model.answers, speed, model.depth, ngram=2, min_count=2, smoothing=3)
    expected = ExitTable(model.depth, ngram=2)
    expected.insert(tokens, run_sequential(model, tokens, Execution(), Entropy(speed)).exit_layer)
    expected.freeze(min_count=2, smoothing=3)
    assert torch.equal(built.distribution(signal_task.dev.tokens), expected.distribution(signal_task.dev.tokens))
    assert built.stats() == expected.stats()


def test_positions_of_answering_layers(view: DevView) -> None:
    """Layer indices are mapped to rows of the dev observations, also if layers are skipped."""
    assert view.answers.tolist() == [0, 1, 2, 4]
    np.testing.assert_array_equal(view.position(np.array([[4, 0], [2, 1]], dtype=np.int16)), [[3, 0], [2, 1]])


@st.composite
def predictions(draw: st.DrawFn) -> tuple[np.ndarray, DevView]:
    """Draw rising predictions [N, Q] on a fabricated dev set with answers after layers 0, 1, 2 and 4."""
    count = draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    answers = np.array([0, 1, 2, 4])
    exits = np.sort(answers[rng.integers(0, 4, (count, len(QUANTILES)))], axis=1).astype(np.int16)
    correct = rng.random((4, count)) < 0.5
    return exits, DevView(answers, correct, correct, rng.random((4, count), dtype=np.float32), 5)


@given(case=predictions(), budget=st.floats(1, 6), extra=st.integers(0, 1))
@settings(max_examples=60)
def test_quantile_is_the_nearest_to_the_budget(case: tuple[np.ndarray, DevView], budget: float, extra: int) -> None:
    """No other quantile is nearer to the budget, and none at the same distance is more accurate."""
    exits, view = case
    at, layers, accuracy = nearest(exits, view, budget, extra=extra)
    rows = []
    for column in range(len(QUANTILES)):
        chosen = [int(k) for k in exits[:, column]]
        cost = np.mean([k + 1 + (extra if k < 4 else 0) for k in chosen])
        right = np.mean([view.correct[[0, 1, 2, 4].index(k), n] for n, k in enumerate(chosen)])
        rows.append((abs(cost - budget), cost, right))
    assert (layers, accuracy) == pytest.approx(rows[at][1:])
    least = min(distance for distance, *_ in rows)
    assert abs(layers - budget) == pytest.approx(least, abs=2e-6)
    assert accuracy >= max(right for distance, _, right in rows if distance < least + 1e-9) - 1e-12


@pytest.mark.parametrize("better", [0, 2])
def test_accuracy_decides_at_equal_distance(better: int) -> None:
    """Of two points one layer below and above the budget, tuning takes the more accurate one."""
    exits = np.repeat(np.array([0, 2], dtype=np.int16), [100, 100])[None, :].repeat(4, axis=0)
    correct = np.zeros((4, 4), dtype=bool)
    correct[better, :3] = True
    view = DevView(np.array([0, 1, 2, 4]), correct, correct, np.zeros((4, 4), dtype=np.float32), 5)
    at, layers, accuracy = nearest(exits, view, 2.0)
    assert (layers, accuracy) == (better + 1, 0.75)
    assert at == (0 if better == 0 else 100)


@given(first=predictions(), budget=st.floats(0.05, 1))
@settings(max_examples=40)
def test_every_table_and_quantile_is_a_candidate(first: tuple[np.ndarray, DevView], budget: float) -> None:
    """The point has the table and quantile it names, and no pair within a standard error of the best is deeper."""
    exits, view = first
    other = np.sort(np.array([0, 1, 2, 4])[np.random.default_rng(len(exits)).integers(0, 4, exits.shape)], axis=1)
    predicted = {0.3: exits, 0.6: other.astype(np.int16)}
    quantiles = [{"quantile": quantile} for quantile in QUANTILES]
    candidates = {speed: Assignments(quantiles, found) for speed, found in predicted.items()}
    (point,) = budget_points(candidates, view, [budget])
    pairs = {}
    for speed, found in predicted.items():
        for column, quantile in enumerate(QUANTILES):
            chosen = [int(k) for k in found[:, column]]
            right = [view.correct[[0, 1, 2, 4].index(k), n] for n, k in enumerate(chosen)]
            pairs[speed, quantile] = (float(np.mean(chosen)) + 1, float(np.mean(right)))
    mine = pairs[point.params["speed"], point.params["quantile"]]
    assert mine == pytest.approx((point.params["dev_mean_layers"], point.params["dev_accuracy"]))
    candidates = [pair for pair in pairs.values() if pair[0] <= 5 * budget]
    if not candidates:
        assert mine[0] == min(layers for layers, _ in pairs.values()) and "over_budget" in point.params
        return
    best = max(accuracy for _, accuracy in candidates)
    lowest = best - np.sqrt(best * (1 - best) / len(exits))
    assert mine[1] >= lowest - 1e-6
    assert (
        mine[0]
        >= max(layers for layers, accuracy in candidates if accuracy >= lowest + 1e-6 or accuracy == best) - 1e-9
    )
