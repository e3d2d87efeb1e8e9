"""DistilBERT and TinyBERT from pretrained students, from the backbone, from labels alone and on augmented text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from harness.contracts import Execution
from harness.core.errors import BackboneError, ConfigError
from harness.core.tokens import Task
from harness.encoder import checkpoint, miniature
from harness.encoder.backbone import Backbone
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.shape import EncoderShape
from harness.running.profile import Profile
from harness.running.run_settings import Settings
from harness.running.session import Session
from harness.toolkit import student_start
from harness.toolkit.fitted import FullDepth
from tests.baselines.distilled.conftest import METHODS, drawn, fit, untouched


@pytest.mark.parametrize("method", METHODS)
def test_a_given_student_starts_from_its_folder(
    method: str,
    backbone: Backbone,
    random_task: Task,
    teacher: FullDepth,
    student: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every weight of the encoder is the folder's; the head is new."""
    untouched(monkeypatch)
    folder = student()
    fitted = fit(method, random_task, backbone, teacher, student=folder)
    state = checkpoint.read(Path(folder)).state
    for name, value in fitted.model.encoder.state_dict().items():
        assert torch.equal(value, state[name])
    assert not torch.equal(fitted.model.teacher.label.weight, teacher.model.teacher.label.weight)


@pytest.mark.parametrize("method", METHODS)
def test_a_given_student_is_trained_and_reloaded(
    method: str, backbone: Backbone, random_task: Task, teacher: FullDepth, student: Callable[..., str], tmp_path: Path
) -> None:
    """Its weights change, a loaded copy answers the same, and its cost includes the teacher's."""
    folder = student()
    fitted = fit(method, random_task, backbone, teacher, student=folder)
    state = checkpoint.read(Path(folder)).state
    assert not torch.equal(fitted.model.encoder.layers[0].qkv.weight, state["layers.0.qkv.weight"])
    assert fitted.training is not None
    stages = 1 if method == "distilbert" else 3
    assert fitted.training.layer_passes == 1000 + 24 * (stages * 2 + 6)
    (tmp_path / "fit").mkdir()
    fitted.save(tmp_path / "fit")
    loaded = METHODS[method][0].load(tmp_path / "fit", random_task, backbone, {"bert": teacher})
    (at,) = fitted.operating_points(random_task.dev)
    first, second = (one.predict(random_task.dev.tokens, at=at).logits for one in (fitted, loaded))
    np.testing.assert_array_equal(first, second)


@settings(max_examples=10)
@given(
    st.builds(
        Execution,
        batch_size=st.integers(1, 9),
        protocol=st.sampled_from(["modern", "paper"]),
        order=st.sampled_from(["arrival", "length"]),
        max_length=st.just(12),
    )
)
def test_one_segment_gives_the_same_answers_in_any_batch(execution: Execution) -> None:
    """A student of DistilBERT's layout gives every pair the same answer in a batch as alone."""
    from harness.core.tokens import TokenSet

    shape = EncoderShape(2, 16, 4, 24, 40, 12, type_vocab=1)
    torch.manual_seed(0)
    fitted = FullDepth(MultiExitModel(drawn(shape, 1), 3).eval())
    draw = np.random.default_rng(0)
    ids = [draw.integers(5, 40, n).tolist() for n in (3, 12, 7, 5, 9, 4, 8)]
    tokens = TokenSet.from_lists(ids, [[0] * (len(row) // 2) + [1] * (len(row) - len(row) // 2) for row in ids])
    (at,) = fitted.operating_points(None)  # type: ignore[arg-type]
    alone = fitted.predict(tokens, at=replace(at, execution=Execution(batch_size=1, max_length=12)))
    found = fitted.predict(tokens, at=replace(at, execution=execution))
    np.testing.assert_allclose(found.logits, alone.logits, atol=1e-5)
    assert found.work.rows("layer") == alone.work.rows("layer")


def test_distilberts_layout_is_accepted(
    backbone: Backbone, random_task: Task, teacher: FullDepth, tmp_path: Path
) -> None:
    """A DistilBERT folder can be fine-tuned and distilled, also on pairs."""
    from transformers import DistilBertConfig, DistilBertModel

    words = len(backbone.tokenizer)
    config = DistilBertConfig(
        vocab_size=words, dim=16, n_layers=3, n_heads=4, hidden_dim=24, max_position_embeddings=12
    )
    DistilBertModel(config).save_pretrained(tmp_path / "d")
    miniature.tokenizer("en").save_pretrained(tmp_path / "d")
    for method in METHODS:
        fitted = fit(method, random_task, backbone, teacher, student=str(tmp_path / "d"))
        assert fitted.cost.depth == 3 and fitted.model.encoder.shape.type_vocab == 1


CASES = [
    ("distilbert", {"layers": 7}, {}, "layers 7, its teacher 6"),
    ("tinybert", {"layers": 12}, {}, "layers 12, its teacher 6"),
    ("distilbert", {"width": 32}, {"alpha_cos": 0}, "width 32, its teacher 16"),
    ("tinybert", {"width": 32}, {}, "width 32, its teacher 16"),
    ("distilbert", {"width": 8}, {}, "alpha_cos = 0"),
    ("tinybert", {"layers": 4}, {}, r"4 student layers do not divide .* 6: choose one of \[1, 2, 3, 6\]"),
    ("tinybert", {"heads": 2}, {}, "2 attention heads, its teacher 4"),
    ("distilbert", {"language": "zh"}, {}, "another vocabulary"),
    ("tinybert", {"language": "zh"}, {}, "another vocabulary"),
    ("distilbert", {"max_positions": 8}, {}, "8 positions, samples have up to 12 tokens"),
    ("distilbert", {}, {"layers": 2}, "leave out layers = 2"),
    ("distilbert", {}, {"layer_map": [0, 1]}, "leave out layer_map"),
    ("tinybert", {}, {"width": 16}, "leave out width = 16"),
    ("distilbert", {}, {"start": "backbone"}, "leave one out"),
]


@pytest.mark.parametrize(("method", "shape", "config", "said"), CASES)
def test_students_that_do_not_fit_are_refused(
    method: str,
    shape: dict[str, Any],
    config: dict[str, Any],
    said: str,
    backbone: Backbone,
    random_task: Task,
    teacher: FullDepth,
    student: Callable[..., str],
) -> None:
    """Students that are too large, have another vocabulary or cannot be compared are refused in one line with a correction."""
    with pytest.raises(ConfigError, match=said) as caught:
        fit(method, random_task, backbone, teacher, student=student(**shape), **config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"student": 3}, "student = 3"),
        ({"augment": -2}, "augment = -2"),
        ({"augment_p": 2}, "augment_p = 2"),
        ({"temperature": [2]}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
    ],
)
def test_invalid_settings_are_refused(
    method: str, config: dict[str, Any], said: str, backbone: Backbone, random_task: Task, teacher: FullDepth
) -> None:
    """The error names the setting."""
    with pytest.raises(ConfigError, match=said):
        fit(method, random_task, backbone, teacher, **config)


@pytest.mark.parametrize(
    ("method", "config", "said"),
    [
        ("distilbert", {"start": "middle"}, 'start = "middle".*"teacher", "backbone"'),
        ("distilbert", {"alpha_ce": [5]}, "alpha_ce"),
        ("tinybert", {"alpha_hard": -0.5}, "alpha_hard = -0.5"),
        ("tinybert", {"labels_only": "yes"}, 'labels_only = "yes"'),
        ("tinybert", {"labels_only": True, "alpha_hard": 1}, "leave one out"),
    ],
)
def test_invalid_own_settings_are_refused(
    method: str, config: dict[str, Any], said: str, backbone: Backbone, random_task: Task, teacher: FullDepth
) -> None:
    """The error names the setting."""
    with pytest.raises(ConfigError, match=said):
        fit(method, random_task, backbone, teacher, **config)


@pytest.mark.parametrize("method", METHODS)
def test_a_missing_student_is_reported(
    method: str, backbone: Backbone, random_task: Task, teacher: FullDepth, tmp_path: Path
) -> None:
    """A student that does not exist, or a folder without weights, is a BackboneError."""
    with pytest.raises(BackboneError, match="neither a folder"):
        fit(method, random_task, backbone, teacher, student=str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(BackboneError, match="no config.json"):
        fit(method, random_task, backbone, teacher, student=str(tmp_path / "empty"))


@pytest.mark.parametrize("method", METHODS)
def test_a_student_per_language(
    method: str,
    backbone: Backbone,
    random_task: Task,
    teacher: FullDepth,
    student: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The student of the task's language is used; a table without it is refused, and so is one without names."""
    untouched(monkeypatch)
    other = "zh" if random_task.language == "en" else "en"
    folder = student(random_task.language, "mine")
    fitted = fit(method, random_task, backbone, teacher, student={random_task.language: folder, other: "nowhere"})
    state = checkpoint.read(Path(folder)).state
    assert torch.equal(fitted.model.encoder.word.weight, state["word.weight"])
    with pytest.raises(ConfigError, match=f"names none for language '{random_task.language}'"):
        fit(method, random_task, backbone, teacher, student={other: folder})
    with pytest.raises(ConfigError, match="student = .*3.* is not allowed"):
        fit(method, random_task, backbone, teacher, student={random_task.language: 3})


def _session(backbone: Backbone, tmp_path: Path, **method: Any) -> Session:
    profile = Profile(
        title="t",
        source="embedded",
        datasets=["ag_news"],
        methods=["distilbert"],
        backbones={"en": "x"},
        max_train=40,
        max_test=10,
        method={"distilbert": method, "tinybert": method},
    )
    session = Session(Settings(profile, tmp_path), "ag_news", 0)
    session.__dict__["backbone"] = replace(backbone, shape=replace(backbone.shape, max_positions=64))
    return session


@pytest.mark.parametrize("method", METHODS)
def test_cache_keys_depend_on_the_student(
    method: str, backbone: Backbone, student: Callable[..., str], tmp_path: Path
) -> None:
    """Other weights in the same folder make another cache key; without a student, the key does not change."""
    folder = student()
    first = _session(backbone, tmp_path, student=folder).fit_key(method)
    assert _session(backbone, tmp_path, student=folder).fit_key(method) == first
    found = checkpoint.read(Path(folder))
    shape, state = found.shape, found.state
    checkpoint.write_folder(Path(folder), shape, {name: value + 1 for name, value in state.items()})
    assert _session(backbone, tmp_path, student=folder).fit_key(method) != first
    both = {"en": folder, "zh": student("zh", "other")}
    one, other = (_session(backbone, tmp_path, student=named).fit_key(method) for named in (both, {"en": folder}))
    assert one != other
    plain = _session(backbone, tmp_path)
    key = plain.fit_key(method)
    named = METHODS[method][0].named_content
    assert named({}) is None and named({"student": ""}) is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(student_start.StudentMethod, "named_content", lambda *_: None)
        assert plain.fit_key(method) == key


def test_damaged_weights_are_reported(
    backbone: Backbone, random_task: Task, teacher: FullDepth, student: Callable[..., str]
) -> None:
    """A folder whose tensors do not match its config is refused."""
    folder = Path(student())
    save_file({"a": torch.ones(1)}, folder / "model.safetensors")
    with pytest.raises(BackboneError, match="no tensor .*which config.json promises"):
        fit("tinybert", random_task, backbone, teacher, student=str(folder))


def test_cache_keys_depend_on_the_augmenting_head(backbone: Backbone, tmp_path: Path) -> None:
    """With augmentation another masked-word head makes another cache key; without it the key is the same."""
    heads = [None, {"bias": torch.zeros(3)}, {"bias": torch.ones(3)}]
    plain = {_session(replace(backbone, head=head), tmp_path).fit_key("tinybert") for head in heads}
    augmented = {_session(replace(backbone, head=head), tmp_path, augment=1).fit_key("tinybert") for head in heads}
    assert (len(plain), len(augmented)) == (1, 3)
