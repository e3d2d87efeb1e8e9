"""Rules tuned on dev: calibration, candidate settings, and the fitted method that runs the chosen ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from harness.contracts import Execution, OperatingPoint
from harness.core.errors import ConfigError, ResultError
from harness.core.tokens import Split, TokenSet
from harness.encoder.model import ExitGate, ExitPolicy, Gate
from harness.encoder.multi_exit import MultiExitModel
from harness.execution.executors import exit_evidence, exit_logits
from harness.execution.exit_rules import scores_of
from harness.toolkit.rule_exits import (
    COLDEST,
    GATES,
    HOTTEST,
    RULES,
    RuleExits,
    calibrate,
    make_rule,
    outcomes,
    under_rule,
    worth_trying,
)

BUDGETS = (0.3, 0.55, 0.8, 1.0)


@pytest.fixture(scope="module")
def gates(tiny_model: MultiExitModel) -> dict[str, Gate]:
    """A gate of its own kind for every rule, and BERxiT's for rules that need none."""
    torch.manual_seed(5)
    width = tiny_model.encoder.shape.width
    return {rule: GATES.get(rule, ExitGate).beside(width, 3).eval() for rule in RULES}


@pytest.fixture(scope="module")
def dev(make_tokens: Callable[..., TokenSet], tiny_model: MultiExitModel) -> Split:
    """60 samples whose labels are answers of a head, of deeper heads more often, or random."""
    draw = np.random.default_rng(1)
    tokens = make_tokens(draw.integers(1, 13, size=60).tolist(), seed=9)
    said = exit_logits(tiny_model, tokens, Execution()).argmax(-1).numpy()
    options = np.concatenate([said, draw.integers(0, 3, size=(1, 60))])
    return Split(tokens, torch.from_numpy(options[draw.choice(5, size=60, p=[0.15, 0.2, 0.25, 0.3, 0.1]), range(60)]))


@pytest.fixture(scope="module")
def fit(tiny_model: MultiExitModel, gates: dict[str, Gate], dev: Split) -> Callable[[str], RuleExits]:
    made: dict[str, RuleExits] = {}

    def under(rule: str) -> RuleExits:
        if rule not in made:
            made[rule] = under_rule(
                RuleExits, tiny_model, None, method="m", rule=rule, budgets=BUDGETS, dev=dev, gate=gates[rule]
            )
        return made[rule]

    return under


@pytest.mark.parametrize("rule", RULES)
def test_dev_figures_equal_a_run_on_dev(rule: str, fit: Callable[[str], RuleExits], dev: Split) -> None:
    """In a run over dev every point has the mean layers and the accuracy of the replay."""
    fitted = fit(rule)
    points = fitted.operating_points(dev)
    assert [point.name for point in points] == ["budget=0.3", "budget=0.55", "budget=0.8", "budget=1"]
    for at in points:
        for size in (7, 60):
            run = OperatingPoint(at.name, at.params, Execution(batch_size=size))
            found = fitted.predict(dev.tokens, at=run)
            assert found.work.rows("layer") / 60 == pytest.approx(at.params["dev_mean_layers"])
            right = (found.logits.argmax(1) == dev.labels.numpy()).mean()
            assert right == pytest.approx(at.params["dev_accuracy"])


@pytest.mark.parametrize("rule", RULES)
def test_points_are_within_their_budgets_if_possible(
    rule: str, fit: Callable[[str], RuleExits], tiny_model: MultiExitModel, gates: dict[str, Gate], dev: Split
) -> None:
    """A point is within its budget if any candidate is, and at most one standard error worse than the best within it."""
    fitted = fit(rule)
    logits, doubts = exit_evidence(tiny_model, dev.tokens, Execution(batch_size=60), gate=gates[rule])
    scores = scores_of(fitted.rule_at(fitted.points[0]), logits, doubts)
    options = worth_trying(rule, scores, 3)
    tried = outcomes(rule, scores, logits.argmax(-1) == dev.labels, tiny_model.answers, options)
    assert len(tried) == len(options) > 2
    for point, budget in zip(fitted.points, BUDGETS, strict=True):
        able = [one for one in tried if one.layers <= 4 * budget + 1e-9]
        best = max(one.accuracy for one in able) if able else None
        layers = point.params["dev_mean_layers"]
        if best is None:
            assert layers == pytest.approx(min(one.layers for one in tried))
        else:
            assert layers <= 4 * budget + 1e-9
            error = math.sqrt(best * (1 - best) / len(dev))
            assert best - error - 1e-6 <= point.params["dev_accuracy"] <= best + 1e-6
            assert layers >= min(one.layers for one in able if one.accuracy == best) - 1e-6


def test_candidates_range_from_the_first_to_the_last_head(fit: Callable[[str], RuleExits], dev: Split) -> None:
    """The candidates of a threshold rule include exits of all samples at the first head, and at the last one."""
    first = {"patience-similarity": 2.0}  # it compares two heads
    for rule in ("entropy", "raw-entropy", "confidence", "learned", "policy", "q-exit", "patience-confidence", *first):
        fitted = fit(rule)
        logits, doubts = exit_evidence(fitted.model, dev.tokens, Execution(), gate=fitted.gate)
        scores = scores_of(fitted.rule_at(fitted.points[0]), logits, doubts)
        correct = logits.argmax(-1) == dev.labels
        layers = [one.layers for one in outcomes(rule, scores, correct, (0, 1, 2, 3), worth_trying(rule, scores, 3))]
        assert (min(layers), max(layers)) == (first.get(rule, 1.0), 4.0)


def test_patience_stops_short_of_the_last_head() -> None:
    """P = 1 .. A - 1 agreements are possible among A heads; constant depth has A places."""
    scores = torch.zeros(5, 3)
    assert worth_trying("patience", scores, 2) == [{"patience": p} for p in (1, 2, 3, 4)]
    assert worth_trying("static", scores, 2) == [{"place": p} for p in range(5)]


def test_calibration_maximises_the_likelihood_on_dev() -> None:
    """Calibration finds the temperature that answers were drawn at, per exit; nearby ones are less likely."""
    draw = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2, 4000, 4, generator=draw)
    labels = torch.multinomial((logits[0] / 2.5).softmax(-1), 1, generator=draw).squeeze(1)
    hot, noise = calibrate(logits, labels)
    assert hot == pytest.approx(2.5, rel=0.1)
    assert noise == pytest.approx(HOTTEST)  # the second exit is uninformative
    best = F.cross_entropy(logits[0] / hot, labels)
    assert all(F.cross_entropy(logits[0] / (hot * factor), labels) >= best for factor in (0.97, 1.03))
    (cold,) = calibrate(torch.eye(4)[labels][None], labels)
    assert cold == pytest.approx(COLDEST)


def test_calibration_never_changes_an_answer(fit: Callable[[str], RuleExits], dev: Split) -> None:
    """Calibration does not change logits: a sample has those of the head where it exits."""
    fitted = fit("confidence")
    assert len(fitted.temperatures) == 4
    assert len(set(fitted.temperatures)) > 2
    logits, _ = exit_evidence(fitted.model, dev.tokens, Execution())
    for at in fitted.points:
        found = fitted.predict(dev.tokens, at=at)
        said = logits[torch.from_numpy(found.exit_layer).long(), torch.arange(60)]
        np.testing.assert_allclose(found.logits, said.numpy(), rtol=1e-3, atol=1e-4)
        assert found.logits.argmax(1).tolist() == said.argmax(1).tolist()


@pytest.mark.parametrize(("head", "protocol"), [("fastbert", "modern"), ("linear", "paper")])
@pytest.mark.parametrize("rule", RULES)
def test_flops_equal_torchs_count(
    rule: str, head: str, protocol: Any, make_model: Callable[..., MultiExitModel], gates: dict[str, Gate], dev: Split
) -> None:
    """FLOPs of layers, heads and gate equal those of torch's counter."""
    weights = {"learned": 16, "policy": 16 * 32 + 32, "q-exit": 3 * 32 * 32 + 32}.get(rule, 0)
    fitted = under_rule(
        RuleExits, make_model(head=head), None, method="m", rule=rule, budgets=[0.6], dev=dev, gate=gates[rule]
    )
    at = OperatingPoint("x", fitted.points[0].params, Execution(batch_size=9, protocol=protocol, max_length=13))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work = fitted.predict(dev.tokens.select(range(24)), at=at).work
    assert fitted.cost.flops(work, "full") == counter.get_total_flops()
    asked = work.rows("gate")
    assert (asked > 0) == (rule in GATES)
    plain = {name: tally for name, tally in work.blocks.items() if not name.startswith("gate")}
    without = sum(fitted.cost.blocks[name.split(".")[0]].flops(tally, "linear") for name, tally in plain.items())
    assert fitted.cost.flops(work, "linear") == without + 2 * weights * asked
    biases = {"learned": 1, "policy": 3 * 33, "q-exit": 3 * 32 + 1}
    extra = (3 if rule == "policy" else 1) * weights + biases.get(rule, 0)  # a network for each of three exits, or one
    assert fitted.cost.params == fitted.model.cost().params + extra


@pytest.mark.parametrize("rule", RULES)
def test_round_trip(rule: str, fit: Callable[[str], RuleExits], dev: Split, tmp_path: Path) -> None:
    """A loaded model has the same points, temperatures, gate and answers."""
    fitted = fit(rule)
    fitted.save(tmp_path)
    loaded = RuleExits.load(tmp_path, "cpu")
    assert (loaded.rule, loaded.points, loaded.temperatures) == (rule, fitted.points, fitted.temperatures)
    assert loaded.cost == fitted.cost
    for at in fitted.points:
        first, second = (one.predict(dev.tokens, at=at) for one in (fitted, loaded))
        np.testing.assert_array_equal(first.logits, second.logits)
        np.testing.assert_array_equal(first.exit_layer, second.exit_layer)


@pytest.mark.parametrize(
    ("victim", "content"),
    [
        ("rule.json", "{"),
        ("rule.json", "[]"),
        ("points.json", "{"),
        ("points.json", '[{"name": "x", "params": {}}]'),
        ("points.json", '[{"params": {}}]'),
        ("rule.json", '{"rule": "guess", "temperatures": []}'),
        ("rule.json", '{"rule": "learned", "temperatures": [1.0]}'),
        ("gate.safetensors", "{"),
        ("gate.safetensors", None),
        ("model.safetensors", "{"),
    ],
)
def test_damage_is_a_result_error(
    victim: str, content: str | None, fit: Callable[[str], RuleExits], tmp_path: Path
) -> None:
    """A damaged or missing file is a ResultError with a correction."""
    fit("learned").save(tmp_path)
    (tmp_path / victim).unlink()
    if content is not None:
        (tmp_path / victim).write_text(content)
    with pytest.raises(ResultError, match="run again") as caught:
        RuleExits.load(tmp_path, "cpu")
    assert "\n" not in str(caught.value)


def test_weights_without_the_needed_parts_are_refused(make_model: Callable[..., MultiExitModel], dev: Split) -> None:
    """Weights without early exits, or without the gate of rule learned, are refused in one line with a correction."""
    given: dict[str, Any] = {"method": "mine", "budgets": [0.5], "dev": dev}
    with pytest.raises(ConfigError, match="'mine'.*early exits"):
        under_rule(RuleExits, make_model(exits=[]), None, rule="entropy", **given)
    for rule, gate in (("learned", None), ("policy", ExitGate(16)), ("q-exit", ExitPolicy(16, 3))):
        with pytest.raises(ConfigError, match=f"'mine': rule '{rule}' needs a gate.*another rule"):
            under_rule(RuleExits, make_model(), None, rule=rule, gate=gate, **given)


def test_both_entropies_choose_the_same_exits(fit: Callable[[str], RuleExits]) -> None:
    """DeeBERT's entropy is FastBERT's times ln C, so that dev chooses the same exits."""
    for one, other in zip(fit("entropy").points, fit("raw-entropy").points, strict=True):
        assert one.params["dev_mean_layers"] == other.params["dev_mean_layers"]
        assert other.params["threshold"] == pytest.approx(math.log(3) * one.params["threshold"], rel=1e-3)


def test_settings_are_passed_to_the_rule() -> None:
    """Settings of a rule are passed by name."""
    assert make_rule("patience-confidence", {"threshold": 0.25, "patience": 3}).__dict__ == {
        "threshold": 0.25,
        "patience": 3,
    }
