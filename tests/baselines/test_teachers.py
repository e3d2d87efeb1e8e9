"""Which methods may be the fine-tuned teacher (``needs = {bert = ...}`` of a variant), and which are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from baselines.early_exit.cascadebert import CascadeBert
from baselines.early_exit.deebert import DeeBert
from baselines.early_exit.fastbert import FastBert
from baselines.full_depth.bert_truncated import BertTruncated
from harness.core.errors import ConfigError
from harness.core.tokens import Task
from harness.encoder.backbone import Backbone
from harness.encoder.model import Encoder
from harness.encoder.multi_exit import MultiExitModel
from harness.toolkit.fitted import FullDepth

QUICK: dict[str, Any] = {"epochs": 1, "head": "fastbert"}


@pytest.mark.parametrize("learner", [FastBert(), DeeBert()], ids=lambda learner: learner.name)
def test_a_shallower_teacher_is_accepted(learner: Any, random_task: Task, tiny_backbone: Backbone) -> None:
    """There is a head for every layer of the teacher, whose weights do not change."""
    teacher = BertTruncated().fit(random_task, tiny_backbone, {}, config={**QUICK, "layers": 3}, seed=0)
    made = learner.fit(random_task, tiny_backbone, {"bert": teacher}, config=QUICK, seed=0)
    assert made.model.answers == (0, 1, 2)
    for name, value in teacher.model.encoder.state_dict().items():
        assert torch.equal(made.model.encoder.state_dict()[name], value)


def test_a_cascade_has_layers_of_one_size(random_task: Task, tiny_backbone: Backbone) -> None:
    """A teacher of another width than the backbone is refused, since layers of both models must cost the same."""
    narrow = MultiExitModel(Encoder(replace(tiny_backbone.shape, width=8)), 3, (), "fastbert")
    with pytest.raises(ConfigError, match=r"layers of 'bert' \(width 8\) are not of the backbone's shape \(width 16\)"):
        CascadeBert().fit(random_task, tiny_backbone, {"bert": FullDepth(narrow)}, config=QUICK, seed=0)
