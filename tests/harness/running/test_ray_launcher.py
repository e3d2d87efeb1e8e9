"""The grid on many machines, with a stand-in for Ray that runs everything locally."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.running import profile, ray_launcher
from harness.running.grid import GridOutcome
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
