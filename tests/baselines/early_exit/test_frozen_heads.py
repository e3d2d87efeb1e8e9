"""Methods that train heads on a frozen encoder, which runs once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from baselines.early_exit.deebert import DeeBert
from baselines.early_exit.fastbert import FastBert
from harness.core.tokens import Split, Task
from harness.encoder.backbone import Backbone
from harness.execution.executors import exit_logits
from harness.toolkit.dev_scores import EVALUATION
from harness.toolkit.fitted import FullDepth
from harness.toolkit.frozen import frozen_exits, frozen_states

FIVE = {"learning_rate": 3e-3, "batch_size": 16, "epochs": 5, "patience": 5, "precision": "float32"}


@pytest.mark.parametrize(
    ("method", "config"), [(FastBert, {"distill_epochs": 5}), (DeeBert, {"encoder_dropout": False})]
)
def test_heads_learn_the_same_with_and_without_storage(
    method: type[Any],
    config: dict[str, Any],
    signal_task: Task,
    small_backbone: Backbone,
    trained_bert: FullDepth,
    unseen: Split,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Heads and dev scores are those of an encoder that runs in every epoch, up to rounding, for a part of its layer passes."""

    def fit() -> Any:
        return method().fit(signal_task, small_backbone, {"bert": trained_bert}, config={**FIVE, **config}, seed=0)

    stored = fit()
    for module in (frozen_states, frozen_exits):
        monkeypatch.setattr(module, "room_for", lambda *_: None)
    live = fit()
    said = [exit_logits(one.model, unseen.tokens, EVALUATION) for one in (stored, live)]
    torch.testing.assert_close(*said, atol=1e-3, rtol=1e-3)
    assert stored.training.dev_scores == pytest.approx(live.training.dev_scores, abs=0.02)
    assert stored.training.best_epoch == live.training.best_epoch
    assert trained_bert.training is not None
    spent = [one.training.layer_passes - trained_bert.training.layer_passes for one in (stored, live)]
    layers = 4 if method is DeeBert else 5
    # FastBERT's answers of the last head are stored in either case, so the last layer runs once.
    assert spent == [96 * layers, 96 * 4 * 5 + (96 * 5 if method is FastBert else 0)]
