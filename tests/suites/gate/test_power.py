"""The power of the gate: planted changes have the stated size, and alarms are counted correctly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.regression.compare import compare
from suites.gate import power
from suites.gate.power import CELL, KEYS, Clocks, fabricate, lose, repeat


@given(st.sampled_from([0.015, 0.02, 0.05, 0.08]), st.integers(0, 1000))
def test_a_planted_loss_has_the_stated_size(discordant: float, seed: int) -> None:
    """An exact loss is 30 of 2,000 samples net, with the given number of discordant samples."""
    rng = np.random.default_rng(seed)
    right = rng.random(2000) < 0.9
    new = lose(rng, right, 0.015, discordant, exactly=True)
    assert int(right.sum()) - int(new.sum()) == 30
    assert int((right != new).sum()) == round(2000 * discordant)


def test_a_loss_in_expectation_varies() -> None:
    """Drawn sample by sample, the loss is 1.5 points on average and varies."""
    rng = np.random.default_rng(0)
    right = rng.random(2000) < 0.9
    losses = [right.mean() - lose(rng, right, 0.015, 0.03, exactly=False).mean() for _ in range(300)]
    assert np.mean(losses) == pytest.approx(0.015, abs=0.001)
    assert np.std(losses) > 0.002


def test_fabricated_runs_have_the_cells_of_quick() -> None:
    """There are 88 cells, all compared, and only the slowed cell is slower."""
    rng, calm = np.random.default_rng(0), Clocks(noise=0.001, stalls=0, process=0, method=0)
    assert len(KEYS) == 88
    found = compare(fabricate(rng, calm), fabricate(rng, calm, slowed=[CELL]))
    slow = {(c.cell.dataset, c.cell.method, c.cell.point) for c in found.changes if c.time and c.time.ratio < 0.95}
    assert slow == {CELL}


def test_alarms_are_counted_by_kind() -> None:
    """An alarm about the planted method is a hit, any other is wrong; each counts once per repetition."""
    rng, calm = np.random.default_rng(0), Clocks(noise=0.001, stalls=0, process=0, method=0)
    pair = (fabricate(rng, calm), fabricate(rng, calm, slowed=[CELL]))
    assert repeat("x", 2, lambda _: pair, CELL[1]) == power.PowerRow("x", 2, 0, 2)
    assert repeat("x", 2, lambda _: pair, "m1") == power.PowerRow("x", 0, 2, 2)


def test_fabricated_figures_are_marked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figures are marked as fabricated on the terminal and in the file."""
    monkeypatch.setattr("harness.regression.times.LEAST_DRAWS", 1_000)
    monkeypatch.setattr("harness.regression.times.DRAWS_A_CELL", 1)
    assert power.main(["--repetitions", "1", "--out", str(tmp_path / "power.json")]) == 0
    assert capsys.readouterr().out.startswith("FABRICATED")
    found = json.loads((tmp_path / "power.json").read_text(encoding="utf-8"))
    assert found["fabricated"]["rounds"] == 3
    assert all(row["of"] == 1 for row in found["rows"])
