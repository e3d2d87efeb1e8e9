"""Profile ``rivals``: every method and variant fits with its settings and answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from harness.contracts import Fitted
from harness.core.tokens import Task
from harness.core.work import BEFORE
from harness.encoder import miniature
from harness.encoder.backbone import Backbone
from harness.encoder.model import Encoder
from harness.encoder.shape import EncoderShape
from harness.running import profile
from harness.running.profile import Profile

# One row of each point is enough here, with one epoch per stage, and small tables of n-grams.
STAGES = (
    "epochs",
    "prune_epochs",
    "distill_epochs",
    "intermediate_epochs",
    "ramp_epochs",
    "policy_epochs",
    "label_epochs",
)
SHORT = {**dict.fromkeys(STAGES, 1), "rows": 8}


@pytest.fixture
def backbone() -> Backbone:
    """Six layers, as the profile expects, with a tokenizer for augmented data."""
    torch.manual_seed(0)
    tokenizer = miniature.tokenizer("en")
    encoder = Encoder(EncoderShape(6, 16, 4, 24, len(tokenizer), 13))  # one for the distillation token
    return Backbone("tiny", encoder.shape, {k: v.clone() for k, v in encoder.state_dict().items()}, tokenizer)


def short(rivals: Profile, name: str) -> dict[str, Any]:
    """Return the settings of a method with fewer epochs."""
    config = rivals.config(name)
    return {**config, **{key: value for key, value in SHORT.items() if key in config}}


def test_every_rival_fits_and_answers_with_the_profiles_settings(backbone: Backbone, random_task: Task) -> None:
    """No setting is refused, points have the announced names, and each point gives one finite answer per sample."""
    rivals = profile.load("rivals")
    fitted: dict[str, Fitted] = {}
    for name in rivals.fits(rivals.methods):
        method = rivals.method_of(name)
        teachers = {need: fitted[need] for need in method.needs}
        made = method.fit(random_task, backbone, teachers, config=short(rivals, name), seed=0)
        fitted[name] = made
        points = list(made.operating_points(random_task.dev))
        message = getattr(method, "point_names", None)
        if message is not None:
            assert [point.name for point in points] == list(message(short(rivals, name)))
        if hasattr(made, "foresee"):
            continue
        found = made.predict(random_task.dev.tokens, at=points[0])
        assert found.logits.shape == (len(random_task.dev), 3) and np.isfinite(found.logits).all()
        # On random rows the table of labels may be as good as full depth for all of them.
        assert (found.work.rows("layer") > 0) == (found.exit_layer != BEFORE).any()
    on_engines = {name: rivals.engine(name) for name in rivals.methods if rivals.fit_of(name) != name}
    assert set(rivals.methods) - set(fitted) == set(on_engines)
    assert {name for name, engine in on_engines.items() if engine is None} == {"fastbert-rebatch"}
    assert set(on_engines.values()) - {None} == {"compiled", "int8", "int8-call", "onnx"}


def test_variants_have_the_sizes_in_their_names(backbone: Backbone, random_task: Task) -> None:
    """Students have the layers and widths that their names say, on a backbone of six layers."""
    rivals = profile.load("rivals")
    bert = rivals.method_of("bert").fit(random_task, backbone, {}, config=short(rivals, "bert"), seed=0)
    sizes = {}
    for name in ("bert-truncated", "bert-truncated-1l", "distilbert", "distilbert-2l", "tinybert", "tinybert-wide"):
        made: Any = rivals.method_of(name).fit(
            random_task, backbone, {"bert": bert}, config=short(rivals, name), seed=0
        )
        shape = made.model.encoder.shape
        sizes[name] = (shape.layers, shape.width)
    assert sizes == {
        "bert-truncated": (3, 16),
        "bert-truncated-1l": (1, 16),
        "distilbert": (3, 16),
        "distilbert-2l": (2, 16),
        "tinybert": (2, 8),
        "tinybert-wide": (3, 16),
    }


def test_the_released_schedule_ends_before_the_training() -> None:
    """FastBERT's release reaches a rate of 0 after 3 of 5 epochs, and so does the variant."""
    rivals = profile.load("rivals")
    ends = rivals.config("bert")["epochs"] / rivals.config("fastbert-released")["distill_epochs"]
    assert ends == pytest.approx(3 / 5, abs=0.05)


def test_rivals_have_one_kind_of_head() -> None:
    """All methods have one kind of head, except the row that measures the other kind."""
    rivals = profile.load("rivals")
    other = [name for name in rivals.methods if rivals.config(name)["head"] != rivals.config("bert")["head"]]
    assert other == ["elasticbert-linear"]
