"""GEEP's whole path on a CUDA device: hashing, sorting, execution, answers. The tests are skipped without a device."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from geep.exit_table import ExitTable
from geep.method import FittedGeep
from geep.verified_exits import FittedVerified, GeepVerified
from harness.contracts import Execution
from harness.core.tokens import Split, Task
from harness.encoder.backbone import Backbone

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def geep(scattered_geep: FittedGeep, tmp_path_factory: pytest.TempPathFactory) -> FittedGeep:
    """Return the scattered GEEP with model and tables on the device."""
    tables = {}
    for speed, table in scattered_geep.tables.items():
        folder: Path = tmp_path_factory.mktemp("table")
        table.save(folder)
        tables[speed] = ExitTable.load(folder, "cuda")
    return FittedGeep(copy.deepcopy(scattered_geep.model).to("cuda"), None, scattered_geep.points, tables)


@pytest.fixture(scope="module")
def verified(
    geep: FittedGeep, scattered_geep: FittedGeep, signal_task: Task, small_backbone: Backbone
) -> FittedVerified:
    tuned = GeepVerified().fit(signal_task, small_backbone, {"geep": scattered_geep}, config={}, seed=0)
    return FittedVerified(geep.model, None, tuned.points, geep.tables)


@pytest.mark.parametrize("executor", ["ladder", "exact-k"])
def test_predictions_equal_those_of_the_cpu(
    geep: FittedGeep, scattered_geep: FittedGeep, unseen: Split, executor: Any
) -> None:
    """In float32, predicted exits are equal and logits are equal up to rounding."""
    for point in geep.points:
        at = replace(point, execution=Execution(batch_size=7, executor=executor, max_length=16))
        found = geep.predict(unseen.tokens.to("cuda"), at=at)
        expected = scattered_geep.predict(unseen.tokens, at=at)
        assert found.exit_layer.tolist() == expected.exit_layer.tolist()
        np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("compute", ["eager", "graphs"])
def test_prediction_does_not_synchronise(
    geep: FittedGeep, verified: FittedVerified, unseen: Split, compute: Any
) -> None:
    """From token ids to answers, a pass waits only for its own copies."""
    tokens = unseen.tokens.to("cuda")
    for fitted in (geep, verified):
        for point in fitted.points:
            execution = Execution(batch_size=7, max_length=16, protocol="paper", dtype="bfloat16", compute=compute)
            at = replace(point, execution=execution)
            fitted.predict(tokens, at=at)
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
            try:
                found = fitted.predict(tokens, at=at)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            assert np.isfinite(found.logits).all()
