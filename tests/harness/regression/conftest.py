"""Machines, answers and fingerprints of fabricated runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from harness.regression.compare import Comparison
from harness.results.packed_run import Machine, PackedCell, PackedRun
from harness.results.schema import Binding

HERE = Machine(cpu="a CPU", cores=2, torch_threads=2, torch="2.13")
ELSEWHERE = Machine(cpu="another CPU", cores=8, torch_threads=8, torch="2.13")
RIGHT = np.arange(400) >= 40
Maker = Callable[..., PackedCell]
Runner = Callable[..., PackedRun]


def bind(**change: Any) -> Binding:
    """Return what the cells of a run share, with some of it changed."""
    facts: dict[str, Any] = {"test_rows": "rows", "train_rows": "train", "backbone": "weights", "max_length": 64}
    facts |= {
        "training": {"epochs": "3"},
        "own": [],
        "fits": {"bert": "as in the profile"},
        "versions": {"geep": "1.1"},
        "precision": "float32",
        "fit_threads": 2,
    }
    return Binding(**{**facts, **change})


def worse(lost: int, won: int = 0) -> np.ndarray:
    """Return ``RIGHT`` with some samples lost and others won."""
    right = RIGHT.copy()
    right[40 : 40 + lost] = False
    right[:won] = True
    return right


def alarmed(found: Comparison) -> str:
    return " | ".join(found.alarms)
