"""Students whose teacher runs once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from baselines.distilled.distilbert import DistilBert
from baselines.distilled.tinybert import TinyBert
from harness.core.tokens import Split, Task
from harness.encoder.backbone import Backbone
from harness.execution.executors import exit_logits
from harness.toolkit.dev_scores import EVALUATION
from harness.toolkit.fitted import FullDepth
from harness.toolkit.frozen.frozen_states import FrozenStates

BRIEF = {"learning_rate": 2e-3, "batch_size": 16, "epochs": 3, "precision": "float32", "layers": 1}


@pytest.mark.parametrize(
    ("method", "config"),
    [(DistilBert, {}), (DistilBert, {"alpha_cos": 0.0}), (TinyBert, {"intermediate_epochs": 2, "width": 8})],
)
def test_students_learn_the_same_as_from_a_teacher_that_runs_in_every_epoch(
    method: type[Any],
    config: dict[str, Any],
    signal_task: Task,
    small_backbone: Backbone,
    trained_bert: FullDepth,
    unseen: Split,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The student is the same up to rounding, for a part of the layer passes."""

    def fit() -> Any:
        return method().fit(signal_task, small_backbone, {"bert": trained_bert}, config={**BRIEF, **config}, seed=0)

    stored = fit()
    monkeypatch.setattr(FrozenStates, "store", lambda _: None)
    live = fit()
    said = [exit_logits(one.model, unseen.tokens, EVALUATION) for one in (stored, live)]
    torch.testing.assert_close(*said, atol=2e-3, rtol=2e-3)
    epochs = 5 if method is TinyBert else 3
    assert live.training.layer_passes - stored.training.layer_passes == 96 * 5 * (epochs - 1)
