"""A grid of made-up methods, and short names for what it does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
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


@pytest.fixture
def tiny_place(saved_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Return a function that writes a profile, two small datasets and a backbone into a folder and works there."""

    def make(profile: str) -> Path:
        (tmp_path / "tiny.toml").write_text(profile, encoding="utf-8")
        for split, rows in (("train", 24), ("dev", 8), ("test", 6)):
            texts = [f"{('good', 'bad')[i % 2]} number {i}" for i in range(rows)]
            table = pd.DataFrame({"text": texts, "label": np.arange(rows) % 2})
            for name, part in (("mine", table), ("other", table[::-1])):
                (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
                part.to_parquet(tmp_path / "data" / name / f"{split}.parquet")
        saved_backbone.rename(tmp_path / "backbone")
        monkeypatch.chdir(tmp_path)
        return tmp_path

    return make
