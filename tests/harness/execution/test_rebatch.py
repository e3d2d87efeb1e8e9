"""Batches that are refilled give every sample the answer it gets alone, in as few launches as possible."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.contracts import Execution, Predictions
from harness.core.tokens import TokenSet
from harness.core.work import Step, recorded
from harness.encoder.layout import Layout
from harness.encoder.model import ExitGate, HaltingGate
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.shape import EncoderShape
from harness.execution import run_pass
from harness.execution.arrangement import arrange
from harness.execution.executors import exit_evidence, exit_logits
from harness.execution.exit_rules import (
    Confidence,
    Entropy,
    ExitRule,
    Learned,
    Memory,
    Patience,
    PatienceConfidence,
    PatienceSimilarity,
    QExit,
    RawEntropy,
    Static,
    normalised_entropy,
)
from harness.execution.regrouping import rebatch
from harness.execution.regrouping.rebatch import run_rebatched
from harness.execution.regrouping.waiting_samples import WaitingQueue
from harness.execution.sequential import run_faithful, run_sequential

DEPTH = 4
ONE_BY_ONE = Execution(batch_size=1, order="arrival", max_length=16)
SHARED = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
LENGTHS = st.lists(st.integers(1, 16), min_size=1, max_size=24)
EXECUTIONS = st.builds(
    Execution,
    batch_size=st.integers(1, 9),
    protocol=st.sampled_from(["modern", "paper"]),
    order=st.sampled_from(["arrival", "length"]),
    window=st.sampled_from([0, 0, 5, 100]),
    batch_tokens=st.sampled_from([0, 0, 0, 20, 60]),
    max_length=st.just(16),
)


class Planned(ExitRule):
    """Every sample leaves at a given place, which the rule remembers for it: exits that no model has to produce.

    Args:
        places: int64 [N], in running order.
    """

    def __init__(self, places: np.ndarray) -> None:
        self._places, self._begun = torch.from_numpy(places), 0

    def begin(self, count: int, device: torch.device) -> Memory:
        self._begun += count
        return (self._places[self._begun - count : self._begun].to(device),)

    def score(self, place: int, logits: Tensor, doubt: Tensor | None) -> Tensor:
        return torch.full(logits.shape[:1], place, device=logits.device)

    def judge(self, place: int, score: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        return score >= memory[0], memory


class Watched:
    """What every layer of a pass ran on, and who waited.

    Attributes:
        launches: layer index, samples and rows of every launch.
        waiting: samples in front of all heads whenever a new batch began.
        lines: all lines, in order of depth.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.launches: list[tuple[int, int, int]] = []
        self.waiting: list[list[int]] = []
        self.lines: list[WaitingQueue] = []
        layer, begin, made = run_pass.Pass.layer, run_pass.Pass.begin, WaitingQueue.__init__

        def count(run: run_pass.Pass, index: int, hidden: Tensor, layout: Layout, lane: int = 0) -> Tensor:
            self.launches.append((index, layout.count, layout.rows))
            return layer(run, index, hidden, layout, lane)

        def ask(run: run_pass.Pass, first: int, last: int, lane: int = 0) -> tuple[Tensor, Layout]:
            assert not any(line.full() for line in self.lines), "a full batch waits, and a new one begins"
            self.waiting.append([line.count for line in self.lines])
            return begin(run, first, last, lane)

        def make(line: WaitingQueue, execution: Execution) -> None:
            made(line, execution)
            self.lines.append(line)

        patch.setattr(run_pass.Pass, "layer", count)
        patch.setattr(run_pass.Pass, "begin", ask)
        patch.setattr(WaitingQueue, "__init__", make)


def waits(steps: list[Step]) -> int:
    """Return how often the host waited; values that it reads one by one count one each."""
    return sum(step.what == "wait" for step in steps) + sum(step.count for step in steps if step.what == "read")


def planned_pass(
    model: MultiExitModel, tokens: TokenSet, execution: Execution, exits: np.ndarray, lanes: int = 1
) -> tuple[Predictions, Watched, list[Step]]:
    """Run samples to given exits, int64 [N] in input order, with one or two batches under way."""
    order = arrange(tokens, execution, model.encoder.shape).order
    with pytest.MonkeyPatch.context() as patch, recorded() as steps:
        patch.setitem(run_pass.IN_FLIGHT, "cpu", lanes)
        watched = Watched(patch)
        found = run_rebatched(model, tokens, execution, Planned(exits[order]))
    return found, watched, steps


def check(found: Predictions, expected: np.ndarray, exits: np.ndarray) -> None:
    """Exits are as planned, logits are those of the sample alone (int64 [N], float32 [A, N, C]), nothing ran in vain."""
    assert found.exit_layer.tolist() == exits.tolist()
    np.testing.assert_allclose(found.logits, expected[exits, np.arange(len(exits))], rtol=1e-3, atol=1e-4)
    assert found.work.rows("layer") == found.work.rows("head") == (exits + 1).sum()


@SHARED
@given(lengths=LENGTHS, execution=EXECUTIONS, lanes=st.sampled_from([1, 2]), draw=st.data())
def test_any_exits_in_any_batches(
    tiny_model: MultiExitModel,
    make_tokens: Callable[..., TokenSet],
    lengths: list[int],
    execution: Execution,
    lanes: int,
    draw: st.DataObject,
) -> None:
    """Every sample leaves where its rule says, with the logits it has alone; the host waits once per head but the last."""
    tokens = make_tokens(lengths)
    exits = np.array(draw.draw(st.lists(st.integers(0, DEPTH - 1), min_size=len(lengths), max_size=len(lengths))))
    found, _, steps = planned_pass(tiny_model, tokens, execution, exits, lanes)
    check(found, exit_logits(tiny_model, tokens, ONE_BY_ONE).numpy(), exits)
    asked = sum(tally.calls for block, tally in found.work.blocks.items() if block in ("head.0", "head.1", "head.2"))
    assert waits(steps) == 2 + asked  # and for the order and the answers


@SHARED
@given(count=st.integers(1, 40), batch_size=st.integers(1, 9), lanes=st.sampled_from([1, 2]), draw=st.data())
def test_no_schedule_needs_fewer_launches(
    tiny_model: MultiExitModel,
    make_tokens: Callable[..., TokenSet],
    count: int,
    batch_size: int,
    lanes: int,
    draw: st.DataObject,
) -> None:
    """Every layer runs on full batches and one rest; few samples wait; deeper full batches go first."""
    tokens = make_tokens([5] * count)
    exits = np.array(draw.draw(st.lists(st.integers(0, DEPTH - 1), min_size=count, max_size=count)))
    found, watched, _ = planned_pass(tiny_model, tokens, Execution(batch_size), exits, lanes)
    for layer in range(DEPTH):
        sizes = [samples for index, samples, _ in watched.launches if index == layer]
        full, rest = divmod(int((exits >= layer).sum()), batch_size)
        assert sorted(sizes) == sorted([batch_size] * full + [rest] * (rest > 0))
    assert max(map(sum, watched.waiting)) <= (DEPTH - 1) * (batch_size - 1)


@SHARED
@given(lengths=LENGTHS, batch_size=st.integers(1, 9), limit=st.integers(1, 70), draw=st.data())
def test_refilled_batches_keep_to_the_limits(
    tiny_model: MultiExitModel,
    make_tokens: Callable[..., TokenSet],
    lengths: list[int],
    batch_size: int,
    limit: int,
    draw: st.DataObject,
) -> None:
    """No launch has more samples or tokens than allowed, except for a single longer sample."""
    exits = np.array(draw.draw(st.lists(st.integers(0, DEPTH - 1), min_size=len(lengths), max_size=len(lengths))))
    execution = Execution(batch_size, batch_tokens=limit)
    _, watched, _ = planned_pass(tiny_model, make_tokens(lengths), execution, exits)
    assert all(samples <= batch_size and (rows <= limit or samples == 1) for _, samples, rows in watched.launches)


def test_who_came_first_leaves_first(tiny_model: MultiExitModel, make_tokens: Callable[..., TokenSet]) -> None:
    """At every layer samples run in running order, so sorting by length keeps batches even after refilling."""
    tokens = make_tokens(np.random.default_rng(1).integers(1, 17, 60).tolist())
    answered: dict[int, list[int]] = {}
    answer = run_pass.Pass.answer

    def note(run: run_pass.Pass, samples: slice | np.ndarray, logits: Tensor, exit_layer: int) -> None:
        answered.setdefault(exit_layer, []).extend(np.arange(60)[samples].tolist())
        answer(run, samples, logits, exit_layer)

    exits = np.random.default_rng(2).integers(0, DEPTH, 60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_pass.Pass, "answer", note)
        planned_pass(tiny_model, tokens, Execution(7), exits)
    assert all(samples == sorted(samples) for samples in answered.values())


def test_batches_are_refilled_over_windows(tiny_model: MultiExitModel, make_tokens: Callable[..., TokenSet]) -> None:
    """New batches end with their window; those who stay wait for the next windows, not only for their own."""
    exits = np.full(24, DEPTH - 1)
    found, watched, _ = planned_pass(tiny_model, make_tokens([4] * 24), Execution(8, window=6), exits)
    assert [samples for index, samples, _ in watched.launches if index == 0] == [6] * 4
    assert [samples for index, samples, _ in watched.launches if index == 1] == [8] * 3
    assert found.exit_layer.tolist() == exits.tolist()


@pytest.mark.parametrize("count", [0, 1, 3, 8, 9, 16])
@pytest.mark.parametrize("batch_size", [1, 8, 1000])
@pytest.mark.parametrize("threshold", [-1.0, 2.0])
def test_all_or_none_leave(
    tiny_model: MultiExitModel, make_tokens: Callable[..., TokenSet], count: int, batch_size: int, threshold: float
) -> None:
    """If all leave at the first head, or none before the last, nothing is copied between batches; no samples are no error."""
    tokens = make_tokens(list(range(1, count + 1)))
    with recorded() as steps:
        found = run_rebatched(tiny_model, tokens, Execution(batch_size), Entropy(threshold))
    layer = 0 if threshold > 0 else DEPTH - 1
    check(found, exit_logits(tiny_model, tokens, ONE_BY_ONE).numpy(), np.full(count, layer))
    assert not [step for step in steps if step.what in ("gather", "join")]


def rules(middle: float, gate: ExitGate, doubt: float) -> list[ExitRule]:
    """Return one rule of every kind; ``middle`` and ``doubt`` are exceeded by half of the entropies and doubts."""
    halting = HaltingGate(gate.width).eval()
    for parameter in halting.parameters():
        parameter.data.mul_(5)  # so that samples differ
    return [
        Entropy(middle),
        RawEntropy(middle * np.log(3)),
        Confidence(0.7, (0.5, 2.0, 1.0, 1.0)),
        Learned(doubt, gate),
        Patience(1),
        PatienceConfidence(middle, 2),
        PatienceSimilarity(0.02, 1),
        QExit(0.8, halting),
        Static(1),
    ]


@pytest.mark.parametrize("number", range(9))
@pytest.mark.parametrize("protocol", ["modern", "paper"])
def test_every_rule_gives_the_exits_of_shrinking_batches(
    tiny_model: MultiExitModel, make_tokens: Callable[..., TokenSet], number: int, protocol: str
) -> None:
    """Memories, gates, temperatures and heads that are not asked work in refilled batches as in shrinking ones."""
    torch.manual_seed(3)
    tokens = make_tokens(np.random.default_rng(3).integers(1, 17, 50).tolist(), seed=5)
    gate = ExitGate(tiny_model.encoder.shape.width)
    logits, doubts = exit_evidence(tiny_model, tokens, ONE_BY_ONE, gate=gate)
    assert doubts is not None
    rule = rules(float(normalised_entropy(logits).median()), gate, float(doubts.median()))[number]
    execution = Execution(6, protocol=protocol, max_length=16)  # type: ignore[arg-type]
    shrunk, found = (run(tiny_model, tokens, execution, rule) for run in (run_sequential, run_rebatched))
    assert found.exit_layer.tolist() == shrunk.exit_layer.tolist()
    np.testing.assert_allclose(found.logits, shrunk.logits, rtol=1e-3, atol=1e-4)
    assert {b: t.rows for b, t in found.work.blocks.items()} == {b: t.rows for b, t in shrunk.work.blocks.items()}
    assert len(set(shrunk.exit_layer.tolist())) > 1 or isinstance(rule, Static)


def test_graphs_and_two_lanes_give_the_same(
    like_cuda: object, tiny_model: MultiExitModel, make_tokens: Callable[..., TokenSet]
) -> None:
    """With fixed buffers, which other batches overwrite while samples wait, answers stay those of the released loop."""
    tokens = make_tokens(np.random.default_rng(4).integers(1, 17, 40).tolist())
    middle = float(normalised_entropy(exit_logits(tiny_model, tokens, ONE_BY_ONE)).median())
    execution = Execution(7, compute="graphs")
    expected = run_faithful(tiny_model, tokens, replace(execution, compute="eager"), Entropy(middle))
    for _ in range(2):
        found = run_rebatched(tiny_model, tokens, execution, Entropy(middle))
        assert found.exit_layer.tolist() == expected.exit_layer.tolist()
        np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-3, atol=1e-4)


def test_rebatching_waits_less_often_and_launches_less(
    tiny_model: MultiExitModel, make_tokens: Callable[..., TokenSet]
) -> None:
    """The same samples and exits: fewer launches and waits than shrinking batches; the released loop waits for every sample."""
    tokens = make_tokens([6] * 64)
    middle = float(normalised_entropy(exit_logits(tiny_model, tokens, ONE_BY_ONE)).median())
    seen: dict[str, tuple[int, int]] = {}
    for run in (run_rebatched, run_sequential, run_faithful):
        with recorded() as steps:
            work = run(tiny_model, tokens, Execution(8), Entropy(middle)).work
        seen[run.__name__] = (sum(tally.calls for tally in work.blocks.values()), waits(steps))
    asked = sum(tally.rows for block, tally in work.blocks.items() if block in ("head.0", "head.1", "head.2"))
    assert seen["run_rebatched"] < seen["run_sequential"]
    assert seen["run_rebatched"][1] < seen["run_sequential"][1]
    assert seen["run_faithful"] == (seen["run_sequential"][0], 2 + asked)


def compare(
    put: Callable[[], None] | None,
    model: MultiExitModel,
    tokens: TokenSet,
    expected: np.ndarray,
    pretend_cuda: Callable[[pytest.MonkeyPatch], Any],
) -> None:
    """Run samples in refilled batches, eagerly and with two batches under way in graphs, with a bug."""
    if put is not None:
        put()
    torch.set_num_threads(1)
    exits = np.random.default_rng(7).integers(0, DEPTH, len(tokens))
    exits[-12:-8] = DEPTH - 1  # a whole batch stays
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            for execution in (Execution(4, order="arrival"), Execution(4, order="arrival", compute="graphs")):
                if execution.compute == "graphs":
                    pretend_cuda(patch)
                found = rebatch.run_rebatched(model, tokens, execution, Planned(exits))
                check(found, expected, exits)
        except Exception as error:  # any effect of a bug counts
            raise AssertionError from error


BUGS = {
    "waiting_samples": {
        "the rest of a group is lost": (
            "                self._groups.appendleft(group.part(missing, len(group.samples)))\n",
            "",
        ),
        "the last of a group first": (
            "group.part(missing, len(group.samples))",
            "group.part(0, len(group.samples) - missing)",
        ),
        "states are joined in another order": (
            "[group.hidden for group in groups]",
            "[group.hidden for group in groups[::-1]]",
        ),
        "lengths of the first group": (
            "Layout(lengths, first.pad_to",
            "Layout(np.resize(first.lengths, len(lengths)), first.pad_to",
        ),
        "memories stay behind": ("part[start:stop] for part in", "part[: stop - start] for part in"),
        "who waits is counted twice": ("self.count += len(group.samples)", "self.count += 2 * len(group.samples)"),
    },
    "rebatch": {
        "the wrong samples stay": ("np.flatnonzero(stay)", "np.flatnonzero(~stay)"),
        "numbers of samples that left": ("samples = samples[staying]", "samples = samples[: len(staying)]"),
        "all leave if one does": ("if not stay.any():", "if not stay.all():"),
        "memories of other samples": ("part.index_select(0, rows)", "part[: len(rows)]"),
        "a layer is left out": ("self._heads[stage - 1] + 1 if stage", "self._heads[stage - 1] + 2 if stage"),
        "a layer runs twice": ("self._heads[stage - 1] + 1 if stage", "self._heads[stage - 1] if stage"),
        "states of who waits are overwritten": ("hidden = run.keep(hidden)", "pass"),
        "who waits is forgotten": ("            queue.add(WaitingGroup(samples, hidden, layout, memory))\n", ""),
        "two batches in one lane": ("run.layer(index, hidden, layout, lane)", "run.layer(index, hidden, layout)"),
        "waiting samples are taken for neighbours": ("if stage == 0 else samples", "if stage >= 0 else samples"),
    },
}


@pytest.mark.parametrize(("module", "bug"), [("", ""), *((module, bug) for module in BUGS for bug in BUGS[module])])
def test_planted_bugs_are_caught(
    module: str,
    bug: str,
    make_model: Callable[..., MultiExitModel],
    make_tokens: Callable[..., TokenSet],
    planted: Callable[[str, str, str], Callable[[], None]],
    pretend_cuda: Callable[..., Any],
    fails_apart: Callable[..., bool],
) -> None:
    """Samples in refilled batches get wrong exits or logits with every bug, and right ones without."""
    model = make_model(shape=EncoderShape(DEPTH, 32, 4, 48, vocab_size=50, max_positions=16))
    tokens = make_tokens(np.random.default_rng(6).integers(1, 17, 32).tolist())
    expected = exit_logits(model, tokens, ONE_BY_ONE).numpy()
    put = planted(f"execution.regrouping.{module}", *BUGS[module][bug]) if module else None
    assert fails_apart(compare, put, model, tokens, expected, pretend_cuda) == bool(module)
