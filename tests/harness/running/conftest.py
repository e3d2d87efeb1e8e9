"""A grid of made-up methods, and short names for what it does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from harness.results.run_folder import RunFolder
from harness.running.grid import Grid, GridOutcome
from harness.running.run_settings import Settings


@pytest.fixture
def settings(grid_settings: Settings) -> Settings:
    return grid_settings


def change(settings: Settings, **profile: Any) -> Settings:
    return replace(settings, profile=settings.profile.model_copy(update=profile))


def run(settings: Settings) -> GridOutcome:
    return Grid(settings).execute()


def counts(outcome: GridOutcome) -> tuple[int, int, int]:
    return outcome.measured, outcome.kept, outcome.failed


def cells(settings: Settings) -> list[str]:
    found = RunFolder.open(settings.out).results()
    return sorted(f"{r.cell.dataset} {r.cell.method} {r.cell.point} {r.cell.seed}" for r in found)


def expected(settings: Settings, points: tuple[str, ...] = ("a", "b")) -> list[str]:
    p = settings.profile
    return sorted(f"{d} {m} {q} {s}" for d in p.datasets for m in p.methods for q in points for s in p.seeds)
