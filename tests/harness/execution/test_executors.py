"""Whatever batch, order, window, layout or executor: the same answer for every sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.contracts import Execution, Predictions
from harness.core.errors import ConfigError
from harness.core.tokens import TokenSet
from harness.encoder.multi_exit import MultiExitModel
from harness.execution.executors import exit_logits, run_assigned, run_full
from harness.execution.exit_rules import Entropy, first_exit, normalised_entropy
from harness.execution.run_pass import Answer
from harness.execution.sequential import run_sequential
from harness.execution.verified import run_verified

N, DEPTH = 23, 4
ONE_BY_ONE = Execution(batch_size=1, order="arrival", max_length=12)
EXECUTIONS = st.builds(
    Execution,
    batch_size=st.integers(1, N),
    protocol=st.sampled_from(["modern", "paper"]),
    order=st.sampled_from(["arrival", "length"]),
    window=st.one_of(st.just(0), st.integers(1, N + 2)),
    executor=st.sampled_from(["ladder", "exact-k"]),
    max_length=st.integers(12, 16),
)
SHARED = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def widest_gap(values: Tensor) -> float:
    """The middle of the widest gap between sorted values, so that rounding decides nothing."""
    ordered = values.flatten().sort().values
    inner = ordered[len(ordered) // 4 : -len(ordered) // 4]  # some samples leave, but not all
    at = int(inner.diff().argmax())
    return float((inner[at] + inner[at + 1]) / 2)


@dataclass
class World:
    """A model, samples, every head's answer to them sample by sample, and a threshold that no entropy is near."""

    model: MultiExitModel
    tokens: TokenSet
    student: Tensor  # [A, N, C]
    shared: Tensor
    speed: float

    def naive(self, exits: np.ndarray, answer: Answer = "student") -> np.ndarray:
        """Logits [N, C] of the given exits."""
        table = self.student if answer == "student" else self.shared
        return table[torch.from_numpy(exits.astype(np.int64)), torch.arange(len(exits))].numpy()

    def sure(self) -> np.ndarray:
        """bool [A, N]: whether each sample would leave at each head."""
        return (normalised_entropy(self.student) <= self.speed).numpy()


@pytest.fixture(scope="module")
def world(tiny_model: MultiExitModel, tokens: TokenSet) -> World:
    student, shared = (exit_logits(tiny_model, tokens, ONE_BY_ONE, answer=kind) for kind in ("student", "shared"))
    return World(tiny_model, tokens, student, shared, widest_gap(normalised_entropy(student)))


def check(found: Predictions, exits: np.ndarray, logits: np.ndarray) -> None:
    """Exits equal, labels equal, logits up to rounding."""
    assert found.exit_layer.dtype == np.int16
    assert found.logits.dtype == np.float32
    assert found.exit_layer.tolist() == exits.tolist()
    np.testing.assert_allclose(found.logits, logits, rtol=1e-3, atol=1e-4)
    assert found.logits.argmax(1).tolist() == logits.argmax(1).tolist()


def check_layers(found: Predictions, passes: int) -> None:
    assert found.work.rows("layer") == passes
    assert 0 < found.work.valid_token_ratio() <= 1


def test_the_world_is_worth_testing_in(world: World) -> None:
    """Samples differ: every layer is the exit of one, several labels occur, and no entropy is near the threshold."""
    exits = first_exit(world.student, world.speed)
    assert set(exits.tolist()) == set(range(DEPTH))
    assert len(set(world.student.argmax(-1).flatten().tolist())) == 3
    assert float((normalised_entropy(world.student) - world.speed).abs().min()) > 1e-3
    margins = world.student.topk(2).values
    assert float((margins[..., 0] - margins[..., 1]).min()) > 1e-3


@SHARED
@given(execution=EXECUTIONS)
def test_full_depth_is_the_same_in_every_execution(world: World, execution: Execution) -> None:
    """All samples run all layers and one head, and give the same logits."""
    found = run_full(world.model, world.tokens, execution)
    exits = np.full(N, DEPTH - 1)
    check(found, exits, world.naive(exits))
    check_layers(found, N * DEPTH)
    assert found.work.rows("head") == N


@SHARED
@given(execution=EXECUTIONS)
def test_shrinking_batches_equal_batch_size_one(world: World, execution: Execution) -> None:
    """FastBERT's inference in any batch leaves where it leaves alone, and asks a head after each layer it ran."""
    found = run_sequential(world.model, world.tokens, execution, Entropy(world.speed))
    exits = first_exit(world.student, world.speed).numpy()
    check(found, exits, world.naive(exits))
    check_layers(found, int((exits + 1).sum()))
    assert found.work.rows("head") == int((exits + 1).sum())


@SHARED
@given(execution=EXECUTIONS, draw=st.data(), answer=st.sampled_from(["student", "shared"]))
def test_assigned_exits_are_the_same_in_every_execution(
    world: World, execution: Execution, draw: st.DataObject, answer: Answer
) -> None:
    """Ladder and exact-k, students and the shared pair, any exits: the logits of that sample at that exit."""
    exits = np.array(draw.draw(st.lists(st.integers(0, DEPTH - 1), min_size=N, max_size=N)))
    found = run_assigned(world.model, world.tokens, torch.from_numpy(exits).to(torch.int16), execution, answer=answer)
    check(found, exits, world.naive(exits, answer))
    check_layers(found, int((exits + 1).sum()) + (int((exits < DEPTH - 1).sum()) if answer == "shared" else 0))
    assert found.work.rows("head") == N
    assert found.predicted_exit is not None
    assert found.predicted_exit.tolist() == exits.tolist()


def by_hand(world: World, looks: np.ndarray) -> tuple[np.ndarray, int]:
    """Where every sample leaves after its looks, and how many heads were asked."""
    sure, exits, heads = world.sure(), np.full(N, DEPTH - 1), 0
    for sample in range(N):
        seen: list[int] = []
        for look in looks[sample]:
            if seen and look <= seen[-1]:
                continue
            seen.append(int(look))
            if sure[look, sample]:
                break
        if sure[seen[-1], sample]:
            exits[sample] = seen[-1]
        elif seen[-1] != DEPTH - 1:
            seen.append(DEPTH - 1)
        heads += len(seen)
    return exits, heads


@SHARED
@given(execution=EXECUTIONS, draw=st.data(), columns=st.sampled_from([1, 3]))
def test_verified_exits_are_the_same_in_every_execution(
    world: World, execution: Execution, draw: st.DataObject, columns: int
) -> None:
    """With one look or three, rising or not, confident samples leave at a look, the others at the end."""
    row = st.lists(st.integers(0, DEPTH - 1), min_size=columns, max_size=columns)
    looks = np.array(draw.draw(st.lists(row, min_size=N, max_size=N)))
    found = run_verified(
        world.model, world.tokens, torch.from_numpy(looks).to(torch.int16), execution, Entropy(world.speed)
    )
    exits, heads = by_hand(world, looks)
    check(found, exits, world.naive(exits))
    check_layers(found, int((exits + 1).sum()))
    assert found.work.rows("head") == heads


@pytest.mark.parametrize("batch_size", [1, 5, N])
@pytest.mark.parametrize("speed", [1.0 + 1e-6, -1.0])
def test_verified_at_the_ends_of_the_scale(world: World, speed: float, batch_size: int) -> None:
    """At threshold 1 all samples leave at the first look; below 0 none leaves before the end."""
    looks = torch.arange(N, dtype=torch.int16)[:, None] % DEPTH
    found = run_verified(world.model, world.tokens, looks, Execution(batch_size=batch_size), Entropy(speed))
    exits = looks[:, 0].numpy() if speed > 0 else np.full(N, DEPTH - 1)
    check(found, exits, world.naive(exits))
    early = int((looks[:, 0] < DEPTH - 1).sum())
    assert found.work.rows("head") == N + (0 if speed > 0 else early)


def every_executor(world: World, tokens: TokenSet, exits: Tensor, execution: Execution) -> Iterator[Predictions]:
    """The four ways to run, all of which answer from ``exits`` (one of them after a look there)."""
    yield run_assigned(world.model, tokens, exits, execution)
    yield run_verified(world.model, tokens, exits[:, None], execution, Entropy(2.0))
    if bool((exits == 0).all()):
        yield run_sequential(world.model, tokens, execution, Entropy(2.0))
    if bool((exits == DEPTH - 1).all()):
        yield run_sequential(world.model, tokens, execution, Entropy(-1.0))
        yield run_full(world.model, tokens, execution)


@pytest.mark.parametrize("executor", ["ladder", "exact-k"])
@pytest.mark.parametrize("protocol", ["modern", "paper"])
@pytest.mark.parametrize("layer", range(DEPTH))
def test_extreme_inputs(
    world: World, make_tokens: Callable[..., TokenSet], layer: int, protocol: str, executor: str
) -> None:
    """A single sample, samples of one token, and all samples leaving at one layer give what each gives alone."""
    execution = Execution(batch_size=4, protocol=protocol, executor=executor, max_length=12)  # type: ignore[arg-type]
    for tokens in (world.tokens.select([7]), make_tokens([1] * 6), world.tokens):
        exits = torch.full((len(tokens),), layer, dtype=torch.int16)
        expected = exit_logits(world.model, tokens, ONE_BY_ONE)[layer].numpy()
        for found in every_executor(world, tokens, exits, execution):
            check(found, exits.numpy(), expected)


@pytest.mark.parametrize("head", ["fastbert", "linear"])
def test_exits_may_be_few(make_model: Callable[..., MultiExitModel], tokens: TokenSet, head: str) -> None:
    """With heads after some layers only, sequential exits ask only those, and other layers cannot be assigned."""
    model = make_model(exits=(1,), head=head)
    assert model.answers == (1, DEPTH - 1)
    found = run_sequential(model, tokens, Execution(batch_size=4), Entropy(2.0))
    assert set(found.exit_layer.tolist()) == {1}
    assert found.work.rows("head") == N
    for run in (
        lambda: run_assigned(model, tokens, torch.zeros(N, dtype=torch.int16), Execution()),
        lambda: run_verified(model, tokens, torch.zeros(N, 1, dtype=torch.int16), Execution(), Entropy(0.5)),
    ):
        with pytest.raises(ConfigError, match=r"no trained head after layer index \[0\]"):
            run()


def test_a_sample_that_does_not_fit_the_padding_is_refused(world: World) -> None:
    """Protocol ``paper`` says which length does not fit."""
    with pytest.raises(ConfigError, match="does not fit 4"):
        run_full(world.model, world.tokens, Execution(protocol="paper", max_length=4))


def test_model_files_bring_the_same_answers(world: World, tmp_path) -> None:
    """Saved and loaded, the model answers bit for bit as before; training state and gradients are of no concern."""
    world.model.save(tmp_path)
    again = MultiExitModel.load(tmp_path)
    assert not again.training
    assert torch.equal(exit_logits(again, world.tokens, ONE_BY_ONE), world.student)


@pytest.mark.gpu
@pytest.mark.parametrize("executor", ["ladder", "exact-k"])
@pytest.mark.parametrize("protocol", ["modern", "paper"])
def test_cuda_gives_the_labels_of_the_cpu(
    world: World, make_model: Callable[..., MultiExitModel], protocol: str, executor: str
) -> None:
    """In float32 a GPU leaves at the same layers and answers the same labels, in every executor."""
    execution = Execution(batch_size=5, protocol=protocol, executor=executor, max_length=12)  # type: ignore[arg-type]
    model, tokens = make_model().to("cuda"), world.tokens.to("cuda")
    rule = Entropy(world.speed)
    exits = first_exit(world.student, world.speed).to(torch.int16)
    full = np.full(N, DEPTH - 1)
    looks = (torch.arange(N, dtype=torch.int16) % DEPTH)[:, None].repeat(1, 2)
    for found, where in (
        (run_full(model, tokens, execution), full),
        (run_sequential(model, tokens, execution, rule), exits.numpy()),
        (run_assigned(model, tokens, exits.cuda(), execution), exits.numpy()),
        (run_verified(model, tokens, looks.cuda(), execution, rule), by_hand(world, looks.numpy())[0]),
    ):
        assert found.exit_layer.tolist() == where.tolist()
        assert found.logits.argmax(1).tolist() == world.naive(where).argmax(1).tolist()
        np.testing.assert_allclose(found.logits, world.naive(where), rtol=1e-2, atol=1e-3)
