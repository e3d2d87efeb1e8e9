"""A run folder, and results to save into it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from harness.results.rows.sample_columns import SAMPLE_COLUMNS
from harness.results.run_folder import RunFolder
from harness.results.schema import Cell, Checks, Cost, Quality, Result, Speed
from tests.harness.conftest import CELL


def make_cell(**change: object) -> Cell:
    return Cell(**{**CELL, "method": "bert", "source": "local", **change})


def make_result(cell: Cell) -> Result:
    return Result(
        cell=cell,
        kind="method",
        synthetic=False,
        language="en",
        params={},
        quality=Quality(accuracy=0.5, accuracy_low=0.4, accuracy_high=0.6, macro_f1=0.5, n=2),
        cost=Cost(
            flops_linear=1.0, flops_full=2.0, params=3, mean_layers=4.0, mean_heads=1.0, depth=4, valid_token_ratio=1.0
        ),
        speed=Speed(samples_per_s=1.0, seconds=2.0, seconds_p10=2.0, seconds_p90=2.0, rounds=1),
        training=None,
        checks=Checks(rounds_agree=1.0),
        exit_histogram=[0, 0, 0, 2],
        fingerprint={},
    )


def make_rows() -> pd.DataFrame:
    return pd.DataFrame({name: np.zeros(2, dtype=bool if name == "correct" else "int64") for name in SAMPLE_COLUMNS})


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run")


@pytest.fixture
def save(run: RunFolder) -> Callable[..., Result]:
    def one(**change: object) -> Result:
        result = make_result(make_cell(**change))
        run.save(result, make_rows())
        return result

    return one


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
