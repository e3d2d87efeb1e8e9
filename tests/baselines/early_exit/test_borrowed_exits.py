"""Any exit rule on the weights of another method: tuned on dev, nothing trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.early_exit.borrowed_exits import BorrowedExits, ExitRuleOnWeights
from baselines.early_exit.f_pabee import FPabee
from geep.method import FittedGeep
from harness import registry
from harness.contracts import Execution, OperatingPoint
from harness.core.errors import ConfigError, ResultError
from harness.core.tokens import Split, Task
from harness.encoder.backbone import Backbone
from harness.encoder.model import ExitGate
from harness.encoder.multi_exit import MultiExitModel
from harness.execution.executors import exit_logits
from harness.toolkit.fitted import FullDepth, SequentialExits
from harness.toolkit.rule_exits import GATES, RULES, RuleExits

Check = Callable[[RuleExits, OperatingPoint, Execution, list[int]], None]


@pytest.fixture(scope="module")
def sources(small_backbone: Backbone, scattered_geep: FittedGeep) -> dict[str, Any]:
    """Random weights of FastBERT, BERxiT and GEEP, so that samples exit at every layer."""
    torch.manual_seed(8)
    model = MultiExitModel(small_backbone.encoder(), 3, range(4), "fastbert")
    for name, parameter in model.named_parameters():
        if not name.startswith("encoder") and parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.9)
    gated = RuleExits(model.eval(), gate=ExitGate(16))
    return {"fastbert": SequentialExits.at_speeds(model, None, (0.5,)), "berxit": gated, "geep": scattered_geep}


@pytest.fixture(scope="module")
def borrow(sources: dict[str, Any], signal_task: Task, small_backbone: Backbone) -> Callable[..., BorrowedExits]:
    made: dict[tuple[str, str], BorrowedExits] = {}

    def fit(source: str, rule: str) -> BorrowedExits:
        if (source, rule) not in made:
            config = {"rule": rule, "budgets": [0.45, 0.75]}
            teachers = {source: sources[source]}
            # What full depth says is right, so that depth is worth something.
            dev = signal_task.dev.tokens
            said = exit_logits(sources[source].model, dev, Execution())[-1].argmax(-1)
            task = replace(signal_task, dev=Split(dev, said))
            made[source, rule] = ExitRuleOnWeights().fit(task, small_backbone, teachers, config=config, seed=0)
        return made[source, rule]

    return fit


CASES = [("fastbert", rule) for rule in RULES if rule not in GATES] + [
    ("berxit", "learned"),
    ("geep", "patience"),
    ("geep", "confidence"),
]


@pytest.mark.parametrize(("source", "rule"), CASES)
def test_weights_are_borrowed(
    source: str, rule: str, borrow: Callable[..., BorrowedExits], sources: dict[str, Any]
) -> None:
    """The model is the other method's, there is no training cost, and there is a point per budget."""
    fitted = borrow(source, rule)
    assert fitted.model is sources[source].model
    assert fitted.training is None
    assert [point.name for point in fitted.points] == ["budget=0.45", "budget=0.75"]
    assert fitted.points[0].params["dev_mean_layers"] <= fitted.points[1].params["dev_mean_layers"] <= 3.75


@pytest.mark.parametrize(("source", "rule"), CASES)
@given(data=st.data())
@settings(max_examples=8)
def test_batches_equal_batch_1(
    source: str,
    rule: str,
    data: st.DataObject,
    borrow: Callable[..., BorrowedExits],
    executions: Any,
    same_however_run: Check,
) -> None:
    """Answers and exits in batches of any size and order equal those of samples run one by one."""
    fitted = borrow(source, rule)
    at = data.draw(st.sampled_from(fitted.points))
    same_however_run(fitted, at, data.draw(executions), data.draw(st.permutations(range(40))))


def test_constant_depth_asks_one_head(borrow: Callable[..., BorrowedExits], unseen: Split) -> None:
    """All samples exit at the same layer, and earlier heads are not run."""
    fitted = borrow("fastbert", "static")
    for at in fitted.points:
        found = fitted.predict(unseen.tokens, at=at)
        assert set(found.exit_layer.tolist()) == {at.params["place"]}
        assert found.work.rows("head") == 40


@pytest.mark.parametrize(("source", "rule"), CASES)
def test_round_trip(
    source: str,
    rule: str,
    borrow: Callable[..., BorrowedExits],
    sources: dict[str, Any],
    signal_task: Task,
    small_backbone: Backbone,
    unseen: Split,
    tmp_path: Path,
) -> None:
    """Only rule and points are stored; loaded with the same weights it predicts the same."""
    fitted = borrow(source, rule)
    fitted.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"points.json", "rule.json"}
    loaded = ExitRuleOnWeights().load(tmp_path, signal_task, small_backbone, {source: sources[source]})
    assert loaded.points == fitted.points
    assert loaded.cost == fitted.cost
    for at in fitted.points:
        first, second = (model.predict(unseen.tokens, at=at) for model in (fitted, loaded))
        np.testing.assert_array_equal(first.logits, second.logits)
        np.testing.assert_array_equal(first.exit_layer, second.exit_layer)


def test_a_stored_rule_of_other_weights_is_reported(
    borrow: Callable[..., BorrowedExits],
    sources: dict[str, Any],
    signal_task: Task,
    small_backbone: Backbone,
    tmp_path: Path,
) -> None:
    """Temperatures of five heads do not fit a model of four, and a learned rule needs a gate."""
    for rule, source, other in (("confidence", "fastbert", "geep"), ("learned", "berxit", "fastbert")):
        borrow(source, rule).save(tmp_path)
        with pytest.raises(ResultError, match="run again"):
            ExitRuleOnWeights().load(tmp_path, signal_task, small_backbone, {other: sources[other]})


def test_unsuitable_input_is_rejected(
    sources: dict[str, Any], trained_bert: FullDepth, signal_task: Task, small_backbone: Backbone
) -> None:
    """Unknown rules and settings, weights without exits or gate, and other numbers of teachers are refused."""

    def fit(teachers: dict[str, Any], **config: Any) -> None:
        ExitRuleOnWeights().fit(signal_task, small_backbone, teachers, config=config, seed=0)

    fastbert = {"fastbert": sources["fastbert"]}
    for teachers, config, message in (
        (fastbert, {"rule": "guess"}, 'rule = "guess".*"entropy", "raw-entropy"'),
        (fastbert, {"rules": "entropy"}, "did you mean rule"),
        (fastbert, {"budgets": [2]}, "budgets"),
        (fastbert, {"rule": "learned"}, "gate.*another rule"),
        ({"berxit": sources["berxit"]}, {"rule": "policy"}, "gate.*another rule"),
        ({"bert": trained_bert}, {}, "early exits"),
        ({}, {}, "one method, not of 0"),
        (sources, {}, "one method, not of 3"),
        ({"other": object()}, {}, "'other'"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            fit(teachers, **config)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


def test_it_is_found_by_name() -> None:
    """The registry finds it with its default source of weights."""
    assert registry.in_order(["exit-rule"]) == ["bert", "fastbert", "exit-rule"]
    assert ExitRuleOnWeights().point_names({"budgets": [0.7, 0.2]}) == ["budget=0.2", "budget=0.7"]


def test_f_pabee_runs_pabees_weights(
    sources: dict[str, Any], borrow: Callable[..., BorrowedExits], signal_task: Task, small_backbone: Backbone
) -> None:
    """F-PABEE is exit-rule with rule patience-similarity on the weights of pabee, and needs them alone."""
    assert registry.in_order(["f-pabee"]) == ["pabee", "f-pabee"]
    teachers = {"pabee": sources["fastbert"]}
    dev = signal_task.dev.tokens
    said = exit_logits(sources["fastbert"].model, dev, Execution())[-1].argmax(-1)
    task = replace(signal_task, dev=Split(dev, said))
    found = FPabee().fit(task, small_backbone, teachers, config={"budgets": [0.45, 0.75]}, seed=0)
    assert found.points == borrow("fastbert", "patience-similarity").points
    assert {key for point in found.points for key in point.params} >= {"threshold", "patience"}
    with pytest.raises(ConfigError, match="rule"):
        FPabee().fit(task, small_backbone, teachers, config={"rule": "entropy"}, seed=0)
