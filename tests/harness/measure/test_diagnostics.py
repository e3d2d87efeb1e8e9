"""Diagnostics detect methods with the fault that they look for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from harness.contracts import Execution, OperatingPoint, Predictions
from harness.core import clock
from harness.core.errors import MethodError
from harness.core.tokens import TokenSet
from harness.encoder.multi_exit import MultiExitModel
from harness.measure import diagnostics, resources
from harness.measure.diagnostics import count_syncs, depth_answers, diagnose, single_samples, unseen_keys
from harness.measure.passes import Contender
from harness.measure.resources import SavedState, host_peak, joules, reset_host_peak
from harness.toolkit.fitted import FullDepth


class BatchDependent(FullDepth):
    """Answer differently for a single sample, as with attention to padding."""

    def predict(self, tokens: TokenSet, *, at: OperatingPoint) -> Predictions:
        found = super().predict(tokens, at=at)
        return replace(found, logits=found.logits[:, ::-1].copy()) if len(tokens) == 1 else found


class Learning(FullDepth):
    """Learn while being tested."""

    def predict(self, tokens: TokenSet, *, at: OperatingPoint) -> Predictions:
        next(self.model.parameters()).data.add_(1e-3)
        return super().predict(tokens, at=at)


@pytest.fixture
def point() -> OperatingPoint:
    return OperatingPoint("full", execution=Execution(batch_size=5))


def labels_of(fitted: FullDepth, tokens: TokenSet, point: OperatingPoint) -> np.ndarray:
    return fitted.predict(tokens, at=point).logits.argmax(1)


def test_samples_alone_get_the_answers_of_batches(
    tiny_model: MultiExitModel, tokens: TokenSet, point: OperatingPoint
) -> None:
    """Every sample is run alone, and a method whose answers depend on other samples is found."""
    fitted = FullDepth(tiny_model)
    labels = labels_of(fitted, tokens, point)
    latency, agree, spent = single_samples(Contender(fitted, point), tokens, labels, seed=0)
    assert (latency.batch_size, latency.n, agree) == (1, len(tokens), 1.0)
    assert 0 < latency.p50 <= latency.p90 <= latency.p99 <= spent
    _, agree, _ = single_samples(Contender(BatchDependent(tiny_model), point), tokens, labels, seed=0)
    assert agree < 1


def test_slow_methods_are_called_less_often(
    tiny_model: MultiExitModel, tokens: TokenSet, point: OperatingPoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The total time is limited, and the number of calls is stored."""
    ticks = iter(range(10_000))
    monkeypatch.setattr(clock, "now", lambda: 0.05 * next(ticks))
    latency, _, _ = single_samples(Contender(FullDepth(tiny_model), point), tokens, np.zeros(len(tokens)), seed=0)
    assert 1 <= latency.n < 6


def test_a_method_that_learns_from_test_is_detected(
    make_model: Callable[..., MultiExitModel], tokens: TokenSet, point: OperatingPoint
) -> None:
    """The saved state after testing is compared with the state before."""
    for kind, unchanged in ((FullDepth, True), (Learning, False)):
        fitted = kind(make_model())
        before = SavedState.of(fitted)
        found = diagnose(
            Contender(fitted, point),
            tokens,
            labels_of(fitted, tokens, point),
            before,
            SavedState.of(fitted),
            borrowed=7,
            host_peak=5,
        )
        assert found.state_unchanged is unchanged
        assert found.resources.disk_bytes == before.size + 7
        assert found.resources.host_peak_bytes == 5
        assert found.predicting > 0
    assert before.weights


class ByShape(FullDepth):
    """Code is made when a length of a sample first occurs, which takes a minute on a clock of its own."""

    def __init__(self, model: MultiExitModel, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(model)
        self.seconds, self.seen = 0.0, set[int]()
        monkeypatch.setattr(clock, "now", lambda: self.seconds)

    def predict(self, tokens: TokenSet, *, at: OperatingPoint) -> Predictions:
        length = len(tokens.ids)
        self.seconds += 1e-3 if length in self.seen else 60.0
        self.seen.add(length)
        return super().predict(tokens, at=replace(at, execution=replace(at.execution, compute="eager")))


def test_latency_does_not_contain_making_code(
    tiny_model: MultiExitModel, tokens: TokenSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With graphs or compiled code, every sample runs once before it is timed, as in passes."""
    fitted = ByShape(tiny_model, monkeypatch)
    point = OperatingPoint("full", execution=Execution(batch_size=5, compute="graphs"))
    latency, _, spent = single_samples(Contender(fitted, point), tokens, np.zeros(len(tokens)), seed=0)
    assert latency.n == len(tokens) and len(fitted.seen) > 1
    assert latency.p99 == pytest.approx(1e-3)
    assert spent == pytest.approx(60.0 * len(fitted.seen) + 1e-3 * (2 * latency.n - len(fitted.seen)))


def test_bounds_and_controls_have_no_latency(
    tiny_model: MultiExitModel, tokens: TokenSet, point: OperatingPoint
) -> None:
    """Bounds and controls have no latency, because they never run a single sample."""
    fitted: Any = FullDepth(tiny_model)
    fitted.foresee = lambda tokens, at: torch.zeros(len(tokens), dtype=torch.int16)
    found = diagnose(Contender(fitted, point), tokens, np.zeros(len(tokens)), *2 * [SavedState.of(fitted)])
    assert (found.latency, found.batches_agree, found.state_unchanged) == ([], None, True)
    plain = FullDepth(tiny_model)
    control = diagnose(
        Contender(plain, point), tokens, np.zeros(len(tokens)), *2 * [SavedState.of(plain)], control=True
    )
    assert (control.latency, control.batches_agree) == ([], None)


def test_a_cell_that_is_not_timed_is_checked_without_a_time(
    tiny_model: MultiExitModel, tokens: TokenSet, point: OperatingPoint
) -> None:
    """Samples run alone for their labels only; a cell that is not even checked runs none, and keeps what needs no check."""
    fitted: Any = BatchDependent(tiny_model)
    fitted.key_hits = lambda tokens, at: (3, 12)
    before, labels = SavedState.of(fitted), labels_of(fitted, tokens, point)
    found = diagnose(Contender(fitted, point), tokens, labels, before, before, timed=False)
    assert (found.latency, found.syncs, found.state_unchanged, found.unseen_tokens) == ([], None, True, 0.75)
    assert found.batches_agree is not None and found.batches_agree < 1
    bare = diagnose(Contender(fitted, point), tokens, labels, before, None, timed=False)
    assert (bare.latency, bare.batches_agree, bare.state_unchanged, bare.unseen_tokens) == ([], None, None, 0.75)
    assert bare.resources.disk_bytes == before.size


def test_unseen_keys_are_keys_without_a_row(tokens: TokenSet, point: OperatingPoint) -> None:
    """The share refers to the method's own table; methods without a table have none."""
    fitted: Any = SimpleNamespace(key_hits=lambda tokens, at: (3, 12))
    assert unseen_keys(Contender(fitted, point), tokens) == 0.75
    fitted = SimpleNamespace(key_hits=lambda tokens, at: (0, 0))
    assert unseen_keys(Contender(fitted, point), tokens) is None
    fitted = SimpleNamespace()
    assert unseen_keys(Contender(fitted, point), tokens) is None


def test_the_cpu_has_no_count_of_synchronisations(
    tiny_model: MultiExitModel, tokens: TokenSet, point: OperatingPoint
) -> None:
    """On the CPU there is no count of synchronisations."""
    assert count_syncs(Contender(FullDepth(tiny_model), point), tokens) is None


@pytest.mark.gpu
def test_synchronisations_are_counted_on_a_device(
    make_model: Callable[..., MultiExitModel], tokens: TokenSet, point: OperatingPoint
) -> None:
    """The encoder never synchronises; a method that reads a value does so once."""

    class Asking(FullDepth):
        def predict(self, tokens: TokenSet, *, at: OperatingPoint) -> Predictions:
            tokens.ids.sum().item()
            return super().predict(tokens, at=at)

    model = make_model().to("cuda")
    assert count_syncs(Contender(FullDepth(model), point), tokens.to("cuda")) == 0
    assert count_syncs(Contender(Asking(model), point), tokens.to("cuda")) == 1


def test_size_is_that_of_the_saved_files(tiny_model: MultiExitModel, tmp_path: Path) -> None:
    """The size is that of the files; a method that saves nothing has no weights."""
    FullDepth(tiny_model).save(tmp_path)
    assert SavedState.of(FullDepth(tiny_model)).size == sum(path.stat().st_size for path in tmp_path.iterdir())
    nothing: Any = SimpleNamespace(save=lambda folder: None)
    assert (SavedState.of(nothing).size, SavedState.of(nothing).weights) == (0, False)


def test_peak_memory_is_reset() -> None:
    """Memory that was freed before the reset does not count."""
    if not reset_host_peak():
        pytest.skip("this system does not tell")
    block = np.ones(30_000_000)
    high = host_peak()
    del block
    assert reset_host_peak()
    low = host_peak()
    assert high is not None
    assert low is not None
    assert high - low > 100_000_000


def test_energy_is_a_mean_per_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The energy of a run is the mean over the runs in a window; ``None`` without a counter."""
    assert joules(lambda: None, torch.device("cpu")) is None
    state = {"time": 0.0, "energy": 5_000}

    def run() -> None:
        state["time"] += 0.5
        state["energy"] += 40_000  # millijoules

    monkeypatch.setattr(clock, "now", lambda: state["time"])
    monkeypatch.setattr(clock, "synchronise", lambda device: None)
    monkeypatch.setattr(resources, "_meter", lambda device: lambda: state["energy"])
    assert joules(run, torch.device("cuda")) == 40
    assert state["time"] == resources.WINDOW


def test_limits_allow_a_99th_percentile() -> None:
    """A 99th percentile needs a hundred calls, which the limits allow."""
    assert diagnostics.CALLS >= 100


def test_answers_of_all_layers_come_from_the_methods_that_have_them(
    tiny_model: MultiExitModel, tokens: TokenSet, point: OperatingPoint
) -> None:
    """A method that says what every exit would answer is asked; others have nothing to say."""
    fitted: Any = FullDepth(tiny_model)
    said = np.zeros((2, len(tokens)), dtype=np.int64)
    assert depth_answers(Contender(fitted, point), tokens) is None
    fitted.depth_answers = lambda tokens, at: ((0, tiny_model.depth - 1), said)
    found = depth_answers(Contender(fitted, point), tokens)
    assert found is not None and found.layers == (0, tiny_model.depth - 1) and found.labels is said


@pytest.mark.parametrize(
    ("layers", "shape", "reason"),
    [
        ((0, 1), (2, 3), "return rising layer indices up to 3"),
        ((3, 0), (2, 3), "return rising layer indices up to 3"),
        ((0, 0, 3), (3, 3), "return rising layer indices up to 3"),
        ((0, 3, 4), (3, 3), "return rising layer indices up to 3"),
        ((), (0, 3), "return rising layer indices up to 3"),
        ((0, 3), (3, 3), r"return one per layer and sample, \[2, 3\]"),
        ((0, 3), (2, 2), r"return one per layer and sample, \[2, 3\]"),
    ],
)
def test_answers_of_all_layers_must_keep_the_contract(
    tokens: TokenSet, point: OperatingPoint, layers: tuple[int, ...], shape: tuple[int, int], reason: str
) -> None:
    """Wrong layers and wrong shapes are errors of the method, with what to return."""
    said = np.zeros(shape, dtype=np.int64)
    fitted: Any = SimpleNamespace(cost=SimpleNamespace(depth=4), depth_answers=lambda tokens, at: (layers, said))
    with pytest.raises(MethodError, match=reason):
        depth_answers(Contender(fitted, point), tokens.select(range(3)))
    fitted.cost.depth = 63
    with pytest.raises(MethodError, match="up to 62 layers, the model has 63"):
        depth_answers(Contender(fitted, point), tokens.select(range(3)))
