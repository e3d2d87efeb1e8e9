"""The lower half of BERT: layers, training, errors and storage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.full_depth.bert_truncated import BertTruncated, first_layers
from harness.contracts import Execution, OperatingPoint
from harness.core.errors import ConfigError
from harness.core.tokens import Split, Task
from harness.encoder.backbone import Backbone
from harness.toolkit.fitted import FullDepth

Check = Callable[[FullDepth, OperatingPoint, Execution, list[int]], None]
FULL = OperatingPoint("full")


@pytest.fixture(scope="module")
def truncated(signal_task: Task, small_backbone: Backbone, quick: Mapping[str, Any]) -> FullDepth:
    return BertTruncated().fit(signal_task, small_backbone, {}, config={**quick, "layers": 2}, seed=0)


def test_it_starts_from_the_first_layers(small_backbone: Backbone) -> None:
    """Embeddings and the first layers are the backbone's, bit for bit; the others are removed."""
    short = first_layers(small_backbone, 2)
    whole = small_backbone.encoder().state_dict()
    state = short.encoder().state_dict()
    assert short.shape.layers == 2
    assert all(torch.equal(tensor, whole[name]) for name, tensor in state.items())
    assert {name for name in whole if name not in state} == {
        n for n in whole if n.startswith(("layers.2", "layers.3", "layers.4"))
    }
    assert first_layers(small_backbone, 5).state.keys() == small_backbone.state.keys()
    assert small_backbone.shape.layers == 5


def test_it_learns_and_costs_its_layers_only(truncated: FullDepth, signal_task: Task, unseen: Split) -> None:
    """It runs two layers and a head per sample, in training, too, and is better than the most frequent label."""
    found = truncated.predict(unseen.tokens, at=FULL)
    right = (found.logits.argmax(1) == unseen.labels.numpy()).mean()
    assert right > unseen.labels.bincount().max().item() / 40 + 0.1
    assert (found.work.rows("layer"), found.work.rows("head"), truncated.cost.depth) == (2 * 40, 40, 2)
    assert (found.exit_layer == 1).all()
    assert truncated.training is not None
    assert truncated.training.layer_passes == 2 * truncated.training.sample_passes


def test_half_is_the_default(signal_task: Task, small_backbone: Backbone, quick: Mapping[str, Any]) -> None:
    """By default it keeps half of the layers, rounded down."""
    config = {**quick, "epochs": 1}
    assert BertTruncated().fit(signal_task, small_backbone, {}, config=config, seed=0).cost.depth == 2


def test_round_trip(
    truncated: FullDepth, signal_task: Task, small_backbone: Backbone, unseen: Split, tmp_path: Path
) -> None:
    """A loaded model has the same logits and training report."""
    truncated.save(tmp_path)
    loaded = BertTruncated().load(tmp_path, signal_task, small_backbone, {})
    np.testing.assert_array_equal(
        loaded.predict(unseen.tokens, at=FULL).logits, truncated.predict(unseen.tokens, at=FULL).logits
    )
    assert loaded.training == truncated.training
    assert BertTruncated().point_names({}) == [point.name for point in loaded.operating_points(unseen)]


@given(data=st.data())
@settings(max_examples=15)
def test_batches_equal_batch_1(
    data: st.DataObject, truncated: FullDepth, executions: Any, same_however_run: Check
) -> None:
    """Answers in batches of any size and order equal those of samples run one by one."""
    same_however_run(truncated, FULL, data.draw(executions), data.draw(st.permutations(range(40))))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"layers": 0}, "an integer of at least 1"),
        ({"layers": 6}, "1 to 5"),
        ({"layers": 2.0}, "layers = 2.0"),
        ({"layers": True}, "layers = true"),
        ({"layer": 2}, "layers"),
    ],
)
def test_invalid_settings_are_refused(
    config: dict[str, Any], message: str, signal_task: Task, small_backbone: Backbone
) -> None:
    """More layers than the backbone has and unknown settings are refused."""
    with pytest.raises(ConfigError, match=message):
        BertTruncated().fit(signal_task, small_backbone, {}, config=config, seed=0)
