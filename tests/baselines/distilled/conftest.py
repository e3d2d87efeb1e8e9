"""Backbone, teacher and student folders for DistilBERT and TinyBERT."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines.distilled.axes import taught_student
from baselines.distilled.distilbert import DistilBert
from baselines.distilled.tinybert import TinyBert
from harness.core.tokens import Task
from harness.encoder import checkpoint, miniature
from harness.encoder.backbone import Backbone
from harness.encoder.model import Encoder
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.shape import EncoderShape
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

    for module in (student_start, taught_student):
        monkeypatch.setattr(module, "train", caught)
    return seen
