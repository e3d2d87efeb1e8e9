"""Exit rules equal decisions computed by hand and give the same exits at any batch size."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.contracts import Execution
from harness.core.tokens import TokenSet
from harness.encoder.layout import Layout
from harness.encoder.model import ExitGate, ExitPolicy, Gate, HaltingGate
from harness.encoder.multi_exit import MultiExitModel
from harness.execution.executors import exit_evidence, exit_logits
from harness.execution.exit_rules import (
    Confidence,
    Entropy,
    ExitRule,
    Learned,
    Patience,
    PatienceConfidence,
    PatienceSimilarity,
    Policy,
    QExit,
    RawEntropy,
    Static,
    candidate_thresholds,
    difference,
    first_exit,
    normalised_entropy,
    replay,
    scores_of,
)
from harness.execution.sequential import run_sequential

N, DEPTH = 23, 4
ONE_BY_ONE = Execution(batch_size=1, order="arrival", max_length=12)
EXECUTIONS = st.builds(
    Execution,
    batch_size=st.integers(1, N),
    protocol=st.sampled_from(["modern", "paper"]),
    order=st.sampled_from(["arrival", "length"]),
    window=st.one_of(st.just(0), st.integers(1, N + 2)),
    max_length=st.integers(12, 16),
)
TEMPERATURES = (0.5, 2.0, 1.0, 3.0)
THRESHOLDED: dict[str, Callable[[Any, Any], ExitRule]] = {
    "entropy": lambda at, gate: Entropy(at),
    "raw-entropy": lambda at, gate: RawEntropy(at),
    "confidence": lambda at, gate: Confidence(at, TEMPERATURES),
    "learned": lambda at, gate: Learned(at, gate),
    "policy": lambda at, gate: Policy(at, gate),
    "q-exit": lambda at, gate: QExit(at, gate),
    "twice sure": lambda at, gate: PatienceConfidence(at, 2),
    "alike": lambda at, gate: PatienceSimilarity(at, 1),
    "twice alike": lambda at, gate: PatienceSimilarity(1.5 * at, 2),
}


def wide_gap(scores: Tensor) -> float:
    """Return the middle of the widest gap in the middle half as float32, so that rounding cannot change a decision."""
    ordered = scores.flatten().sort().values
    inner = ordered[len(ordered) // 4 : -len(ordered) // 4]
    at = int(inner.diff().argmax())
    return float((inner[at] + inner[at + 1]) / 2)


@dataclass
class World:
    """A model, gates by rule, samples, and the outputs of every head and gate for each sample alone."""

    model: MultiExitModel
    gates: dict[str, Gate]
    tokens: TokenSet
    logits: Tensor  # [A, N, C]
    doubts: dict[str, Tensor]  # [A, N] or [A, N, width]

    def rule(self, name: str) -> ExitRule:
        """Return a rule by name, at a threshold far from any score."""
        if name in THRESHOLDED:
            make, gate = THRESHOLDED[name], self.gates.get(name)
            scores = scores_of(make(0.0, gate), self.logits, self.doubts.get(name))
            return make(wide_gap(scores), gate)
        return {"patience 1": Patience(1), "patience 2": Patience(2), "static": Static(2)}[name]


NAMES = [*THRESHOLDED, "patience 1", "patience 2", "static"]


@pytest.fixture(scope="module")
def world(tiny_model: MultiExitModel, tokens: TokenSet) -> World:
    torch.manual_seed(3)
    kinds: dict[str, type[Gate]] = {"learned": ExitGate, "policy": ExitPolicy, "q-exit": HaltingGate}
    gates = {rule: kind.beside(tiny_model.encoder.shape.width, DEPTH - 1).eval() for rule, kind in kinds.items()}
    for network in (*gates["policy"].modules(), *gates["q-exit"].modules()):
        if isinstance(network, torch.nn.Linear):
            torch.nn.init.normal_(network.weight, std=0.7)  # so that samples differ
    found = {rule: exit_evidence(tiny_model, tokens, ONE_BY_ONE, gate=gate) for rule, gate in gates.items()}
    doubts = {rule: doubt for rule, (_, doubt) in found.items() if doubt is not None}
    return World(tiny_model, gates, tokens, found["learned"][0], doubts)


@torch.no_grad()
def by_hand(name: str, world: World, sample: int) -> int:
    """Return the exit of each sample by the definition of every rule, computed on Python numbers."""
    rule, run, before, last, going_on = world.rule(name), 0, None, None, 1.0
    for place in range(DEPTH - 1):
        z = world.logits[place, sample].double()
        p = z.softmax(0)
        entropy = -float((p * p.log()).sum())
        if name == "entropy":
            leaves = entropy / math.log(3) <= rule.threshold
        elif name == "raw-entropy":
            leaves = entropy < rule.threshold
        elif name == "confidence":
            leaves = float((z / TEMPERATURES[place]).softmax(0).max()) >= rule.threshold
        elif name == "learned":
            leaves = float(world.doubts[name][place, sample]) < rule.threshold
        elif name == "policy":
            leaves = float(rule.gate.networks[place](world.doubts[name][place, sample])) > rule.threshold
        elif name == "q-exit":
            states = world.doubts[name][:, sample]
            x = torch.cat([states[place], states[place - 1] if place else torch.zeros(len(states[0]))])
            for layer in rule.gate.deep:
                x = torch.tanh(x @ layer.weight.T + layer.bias)
            going_on *= 1 - float((x @ rule.gate.halt.weight[0] + rule.gate.halt.bias).sigmoid())
            leaves = 1 - going_on > rule.threshold
        elif name == "twice sure":
            run = run + 1 if entropy / math.log(3) < rule.threshold else 0
            leaves = run == 2
        elif "alike" in name:
            if last is not None:
                mean = (p + last) / 2
                kl = [float((q * (q / mean).log()).sum()) / math.log(2) for q in (p, last)]
                run = run + 1 if sum(kl) / 2 < rule.threshold else 0
            last = p
            leaves = run == rule.patience
        elif name == "static":
            leaves = place == 2
        else:
            said = int(p.argmax())
            run = run + 1 if said == before else 0
            before = said
            leaves = run == rule.patience
        if leaves:
            return place
    return DEPTH - 1


@pytest.mark.parametrize("name", NAMES)
def test_rules_follow_their_definition(name: str, world: World) -> None:
    """Replayed on the answers of every head, a rule gives the exits of its definition, which differ between samples."""
    exits = replay(world.rule(name), scores_of(world.rule(name), world.logits, world.doubts.get(name))).tolist()
    assert exits == [by_hand(name, world, sample) for sample in range(N)]
    assert name == "static" or len(set(exits)) > 1


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(execution=EXECUTIONS, name=st.sampled_from(NAMES))
def test_any_batch_equals_batch_size_one(world: World, execution: Execution, name: str) -> None:
    """In shrinking batches of any size, order and layout, samples exit as in the replay, with that head's logits."""
    rule = world.rule(name)
    places = replay(rule, scores_of(rule, world.logits, world.doubts.get(name)))
    found = run_sequential(world.model, world.tokens, execution, rule)
    assert found.exit_layer.tolist() == places.tolist()
    np.testing.assert_allclose(found.logits, world.logits[places, torch.arange(N)].numpy(), rtol=1e-3, atol=1e-4)
    passes = int((places + 1).sum())
    assert found.work.rows("layer") == passes
    assert found.work.rows("head") == (N if name == "static" else passes)
    # The last head needs no decision, so its gate does not run.
    assert found.work.rows("gate") == (passes - int((places == DEPTH - 1).sum()) if name in world.gates else 0)


@pytest.mark.parametrize("name", NAMES)
def test_rule_memory_survives_fixed_buffers(world: World, name: str, like_cuda: Any) -> None:
    """Rule memories of two interleaved batches stay separate when blocks reuse the same memory."""
    rule = world.rule(name)
    places = replay(rule, scores_of(rule, world.logits, world.doubts.get(name)))
    for _ in range(2):
        found = run_sequential(world.model, world.tokens, Execution(batch_size=5, compute="graphs"), rule)
        assert found.exit_layer.tolist() == places.tolist()


@pytest.mark.parametrize("exits", [[0, 2], [1]])
def test_patience_counts_heads_and_not_layers(
    make_model: Callable[..., MultiExitModel], tokens: TokenSet, exits: list[int]
) -> None:
    """With heads at some layers only, patience counts those heads, and a place is the number of a head."""
    model = make_model(exits=exits)
    logits = exit_logits(model, tokens, ONE_BY_ONE)
    for rule in (Patience(1), Static(0), Static(len(exits))):
        places = replay(rule, scores_of(rule, logits))
        found = run_sequential(model, tokens, Execution(batch_size=4), rule)
        assert found.exit_layer.tolist() == [model.answers[place] for place in places]


def test_entropy_exits_at_the_first_sure_head(world: World) -> None:
    """The executor exits where :func:`first_exit` does, and the rule as a function of the logits agrees."""
    speed = wide_gap(scores_of(Entropy(0.0), world.logits))
    expected = first_exit(world.logits, speed)
    found = run_sequential(world.model, world.tokens, Execution(batch_size=6), Entropy(speed))
    assert found.exit_layer.tolist() == expected.tolist()
    sure = torch.stack([Entropy(speed)(answers) for answers in world.logits])
    assert all(sure[place, sample] for sample, place in enumerate(expected.tolist()) if place < DEPTH - 1)
    assert not any(sure[:place, sample].any() for sample, place in enumerate(expected.tolist()))


def test_thresholds_are_compared_as_the_authors_do() -> None:
    """At the exact threshold, FastBERT and RightTool exit; DeeBERT, PCEE-BERT, BERxiT, ConsistentEE and PALBERT continue."""
    at = torch.tensor([0.5])
    gate = ExitGate(4)
    assert Entropy(0.5).judge(0, at, ())[0].item()
    assert Confidence(0.5).judge(0, at, ())[0].item()
    assert not RawEntropy(0.5).judge(0, at, ())[0].item()
    assert not Learned(0.5, gate).judge(0, at, ())[0].item()
    assert not Policy(0.5, ExitPolicy(4, 1)).judge(0, at, ())[0].item()
    assert not QExit(0.5, HaltingGate(4)).judge(0, at, ())[0].item()
    rule = PatienceConfidence(0.5, 1)
    assert not rule.judge(0, at, rule.begin(1, torch.device("cpu")))[0].item()


def test_patience_counts_agreements() -> None:
    """For answers 0 0 1 1 1, patience 1 exits at the second head and 2 at the fifth; one unsure head restarts the count."""
    logits = torch.eye(2)[torch.tensor([0, 0, 1, 1, 1, 1])][:, None] * 3
    assert [int(replay(Patience(p), scores_of(Patience(p), logits))) for p in (1, 2, 3, 4)] == [1, 4, 5, 5]
    sure, unsure = [9.0, 0.0], [0.1, 0.0]
    answers = torch.tensor([[sure], [unsure], [sure], [sure], [unsure], [unsure]])
    found = [int(replay(rule, scores_of(rule, answers))) for rule in (PatienceConfidence(0.5, p) for p in (1, 2, 3))]
    assert found == [0, 3, 5]


def test_similar_heads_in_a_row() -> None:
    """Probabilities .5, .9, .9, .6, .6, .6 of the first class: heads 3, 5 and 6 repeat the head before them, the others do not."""
    logits = torch.tensor([[p, 1 - p] for p in (0.5, 0.9, 0.9, 0.6, 0.6, 0.6)]).log()[:, None]
    # In bits: H(.7) - (H(.5) + H(.9)) / 2 = .8813 - (1 + .4690) / 2, and H(.75) - (H(.9) + H(.6)) / 2.
    far = torch.tensor([1.0, 0.1468, 0.0, 0.0913, 0.0, 0.0])
    scores = scores_of(PatienceSimilarity(0.1, 1), logits)
    torch.testing.assert_close(scores[:, 0], far, atol=5e-4, rtol=0)
    exits = {
        (t, p): int(replay(PatienceSimilarity(t, p), scores)) for t, p in [(0.05, 1), (0.05, 2), (0.1, 2), (0.1, 3)]
    }
    assert exits == {(0.05, 1): 2, (0.05, 2): 5, (0.1, 2): 3, (0.1, 3): 4}
    assert int(replay(PatienceSimilarity(1.1, 1), scores)) == 1  # the first head repeats nothing at any threshold
    assert int(replay(PatienceSimilarity(0.0, 1), scores)) == 5


class _Known(HaltingGate):
    """Halts with the probability that the state holds, whatever it was before."""

    def logit(self, state: Tensor, before: Tensor) -> Tensor:
        return state[:, 0].logit()


def test_halting_probabilities_add_up() -> None:
    """Halting with .2, .5, .5 and .5 has happened with .2, .6, .8 and .9 after each head; a sample leaves above the threshold."""
    states = torch.tensor([0.2, 0.5, 0.5, 0.5, 0.5])[:, None, None]
    logits = torch.zeros(5, 1, 2)
    scores = scores_of(QExit(0.5, _Known(1)), logits, states)
    torch.testing.assert_close(scores[:, 0], torch.tensor([0.2, 0.6, 0.8, 0.9, 0.95]))
    exits = [int(replay(QExit(q, _Known(1)), scores)) for q in (0.1, 0.5, 0.7, 0.85, 0.99)]
    assert exits == [0, 1, 2, 3, 4]


@settings(max_examples=40)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=6), st.data())
def test_difference_is_a_divergence(weights: list[float], data: st.DataObject) -> None:
    """It is symmetric, 0 for equal and 1 for disjoint distributions, and never outside of 0..1."""
    p = (torch.tensor(weights) + 1e-3).log().softmax(0)
    q = p[torch.tensor(data.draw(st.permutations(range(len(p)))))]
    assert difference(p, q).item() == pytest.approx(difference(q, p).item(), abs=1e-6)
    assert 0 <= difference(p, q).item() <= 1
    assert difference(p, p).item() == pytest.approx(0, abs=1e-6)
    assert difference(*torch.eye(len(p))[:2]).item() == pytest.approx(1)


@settings(max_examples=60)
@given(data=st.data(), name=st.sampled_from(["entropy", "patience", "both", "alike"]))
def test_many_settings_equal_single_ones(data: st.DataObject, name: str) -> None:
    """A tensor of settings [K, 1] gives, row by row, the exits of each setting."""
    places, count, tries = (data.draw(st.integers(2, 5)) for _ in range(3))
    scores = torch.rand(places, count, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    thresholds, patiences = torch.rand(tries, 1), torch.randint(1, places + 1, (tries, 1))
    if name == "patience":
        scores = (scores * 3).long()
    make: Callable[[Any, Any], ExitRule] = {
        "entropy": lambda t, p: Entropy(t),
        "patience": lambda t, p: Patience(p),
        "both": PatienceConfidence,
        "alike": PatienceSimilarity,
    }[name]
    together = replay(make(thresholds, patiences), scores)
    for row, t, p in zip(together, thresholds, patiences, strict=True):
        assert row.tolist() == replay(make(float(t), int(p)), scores).tolist()


def test_temperatures_change_exits_and_no_answer(world: World) -> None:
    """Stored logits and classes are those of the exit's head at any temperature."""
    cold, hot = (
        run_sequential(world.model, world.tokens, Execution(batch_size=8), Confidence(0.8, (t,) * DEPTH))
        for t in (0.05, 20.0)
    )
    assert cold.exit_layer.mean() < hot.exit_layer.mean() == DEPTH - 1
    for found in (cold, hot):
        said = world.logits[torch.from_numpy(found.exit_layer).long(), torch.arange(N)].numpy()
        np.testing.assert_allclose(found.logits, said, rtol=1e-3, atol=1e-4)
        assert found.logits.argmax(1).tolist() == said.argmax(1).tolist()


def test_gate_values_come_from_cls(world: World) -> None:
    """In any layout, the gate value of every exit is the gate's sigmoid on the first token's state."""
    gate = world.gates["learned"]
    assert isinstance(gate, ExitGate)
    logits, doubts = exit_evidence(world.model, world.tokens, Execution(batch_size=7), gate=gate)
    assert doubts is not None
    torch.testing.assert_close(logits, exit_logits(world.model, world.tokens, ONE_BY_ONE), rtol=1e-3, atol=1e-4)
    one = world.tokens.select([4])
    states = list(world.model.encoder.states(one, Layout(one.lengths.numpy(), None, "cpu")))[1:]
    for place, hidden in enumerate(states):
        weight, bias = gate.wrong.weight[0], gate.wrong.bias
        expected = torch.sigmoid(hidden[0] @ weight + bias).item()
        assert float(doubts[place, 4]) == pytest.approx(expected, abs=1e-5)
    padded = exit_evidence(world.model, world.tokens, replace(ONE_BY_ONE, protocol="paper"), gate=gate)[1]
    torch.testing.assert_close(padded, doubts, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("classes", [2, 3, 14])
def test_entropy_limits(classes: int) -> None:
    """Uniform answers have entropy 1 for any number of classes; certain answers have entropy 0."""
    assert normalised_entropy(torch.full((1, classes), 3.7)).item() == pytest.approx(1.0, abs=1e-6)
    assert normalised_entropy(200 * torch.eye(classes)).abs().max().item() < 1e-6


def test_entropy_of_two_classes() -> None:
    """Probabilities 1/4 and 3/4 have an entropy of 0.811 bits."""
    logits = torch.tensor([[1.0, 3.0]]).log()
    assert normalised_entropy(logits).item() == pytest.approx(0.8112781, abs=1e-6)


@settings(max_examples=80)
@given(st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=9), st.floats(-5, 5, width=32))
def test_entropy_is_normalised_and_shift_invariant(logits: list[float], shift: float) -> None:
    """Entropy lies in 0..1 and does not change when a constant is added to all logits."""
    row = torch.tensor(logits, dtype=torch.float64)
    entropy = normalised_entropy(row).item()
    assert -1e-6 <= entropy <= 1 + 1e-6
    assert normalised_entropy(row + shift).item() == pytest.approx(entropy, abs=1e-4)


def test_the_first_sure_answer_is_used() -> None:
    """The three samples are sure at once, sure at the second answer but not at the third, and never sure."""
    sure, unsure = [9.0, 0.0], [0.1, 0.0]
    logits = torch.tensor([[sure, unsure, unsure], [unsure, sure, unsure], [unsure, unsure, unsure]])
    assert first_exit(logits, 0.5).tolist() == [0, 1, 2]
    assert first_exit(logits, 1.1).tolist() == [0, 0, 0]
    assert first_exit(logits, -0.1).tolist() == [2, 2, 2]


def test_extreme_speeds() -> None:
    """At speed 1 all samples exit, undecided ones too; at speed 0 every sample with any doubt stays."""
    logits = torch.tensor([[0.0, 0.0], [4.0, 0.0]])
    assert Entropy(1.0 + 1e-6)(logits).tolist() == [True, True]
    assert Entropy(0.5)(logits).tolist() == [False, True]
    assert Entropy(0.0)(logits).tolist() == [False, False]


MOST, APART = 200, 1e-5


@settings(max_examples=50)
@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=600))
def test_candidate_thresholds_lie_between_scores(values: list[float]) -> None:
    """Candidates rise from end to end, number at most 200 plus both ends, and separate all scores if there are few."""
    scores = torch.tensor(values)
    found = candidate_thresholds(scores.numpy(), (0.0, 1.0), most=MOST, apart=APART).tolist()
    assert found == sorted(set(found))
    assert {0.0, 1.0} <= set(found)
    assert len(found) <= MOST + 2
    assert [float(np.float32(one)) for one in found] == found
    unique = scores.unique().tolist()
    if len(unique) <= MOST:
        for low, high in zip(unique[:-1], unique[1:], strict=True):
            assert any(low <= cut <= high for cut in found) or high - low <= 1.01 * APART
    for cut in set(found) - {0.0, 1.0}:
        assert min(abs(cut - score) for score in unique) > 0.4 * APART


def test_scores_within_rounding_are_not_separated() -> None:
    """No threshold lies between saturated confidences that differ by one float32 step."""
    one = np.float32(1.0)
    near = [float(np.nextafter(one, np.float32(0))), 1.0]
    assert candidate_thresholds(np.float32([0.5, *near]), (0.0, 1.0), most=9, apart=APART).tolist() == [0.0, 0.75, 1.0]
