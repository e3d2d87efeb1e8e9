"""Samples in running order: sorted, stable, complete, and validated before anything runs."""

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

from harness.contracts import Execution, Predictions
from harness.core.errors import ConfigError, GeepBenchError
from harness.core.tokens import TokenSet
from harness.encoder import transfer
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.shape import EncoderShape
from harness.execution import arrangement as module
from harness.execution.arrangement import Arranged, arrange, cut, windows
from harness.execution.engine import Engine
from harness.execution.executors import exit_logits, run_assigned, run_full
from harness.execution.exit_rules import Entropy
from harness.execution.regrouping.look_once import run_look_once
from harness.execution.sequential import run_faithful, run_sequential
from harness.execution.verified import run_verified

DEPTH = 5
SHAPE = EncoderShape(layers=DEPTH, width=16, heads=2, intermediate=24, vocab_size=50, max_positions=16)
EXECUTIONS = st.builds(
    Execution,
    batch_size=st.integers(1, 30),
    protocol=st.sampled_from(["modern", "paper"]),
    order=st.sampled_from(["arrival", "length"]),
    window=st.sampled_from([0, 0, 1, 2, 7, 100]),
    max_length=st.just(16),
    batch_tokens=st.sampled_from([0, 1, 16, 17, 50]),
)
QUICK = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])


@dataclass
class Samples:
    """Token lists with segments, and columns of exits or looks (none, one or more)."""

    ids: list[list[int]]
    segments: list[list[int]]
    columns: np.ndarray | None

    @property
    def tokens(self) -> TokenSet:
        return TokenSet.from_lists(self.ids, self.segments, (0, 1, 2))

    def arrange(self, execution: Execution) -> Arranged:
        columns = None if self.columns is None else torch.from_numpy(self.columns)
        return arrange(self.tokens, execution, SHAPE, columns)


@st.composite
def samples(draw: st.DrawFn, least: int = 0) -> Samples:
    """Up to 30 samples of 1 to 16 tokens; many are of equal length and exit."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    count, longest, deepest = draw(st.integers(least, 30)), draw(st.integers(1, 16)), draw(st.integers(1, DEPTH))
    sizes = rng.integers(1, longest + 1, count)
    width = draw(st.sampled_from([None, 0, 1, 3]))
    columns = None if width is None else rng.integers(0, deepest, (count, width)).astype(np.int16)
    return Samples(
        [rng.integers(0, 50, size).tolist() for size in sizes],
        [rng.integers(0, 2, size).tolist() for size in sizes],
        columns,
    )


def expected_order(given_samples: Samples, execution: Execution) -> list[int]:
    """Return the order by (window, first column falling, length falling, arrival), as a sort of tuples."""

    def key(index: int) -> tuple[int, int, int]:
        columns = given_samples.columns
        first = int(columns[index, 0]) if columns is not None and columns.shape[1] else 0
        length = len(given_samples.ids[index]) if execution.order == "length" else 0
        return index // execution.window if execution.window else 0, -first, -length

    return sorted(range(len(given_samples.ids)), key=key)


@pytest.mark.parametrize("host_devices", [("cpu",), ()])
@QUICK
@given(samples(), EXECUTIONS)
def test_samples_keep_their_values_in_order(
    monkeypatch: pytest.MonkeyPatch, host_devices: tuple[str, ...], given_samples: Samples, execution: Execution
) -> None:
    """The order is sorted within windows and stable, and every sample keeps its ids, segments, positions and columns."""
    monkeypatch.setattr(module, "HOST_DEVICES", host_devices)
    found, tokens = given_samples.arrange(execution), given_samples.tokens
    assert found.order.tolist() == expected_order(given_samples, execution)
    assert found.lengths.tolist() == [len(given_samples.ids[i]) for i in found.order]
    assert found.starts.tolist() == [0, *np.cumsum(found.lengths).tolist()] == found.tokens.offsets.tolist()
    assert found.tokens.ids.tolist() == [token for i in found.order for token in given_samples.ids[i]]
    assert found.tokens.segments.tolist() == [segment for i in found.order for segment in given_samples.segments[i]]
    assert (found.tokens.ids.dtype, found.tokens.segments.dtype) == (tokens.ids.dtype, tokens.segments.dtype)
    assert found.tokens.special == tokens.special
    assert found.positions.tolist() == [place for size in found.lengths for place in range(size)]
    columns = given_samples.columns
    assert found.columns.shape == (len(tokens), 0 if columns is None else columns.shape[1])
    if columns is not None:
        assert found.columns.tolist() == columns[found.order].tolist()
    for values in (found.order, found.lengths, found.columns, found.starts):
        assert values.dtype == np.int64


@QUICK
@given(samples(least=1), EXECUTIONS, st.data())
def test_a_batch_has_the_tokens_of_its_samples(
    given_samples: Samples, execution: Execution, data: st.DataObject
) -> None:
    """A batch has the tokens and positions of its part of the running order, with offsets from 0."""
    found = given_samples.arrange(execution)
    end = data.draw(st.integers(1, len(found.order)))
    begin = data.draw(st.integers(0, end - 1))
    batch, positions = found.batch(begin, end)
    ids = [given_samples.ids[i] for i in found.order[begin:end]]
    assert batch.ids.tolist() == [token for row in ids for token in row]
    assert batch.offsets.tolist() == [0, *np.cumsum([len(row) for row in ids]).tolist()]
    assert batch.segments.tolist() == [s for i in found.order[begin:end] for s in given_samples.segments[i]]
    assert positions.tolist() == [place for row in ids for place in range(len(row))]


@QUICK
@given(samples(), EXECUTIONS)
def test_the_host_receives_one_copy(
    monkeypatch: pytest.MonkeyPatch, given_samples: Samples, execution: Execution
) -> None:
    """One copy brings order, lengths, columns and the range of ids to the host, before tokens are gathered."""
    seen: list[str] = []
    real = transfer.HostCopy

    class Copy(real):  # type: ignore[valid-type, misc]
        def __init__(self, source: Tensor) -> None:
            seen.append("copy")
            super().__init__(source)

        def wait(self) -> np.ndarray:
            seen.append("wait")
            return super().wait()

    gathered = module._gathered
    monkeypatch.setattr(transfer, "HostCopy", Copy)
    monkeypatch.setattr(module, "_gathered", lambda *args: seen.append("gather") or gathered(*args))
    given_samples.arrange(execution)
    monkeypatch.undo()
    assert seen == ["copy", "gather", "wait"]


@settings(max_examples=200)
@given(st.lists(st.integers(1, 16), max_size=40), EXECUTIONS)
def test_batches_cover_everything_once(lengths: list[int], execution: Execution) -> None:
    """Batches cover every sample once, respect windows and both limits, count padding, and are as long as possible."""
    sizes = [execution.max_length] * len(lengths) if execution.protocol == "paper" else lengths
    at = 0
    for begin, end in windows(len(lengths), execution.window):
        assert begin == at < end <= len(lengths)
        assert not execution.window or (begin % execution.window == 0 and end - begin <= execution.window)
        for first, last in cut(np.array(lengths), begin, end, execution):
            assert first == at < last <= end
            assert last - first <= execution.batch_size
            budget = execution.batch_tokens
            assert not budget or sum(sizes[first:last]) <= budget or last - first == 1
            full = last - first == execution.batch_size or bool(budget) and sum(sizes[first : last + 1]) > budget
            assert full or last == end
            at = last
    assert at == len(lengths)


def test_windows_follow_each_other() -> None:
    """Ten samples are cut correctly in windows of four and in one window."""
    assert list(windows(10, 4)) == [(0, 4), (4, 8), (8, 10)]
    assert list(windows(10, 0)) == [(0, 10)]
    assert list(windows(0, 0)) == list(windows(0, 4)) == []


def test_lengths_beyond_the_bounds_only_change_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device, a text longer than ``max_length`` sorts as if it had that length and still runs packed."""
    monkeypatch.setattr(module, "HOST_DEVICES", ())
    tokens = TokenSet.from_lists([[1] * size for size in (3, 9, 16, 2)])
    assert arrange(tokens, Execution(max_length=8), SHAPE).order.tolist() == [1, 2, 0, 3]
    assert arrange(tokens, Execution(max_length=16), SHAPE).order.tolist() == [2, 1, 0, 3]


RUNS: dict[str, Callable[[MultiExitModel, TokenSet, Tensor, Execution], Any]] = {
    "full": lambda model, tokens, exits, execution: run_full(model, tokens, execution),
    "ladder": lambda model, tokens, exits, execution: run_assigned(model, tokens, exits, execution),
    "exact-k": lambda model, tokens, exits, execution: run_assigned(
        model, tokens, exits, replace(execution, executor="exact-k")
    ),
    "shared": lambda model, tokens, exits, execution: run_assigned(model, tokens, exits, execution, answer="shared"),
    "shrink": lambda model, tokens, exits, execution: run_sequential(model, tokens, execution, Entropy(0.9)),
    "faithful": lambda model, tokens, exits, execution: run_faithful(model, tokens, execution, Entropy(0.9)),
    "verified": lambda model, tokens, exits, execution: run_verified(
        model, tokens, exits[:, None].repeat(1, 2), execution, Entropy(0.9)
    ),
    "look once": lambda model, tokens, exits, execution: run_look_once(model, tokens, 0, lambda *_: exits, execution),
    "logits": lambda model, tokens, exits, execution: exit_logits(model, tokens, execution),
}
BAD = {
    "no token": (lambda rows: rows[:5] + [[]] + rows[6:], "sample 5 has no token"),
    "too long": (lambda rows: rows[:7] + [[1] * 17] + rows[8:], "sample 7 has 17 tokens, the encoder 16 positions"),
    "negative id": (lambda rows: [*rows[:8], [-3, 1], *rows[9:]], "token id -3 has no embedding"),
    "large id": (lambda rows: [[1, 50], *rows[1:]], "token id 50 has no embedding, there are 50"),
    "larger than the padding": (lambda rows: [*rows[:2], [1] * 15, *rows[3:]], "sample 2 of 15 tokens does not fit 14"),
}  # fmt: skip


@pytest.mark.parametrize("window", [0, 3])
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", RUNS)
def test_invalid_samples_are_rejected_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, make_model: Callable[..., MultiExitModel], name: str, bad: str, window: int
) -> None:
    """A one-line error names the sample by its input number, or the id, for every executor and order."""
    monkeypatch.setattr(Engine, "embed", lambda *_: pytest.fail("a block was run"))
    spoil, message = BAD[bad]
    rng = np.random.default_rng(0)
    tokens = TokenSet.from_lists(spoil([rng.integers(0, 50, size).tolist() for size in range(1, 11)]))
    exits = torch.arange(10, dtype=torch.int16) % 4
    paper = bad == "larger than the padding"
    execution = Execution(4, "paper" if paper else "modern", window=window, max_length=14)
    with pytest.raises(ConfigError, match=message) as caught:
        RUNS[name](make_model(), tokens, exits, execution)
    assert isinstance(caught.value, GeepBenchError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("compute", ["eager", "graphs"])
@pytest.mark.parametrize("protocol", ["modern", "paper"])
@pytest.mark.parametrize("name", RUNS)
def test_no_samples_give_no_predictions(
    like_cuda: Any, make_model: Callable[..., MultiExitModel], name: str, protocol: Any, compute: Any
) -> None:
    """Without samples, executors return no answers, count no work and raise no error."""
    tokens, exits = TokenSet.from_lists([]), torch.zeros(0, dtype=torch.int16)
    model = make_model(shape=replace(SHAPE, layers=4, width=32))  # wide enough for the kernel
    found = RUNS[name](model, tokens, exits, Execution(protocol=protocol, compute=compute))
    if not isinstance(found, Predictions):
        assert found.shape == (4, 0, 3)
        return
    assert found.logits.shape == (0, 3) and found.logits.dtype == np.float32
    assert found.exit_layer.shape == (0,) and found.exit_layer.dtype == np.int16
    assert found.work.rows("layer") == found.work.rows("head") == 0
    assert found.work.valid_token_ratio() == 1.0
    assert found.predicted_exit is None or found.predicted_exit.shape == (0,)


@pytest.mark.parametrize("segment", [-1, 2])
def test_segments_are_validated(segment: int) -> None:
    """A segment id out of range is rejected like a token id."""
    tokens = TokenSet.from_lists([[1, 2], [3, 4]], [[0, 1], [0, segment]])
    with pytest.raises(ConfigError, match=f"segment {segment} has no embedding, there are 2"):
        arrange(tokens, Execution(), SHAPE)


def test_exits_may_be_on_another_device(make_model: Callable[..., MultiExitModel], tokens: TokenSet) -> None:
    """Columns move to the device of the tokens without being read on the host."""
    columns = torch.zeros(len(tokens), 1, dtype=torch.int16)
    found: list[torch.device] = []

    class Columns:
        shape = columns.shape

        def to(self, device: torch.device) -> Tensor:
            found.append(device)
            return columns

    arrange(tokens, Execution(), make_model().encoder.shape, Columns())  # type: ignore[arg-type]
    assert found == [tokens.device]
