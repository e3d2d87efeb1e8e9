"""The command that runs a grid on many machines."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from harness.cli import distributed
from harness.running import ray_launcher
from harness.running.grid import GridOutcome


def test_without_ray_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Without Ray, one line says what to install."""
    monkeypatch.setitem(sys.modules, "ray", None)
    assert distributed.main(["run", "--profile", "quick", "--out", str(tmp_path)]) == 2
    assert "geep-bench[ray]" in capsys.readouterr().err


def test_only_run_is_distributed(capsys: pytest.CaptureFixture[str]) -> None:
    """Other commands are rejected."""
    assert distributed.main(["list", "methods"]) == 2
    assert "only 'run'" in capsys.readouterr().err


def test_the_outcome_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The command prints the summed counts and how to make the report; failed cells give exit code 1."""
    monkeypatch.setattr(
        ray_launcher, "launch", lambda settings: GridOutcome(measured=3, failed=settings.profile.rounds)
    )
    assert distributed.main(["run", "--profile", "quick", "--rounds", "2", "--out", "there"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "cells: 3 measured, 0 kept from before, 2 failed",
        "now make the report: geep-bench report there",
    ]
