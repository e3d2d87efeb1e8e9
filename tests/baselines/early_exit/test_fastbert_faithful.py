"""FastBERT in its released loop: the same answers, nothing stored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.early_exit.fastbert_faithful import FastBertFaithful, ReleasedLoop
from harness import registry
from harness.contracts import Execution, OperatingPoint
from harness.core.errors import ConfigError
from harness.core.tokens import Split, Task
from harness.encoder.backbone import Backbone
from harness.encoder.multi_exit import MultiExitModel
from harness.running.profile import ExecutionSettings, load
from harness.running.run_settings import Settings
from harness.running.session import Session
from harness.toolkit.fitted import FullDepth, SequentialExits

Check = Callable[[ReleasedLoop, OperatingPoint, Execution, list[int]], None]


@pytest.fixture(scope="module")
def tuned(small_backbone: Backbone) -> SequentialExits:
    """A FastBERT with random heads, so that samples exit at every layer."""
    torch.manual_seed(8)
    model = MultiExitModel(small_backbone.encoder(), 3, range(4), "fastbert")
    for name, parameter in model.named_parameters():
        if not name.startswith("encoder") and parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.9)
    return SequentialExits.at_speeds(model.eval(), None, (0.15, 0.45, 0.75))


@pytest.fixture(scope="module")
def released(tuned: SequentialExits, signal_task: Task, small_backbone: Backbone) -> ReleasedLoop:
    return FastBertFaithful().fit(signal_task, small_backbone, {"fastbert": tuned}, config={}, seed=0)


def test_answers_equal_those_of_the_tuned_loop(tuned: SequentialExits, released: ReleasedLoop, unseen: Split) -> None:
    """At every speed exits, logits and executed blocks are the same as in the tuned loop."""
    for at in released.operating_points(unseen):
        ours, theirs = (fitted.predict(unseen.tokens, at=at) for fitted in (released, tuned))
        assert ours.exit_layer.tolist() == theirs.exit_layer.tolist()
        assert len(set(ours.exit_layer.tolist())) > 1
        np.testing.assert_allclose(ours.logits, theirs.logits, rtol=1e-4, atol=1e-5)
        assert ours.work.rows("head") == theirs.work.rows("head")


@given(data=st.data())
@settings(max_examples=20)
def test_batches_equal_batch_1(
    data: st.DataObject, released: ReleasedLoop, unseen: Split, executions: Any, same_however_run: Check
) -> None:
    """Answers and exits in batches of any size and order equal those of samples run one by one."""
    at = data.draw(st.sampled_from(list(released.operating_points(unseen))))
    same_however_run(released, at, data.draw(executions), data.draw(st.permutations(range(40))))


def test_everything_belongs_to_fastbert(
    tuned: SequentialExits, released: ReleasedLoop, signal_task: Task, small_backbone: Backbone, tmp_path: Path
) -> None:
    """Model, points and cost are FastBERT's; nothing is stored, and loading works."""
    assert released.model is tuned.model
    assert released.cost == tuned.cost
    released.save(tmp_path)
    assert not list(tmp_path.iterdir())
    again = FastBertFaithful().load(tmp_path, signal_task, small_backbone, {"fastbert": tuned})
    assert again.points == tuned.points
    assert FastBertFaithful().point_names({"speeds": [0.15, 0.5]}) == ["speed=0.15", "speed=0.5"]


def test_cells_are_marked_as_eager(released: ReleasedLoop, small_backbone: Backbone, tmp_path: Path) -> None:
    """Blocks run eagerly in every run, as the release has no graphs."""
    profile = load("quick").model_copy(update={"execution": ExecutionSettings(compute="compiled")})
    session = Session(Settings(profile, tmp_path), "ag_news", 0)
    session.__dict__["backbone"] = small_backbone
    assert session.cell("bert", OperatingPoint("full")).compute == "compiled"
    cell = session.cell("fastbert-faithful", OperatingPoint("speed=0.5"), released)
    assert (cell.compute, cell.executor) == ("eager", "shrink-faithful")


def test_another_fastbert_and_unread_settings_are_refused(
    tuned: SequentialExits, signal_task: Task, small_backbone: Backbone
) -> None:
    """A teacher of another kind and an unknown setting are refused."""
    method = FastBertFaithful()
    with pytest.raises(ConfigError, match="got FullDepth"):
        method.fit(signal_task, small_backbone, {"fastbert": FullDepth(tuned.model)}, config={}, seed=0)
    with pytest.raises(ConfigError, match="unknown key 'distill_epochs'"):
        method.fit(signal_task, small_backbone, {"fastbert": tuned}, config={"distill_epochs": 3}, seed=0)


def test_it_is_found_by_name() -> None:
    """The registry finds it with the methods that it needs."""
    assert registry.in_order(["fastbert-faithful"]) == ["bert", "fastbert", "fastbert-faithful"]
