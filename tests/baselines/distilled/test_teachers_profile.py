"""Profile ``teachers``: every row fits with its settings, beside its own control."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from harness.contracts import Fitted
from harness.core.tokens import Task
from harness.encoder.backbone import Backbone
from harness.running import profile
from harness.running.profile import Profile

STAGES = ("epochs", "intermediate_epochs", "label_epochs")


@pytest.fixture
def teachers() -> Profile:
    return profile.load("teachers")


def short(chosen: Profile, name: str) -> dict[str, Any]:
    """Return the settings of a row for training in an instant."""
    config = {key: value for key, value in chosen.config(name).items() if key != "patience"}
    quick = dict.fromkeys((key for key in STAGES if key in config), 1)
    return {**config, **quick, "epochs": 1, **({"rows": 8} if name == "sparse-dan" else {})}


def test_every_row_fits_and_answers(teachers: Profile, tiny_backbone: Backbone, random_task: Task) -> None:
    """No setting is refused, and each row gives one finite answer per sample."""
    fitted: dict[str, Fitted] = {}
    task = replace(random_task, max_length=11, read_unlabelled=lambda: random_task.dev.tokens)
    for name in teachers.fits(teachers.methods):
        method = teachers.method_of(name)
        known = {need: fitted[need] for need in method.needs}
        made = method.fit(task, tiny_backbone, known, config=short(teachers, name), seed=0)
        fitted[name] = made
        at = made.operating_points(task.dev)[0]
        found = made.predict(task.dev.tokens, at=at)
        assert found.logits.shape == (len(task.dev), 3) and np.isfinite(found.logits).all(), name
    assert {*teachers.methods} <= {*fitted}


def test_every_recipe_has_a_control(teachers: Profile) -> None:
    """All rows but the plain ones are compared with another row of the profile, which differs in the recipe."""
    plain = {"bert", "bert-truncated"}
    compared = {other for others in teachers.compare.values() for other in others}
    assert {*teachers.methods} - plain <= {*teachers.compare} | compared
    assert {*teachers.compare} | compared <= {*teachers.methods}
