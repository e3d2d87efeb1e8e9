"""DistilBERT and TinyBERT from pretrained students, from the backbone, from labels alone and on augmented text."""

from __future__ import annotations

import math
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

from baselines.distilled import tinybert
from baselines.distilled.distilbert import DistilBert
from baselines.distilled.tinybert import TinyBert
from harness.contracts import Execution
from harness.core.errors import BackboneError, ConfigError
from harness.core.tokens import Task
from harness.encoder import checkpoint, miniature
from harness.encoder.backbone import Backbone
from harness.encoder.model import Encoder
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.shape import EncoderShape
from harness.running.profile import Profile
from harness.running.run_settings import Settings
from harness.running.session import Session
from harness.toolkit import student_start
from harness.toolkit.fitted import FullDepth
from harness.toolkit.training import TrainingReport

QUICK: dict[str, Any] = {"epochs": 1, "batch_size": 12, "learning_rate": 1e-3, "precision": "float32"}
STAGES: dict[str, Any] = {**QUICK, "intermediate_epochs": 2}
COST = TrainingReport(seconds=1.0, steps=10, layer_passes=1000, sample_passes=100)
METHODS = {"distilbert": (DistilBert(), QUICK), "tinybert": (TinyBert(), STAGES)}


def drawn(shape: EncoderShape, seed: int) -> Encoder:
    torch.manual_seed(seed)
    encoder = Encoder(shape)
    for parameter in encoder.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return encoder


@pytest.fixture
def backbone() -> Backbone:
    """Six layers of width 16, four heads, random weights, with a tokenizer."""
    tokenizer = miniature.tokenizer("en")
    shape = EncoderShape(6, 16, 4, 24, len(tokenizer), 12)
    return Backbone("base", shape, {k: v.clone() for k, v in drawn(shape, 0).state_dict().items()}, tokenizer)


@pytest.fixture
def teacher(backbone: Backbone) -> FullDepth:
    """Return a teacher that differs from its backbone, and its cost."""
    model = MultiExitModel(drawn(backbone.shape, 5), 3)
    return FullDepth(model.eval(), COST)


@pytest.fixture
def student(backbone: Backbone, tmp_path: Path) -> Callable[..., str]:
    """Return a function that writes a student's folder, by default with two layers of the backbone's width."""

    def write(language: str = "en", name: str = "student", **change: Any) -> str:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        shape = replace(backbone.shape, **{"layers": 2, **change})
        checkpoint.write_folder(folder, shape, drawn(shape, 7).state_dict())
        miniature.tokenizer(language).save_pretrained(folder)
        return str(folder)

    return write


def fit(method: str, task: Task, backbone: Backbone, teacher: FullDepth, **config: Any) -> FullDepth:
    one, quick = METHODS[method]
    return one.fit(task, backbone, {"bert": teacher}, config={**quick, **config}, seed=0)


def untouched(monkeypatch: pytest.MonkeyPatch) -> list[MultiExitModel]:
    """Return students at their start: training is replaced by a function that collects them."""
    seen: list[Any] = []

    def caught(model: Any, *_: Any, **__: Any) -> TrainingReport:
        seen.append(model)
        return TrainingReport(0.0, 0, 0, 0)

    for module in (student_start, tinybert):
        monkeypatch.setattr(module, "train", caught)
    return seen


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


def test_a_narrower_student_learns_without_the_cosine(
    backbone: Backbone, random_task: Task, teacher: FullDepth, student: Callable[..., str]
) -> None:
    """With alpha_cos = 0 the student may be narrower than the teacher."""
    fitted = fit("distilbert", random_task, backbone, teacher, student=student(width=8), alpha_cos=0)
    assert fitted.model.encoder.shape.width == 8


class _Deaf(torch.nn.Module):
    """A teacher that must not be called."""

    def forward(self, *_: Any) -> Any:
        raise AssertionError("the teacher was asked")


EPOCHS = {"distilbert": 1, "tinybert": 3}  # of all stages
LABELS = {"distilbert": {"alpha_ce": 0, "alpha_cos": 0}, "tinybert": {"labels_only": True}}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("given_student", [False, True])
def test_labels_alone_use_the_same_student_and_no_teacher(
    method: str,
    given_student: bool,
    backbone: Backbone,
    random_task: Task,
    teacher: FullDepth,
    student: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The start is the same, the teacher is never run, and if it gave no weights its cost is not included."""
    config = {"student": student()} if given_student else {}
    with monkeypatch.context() as patch:
        seen = untouched(patch)
        for extra in ({}, LABELS[method]):
            fit(method, random_task, backbone, teacher, **config, **extra)
        full, alone = seen[-2].state_dict(), seen[-1].state_dict()
    assert full.keys() == alone.keys() and all(torch.equal(full[name], alone[name]) for name in full)
    for layer in range(6):
        teacher.model.encoder.layers[layer] = _Deaf() if given_student else teacher.model.encoder.layers[layer]
    if not given_student:  # its layers are copied, so they must exist
        monkeypatch.setattr(teacher.model, "teacher", teacher.model.teacher)
        monkeypatch.setattr(teacher.model.encoder, "states", _Deaf().forward)
    fitted = fit(method, random_task, backbone, teacher, **config, **LABELS[method])
    assert fitted.training is not None
    depth = fitted.cost.depth
    assert fitted.training.layer_passes == EPOCHS[method] * 24 * depth + (0 if given_student else 1000)
    assert fitted.training.sample_passes == EPOCHS[method] * 24 + (0 if given_student else 100)


def test_layers_may_come_from_the_backbone(
    backbone: Backbone, random_task: Task, teacher: FullDepth, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With start = backbone, evenly spread layers and embeddings are the pretrained backbone's, and the head is new."""
    untouched(monkeypatch)
    model = fit("distilbert", random_task, backbone, teacher, start="backbone").model
    for new, old in enumerate((0, 3, 5)):
        assert torch.equal(model.encoder.layers[new].up.weight, backbone.state[f"layers.{old}.up.weight"])
    assert torch.equal(model.encoder.word.weight, backbone.state["word.weight"])
    assert not torch.equal(model.teacher.label.weight, teacher.model.teacher.label.weight)


@pytest.mark.parametrize(
    ("config", "counted"), [({"start": "backbone"}, True), ({"start": "backbone", **LABELS["distilbert"]}, False)]
)
def test_an_unused_teacher_costs_nothing(
    config: dict[str, Any], counted: bool, backbone: Backbone, random_task: Task, teacher: FullDepth
) -> None:
    """If the teacher gives neither weights nor answers, its training is not part of the student's cost."""
    fitted = fit("distilbert", random_task, backbone, teacher, **config)
    assert fitted.training is not None
    assert fitted.training.layer_passes == 24 * 3 + (1000 + 24 * 6 if counted else 0)


@pytest.mark.parametrize("layers", [1, 3, 6])
def test_any_fraction_of_the_teacher(layers: int, backbone: Backbone, random_task: Task, teacher: FullDepth) -> None:
    """The student may have one layer, half of them, or all."""
    assert fit("distilbert", random_task, backbone, teacher, layers=layers).cost.depth == layers


@pytest.mark.parametrize("method", METHODS)
def test_augmented_text_is_counted(method: str, backbone: Backbone, random_task: Task, teacher: FullDepth) -> None:
    """With two copies every epoch of every stage and the teacher's pass have three times as many samples; dev does not change."""
    fitted = fit(method, random_task, backbone, teacher, augment=2)
    assert fitted.training is not None
    stages = 1 if method == "distilbert" else 3
    depth = fitted.cost.depth
    assert fitted.training.layer_passes == 1000 + 3 * 24 * (stages * depth + 6)
    assert fitted.training.sample_passes == 100 + stages * 3 * 24


def test_hard_labels_are_added_to_the_soft_ones(
    backbone: Backbone, random_task: Task, teacher: FullDepth, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With alpha_hard = 0.7 the prediction loss is the soft cross-entropy plus 0.7 times that of the labels."""
    from harness.encoder.layout import Layout

    losses: list[Any] = []

    def caught(model: Any, loss_fn: Any, *_: Any, **__: Any) -> TrainingReport:
        model.eval()
        losses.append((model, loss_fn))
        return TrainingReport(0.0, 0, 0, 0)

    for module in (student_start, tinybert):
        monkeypatch.setattr(module, "train", caught)
    tokens, labels = random_task.train.tokens.select(range(5)), random_task.train.labels[:5]
    layout = Layout(tokens.lengths.numpy(), None, "cpu")
    values = []
    for config in ({}, {"alpha_hard": 0.7}, {"labels_only": True}):
        fit("tinybert", random_task, backbone, teacher, **config)
        values.append(losses[-1][1](tokens, layout, labels).item())
    *_, last = losses[-1][0].encoder.states(tokens, layout)
    logits = losses[-1][0].teacher(last, layout)
    picked = [-logits[i].log_softmax(-1)[labels[i]].item() for i in range(5)]
    assert values[2] == pytest.approx(sum(picked) / 5, rel=1e-5)
    assert values[1] == pytest.approx(values[0] + 0.7 * values[2], rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("augment", [0, 1])
def test_labels_alone_get_the_steps_of_the_method(
    method: str, augment: int, random_task: Task, teacher: FullDepth, backbone: Backbone
) -> None:
    """The student on labels alone takes as many steps as the whole method: all stages, augmented copies included."""
    config = {"augment": augment}
    teacher.training = None
    both = fit(method, random_task, backbone, teacher, **config).training
    alone = fit(method, random_task, backbone, teacher, **config, **LABELS[method]).training
    assert both is not None and alone is not None
    steps = EPOCHS[method] * math.ceil(len(random_task.train) * (1 + augment) / QUICK["batch_size"])
    assert alone.steps == both.steps == steps


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
