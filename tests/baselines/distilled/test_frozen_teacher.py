"""Students whose teacher runs once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from baselines.distilled.distilbert import DistilBert
from baselines.distilled.tinybert import TinyBert
from harness.toolkit.frozen.frozen_states import FrozenStates

BRIEF = {"learning_rate": 2e-3, "batch_size": 16, "epochs": 3, "precision": "float32", "layers": 1}


@pytest.mark.parametrize(
    ("method", "config"),
    [(DistilBert, {}), (DistilBert, {"alpha_cos": 0.0}), (TinyBert, {"intermediate_epochs": 2, "width": 8})],
)
def test_students_learn_the_same_as_from_a_teacher_that_runs_in_every_epoch(
    method: type[Any], config: dict[str, Any], fit_both_ways: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The student is the same up to rounding, for a part of the layer passes."""

    def store_nothing() -> None:
        monkeypatch.setattr(FrozenStates, "store", lambda _: None)

    stored, live = fit_both_ways(method, {**BRIEF, **config}, store_nothing, tolerance=2e-3)
    epochs = 5 if method is TinyBert else 3
    assert live.layer_passes - stored.layer_passes == 96 * 5 * (epochs - 1)
