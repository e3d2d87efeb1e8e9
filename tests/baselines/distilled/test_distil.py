"""`distil`: starts, shapes, stages, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from baselines.distilled.distil import Distil
from harness import registry
from harness.core.errors import ConfigError
from harness.core.tokens import Task
from harness.encoder.backbone import Backbone
from harness.toolkit.fitted import FullDepth
from tests.baselines.distilled.conftest import COST, QUICK, untouched


def fit(task: Task, backbone: Backbone, teacher: FullDepth, **config: Any) -> FullDepth:
    return Distil().fit(task, backbone, {"bert": teacher}, config={**QUICK, **config}, seed=0)


@pytest.mark.parametrize(("init", "layers"), [(None, (0, 3, 5)), ("every-k-th", (0, 3, 5)), ("first-k", (0, 1, 2))])
def test_layers_of_the_teacher(
    init: str | None,
    layers: tuple[int, ...],
    backbone: Backbone,
    random_task: Task,
    teacher: FullDepth,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Embeddings, layers and head are copies; evenly spread layers are the default."""
    untouched(monkeypatch)
    model, his = fit(random_task, backbone, teacher, **({"init": init} if init else {})).model, teacher.model
    for new, old in zip(model.encoder.layers, layers, strict=True):
        assert torch.equal(new.up.weight, his.encoder.layers[old].up.weight)
    assert torch.equal(model.encoder.word.weight, his.encoder.word.weight)
    assert torch.equal(model.teacher.label.weight, his.teacher.label.weight)


def test_other_starts(
    backbone: Backbone,
    random_task: Task,
    teacher: FullDepth,
    student: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`random` takes nothing of the teacher, `svd` its projected embeddings, `folder` a student as it is."""
    untouched(monkeypatch)
    his = teacher.model.encoder.word.weight
    new = fit(random_task, backbone, teacher, init="random", intermediate=10).model.encoder
    assert new.word.weight.abs().max() < 0.2 < his.abs().max() and new.shape.intermediate == 10
    for config in ({"init": "svd"}, {}):
        narrow = fit(random_task, backbone, teacher, width=0.5, **config).model.encoder
        kept = torch.linalg.svdvals(his.detach())[:8].square().sum().item()
        assert narrow.word.weight.square().sum().item() == pytest.approx(kept, rel=1e-4)
        assert (narrow.shape.width, narrow.shape.heads, narrow.shape.intermediate) == (8, 4, 12)
    folder = student(width=8, heads=2)
    for config in ({"init": "folder"}, {}):
        found = fit(random_task, backbone, teacher, student=folder, **config).model.encoder.shape
        assert (found.layers, found.width, found.heads) == (2, 8, 2)


@pytest.mark.parametrize(
    ("config", "counted"),
    [({}, True), ({"init": "random"}, True), ({"init": "random", "alpha_logits": 0.0, "alpha_hidden": 0.0}, False)],
)
def test_the_teacher_is_counted_if_it_is_used(
    config: dict[str, Any], counted: bool, backbone: Backbone, random_task: Task, teacher: FullDepth
) -> None:
    """Its training and its pass are part of the cost of a student that takes weights or answers."""
    found = fit(random_task, backbone, teacher, **config).training
    assert found is not None
    assert found.layer_passes == 24 * 3 + (COST.layer_passes + 24 * 6 if counted else 0)


FULL = {"alpha_embeddings": 1.0, "alpha_attention": 1.0, "alpha_token_relations": 1.0, "token_relations": "qkv"}


@pytest.mark.parametrize(
    "config",
    [
        {"width": 8, "matching": "random", **FULL},
        {"width": 8, "heads": 2, "alpha_token_relations": 1.0, "relation_heads": 2, "hidden": "cos"},
        {"stages": 2, "intermediate_epochs": 2, **FULL},
        {"stages": 2, "schedule": "continuation", "alpha_hidden": 0.5},
        {"alpha_ckd": 1.0, "alpha_relation": 1.0, "focus": 1.0, "matching": "top"},
    ],
)
def test_any_knowledge_fits_and_answers(
    config: dict[str, Any], backbone: Backbone, random_task: Task, teacher: FullDepth, tmp_path: Path
) -> None:
    """One stage or two, of any width: every layer learns, and a loaded student answers as before."""
    fitted = fit(random_task, backbone, teacher, **config)
    fitted.save(tmp_path)
    loaded = Distil().load(tmp_path, random_task, backbone, {"bert": teacher})
    (at,) = fitted.operating_points(random_task.dev)
    first, second = (model.predict(random_task.dev.tokens, at=at) for model in (fitted, loaded))
    np.testing.assert_array_equal(first.logits, second.logits)
    assert np.isfinite(first.logits).all() and (first.exit_layer == 2).all()
    assert fitted.training is not None
    passes = config.get("intermediate_epochs", 1) + 1 if config.get("stages") == 2 else 1
    assert fitted.training.sample_passes == COST.sample_passes + 24 * passes


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"init": "svd"}, "the student is as wide as its teacher .16.: set width"),
        ({"init": "svdd"}, "one of .*every-k-th.*first-k.*random.*svd.*folder"),
        ({"logits": "cosine"}, "one of .*kl.*ce.*mse"),
        ({"matching": "middle"}, "one of .*uniform.*last.*top.*first.*random"),
        ({"layers": 7}, "choose 1 to 6 layers"),
        ({"width": 8, "init": "first-k"}, "another shape than the teacher's"),
        ({"width": 10}, "choose a multiple of 4"),
        ({"width": 8, "heads": 2, "alpha_attention": 1.0}, "relation_heads"),
        ({"alpha_token_relations": 1.0, "relation_heads": 3}, "3 relation heads do not divide the widths 16 and 16"),
        ({"stages": 2, "alpha_hidden": 0.0}, "nothing to teach first"),
        ({"stages": 3}, "stages"),
        ({"alpha_logits": 0.0, "alpha_hard": 0.0}, "nothing trains the head"),
        ({"intermediate_epochs": 2}, "no effect with stages = 1"),
        ({"focus": 1.0, "logits": "mse"}, "leave one out"),
        ({"init": "folder"}, "set student"),
        ({"init": "random", "student": "somewhere"}, "both say where the student starts"),
        ({"width": 8, "alpha_ckd": 1.0}, "states of one width"),
        ({"schedule": "annealing", "alpha_hidden": 1.0}, "the whole loss and has no alpha_hidden"),
        ({"unlabelled": "yes"}, "has no rows without labels"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    config: dict[str, Any], message: str, backbone: Backbone, random_task: Task, teacher: FullDepth
) -> None:
    """One line says what is wrong and how to mend it."""
    with pytest.raises(ConfigError, match=message) as caught:
        fit(random_task, backbone, teacher, **config)
    assert "\n" not in str(caught.value)


def test_it_is_registered() -> None:
    """Profiles find it by its name."""
    assert type(registry.get("distil")) is Distil
