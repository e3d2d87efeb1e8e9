"""The simulated schedule of a profile's fits: near its bound, and honest about where seconds come from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.core.files import cache_root, write_json
from harness.running import profile
from harness.running.fits.fit_store import FITS
from suites.studies.cluster_schedule import fits_of, main, simulate


def recorded(dataset: str, method: str, seconds: float) -> None:
    write_json(
        cache_root() / FITS / f"{dataset}--{method}--0" / "training.json", {"sample_passes": 7, "seconds": seconds}
    )


def test_the_schedule_of_the_twelve_sets_is_near_its_bound() -> None:
    """On 64 nodes, at most 1.15 times the longest chain or the even share; on one node, all seconds."""
    items, basis = fits_of(profile.load("twelve"))
    assert len(items) > 400 and set(basis) == {"guessed"}
    found = simulate(items, 64)
    assert found.seconds <= 1.15 * found.bound and found.idle < 0.3
    alone = simulate(items[:20], 1)
    assert alone.seconds == pytest.approx(alone.work) and alone.idle == pytest.approx(0, abs=1e-9)


def test_recorded_seconds_are_used_and_scaled_ones_are_counted(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A fit of the same method on the dataset counts as it is; one of another dataset is scaled by its rows."""
    recorded("yahoo", "bert", 100.0)
    chosen = profile.load("twelve").model_copy(
        update={"datasets": ["yahoo", "lcqmc"], "methods": ["bert"], "seeds": [0]}
    )
    items, basis = fits_of(chosen)
    assert [item.seconds for item in items] == [100.0, 100.0] and basis == {"recorded": 1, "scaled": 1}
    given = ["--profile", "twelve", "--datasets", "yahoo,lcqmc", "--methods", "bert", "--seeds", "0", "--nodes", "1,2"]
    assert main([*given, "--out", str(tmp_path / "schedule.json")]) == 0
    stored = json.loads((tmp_path / "schedule.json").read_text())
    assert stored["seconds_are"] == {"recorded": 1, "scaled": 1} and stored["fits"] == 2
    assert [(row["nodes"], row["seconds"], row["idle"]) for row in stored["rows"]] == [(1, 200.0, 0.0), (2, 100.0, 0.0)]
    said = capsys.readouterr().out
    assert "fits: 2; seconds recorded 1, scaled 1" in said and "200 s" not in said and "3 min" in said
