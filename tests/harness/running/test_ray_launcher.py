"""The grid on many machines, with a stand-in for Ray that runs everything locally."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.core.errors import ResultError, WriteError
from harness.running import profile, ray_launcher
from harness.running.grid import GridOutcome
from harness.running.run_lock import run_lock
from harness.running.run_settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    quick = profile.load("quick").model_copy(update={"datasets": ["ag_news", "lcqmc"], "seeds": [0, 1]})
    return Settings(quick, tmp_path)


def test_parts_are_datasets_with_seeds(settings: Settings) -> None:
    """Each part has one dataset and one seed, and all parts together are the grid."""
    parts = [(part.profile.datasets, part.profile.seeds) for part in ray_launcher.parts(settings)]
    assert parts == [(["ag_news"], [0]), (["ag_news"], [1]), (["lcqmc"], [0]), (["lcqmc"], [1])]


def test_outcomes_are_summed_and_cores_reserved(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every part runs once and reserves all cores of its machine."""
    reserved: list[dict[str, Any]] = []
    ran: list[Settings] = []

    def remote(**needs: Any) -> Any:
        reserved.append(needs)
        return lambda function: SimpleNamespace(remote=function)

    ray = SimpleNamespace(
        init=lambda **_: None,
        remote=remote,
        wait=lambda waiting, num_returns: (waiting[:1], waiting[1:]),
        get=lambda done: done,
    )
    monkeypatch.setitem(sys.modules, "ray", ray)

    def execute(part: Settings) -> GridOutcome:
        ran.append(part)
        return GridOutcome(measured=2, failed=1, seconds=0.5)

    monkeypatch.setattr(ray_launcher, "_execute", execute)
    total = ray_launcher.launch(settings)
    assert (total.measured, total.kept, total.failed, total.seconds) == (8, 0, 4, 2.0)
    assert len(ran) == 4
    assert list(reserved[0]) == ["num_cpus"]


class LostMachine(Exception):
    """Stands for an error of Ray itself."""


@pytest.mark.parametrize("error", [LostMachine("the node died"), WriteError("cannot write x: the disk is full")])
def test_a_lost_part_does_not_end_the_others(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    """It counts as one failure. A full disk ends all. The run folder is locked for the whole time."""
    ran = 0

    def get(done: list[Settings]) -> list[GridOutcome]:
        nonlocal ran
        ran += 1
        with pytest.raises(ResultError, match="in use"), run_lock(settings.out):
            pass
        if ran == 2:
            raise error
        return [GridOutcome(measured=2)]

    ray = SimpleNamespace(
        init=lambda **_: None,
        remote=lambda **_: lambda function: SimpleNamespace(remote=lambda part: part),
        wait=lambda waiting, num_returns: (waiting[:1], waiting[1:]),
        get=get,
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    if isinstance(error, WriteError):
        with pytest.raises(WriteError):
            ray_launcher.launch(settings)
        return
    total = ray_launcher.launch(settings)
    assert (total.measured, total.failed) == (6, 1)
    assert "not measured: LostMachine: the node died" in capsys.readouterr().err
