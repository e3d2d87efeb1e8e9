"""A fine-tuned teacher for methods that prune."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from harness.core.tokens import Task
from harness.encoder.backbone import Backbone
from harness.toolkit.fitted import FullDepth

BRIEF = {"epochs": 5, "learning_rate": 5e-3, "batch_size": 16, "density": 0.4}


@pytest.fixture(scope="session")
def prune(signal_task: Task, small_backbone: Backbone, trained_bert: FullDepth) -> Callable[..., FullDepth]:
    """Fit a method that prunes; fits without other settings are made once."""
    made: dict[str, FullDepth] = {}

    def fit(method: type[Any], teacher: FullDepth = trained_bert, **change: Any) -> FullDepth:
        def anew() -> FullDepth:
            config: Mapping[str, Any] = {**BRIEF, **change}
            found: FullDepth = method().fit(signal_task, small_backbone, {"bert": teacher}, config=config, seed=0)
            return found

        if change or teacher is not trained_bert:
            return anew()
        return made.setdefault(method.name, made.get(method.name) or anew())

    return fit
