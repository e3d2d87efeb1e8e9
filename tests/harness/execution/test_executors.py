"""Every sample gets the same answer for any batch, order, window, layout and executor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

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
from harness.execution.regrouping import look_once
from harness.execution.regrouping.look_once import run_look_once
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
SHARED = settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])


def widest_gap(values: Tensor) -> float:
    """Return the middle of the widest gap between sorted values, so that rounding cannot change a decision."""
    ordered = values.flatten().sort().values
    inner = ordered[len(ordered) // 4 : -len(ordered) // 4]  # some samples exit, but not all
    at = int(inner.diff().argmax())
    return float((inner[at] + inner[at + 1]) / 2)


@dataclass
class World:
    """A model, samples, the answers of every head to each sample alone, and a threshold far from any entropy."""

    model: MultiExitModel
    tokens: TokenSet
    student: Tensor  # [A, N, C]
    shared: Tensor
    speed: float

    def naive(self, exits: np.ndarray, answer: Answer = "student") -> np.ndarray:
        """Return the logits [N, C] of the given exits."""
        table = self.student if answer == "student" else self.shared
        return table[torch.from_numpy(exits.astype(np.int64)), torch.arange(len(exits))].numpy()

    def sure(self) -> np.ndarray:
        """Return whether each sample would exit at each head, bool [A, N]."""
        return (normalised_entropy(self.student) <= self.speed).numpy()


@pytest.fixture(scope="module")
def world(tiny_model: MultiExitModel, tokens: TokenSet) -> World:
    student, shared = (exit_logits(tiny_model, tokens, ONE_BY_ONE, answer=kind) for kind in ("student", "shared"))
    return World(tiny_model, tokens, student, shared, widest_gap(normalised_entropy(student)))


def check(found: Predictions, exits: np.ndarray, logits: np.ndarray) -> None:
    """Check that exits and labels are equal, and logits up to rounding."""
    assert found.exit_layer.dtype == np.int16
    assert found.logits.dtype == np.float32
    assert found.exit_layer.tolist() == exits.tolist()
    np.testing.assert_allclose(found.logits, logits, rtol=1e-3, atol=1e-4)
    assert found.logits.argmax(1).tolist() == logits.argmax(1).tolist()


def check_layers(found: Predictions, passes: int) -> None:
    assert found.work.rows("layer") == passes
    assert 0 < found.work.valid_token_ratio() <= 1


def test_the_samples_are_diverse(world: World) -> None:
    """Every layer is the exit of some sample, several labels occur, and no entropy is near the threshold."""
    exits = first_exit(world.student, world.speed)
    assert set(exits.tolist()) == set(range(DEPTH))
    assert len(set(world.student.argmax(-1).flatten().tolist())) == 3
    assert float((normalised_entropy(world.student) - world.speed).abs().min()) > 1e-3
    margins = world.student.topk(2).values
    assert float((margins[..., 0] - margins[..., 1]).min()) > 1e-3


@SHARED
@given(execution=EXECUTIONS)
def test_full_depth_is_the_same_in_every_execution(world: World, execution: Execution) -> None:
    """All samples run all layers and one head, with the same logits."""
    found = run_full(world.model, world.tokens, execution)
    exits = np.full(N, DEPTH - 1)
    check(found, exits, world.naive(exits))
    check_layers(found, N * DEPTH)
    assert found.work.rows("head") == N


@SHARED
@given(execution=EXECUTIONS)
def test_shrinking_batches_equal_batch_size_one(world: World, execution: Execution) -> None:
    """FastBERT's inference exits at the same layer in any batch and asks one head per executed layer."""
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
    """Ladder and exact-k, with students or the shared pair, give each sample the logits of its assigned exit."""
    exits = np.array(draw.draw(st.lists(st.integers(0, DEPTH - 1), min_size=N, max_size=N)))
    found = run_assigned(world.model, world.tokens, torch.from_numpy(exits).to(torch.int16), execution, answer=answer)
    check(found, exits, world.naive(exits, answer))
    check_layers(found, int((exits + 1).sum()) + (int((exits < DEPTH - 1).sum()) if answer == "shared" else 0))
    assert found.work.rows("head") == N
    assert found.predicted_exit is not None
    assert found.predicted_exit.tolist() == exits.tolist()


def by_hand(world: World, looks: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the layer at which every sample exits after its looks, and the number of heads asked."""
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
    """With one or three looks, rising or not, confident samples exit at a look and the others at the last layer."""
    row = st.lists(st.integers(0, DEPTH - 1), min_size=columns, max_size=columns)
    looks = np.array(draw.draw(st.lists(row, min_size=N, max_size=N)))
    found = run_verified(
        world.model, world.tokens, torch.from_numpy(looks).to(torch.int16), execution, Entropy(world.speed)
    )
    exits, heads = by_hand(world, looks)
    check(found, exits, world.naive(exits))
    check_layers(found, int((exits + 1).sum()))
    assert found.work.rows("head") == heads


def chosen(logits: Tensor, lengths: Tensor, look: int, exits: Sequence[int]) -> Tensor:
    """Choose among exits by the label at the look and the length, int16 [B]."""
    places = (logits.argmax(-1) + lengths) % len(exits)
    return torch.tensor(exits, device=logits.device)[places].to(torch.int16)


@SHARED
@given(execution=EXECUTIONS, look=st.integers(0, DEPTH - 2), rows=st.sampled_from([1, 40, 1 << 18]), draw=st.data())
def test_one_look_is_the_same_in_every_execution(
    world: World, execution: Execution, look: int, rows: int, draw: st.DataObject
) -> None:
    """Every sample is answered at the exit that its own look decides, with one head there, and one more at the look."""
    exits = sorted(draw.draw(st.sets(st.integers(look, DEPTH - 1), min_size=1)))
    decide = partial(chosen, look=look, exits=exits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(look_once, "ROWS", rows)
        found = run_look_once(world.model, world.tokens, look, decide, execution)
    expected = decide(world.student[look], world.tokens.lengths).numpy()
    check(found, expected, world.naive(expected))
    check_layers(found, int((expected + 1).sum()))
    assert found.work.rows("head") == N + int((expected > look).sum())
    assert {"layers", "predict", "schedule", "copy"} <= set(found.phases)
    assert found.predicted_exit is not None
    assert found.predicted_exit.tolist() == expected.tolist()


def test_a_look_needs_a_head(make_model: Callable[..., MultiExitModel], tokens: TokenSet) -> None:
    """A look without a head, at the last layer or outside, and exits without one or before the look are named."""
    model = make_model(exits=(1,))
    for look in (0, 2, DEPTH - 1, DEPTH, -1):
        with pytest.raises(
            ConfigError, match=f"no head to look at after layer {look + 1}: exits are after layers \\[2\\]"
        ):
            run_look_once(model, tokens, look, partial(chosen, look=look, exits=[1]), Execution())
    for wrong in (0, 2, DEPTH):
        with pytest.raises(ConfigError, match=rf"no trained head after layer index \[{wrong}\] from the look on"):
            run_look_once(model, tokens, 1, partial(chosen, look=1, exits=[wrong]), Execution())
    found = run_look_once(model, tokens.select([]), 1, partial(chosen, look=1, exits=[1]), Execution())
    assert found.logits.shape == (0, 3)


@pytest.mark.parametrize("batch_size", [1, 5, N])
@pytest.mark.parametrize("speed", [1.0 + 1e-6, -1.0])
def test_verified_exits_at_extreme_thresholds(world: World, speed: float, batch_size: int) -> None:
    """At threshold 1 all samples exit at the first look; below 0 none exits before the last layer."""
    looks = torch.arange(N, dtype=torch.int16)[:, None] % DEPTH
    found = run_verified(world.model, world.tokens, looks, Execution(batch_size=batch_size), Entropy(speed))
    exits = looks[:, 0].numpy() if speed > 0 else np.full(N, DEPTH - 1)
    check(found, exits, world.naive(exits))
    early = int((looks[:, 0] < DEPTH - 1).sum())
    assert found.work.rows("head") == N + (0 if speed > 0 else early)


def every_executor(world: World, tokens: TokenSet, exits: Tensor, execution: Execution) -> Iterator[Predictions]:
    """Return the executors that use ``exits`` (one of them after a look there, one after a look at the first layer)."""
    yield run_assigned(world.model, tokens, exits, execution)
    yield run_verified(world.model, tokens, exits[:, None], execution, Entropy(2.0))
    yield run_look_once(world.model, tokens, 0, partial(chosen, look=0, exits=[int(exits[0])]), execution)
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
    """A single sample, samples of one token, and samples that all exit at one layer get the answers they get alone."""
    execution = Execution(batch_size=4, protocol=protocol, executor=executor, max_length=12)  # type: ignore[arg-type]
    for tokens in (world.tokens.select([7]), make_tokens([1] * 6), world.tokens):
        exits = torch.full((len(tokens),), layer, dtype=torch.int16)
        expected = exit_logits(world.model, tokens, ONE_BY_ONE)[layer].numpy()
        for found in every_executor(world, tokens, exits, execution):
            check(found, exits.numpy(), expected)


@pytest.mark.parametrize("head", ["fastbert", "linear"])
def test_a_model_may_have_few_exits(make_model: Callable[..., MultiExitModel], tokens: TokenSet, head: str) -> None:
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


def test_a_sample_longer_than_the_padding_is_rejected(world: World) -> None:
    """The error of protocol ``paper`` names the length that does not fit."""
    with pytest.raises(ConfigError, match="does not fit 4"):
        run_full(world.model, world.tokens, Execution(protocol="paper", max_length=4))


def test_a_loaded_model_gives_the_same_answers(world: World, tmp_path) -> None:
    """A saved and loaded model answers bit for bit as before, whatever its training mode and gradients were."""
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
    """In float32, a GPU gives the exits and labels of the CPU in every executor."""
    execution = Execution(batch_size=5, protocol=protocol, executor=executor, max_length=12)  # type: ignore[arg-type]
    model, tokens = make_model().to("cuda"), world.tokens.to("cuda")
    rule = Entropy(world.speed)
    exits = first_exit(world.student, world.speed).to(torch.int16)
    full = np.full(N, DEPTH - 1)
    looks = (torch.arange(N, dtype=torch.int16) % DEPTH)[:, None].repeat(1, 2)
    decide = partial(chosen, look=1, exits=[1, 2, 3])
    once = decide(world.student[1], world.tokens.lengths).numpy()
    for found, where in (
        (run_full(model, tokens, execution), full),
        (run_sequential(model, tokens, execution, rule), exits.numpy()),
        (run_assigned(model, tokens, exits.cuda(), execution), exits.numpy()),
        (run_look_once(model, tokens, 1, decide, execution), once),
        (run_verified(model, tokens, looks.cuda(), execution, rule), by_hand(world, looks.numpy())[0]),
    ):
        assert found.exit_layer.tolist() == where.tolist()
        assert found.logits.argmax(1).tolist() == world.naive(where).argmax(1).tolist()
        np.testing.assert_allclose(found.logits, world.naive(where), rtol=1e-2, atol=1e-3)
