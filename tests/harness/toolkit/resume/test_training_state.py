"""A training that is killed goes on after its last stored epoch, and ends with the same weights bit for bit."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from baselines.distilled.distilbert import DistilBert
from baselines.distilled.tinybert import TinyBert
from baselines.early_exit.berxit import Berxit
from baselines.early_exit.deebert import DeeBert
from baselines.full_depth.bert import Bert
from geep.method import Geep
from harness.contracts import Fitted
from harness.core import clock
from harness.core.errors import WriteError
from harness.core.tokens import Task
from harness.encoder.backbone import Backbone
from harness.toolkit.base_method import StagedMethod
from harness.toolkit.fitted import FittedModel
from harness.toolkit.resume import training_state
from harness.toolkit.resume.training_state import TrainingState, forget, resumable
from harness.toolkit.training import TrainingReport

CONFIG = {
    "epochs": 3,
    "batch_size": 32,  # three steps an epoch: an odd number, which matters where steps alternate
    "learning_rate": 3e-3,
    "head_rate": 2,
    "patience": 2,
    "precision": "float32",
}
STAGES: dict[str, Mapping[str, Any]] = {
    "tinybert": {"intermediate_epochs": 2},
    "distilbert": {"schedule": "continuation", "margin": 0.0},
}


class Killed(BaseException):
    """Stands for the end of a process."""


@pytest.fixture
def dropping(small_backbone: Backbone) -> Backbone:
    """A backbone with dropout, so that random states matter."""
    return replace(small_backbone, shape=replace(small_backbone.shape, dropout=0.1))


@pytest.fixture
def always_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every epoch is stored."""
    monkeypatch.setattr(training_state, "EVERY", 0.0)
    monkeypatch.setattr(training_state, "_SHARE", 1e9)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list with a number for every step of an optimiser."""
    made: list[int] = []

    class Counting(torch.optim.AdamW):
        def step(self, closure: Any = None) -> Any:
            made.append(1)
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "AdamW", Counting)
    return made


@pytest.fixture
def teachers(signal_task: Task, dropping: Backbone) -> dict[str, Fitted]:
    return {"bert": Bert().train_weights(signal_task, dropping, {}, config={**CONFIG, "epochs": 2}, seed=1)}


def train(method: StagedMethod[Any], task: Task, backbone: Backbone, teachers: Mapping[str, Fitted]) -> FittedModel:
    config = {**CONFIG, **STAGES.get(method.name, {})}
    return method.train_weights(task, backbone, {need: teachers[need] for need in method.needs}, config=config, seed=3)


def result(fitted: FittedModel) -> tuple[dict[str, Tensor], TrainingReport]:
    """Return weights and report, without its seconds."""
    assert fitted.training is not None
    gate = getattr(fitted, "gate", None)
    extra = {} if gate is None else {f"gate.{name}": value for name, value in gate.state_dict().items()}
    return {**fitted.model.state_dict(), **extra}, replace(fitted.training, seconds=0.0)


def equal(one: tuple[dict[str, Tensor], TrainingReport], other: tuple[dict[str, Tensor], TrainingReport]) -> bool:
    same = one[0].keys() == other[0].keys() and all(torch.equal(one[0][name], other[0][name]) for name in one[0])
    return same and one[1] == other[1]


@pytest.fixture
def kills(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Kill the process after every state that is written; the list has a name for each."""
    seen: list[str] = []
    write = TrainingState._write

    def and_die(self: TrainingState, *given: Any) -> None:
        write(self, *given)
        seen.append(self._path.name)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "_write", and_die)
        yield seen


@pytest.mark.parametrize(
    "method", [Bert(), TinyBert(), DistilBert(), DeeBert(), Berxit(), Geep()], ids=lambda one: one.name
)
def test_a_fit_that_is_killed_after_every_epoch_is_the_same(
    method: StagedMethod[Any],
    signal_task: Task,
    dropping: Backbone,
    teachers: dict[str, Fitted],
    steps: list[int],
    always_due: None,
    kills: list[str],
    tmp_path: Path,
) -> None:
    """Weights and report equal those of an uninterrupted fit, and no step is made twice."""
    whole = result(train(method, signal_task, dropping, teachers))  # not resumable: nothing is stored
    assert not kills
    once = len(steps)
    while True:
        torch.rand(5)  # another process has another random state
        try:
            with resumable(tmp_path / "fit"):
                found = result(train(method, signal_task, dropping, teachers))
            break
        except Killed:
            assert len(kills) < 20
    assert len(kills) >= (4 if method.name == "tinybert" else 3)
    assert len(steps) == 2 * once
    assert equal(found, whole)


def test_without_the_number_of_the_step_the_result_differs(
    signal_task: Task, dropping: Backbone, always_due: None, kills: list[str], tmp_path: Path, monkeypatch: Any
) -> None:
    """A loss that alternates must be told, as the test above would not see otherwise."""
    whole = result(train(Berxit(), signal_task, dropping, {}))
    monkeypatch.setattr("harness.toolkit.training.CountsSteps", type("Nothing", (), {}))
    with pytest.raises(Killed), resumable(tmp_path / "fit"):
        train(Berxit(), signal_task, dropping, {})
    monkeypatch.undo()
    with resumable(tmp_path / "fit"):
        monkeypatch.setattr("harness.toolkit.training.CountsSteps", type("Nothing", (), {}))
        assert not equal(result(train(Berxit(), signal_task, dropping, {})), whole)


def test_damaged_and_foreign_states_are_not_used(
    signal_task: Task, dropping: Backbone, always_due: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A flipped byte is reported and the training starts again; so it does, silently, if its settings changed."""
    whole = result(train(Bert(), signal_task, dropping, {}))
    with resumable(tmp_path / "fit"):
        train(Bert(), signal_task, dropping, {})
    (path,) = (tmp_path / "fit").iterdir()
    content = path.read_bytes()
    for place in (3, len(content) // 3, len(content) - 1):
        damaged = bytearray(content)
        damaged[place] ^= 4
        path.write_bytes(damaged)
        with resumable(tmp_path / "fit"):
            assert equal(result(train(Bert(), signal_task, dropping, {})), whole)
        assert "its training starts again" in capfd.readouterr().err
    with resumable(tmp_path / "fit"):
        other = Bert().train_weights(signal_task, dropping, {}, config={**CONFIG, "epochs": 2, "patience": 1}, seed=3)
    assert other.training is not None and other.training.epochs == 2
    assert capfd.readouterr().err == ""
    forget(tmp_path / "fit")
    assert not (tmp_path / "fit").exists()


def test_two_processes_may_make_the_same_fit(
    signal_task: Task, dropping: Backbone, always_due: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that stores its fit deletes the folder in which the other one is writing; any other error ends the fit."""
    whole = result(train(Bert(), signal_task, dropping, {}))
    folder, rename = tmp_path / "fit", os.replace

    def too_late(source: Path, target: Path) -> None:
        forget(folder)
        rename(source, target)

    monkeypatch.setattr(os, "replace", too_late)
    with resumable(folder):
        assert equal(result(train(Bert(), signal_task, dropping, {})), whole)

    def refused(source: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refused)
    with resumable(folder), pytest.raises(WriteError, match="Permission denied"):
        train(Bert(), signal_task, dropping, {})


def test_at_most_one_state_a_minute(
    signal_task: Task, dropping: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epochs of 25 seconds are stored every third time, and less often where writing takes long."""
    epoch_seconds, written, writing = 25.0, list[float](), 0.0
    time = 0.0
    monkeypatch.setattr(clock, "now", lambda: time)
    store, write = TrainingState.store, training_state.write_tensors

    def after_an_epoch(self: TrainingState, *given: Any) -> None:
        nonlocal time
        time += epoch_seconds
        store(self, *given)

    def slowly(*given: Any) -> None:
        nonlocal time
        written.append(time)
        time += writing
        write(*given)

    monkeypatch.setattr(TrainingState, "store", after_an_epoch)
    monkeypatch.setattr(training_state, "write_tensors", slowly)
    config = {**CONFIG, "epochs": 14, "patience": 14}
    for writing, expected in ((0.0, [75.0, 150.0, 225.0, 300.0]), (4.0, [75.0, 279.0])):
        time, written[:] = 0.0, []
        with resumable(tmp_path / f"fit-{writing}"):
            Bert().train_weights(signal_task, dropping, {}, config=config, seed=3)
        assert written == expected
