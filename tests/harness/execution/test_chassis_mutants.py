"""The tests of the execution code detect planted bugs, also those that show rarely or only on a device.

The check is small and complete: running order, batches and rejected input; then all executors, eagerly and with
stand-ins for graphs, against a model that runs sample by sample and shares only the attention code.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from harness.contracts import Execution, Predictions
from harness.core.errors import ConfigError
from harness.core.tokens import TokenSet
from harness.encoder.layout import Layout
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.shape import EncoderShape
from harness.execution import arrangement, cascade, executors, sequential, token_exits, verified
from harness.execution.exit_rules import Entropy, Patience, first_exit, normalised_entropy
from harness.execution.regrouping import look_once
from harness.toolkit.distillation import take_layers

N, DEPTH, END, SMALL, LOOK = 23, 4, 2, 2, 1
TOKENS = torch.from_numpy(np.random.default_rng(7).integers(0, DEPTH - 1, 50))  # only [CLS] runs to the end
SHAPE = EncoderShape(layers=DEPTH, width=32, heads=4, intermediate=48, vocab_size=50, max_positions=16)
EXITS = np.random.default_rng(5).integers(0, DEPTH, N).astype(np.int16)
LOOKS = np.stack([EXITS, np.random.default_rng(6).integers(0, DEPTH, N)], 1).astype(np.int16)
EXECUTIONS = [
    Execution(batch_size=4, max_length=12),
    Execution(batch_size=5, max_length=14, protocol="paper", window=7),
    Execution(batch_size=6, max_length=12, batch_tokens=20, executor="exact-k", order="arrival"),
    Execution(batch_size=N, max_length=12),  # graphs of several sizes
    Execution(batch_size=1, max_length=12),  # no token is selected, so hidden states stay in their row
]
# Both limits in turn, with and without padding.
CUTS = [
    Execution(batch_size=3, window=5, order="arrival", batch_tokens=1, max_length=12),
    Execution(batch_size=3, batch_tokens=1000, max_length=12),
    Execution(batch_size=9, batch_tokens=50, max_length=12, protocol="paper"),
]


@dataclass
class World:
    """A model, samples, the answers [L, N, C] of every layer to each sample alone, and a threshold far from any entropy.

    ``hashed`` [N, C] are the answers where tokens exit after the layers of ``TOKENS``.
    """

    model: MultiExitModel
    tokens: TokenSet
    student: torch.Tensor
    shared: torch.Tensor
    hashed: torch.Tensor
    speed: float

    def at(self, exits: np.ndarray, shared: bool = False) -> np.ndarray:
        table = self.shared if shared else self.student
        return table[torch.from_numpy(exits.astype(np.int64)), torch.arange(N)].numpy()

    def patient(self) -> np.ndarray:
        """Return the exits of samples whose last two heads agree."""
        same = (self.student[1:-1].argmax(-1) == self.student[:-2].argmax(-1)).numpy()
        return np.where(same.any(0), same.argmax(0) + 1, DEPTH - 1)

    def verified(self, end: int) -> np.ndarray:
        """Return the exits of samples with looks at ``LOOKS``."""
        sure = (normalised_entropy(self.student) <= self.speed).numpy()
        exits = np.zeros(N, np.int64)
        for sample in range(N):
            looks = [int(LOOKS[sample, 0]), *(min(int(look), end) for look in LOOKS[sample, 1:]), end]
            at = looks[0]
            for look in looks[1:]:
                if at >= end or sure[at, sample]:
                    break
                at = max(at, look)
            exits[sample] = at
        return exits


@pytest.fixture(scope="module")
def world(make_model: Callable[..., MultiExitModel], tokens: TokenSet) -> World:
    model = make_model(shape=SHAPE)
    student, shared, hashed = torch.zeros(DEPTH, N, 3), torch.zeros(DEPTH, N, 3), torch.zeros(N, 3)
    with torch.no_grad():
        for sample in range(N):
            one = tokens.select([sample])
            layout = Layout(one.lengths.numpy(), None, "cpu")
            state = token_exits.masked_state(model.encoder, one, layout, token_exits.TokenExits.of(TOKENS, DEPTH))
            hashed[sample] = model.teacher(state, layout)[0]
            states = list(model.encoder.states(one, layout))[1:]
            for index, hidden in enumerate(states):
                student[index, sample] = model.student(index)(hidden, layout)[0]
                again = hidden if index == DEPTH - 1 else model.encoder.layers[-1](hidden, layout)
                shared[index, sample] = model.teacher(again, layout)[0]
    entropies = normalised_entropy(student).flatten().sort().values
    middle = entropies[len(entropies) // 3 : -len(entropies) // 3]
    widest = int(middle.diff().argmax())
    return World(model, tokens, student, shared, hashed, float(middle[widest : widest + 2].mean()))


def check_order(world: World) -> None:
    """Samples are complete, sorted within windows, and cut into batches within the limits."""
    tokens, lengths = world.tokens, world.tokens.lengths.tolist()
    for execution in (*EXECUTIONS, *CUTS):
        for host_devices in (("cpu",), ()):
            arrangement.HOST_DEVICES = host_devices
            found = arrangement.arrange(tokens, execution, SHAPE, torch.from_numpy(LOOKS))
            by_length = execution.order == "length"
            window = execution.window or N
            expected = sorted(range(N), key=lambda i: (i // window, -LOOKS[i, 0], -lengths[i] * by_length))
            assert found.order.tolist() == expected
            assert found.lengths.tolist() == [lengths[i] for i in expected]
            assert found.columns.tolist() == LOOKS[expected].tolist()
            for begin, end in ((0, N), (7, 12)):
                batch, positions = found.batch(begin, end)
                wanted = tokens.select(expected[begin:end])
                for one, two in zip(
                    (batch.ids, batch.offsets, batch.segments),
                    (wanted.ids, wanted.offsets, wanted.segments),
                    strict=True,
                ):
                    assert one.tolist() == two.tolist()
                assert positions.tolist() == [place for i in expected[begin:end] for place in range(lengths[i])]
        sizes = np.full(N, execution.max_length) if execution.protocol == "paper" else found.lengths
        at = 0
        for first, last in executors.exit_batches(found.columns[:, 0], found.lengths, execution):
            assert first == at < last
            at = last
            assert last - first <= execution.batch_size and first // window == (last - 1) // window
            assert not execution.batch_tokens or last - first == 1 or sizes[first:last].sum() <= execution.batch_tokens
            assert execution.executor == "ladder" or len(set(found.columns[first:last, 0])) == 1
        assert at == N


def check_refusals() -> None:
    """Errors name samples by their number in the input; lengths and ids at the limit are accepted."""
    for rows, message in (
        ([[1] * 3, [], [1] * 5], "sample 1 has no token"),
        ([[1], [1] * 17, [1] * 3], "sample 1 has 17 tokens"),
        ([[1], [2] * 3, [-1]], "token id -1"),
        ([[1], [2] * 3, [50]], "token id 50"),
        ([[1], [2] * 16, [49, 0]], None),
        ([[1], [3], [5, 5]], "segment 2"),
    ):
        segments = [[row[0] // 2] * len(row) if message == "segment 2" else [1] * len(row) for row in rows]
        refused: AbstractContextManager[Any] = (
            nullcontext() if message is None else pytest.raises(ConfigError, match=message)
        )
        with refused:
            arrangement.arrange(TokenSet.from_lists(rows, segments), Execution(), SHAPE)


def decided(logits: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Return exits from the look on, by the label there and the length."""
    return (LOOK + (logits.argmax(-1) + lengths) % (DEPTH - LOOK)).to(torch.int16)


@cache
def small(model: MultiExitModel) -> MultiExitModel:
    """Return a model of the first layers whose head is the student head there."""
    made = MultiExitModel(take_layers(model.encoder, range(SMALL)), model.labels)
    made.teacher.load_state_dict(model.student(SMALL - 1).state_dict())
    return made.eval()


def every_run(world: World, execution: Execution) -> Iterator[tuple[Callable[[], Predictions], np.ndarray, np.ndarray]]:
    """Return all executors with the expected exits and logits."""
    model, tokens, rule = world.model, world.tokens, Entropy(world.speed)
    exits, looks = torch.from_numpy(EXITS), torch.from_numpy(LOOKS)
    full, sure = np.full(N, DEPTH - 1), first_exit(world.student, world.speed).numpy()
    yield lambda: executors.run_full(model, tokens, execution), full, world.at(full)
    yield lambda: executors.run_assigned(model, tokens, exits, execution), EXITS, world.at(EXITS)
    yield (
        lambda: executors.run_assigned(model, tokens, exits, execution, answer="shared"),
        EXITS,
        world.at(EXITS, shared=True),
    )
    yield lambda: sequential.run_sequential(model, tokens, execution, rule), sure, world.at(sure)
    patient = world.patient()
    yield lambda: sequential.run_sequential(model, tokens, execution, Patience(1)), patient, world.at(patient)
    yield lambda: sequential.run_faithful(model, tokens, execution, rule), sure, world.at(sure)
    hashed = token_exits.TokenExits.of(TOKENS, DEPTH)
    yield lambda: token_exits.run_token_exits(model, tokens, hashed, execution), full, world.hashed.numpy()
    sure = (normalised_entropy(world.student[SMALL - 1]) <= world.speed).numpy()
    where = np.where(sure, SMALL - 1, DEPTH - 1)
    yield lambda: cascade.run_cascade(small(model), model, tokens, execution, rule), where, world.at(where)
    looked = decided(world.student[LOOK], tokens.lengths).numpy()
    yield lambda: look_once.run_look_once(model, tokens, LOOK, decided, execution), looked, world.at(looked)
    for end in (DEPTH - 1, END):
        where = world.verified(end)
        yield (
            lambda end=end: verified.run_verified(model, tokens, looks, execution, rule, end=end),  # type: ignore[misc]
            where,
            world.at(where),
        )


def check_answers(world: World, kernel: Any) -> None:
    """Exits and logits are right with new and with existing graphs, and attention is counted as executed."""
    verified.CHUNK, look_once.ROWS = 4, 70
    for execution in EXECUTIONS:
        for compute in ("graphs", "eager"):
            for run, exits, logits in every_run(world, replace(execution, compute=compute)):  # type: ignore[arg-type]
                for again in (False, True) if compute == "graphs" else (True,):
                    before = kernel.pairs
                    found = run()
                    assert found.exit_layer.tolist() == exits.tolist()
                    np.testing.assert_allclose(found.logits, logits, rtol=1e-3, atol=1e-4)
                    if again and execution.protocol == "modern":
                        assert kernel.pairs - before == sum(tally.pairs for tally in found.work.blocks.values())
    model = world.model
    for scale in (1.0, 1.5):
        with torch.no_grad():
            model.teacher.label.weight.mul_(scale)  # type: ignore[union-attr, operator]
        expected = executors.run_full(model, world.tokens, Execution()).logits
        found = executors.run_full(model, world.tokens, replace(EXECUTIONS[0], compute="graphs"))
        np.testing.assert_allclose(found.logits, expected, rtol=1e-3, atol=1e-4)


def compare(put: Callable[[], None] | None, world: World, pretend_cuda: Callable[[pytest.MonkeyPatch], Any]) -> None:
    """Run all checks on execution code with a bug."""
    if put is not None:
        put()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            check_order(world)
            check_refusals()
            check_answers(world, pretend_cuda(patch))
        except Exception as error:  # any effect of a bug counts
            raise AssertionError from error


BUGS = {
    "execution.arrangement": {
        "tokens of samples in input order": ("tokens.offsets[order][owner]", "tokens.offsets[:-1][owner]"),
        "positions continue over samples": (" - offsets[owner]\n", "\n"),
        "lengths in input order": ("lengths[order][:, None]", "lengths[:, None]"),
        "looks in input order": ("known[order].long()", "known.long()"),
        "sorted by the last look": ("columns[:, 0].contiguous()", "columns[:, -1].contiguous()"),
        "always sorted by length": (
            'lengths if execution.order == "length" else torch.zeros_like(lengths)', "lengths"),
        "bounds of a device without length": ('execution.max_length if execution.order == "length" else 0', "0"),
        "one window on a device": ("max_length=longest, window=execution.window", "max_length=longest, window=0"),
        "offsets of a batch not from 0": (" - whole.offsets[begin]", ""),
        "positions from the wrong sample": ("self.positions[rows]", "self.positions[: rows.stop - rows.start]"),
        "segments of other samples": ("whole.segments[rows]", "whole.segments[: rows.stop - rows.start]"),
        "batch_tokens ignored": ("if not execution.batch_tokens:", "if True:"),
        "padding not counted": ('lengths[begin:end] if execution.protocol == "modern"', "lengths[begin:end] if True"),
        "a sample more than fits": ('side="right"))', 'side="right")) + 1'),
        "batches as long as tokens allow": ("first + execution.batch_size, len(sizes))", "len(sizes))"),
        "the last window is whole": ("min(begin + (window or count), count)", "begin + (window or count)"),
        "samples numbered in running order": ("sample {order[empty]} has", "sample {empty} has"),
        "one position too many": (
            "lengths[longest] > shape.max_positions", "lengths[longest] > shape.max_positions + 1"),
        "one id too many": ("high >= known", "high > known"),
        "negative ids": ("low < 0 or high", "high"),
        "segments are not validated": ('("segment", shape.type_vocab, *extremes[2:])', '("segment", 9, *extremes[2:])'),
    },
    "encoder.layout": {
        "offsets of a slice not from 0": ("part - part[0]", "part"),
        "rows of other samples are gathered": ("self.offsets[chosen] - offsets[:-1]", "self.offsets[chosen]"),
        "padded rows of other samples": (
            "chosen[row // self.pad_to] * self.pad_to", "row // self.pad_to * self.pad_to"),
        "a slice begins at its sample number": (
            "hidden[self.starts[start] : self.starts[stop]]",
            "hidden[start : self.starts[stop] - self.starts[start] + start]"),
        "one padding row is attended to": (
            "device=self.device) < lengths[:, None]", "device=self.device) <= lengths[:, None]"),
    },
    "execution.graphs": {
        "layers write what they read": ("place.states[1 - index % 2]", "place.states[index % 2]"),
        "a head reads the previous buffer": (
            "source = place.states[(exit_layer + 1) % 2]", "source = place.states[exit_layer % 2]"),
        "a head's input is in the wrong buffer": ("place.place(hidden, exit_layer + 1)", "place.place(hidden, exit_layer)"),
        "selected rows are not placed": ("        place.place(hidden, index)\n", ""),
        "bounds not clamped to the rows": ("self._bounds = bounds.clamp(max=rows)", "self._bounds = bounds"),
        "first tokens not clamped to the rows": ("self._bounds[:-1].clamp(max=self._rows - 1)", "self._bounds[:-1]"),
        "stale bounds beyond the batch": ("            self._bounds[root.count + 1 :].fill_(root.rows)\n", ""),
        "a lane keeps its first batch": ("if root is self.root:", "if self.root is not None:"),
        "padded lengths are not updated": ("self._lengths[: root.count].copy_(root.offsets[1:] - root.offsets[:-1])", "pass"),
        "the mask covers padding only": (
            "(every < lengths[:count, None].clamp(min=1))", "(every < pad_to + 0 * lengths[:count, None])"),
        "heads run in the lane of their batch": ("            lane = SIDE  #", "            pass  #"),
        "kept tensors are not copied": ("return tensor.clone()", "return tensor"),
        "graphs of one layer for all": ('(lane, "layer", index, rows)', '(lane, "layer", 0, rows)'),
        "graphs of one lane for all": ('(lane, "layer", index, rows)', '(0, "layer", index, rows)'),
        "graphs of one size for all": ('(lane, "layer", index, rows)', '(lane, "layer", index, 0)'),
        "graphs of one head for all": ('(lane, "head", exit_layer, rows)', '(lane, "head", 0, rows)'),
        "bounds of the recorded batch": (
            "        def run() -> None:\n            target",
            "        now = place.attention(rows)\n"
            "        place.attention = lambda _: now\n"
            "\n"
            "        def run() -> None:\n"
            "            target"),
        "lengths of the recorded batch": ("source[:rows], place.attention(rows)))", "source[:rows], layout))"),
        "a graph runs its first batch only": (
            "        self._graphs[key]()",
            '        if key[-1] != self.__dict__.setdefault("last", key[-1]):\n            self._graphs[key]()'),
        "unused rows not counted": ("np.minimum(layout.root.starts, rows)", "np.minimum(layout.starts, rows)"),
    },
    "execution.engine_cache": {
        "old weights": ("if kept is None or kept.weights != weights:", "if kept is None:"),
    },
    "execution.run_pass": {
        "answers in another order": (
            "self.logits.index_copy_(0, transfer.upload(samples, self.device), logits)",
            "self.logits[: len(samples)] = logits"),
        "exits in another order": ("self.exits[samples] = exit_layer", "self.exits[: len(logits)] = exit_layer"),
        "answers are sorted twice": ("out[self.arranged.order] = values", "out = values[self.arranged.order]"),
        "one buffer for two interleaved batches": ("advance(make(lane), lane, None)", "advance(make(0), lane, None)"),
        "lanes are not freed": ("            free.append(lane)\n", "            pass\n"),
        "the shared layer in the lane of its batch": (
            "self.layer(last, hidden, layout, SIDE)", "self.layer(last, hidden, layout)"),
        "exiting samples run one more layer": ("int((ends >= index).sum())", "int((ends >= index - 1).sum())"),
        "continuing samples are answered": (
            "layout.slice(hidden, staying, active)", "layout.slice(hidden, 0, active - staying)"),
    },
    "execution.executors": {
        "answers at the index in the batch": (
            "slice(first + ended.start, first + ended.stop)", "slice(ended.start, ended.stop)"),
        "exact-k is a ladder": ('if execution.executor == "exact-k":', "if False:"),
    },
    "execution.sequential": {
        "the wrong samples continue": ("np.flatnonzero(stay)", "np.flatnonzero(~stay)"),
        "numbers of samples that exited": ("else samples)[stay]", "else samples)[: stay.sum()]"),
        "layers of all batches in one lane": (
            "run.layer(index, hidden, layout, lane)", "run.layer(index, hidden, layout)"),
        "embeddings of all batches in one lane": ("run.begin(first, last, lane)", "run.begin(first, last)"),
        "all exit if one does": ("if not stay.any():", "if not stay.all():"),
        "memories of other samples": ("part.index_select(0, rows)", "part[: len(rows)]"),
        "a rule's memory is not updated": ("leaves, memory = rule.look(", "leaves, _ = rule.look("),
        "answers of continuing samples": ("logits[torch.tensor(going, device=logits.device)]", "logits[: len(going)]"),
    },
    "execution.verified": {
        "the end is ignored": (" | (group.depth >= end)", ""),
        "looks beyond the end": ("        targets[:, 1:] = np.minimum(targets[:, 1:], stop)\n", ""),
        "hidden states are not kept": ("run.keep(hidden)", "hidden"),
        "logits are not kept": (
            "run.keep(run.head(index, hidden, layout))", "run.head(index, hidden, layout)"),
        "all decisions are the first one's": ("        start += len(group.samples)\n", ""),
        "shallow goals first": ("-goal[samples]", "goal[samples]"),
        "unsure samples wait at the wrong layer": ("setdefault(group.depth, [])", "setdefault(end - 1, [])"),
        "goals of other samples": ("targets[samples, 0]", "targets[: len(samples), 0]"),
        "joined without their lengths": (
            "np.concatenate([group.layout.lengths for group in groups])",
            "np.concatenate([group.layout.lengths for group in groups][::-1])"),
    },
    "execution.regrouping.look_once": {
        "numbers of another chunk": ("first + samples[ended]", "samples[ended]"),
        "places in the new order": ("first + samples[ended].astype", "first + np.arange(begin, stop)[ended].astype"),
        "hidden states of the last batch": ("states[at : at + layout.rows]", "states[: layout.rows]"),
    },
    "encoder.partial_attention": {
        "rows that have exited": ("torch.where(active, active", "torch.where(~active, (~active)"),
        "queries of other samples": ("self._starts[:-1, None] + cell", "cell"),
        "bounds of the whole batch": ("self.bounds, layout.bounds", "layout.bounds, layout.bounds"),
        "no mask": ("attend_grid((q, k, v), self._seen(reach))", "attend_grid((q, k, v), None)"),
        "pairs of the whole batch": ("self.counts * layout.lengths", "layout.lengths * layout.lengths"),
    },
    "execution.token_exits": {
        "a layer too few": ("return bisect_left(self.layers, layer)", "return bisect_left(self.layers, layer + 1)"),
        "a layer too many": ("return bisect_left(self.layers, layer)", "return bisect_left(self.layers, layer - 1)"),
        "the first token exits": ("index_fill_(0, first,", "index_fill_(0, first[:0],"),
        "exits in order of arrival": ("exits.places(run.arranged.tokens)", "exits.places(tokens)"),
        "keys of exited tokens are not updated": ("            hidden.index_copy_(0, some.index, active)\n", ""),
        "the state of running tokens is lost": (
            "active = hidden.index_select(0, some.index)", "active = hidden[: some.rows]"),
        "padding is a token": ("every >= lengths[:, None]", "every >= 0 * lengths[:, None]"),
    },
    "execution.cascade": {
        "confident samples continue": ("np.flatnonzero(~(yield", "np.flatnonzero((yield"),
        "samples of the first window": ("(torch.cat(sure)))) + begin", "(torch.cat(sure)))) + 0 * begin"),
        "the small model again": ("Pass.over(whole, going, run)", "Pass.over(run.model, going, run)"),
        "answers of other samples": ("run.answer(going, second", "run.answer(going[::-1].copy(), second"),
    },
}  # fmt: skip
CASES = [(module, bug) for module, bugs in BUGS.items() for bug in bugs]


@pytest.mark.slow
def test_the_unchanged_code_passes(
    world: World, pretend_cuda: Callable[..., Any], fails_apart: Callable[..., bool]
) -> None:
    """The checks pass without a planted bug."""
    assert not fails_apart(compare, None, world, pretend_cuda)


@pytest.mark.slow
@pytest.mark.parametrize(("module", "bug"), CASES)
def test_planted_bugs_are_caught(
    module: str,
    bug: str,
    world: World,
    planted: Callable[[str, str, str], Callable[[], None]],
    pretend_cuda: Callable[..., Any],
    fails_apart: Callable[..., bool],
) -> None:
    """The checks fail for every planted bug."""
    assert fails_apart(compare, planted(module, *BUGS[module][bug]), world, pretend_cuda)
