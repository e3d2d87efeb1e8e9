"""Tiny untrained models, token sets, fake methods and fabricated packed runs for the tests of the harness."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from harness import registry
from harness.contracts import Fitted, OperatingPoint, Predictions
from harness.core.tokens import Split, Task, TokenSet
from harness.data.embedded import load_embedded
from harness.encoder import checkpoint, miniature
from harness.encoder.backbone import Backbone
from harness.encoder.model import Encoder
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.shape import EncoderShape
from harness.results.packed_run import Machine, PackedCell, PackedRun
from harness.results.schema import Cell
from harness.running import session, task
from harness.running.profile import ExecutionSettings, Profile
from harness.running.run_settings import Settings
from harness.toolkit.fitted import FullDepth


def scatter(module: torch.nn.Module, std: float, seed: int) -> None:
    """Set weights that distinguish samples: with BERT's deviation of 0.02 all hidden states would be alike."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, std, generator=draw)
            elif not name.endswith("weight"):
                parameter.normal_(0.0, 0.1, generator=draw)


@pytest.fixture(scope="session")
def tiny_shape() -> EncoderShape:
    """Return a shape of four layers of width 16, two heads, 50 words, up to 16 tokens."""
    return EncoderShape(layers=4, width=16, heads=2, intermediate=24, vocab_size=50, max_positions=16)


@pytest.fixture(scope="session")
def make_model(tiny_shape: EncoderShape) -> Callable[..., MultiExitModel]:
    """Return a function that builds a multi-exit model with random weights, in eval mode."""

    def make(
        labels: int = 3,
        exits: Sequence[int] | None = None,
        head: str = "fastbert",
        shape: EncoderShape = tiny_shape,
        seed: int = 4,
    ) -> MultiExitModel:
        encoder = Encoder(shape)
        scatter(encoder, 0.3, seed)
        model = MultiExitModel(encoder, labels, range(shape.layers - 1) if exits is None else exits, head)
        for number, part in enumerate([model.teacher, *model.students.values()]):
            scatter(part, 0.8, seed + 1 + number)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def tiny_model(make_model: Callable[..., MultiExitModel]) -> MultiExitModel:
    """Return a model with three classes and an exit after every layer, all of which samples take. Do not train it."""
    return make_model()


@pytest.fixture(scope="session")
def make_tokens(tiny_shape: EncoderShape) -> Callable[..., TokenSet]:
    """Return a function that builds random samples: [CLS] = 1, then words from 3 on; the second half is segment 1."""

    def make(lengths: Sequence[int], seed: int = 0, vocab: int = tiny_shape.vocab_size) -> TokenSet:
        rng = np.random.default_rng(seed)
        rows = [[1, *rng.integers(3, vocab, size=int(n) - 1).tolist()] for n in lengths]
        segments = [[0] * (len(row) - len(row) // 2) + [1] * (len(row) // 2) for row in rows]
        return TokenSet.from_lists(rows, segments, (0, 1, 2))

    return make


@pytest.fixture(scope="session")
def tokens(make_tokens: Callable[..., TokenSet]) -> TokenSet:
    """Return 23 samples of 1 to 12 tokens."""
    return make_tokens(np.random.default_rng(3).integers(1, 13, size=23).tolist(), seed=4)


@pytest.fixture(scope="session")
def make_backbone() -> Callable[..., Backbone]:
    """Return a function that builds a random backbone with the tokenizer of the embedded data, without pretraining."""

    tokenizers = cache(miniature.tokenizer)  # each takes longer than most tests

    def make(language: str = "en", layers: int = 3) -> Backbone:
        tokenizer = tokenizers(language)
        shape = EncoderShape(layers, 8, 2, 16, len(tokenizer), 128)
        encoder = Encoder(shape)
        scatter(encoder, 0.3, 7)
        state = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
        return Backbone("tiny", shape, state, tokenizer)

    return make


HERE = Machine(cpu="a CPU", cores=2, torch_threads=2, torch="2.13")
CELL = {
    "method": "geep",
    "dataset": "ag_news",
    "source": "embedded",
    "backbone": "tiny",
    "seed": 0,
    "point": "full",
    "protocol": "modern",
    "order": "length",
    "executor": "own",
    "batch_size": 8,
    "device": "cpu",
    "dtype": "float32",
}


def packed_cell(correct: Sequence[bool] | None = None, **change: Any) -> PackedCell:
    """Return a cell of 400 samples, 90 % of them right, with the given coordinates and fields."""
    coordinates = {name: change.pop(name, value) for name, value in CELL.items()}
    coordinates |= {name: change.pop(name) for name in ("compute", "batch_tokens") if name in change}
    right = np.arange(400) >= 40 if correct is None else np.asarray(correct, dtype=bool)
    facts: dict[str, Any] = {
        "kind": "method",
        "synthetic": True,
        "n": len(right),
        "accuracy": float(right.mean()),
        "bits": base64.b64encode(np.packbits(right).tobytes()).decode(),
        "rows": "0123",
        "tokens": 4000,
        "flops_linear": 1e6,
        "flops_full": 1.1e6,
        "mean_layers": 3.0,
        "mean_heads": 1.0,
        "exits": [0, len(right) // 2, 0, len(right) - len(right) // 2],
        "reference": "bert",
        "speedup": 2.0,
        "machine": 0,
    }
    return PackedCell(cell=Cell(**coordinates), **{**facts, **change})


@pytest.fixture(scope="session")
def make_cell() -> Callable[..., PackedCell]:
    """Return a function that builds one packed cell, see :func:`packed_cell`."""
    return packed_cell


@pytest.fixture(scope="session")
def make_packed() -> Callable[..., PackedRun]:
    """Return a function that builds a packed run of given cells on one machine."""

    def make(*cells: PackedCell, **change: Any) -> PackedRun:
        return PackedRun(
            **{"name": "made-up", "commits": ["c0ffee"], "machines": [HERE], "cells": list(cells), **change}
        )

    return make


@dataclass
class Stage:
    """Record the calls of the fakes, and set their errors."""

    fits: list[str] = field(default_factory=list)
    passes: list[str] = field(default_factory=list)
    raises: dict[str, BaseException] = field(default_factory=dict)
    points: tuple[str, ...] = ("a", "b")
    loads: int = 0
    configs: dict[str, Any] = field(default_factory=dict)
    taught: list[dict[str, str]] = field(default_factory=list)

    def add(self, name: str, *needs: str, **attributes: Any) -> Fake:
        """Register a fake."""
        fake = Fake(name, self, *needs)
        vars(fake).update(attributes)
        registry._registered[name] = fake
        return fake

    @property
    def foreseeing(self) -> type[FakeFitted]:
        """Return the fitted class that makes a fake a bound."""
        return Foreseeing

    def act(self, name: str, step: str) -> None:
        """Raise the error set for this step: ``"two fit"``, ``"two b"``, or ``"two"`` for any of its points."""
        error = self.raises.get(f"{name} {step}") or (self.raises.get(name) if step != "fit" else None)
        if error:
            raise error


class FakeFitted(FullDepth):
    """An untrained model at full depth."""

    def __init__(self, name: str, stage: Stage, model: MultiExitModel) -> None:
        super().__init__(model)
        self.name, self.stage = name, stage

    def operating_points(self, dev: Split) -> list[OperatingPoint]:
        return [OperatingPoint(point, {"width": len(point)}) for point in self.stage.points]

    def predict(self, tokens: TokenSet, *, at: OperatingPoint) -> Predictions:
        self.stage.passes.append(f"{self.name} {at.name}")
        self.stage.act(self.name, at.name)
        return super().predict(tokens, at=at)


class Foreseeing(FakeFitted):
    """A fitted fake of kind ``method`` that uses foresight."""

    def foresee(self, tokens: TokenSet, *, at: OperatingPoint) -> Tensor:
        return torch.zeros(len(tokens), dtype=torch.int16)


class Fake:
    """A fake method: it trains nothing and records its calls on the stage."""

    kind = "method"
    version = 1
    fitted: type[FakeFitted] = FakeFitted
    any_teachers = False

    def __init__(self, name: str, stage: Stage, *needs: str) -> None:
        self.name, self.stage, self.needs = name, stage, needs

    def fit(
        self, task: Task, backbone: Backbone, teachers: Mapping[str, Fitted], *, config: Mapping[str, Any], seed: int
    ) -> FakeFitted:
        assert self.any_teachers or set(teachers) == set(self.needs)
        self.stage.taught.append({role: getattr(fitted, "name", "") for role, fitted in teachers.items()})
        self.stage.fits.append(f"{self.name} {task.name} {seed}")
        self.stage.configs[self.name] = dict(config)
        self.stage.act(self.name, "fit")
        torch.manual_seed(seed)
        return self.fitted(self.name, self.stage, MultiExitModel(backbone.encoder(), task.num_labels).eval())

    def load(self, folder: Path, task: Task, backbone: Backbone, teachers: Mapping[str, Fitted]) -> FakeFitted:
        return self.fitted(self.name, self.stage, MultiExitModel.load(folder))


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch, make_backbone: Callable[..., Backbone], few_single_samples: None) -> Stage:
    """Provide the fakes ``one``, ``two`` and ``three`` (which learns from ``one``), small data and a random backbone."""
    made = Stage()
    monkeypatch.setattr(registry, "_registered", {})
    monkeypatch.setattr(registry, "_entry_points", dict)
    for names in (["one"], ["two"], ["three", "one"]):
        made.add(*names)
    monkeypatch.setattr(task, "load_embedded", lambda name: load_embedded(name, sizes=(30, 10, 12)))

    def load(name: str, language: str, *, device: str) -> Backbone:
        made.loads += 1
        return replace(make_backbone(language), name=name)

    monkeypatch.setattr(session, "load_backbone", load)
    return made


@pytest.fixture
def grid_settings(tmp_path: Path) -> Settings:
    """Return settings with two datasets and all fakes; the reference is ``one``."""
    chosen = Profile(
        name="test",
        title="fakes",
        source="embedded",
        datasets=["ag_news", "lcqmc"],
        methods=["one", "two", "three"],
        reference="one",
        rounds=2,
        max_length=16,
        backbones={"en": "embedded", "zh": "embedded"},
        execution=ExecutionSettings(batch_size=5),
    )
    return Settings(chosen, tmp_path / "run")


@pytest.fixture
def saved_backbone(tmp_path: Path, make_backbone: Callable[..., Backbone]) -> Path:
    """Return a folder with a backbone in save_pretrained layout, its tokenizer complete."""
    made, place = make_backbone(), tmp_path / "my-backbone"
    place.mkdir()
    checkpoint.write_folder(place, made.shape, made.state)
    made.tokenizer.save_pretrained(place)
    return place
