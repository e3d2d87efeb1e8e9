"""Methods that train heads on a frozen encoder, which runs once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from baselines.early_exit.deebert import DeeBert
from baselines.early_exit.fastbert import FastBert
from harness.toolkit.fitted import FullDepth
from harness.toolkit.frozen import frozen_exits, frozen_states

FIVE = {"learning_rate": 3e-3, "batch_size": 16, "epochs": 5, "patience": 5, "precision": "float32"}


@pytest.mark.parametrize(
    ("method", "config"), [(FastBert, {"distill_epochs": 5}), (DeeBert, {"encoder_dropout": False})]
)
def test_heads_learn_the_same_with_and_without_storage(
    method: type[Any],
    config: dict[str, Any],
    fit_both_ways: Callable[..., Any],
    trained_bert: FullDepth,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Heads and dev scores are those of an encoder that runs in every epoch, up to rounding, for a part of its layer passes."""

    def leave_no_room() -> None:
        for module in (frozen_states, frozen_exits):
            monkeypatch.setattr(module, "room_for", lambda *_: None)

    stored, live = fit_both_ways(method, {**FIVE, **config}, leave_no_room, tolerance=1e-3)
    assert stored.dev_scores == pytest.approx(live.dev_scores, abs=0.02)
    assert stored.best_epoch == live.best_epoch
    assert trained_bert.training is not None
    spent = [one.layer_passes - trained_bert.training.layer_passes for one in (stored, live)]
    layers = 4 if method is DeeBert else 5
    # FastBERT's answers of the last head are stored in either case, so the last layer runs once.
    assert spent == [96 * layers, 96 * 4 * 5 + (96 * 5 if method is FastBert else 0)]
