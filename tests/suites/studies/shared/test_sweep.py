"""Alternating passes and the search for a batch size, on a fake clock."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from harness.contracts import Execution, OperatingPoint, Predictions
from harness.core import clock
from harness.core.tokens import TokenSet
from harness.core.work import Work
from suites.studies.shared.study_methods import StudyMethod
from suites.studies.shared.sweep import samples_of, spread, sweep, take_turns, warm_up

SAMPLES = 40


class Fake:
    """A method whose passes take ``cost(batch size)`` seconds and may run out of memory."""

    def __init__(self, cost: Callable[[int], float], most: int = 1000) -> None:
        self.cost, self.most = cost, most
        self.now = 0.0
        self.passes: list[tuple[int, list[int]]] = []

    def predict(self, tokens: TokenSet, *, at: OperatingPoint) -> Predictions:
        size = at.execution.batch_size
        if size > self.most:
            raise torch.OutOfMemoryError("too large")
        if len(tokens) == SAMPLES:  # no warm-up
            self.passes.append((size, tokens.ids.tolist()))
        self.now += self.cost(size)
        return Predictions(np.eye(2, dtype=np.float32)[tokens.ids.numpy() % 2], np.zeros(len(tokens), np.int16), Work())


@pytest.fixture
def tokens() -> TokenSet:
    return TokenSet.from_lists([[i] for i in range(SAMPLES)])


def swept(fake: Fake, tokens: TokenSet, monkeypatch: pytest.MonkeyPatch, sizes: list[int], rounds: int = 2) -> dict:
    monkeypatch.setattr(clock, "now", lambda: fake.now)
    entry = StudyMethod("fake", "method", fake, OperatingPoint("p"), "own")  # type: ignore[arg-type]
    return sweep(entry, tokens, Execution(), sizes, rounds, seed=0)


def test_two_slower_sizes_in_a_row_end_the_search(tokens: TokenSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two slower sizes after the fastest end the search."""
    seconds = {1: 8.0, 2: 4.0, 4: 2.0, 8: 3.0, 16: 4.0, 32: 0.1}
    found = swept(Fake(seconds.__getitem__), tokens, monkeypatch, list(seconds))
    assert found["best"] == 4
    assert [tried["batch_size"] for tried in found["tried"]] == [1, 2, 4, 8, 16]
    assert "in a row" in found["ended"]
    assert found["tried"][2]["samples_per_s"] == SAMPLES / 2


def test_one_slower_size_does_not_end_the_search(tokens: TokenSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """One slower size does not end the search."""
    seconds = {1: 8.0, 2: 2.0, 4: 4.0, 8: 1.0, 16: 1.5, 32: 0.5}
    found = swept(Fake(seconds.__getitem__), tokens, monkeypatch, list(seconds))
    assert (found["best"], found["ended"]) == (32, "all sizes tried")


def test_a_size_that_holds_all_samples_is_the_last(tokens: TokenSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A size that holds all samples is the last one tried."""
    found = swept(Fake(lambda size: 1 / size), tokens, monkeypatch, [16, 512, 64, 256])
    assert [tried["batch_size"] for tried in found["tried"]] == [16, 64]
    assert f"holds all {SAMPLES}" in found["ended"]


def test_full_memory_ends_the_search(tokens: TokenSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes that fit into memory count; if none fits, the error is raised."""
    found = swept(Fake(lambda size: 1 / size, most=8), tokens, monkeypatch, [4, 8, 16])
    assert (found["best"], found["ended"]) == (8, "batch 16 does not fit into memory")
    with pytest.raises(torch.OutOfMemoryError):
        swept(Fake(lambda size: 1.0, most=2), tokens, monkeypatch, [4, 8])


def test_close_sizes_are_measured_again(tokens: TokenSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only sizes within 10 % of the fastest are measured again, forwards and backwards."""
    seconds = {1: 9.0, 2: 1.05, 4: 1.0, 8: 1.0001}
    fake = Fake(seconds.__getitem__)
    found = swept(fake, tokens, monkeypatch, list(seconds), rounds=2)
    assert [len(tried["seconds"]) for tried in found["tried"]] == [2, 4, 4, 4]
    assert [size for size, _ in fake.passes[8:]] == [8, 4, 2, 2, 4, 8]
    assert found["best"] == 4


def test_all_cells_get_the_same_samples_in_turns(tokens: TokenSet) -> None:
    """Cells run A B, then B A, on one order of samples per round, which the seed determines."""
    calls: list[tuple[str, list[int]]] = []

    def cell(name: str) -> Callable:
        def run(some: TokenSet, numbers: np.ndarray) -> str:
            assert some.ids.tolist() == numbers.tolist()
            calls.append((name, numbers.tolist()))
            return name

        return run

    cells = {name: cell(name) for name in "AB"}
    for number in range(3):
        assert take_turns(cells, tokens, number, seed=5) == {"A": "A", "B": "B"}
    assert [name for name, _ in calls] == ["A", "B", "B", "A", "A", "B"]
    orders = [order for _, order in calls]
    assert orders[0] == list(range(SAMPLES)) and orders[0::2] == orders[1::2]
    assert orders[2] != orders[0] and sorted(orders[2]) == orders[0]
    assert samples_of(1, SAMPLES, 5).tolist() == orders[2] != samples_of(1, SAMPLES, 6).tolist()


def test_warm_up_is_short_without_compilation(tokens: TokenSet) -> None:
    """Warm-up runs four batches, or all samples in two orders if blocks are compiled."""
    seen: list[list[int]] = []

    def run(some: TokenSet, numbers: np.ndarray) -> None:
        assert some.ids.tolist() == numbers.tolist()
        seen.append(numbers.tolist())

    warm_up(run, tokens, Execution(batch_size=3))  # type: ignore[arg-type]
    assert seen == [list(range(12))]
    warm_up(run, tokens, Execution(batch_size=3, compute="compiled"))  # type: ignore[arg-type]
    assert [sorted(order) for order in seen[1:]] == [list(range(SAMPLES))] * 2
    assert seen[1] != seen[2]


def test_spread_is_by_quantiles() -> None:
    """The spread is the median, p10 and p90."""
    assert spread([1, 2, 3, 4, 11]) == {"median": 3, "p10": pytest.approx(1.4), "p90": pytest.approx(8.2)}
