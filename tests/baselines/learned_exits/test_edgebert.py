"""EdgeBERT's look-up equals exits worked out by hand, and both ways of running it equal the replay on dev."""

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
from torch import Tensor

from baselines.full_depth.bert import Bert
from baselines.learned_exits.edgebert import BINS, EdgeBert, EntropyLookup, LookedUpExits, bins_of, entropy_table
from harness import registry
from harness.contracts import Execution, OperatingPoint
from harness.core.errors import ConfigError, ResultError
from harness.core.tokens import Split, Task
from harness.encoder.backbone import Backbone
from harness.encoder.multi_exit import MultiExitModel
from harness.execution.executors import exit_logits
from harness.execution.exit_rules import normalised_entropy, replay
from harness.toolkit.rule_exits import RuleExits

Check = Callable[[Any, OperatingPoint, Execution, list[int]], None]
BRIEF: dict[str, Any] = {"table_steps": 60, "budgets": [0.45, 0.75]}


def table(*later: float) -> Tensor:
    """Return a table with the same entropies in every bin, but for the last: 0 at the first exit that it has."""
    rows = torch.tensor([later] * BINS)
    rows[-1, 0] = 0.0
    return rows


def test_the_first_expected_entropy_below_the_threshold_is_the_exit() -> None:
    """Entropies .5 and .2 are expected at the second and third of four heads; the bin of an entropy of 1 expects 0 at once."""
    first = torch.tensor([0.05, 0.4, 0.7, 0.99])
    exits = {t: EntropyLookup(t, table(0.5, 0.2), False).predicted(first).tolist() for t in (0.1, 0.3, 0.6)}
    assert exits == {0.1: [3, 3, 3, 1], 0.3: [2, 2, 2, 1], 0.6: [1, 1, 1, 1]}
    together = EntropyLookup(torch.tensor([[0.1], [0.3], [0.6]]), table(0.5, 0.2), False).predicted(first)
    assert together.tolist() == list(exits.values())
    assert EntropyLookup(0.5, torch.zeros(BINS, 0), False).predicted(first).tolist() == [1] * 4  # two heads only


def test_a_threshold_is_strict_and_bins_are_nearest() -> None:
    """An expected entropy at the threshold is not below it; entropies belong to the nearest hundredth."""
    assert EntropyLookup(0.5, table(0.5, 0.2), False).predicted(torch.tensor([0.7])).tolist() == [2]
    assert bins_of(torch.tensor([0.0, 0.004, 0.006, 0.5, 0.994, 1.0])).tolist() == [0, 0, 1, 50, 99, 99]


def test_ramps_between_may_stop_a_sample() -> None:
    """Without them, a sample leaves at once or at the predicted exit; with them, also where a head is sure before it."""
    entropies = torch.tensor([[0.1, 0.7, 0.7, 0.99], [0.9, 0.1, 0.9, 0.9], [0.9, 0.9, 0.9, 0.1], [0.0] * 4])
    expected = table(0.5, 0.2)
    assert replay(EntropyLookup(0.3, expected, False), entropies).tolist() == [0, 2, 2, 1]
    assert replay(EntropyLookup(0.3, expected, True), entropies).tolist() == [0, 1, 2, 1]
    assert replay(EntropyLookup(0.15, expected, True), entropies).tolist() == [0, 1, 3, 1]


def test_the_table_learns_how_entropies_fall() -> None:
    """Where the second entropy is half of the first and the third its square, the table says so, and nothing is negative."""
    first = torch.rand(400, generator=torch.Generator().manual_seed(0))
    entropies = torch.stack([first, first / 2, first**2, torch.zeros(400)])
    found = entropy_table(entropies, 800, seed=0)
    bins = torch.arange(BINS) / BINS
    assert found.shape == (BINS, 2)
    assert (found - torch.stack([bins / 2, bins**2], 1)).abs().mean() < 0.04
    assert found.min() >= 0
    assert torch.equal(found, entropy_table(entropies, 800, seed=0))


@pytest.fixture(scope="module")
def source(small_backbone: Backbone) -> RuleExits:
    """Random weights with early exits, so that samples exit at every layer."""
    torch.manual_seed(8)
    model = MultiExitModel(small_backbone.encoder(), 3, range(4), "linear")
    for name, parameter in model.named_parameters():
        if not name.startswith("encoder") and parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.9)
    return RuleExits(model.eval())


@pytest.fixture(scope="module")
def fit(source: RuleExits, signal_task: Task, small_backbone: Backbone) -> Callable[[str], LookedUpExits]:
    made: dict[str, LookedUpExits] = {}

    def run(ramps: str) -> LookedUpExits:
        if ramps not in made:
            dev = signal_task.dev.tokens
            said = exit_logits(source.model, dev, Execution())[-1].argmax(-1)
            task = replace(signal_task, dev=Split(dev, said))
            config = {**BRIEF, "ramps": ramps}
            made[ramps] = EdgeBert().fit(task, small_backbone, {"deebert": source}, config=config, seed=0)
        return made[ramps]

    return run


@pytest.mark.parametrize("ramps", ["first", "all"])
def test_runs_equal_the_replay(ramps: str, fit: Callable[[str], LookedUpExits], unseen: Split) -> None:
    """Samples exit as in the replay on all answers, with that head's logits; dev figures are those of a run on dev."""
    fitted = fit(ramps)
    logits = exit_logits(fitted.model, unseen.tokens, Execution())
    seen: set[int] = set()
    for at in fitted.points:
        places = replay(fitted.rule(at.params["threshold"]), normalised_entropy(logits))
        found = fitted.predict(unseen.tokens, at=at)
        assert found.exit_layer.tolist() == places.tolist()
        np.testing.assert_allclose(found.logits, logits[places, torch.arange(40)].numpy(), rtol=1e-3, atol=1e-4)
        assert found.work.rows("layer") == int((places + 1).sum())
        heads = int((places + 1).sum()) if ramps == "all" else 40 + int((places > 0).sum())
        assert found.work.rows("head") == heads
        seen |= set(places.tolist())
    assert len(seen) > 2


@pytest.mark.parametrize("ramps", ["first", "all"])
@given(data=st.data())
@settings(max_examples=8)
def test_batches_equal_batch_1(
    ramps: str, data: st.DataObject, fit: Callable[[str], LookedUpExits], executions: Any, same_however_run: Check
) -> None:
    """Answers and exits in batches of any size and order equal those of samples run one by one."""
    fitted = fit(ramps)
    at = data.draw(st.sampled_from(fitted.points))
    same_however_run(fitted, at, data.draw(executions), data.draw(st.permutations(range(40))))


@pytest.mark.parametrize("ramps", ["first", "all"])
def test_round_trip(
    ramps: str,
    fit: Callable[[str], LookedUpExits],
    source: RuleExits,
    signal_task: Task,
    small_backbone: Backbone,
    unseen: Split,
    tmp_path: Path,
) -> None:
    """Only table and points are stored; loaded with the same weights it predicts the same. Damage is a ResultError."""
    fitted = fit(ramps)
    fitted.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"points.json", "entropies.safetensors"}
    loaded = EdgeBert().load(tmp_path, signal_task, small_backbone, {"deebert": source})
    assert (loaded.points, loaded.executor) == (fitted.points, fitted.executor)
    for at in fitted.points:
        np.testing.assert_array_equal(*(one.predict(unseen.tokens, at=at).logits for one in (fitted, loaded)))
    shallow = RuleExits(MultiExitModel(small_backbone.encoder(), 3, range(2), "linear").eval())
    with pytest.raises(ResultError, match="another model"):
        EdgeBert().load(tmp_path, signal_task, small_backbone, {"deebert": shallow})
    (tmp_path / "entropies.safetensors").write_text("{")
    with pytest.raises(ResultError, match="run again"):
        EdgeBert().load(tmp_path, signal_task, small_backbone, {"deebert": source})


def test_unsuitable_input_is_rejected(source: RuleExits, signal_task: Task, small_backbone: Backbone) -> None:
    """Weights without early exits, a table from rows that are absent, and unknown settings are refused in one line."""
    bert = Bert().fit(signal_task, small_backbone, {}, config={"epochs": 1, "head": "linear"}, seed=0)
    for teachers, config, message in (
        ({"deebert": bert}, {}, "early exits"),
        ({}, {}, "teacher 'deebert'"),
        ({"deebert": source}, {"table_rows": "unlabelled"}, "no rows without labels"),
        ({"deebert": source}, {"ramps": "some"}, '"first", "all"'),
        ({"deebert": source}, {"table_steps": 0}, "table_steps"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            EdgeBert().fit(signal_task, small_backbone, teachers, config=config, seed=0)
        assert "\n" not in str(caught.value)
    assert EdgeBert().uses_unlabelled({"table_rows": "unlabelled"}) and not EdgeBert().uses_unlabelled({})


def test_it_is_found_by_name() -> None:
    """The registry finds it with the weights that it runs."""
    assert registry.in_order(["edgebert"]) == ["bert", "deebert", "edgebert"]
    assert EdgeBert().point_names({"budgets": [0.7, 0.2]}) == ["budget=0.2", "budget=0.7"]
