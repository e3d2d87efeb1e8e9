"""Small BERTs: published sizes, word vectors from the backbone, students from a folder, teaching, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from baselines.distilled.small_bert import BertMini, BertSmall, BertTiny, SmallBert, start_tables
from harness.core.errors import ConfigError
from harness.core.tokens import Split, Task
from harness.encoder.backbone import Backbone
from harness.encoder.model import Encoder, LinearHead, parameters_of
from harness.encoder.shape import KNOWN_SHAPES
from harness.toolkit.fitted import FullDepth

QUICK = {"epochs": 4, "learning_rate": 3e-3, "batch_size": 16, "precision": "float32"}


class MicroBert(SmallBert):
    """The recipe on a tiny shape, so that tests are fast."""

    name = "bert-micro"
    layers, width = 1, 64


@pytest.mark.parametrize(
    ("method", "shape", "parameters"),
    [
        (BertTiny, "google/bert_uncased_L-2_H-128_A-2", 4_385_920),
        (BertMini, "google/bert_uncased_L-4_H-256_A-4", 11_170_560),
        (BertSmall, "google/bert_uncased_L-4_H-512_A-8", 28_763_648),
    ],
)
def test_shapes_are_the_published_ones(method: type[SmallBert], shape: str, parameters: int) -> None:
    """With BERT's vocabulary, encoder and pooler have the published number of parameters."""
    found = method().shape(KNOWN_SHAPES["bert-base-uncased"])
    assert found == KNOWN_SHAPES[shape]
    with torch.device("meta"):
        encoder, head = Encoder(found), LinearHead(found.width, 2)
    assert parameters_of(encoder) + parameters_of(head.dense) == parameters


def test_it_learns_from_the_teacher(
    signal_task: Task, small_backbone: Backbone, trained_bert: FullDepth, unseen: Split
) -> None:
    """Test rows are answered better than by the most common label, and the teacher is part of the cost."""
    fitted = MicroBert().fit(signal_task, small_backbone, {"bert": trained_bert}, config=QUICK, seed=0)
    (at,) = fitted.operating_points(signal_task.dev)
    found = fitted.predict(unseen.tokens, at=at)
    common = torch.bincount(unseen.labels).max() / len(unseen)
    assert (torch.from_numpy(found.logits.argmax(1)) == unseen.labels).float().mean() > common + 0.15
    assert found.work.rows("layer") == len(unseen)
    assert fitted.training is not None and trained_bert.training is not None
    assert fitted.training.steps == 4 * 6 + trained_bert.training.steps


def test_labels_alone_never_run_the_teacher(signal_task: Task, small_backbone: Backbone) -> None:
    """With loss ce no teacher is asked for, and the layers that run are the student's."""
    config = QUICK | {"epochs": 1, "loss": "ce"}
    fitted = MicroBert().fit(signal_task, small_backbone, {}, config=config, seed=0)
    assert fitted.training is not None and fitted.training.layer_passes == len(signal_task.train)


def test_embeddings_start_from_the_backbones(small_backbone: Backbone) -> None:
    """A wider student has their columns, and zeros beside them."""
    wide = small_backbone.encoder().word.weight.detach()
    student = Encoder(MicroBert().shape(small_backbone.shape))
    start_tables(student, small_backbone)
    torch.testing.assert_close(student.word.weight[:, :16], wide)
    assert not student.word.weight[:, 16:].any() and not student.position.weight[:, 16:].any()


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch, small_backbone: Backbone) -> Backbone:
    """A student that every name stands for: one layer of width 64."""
    torch.manual_seed(1)
    encoder = Encoder(MicroBert().shape(small_backbone.shape))
    found = Backbone("folder", encoder.shape, dict(encoder.state_dict()), tokenizer=None)
    monkeypatch.setattr(SmallBert, "pretrained", lambda *_: found)
    return found


def test_a_pretrained_student_keeps_its_weights(given: Backbone, signal_task: Task, small_backbone: Backbone) -> None:
    """Training at a rate of nearly 0 leaves what was in the folder."""
    config = QUICK | {"epochs": 1, "loss": "ce", "learning_rate": 1e-12, "student": "folder"}
    fitted = MicroBert().fit(signal_task, small_backbone, {}, config=config, seed=0)
    torch.testing.assert_close(fitted.model.encoder.word.weight.detach(), given.state["word.weight"])


@pytest.mark.parametrize(
    ("method", "config", "message"),
    [
        (
            BertTiny,
            {"student": "folder"},
            "bert-tiny: student 'folder' has 1 layers of width 64, not 2 of width 128: name",
        ),
        (MicroBert, {"student": "folder", "embeddings": "random"}, "student and embeddings both say .*: leave one out"),
        (MicroBert, {"student": "folder", "layers": 3}, "layers"),
        (MicroBert, {"loss": "hinge"}, "loss"),
    ],
)
def test_what_does_not_fit_is_refused(
    method: Any, config: dict[str, Any], message: str, given: Backbone, signal_task: Task, small_backbone: Backbone
) -> None:
    """One line says what is wrong and how to mend it."""
    with pytest.raises(ConfigError, match=message):
        method().fit(signal_task, small_backbone, {}, config=config, seed=0)


def test_a_folder_that_is_missing_is_named(signal_task: Task, small_backbone: Backbone, tmp_path: Path) -> None:
    """The content of a student belongs to the key of its fit, so a wrong name is refused before anything is trained."""
    with pytest.raises(Exception, match="nowhere"):
        BertTiny().named_content({"student": str(tmp_path / "nowhere")})
