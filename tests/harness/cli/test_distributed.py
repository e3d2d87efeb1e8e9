"""The grid over many machines, with a Ray that runs everything here."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.cli import distributed
from harness.running import profile
from harness.running.grid import GridOutcome
from harness.running.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    quick = profile.load("quick").model_copy(update={"datasets": ["ag_news", "lcqmc"], "seeds": [0, 1]})
    return Settings(quick, tmp_path)


def test_parts_are_datasets_with_seeds(settings: Settings) -> None:
    """Each part has one dataset and one seed, and all together are the whole."""
    parts = [(part.profile.datasets, part.profile.seeds) for part in distributed.parts(settings)]
    assert parts == [(["ag_news"], [0]), (["ag_news"], [1]), (["lcqmc"], [0]), (["lcqmc"], [1])]


def test_outcomes_are_summed_and_cores_reserved(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every part runs once, with all cores of a machine to itself."""
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

    monkeypatch.setattr(distributed, "_execute", execute)
    total = distributed.execute(settings)
    assert (total.measured, total.kept, total.failed, total.seconds) == (8, 0, 4, 2.0)
    assert len(ran) == 4
    assert list(reserved[0]) == ["num_cpus"]


def test_without_ray_the_extra_is_named(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """One line that says what to install."""
    monkeypatch.setitem(sys.modules, "ray", None)
    assert distributed.main(["run", "--profile", "quick", "--out", str(tmp_path)]) == 2
    assert "geep-bench[ray]" in capsys.readouterr().err


def test_only_run_is_distributed(capsys: pytest.CaptureFixture[str]) -> None:
    """Other commands are told off."""
    assert distributed.main(["list", "methods"]) == 2
    assert "only 'run'" in capsys.readouterr().err
