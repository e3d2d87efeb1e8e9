"""``--dry-run`` says what is there and how long the rest takes, and starts nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.cli.main import main
from harness.core.errors import ConfigError, DataError
from harness.core.files import cache_root
from harness.running.fits.dry_run import forecast
from harness.running.fits.fit_plan import FitJob
from harness.running.fits.fit_store import FITS
from harness.running.fits.fit_times import CHOOSING, FitTimes, RowTimes, longest_chain
from harness.running.grid import Grid
from harness.running.profile import Profile
from harness.running.run_settings import Settings


def test_before_and_after_a_run(stage: Any, grid_settings: Settings) -> None:
    """First all is missing and nothing is made, not even the run folder; then all is there."""
    chosen = replace(grid_settings, profile=grid_settings.profile.model_copy(update={"workers": 2}))
    found = forecast(chosen, seconds=0.0)
    jobs = {FitJob(dataset, 0, name) for dataset in ("ag_news", "lcqmc") for name in ("one", "two", "three")}
    assert {*found.needs} == jobs and found.needs[FitJob("lcqmc", 0, "three")] == [FitJob("lcqmc", 0, "one")]
    assert all(found.fit_seconds[job] > 0 and found.measuring[job] > 0 for job in jobs) and not found.recorded
    assert found.choosing == {job for job in jobs if job.method == "three"}  # it needs another one, and has no stages
    assert (found.fits["ag_news"], sum(found.missing_cells.values())) == (3, 6)
    assert stage.fits == [] and stage.passes == [] and not chosen.out.exists()
    Grid(grid_settings).fit()  # in this process: others do not know the fakes
    fitted = forecast(chosen, seconds=0.0)
    assert (fitted.needs, sum(fitted.missing_cells.values())) == ({}, 6)
    Grid(replace(chosen, profile=grid_settings.profile.model_copy(update={"datasets": ["lcqmc"]}))).execute()
    half = forecast(chosen, seconds=0.0)
    assert {job.dataset for job in half.missing_cells} == {"ag_news"}
    said = str(half)
    assert "fits: 0 missing" in said and "cells: 3 missing" in said and "6 of 6" in said
    assert chosen.out.exists()


def test_other_seeds_take_as_long_as_the_first(stage: Any, grid_settings: Settings) -> None:
    """Fits in the cache are examples for those that are missing; a method that cannot use its engine is named."""
    one = replace(grid_settings, profile=grid_settings.profile.model_copy(update={"methods": ["one", "two"]}))
    Grid(one).fit()
    stage.add("slow", fitted=type("SlowFitted", (stage.add("slow").fitted,), {"compute": "eager"}))
    tables = {"slow-c": {"like": "slow", "engine": "compiled"}}
    more = one.profile.model_copy(update={"seeds": [0, 1], "methods": ["one", "two", "slow-c"], "method": tables})
    found = forecast(replace(one, profile=more), seconds=0.0)
    assert {(job.method, job.seed) for job in found.needs} == {("one", 1), ("two", 1)}
    assert found.recorded == {*found.needs} and len(found.unusable) == 2 * 2
    assert "ag_news slow-c seed 1: fails: " in str(found)


def test_the_command_exits_with_0_and_refuses_what_a_run_refuses(
    stage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Totals are printed; a wrong setting gives exit code 2 and one line."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(
        'title = "tiny"\nsource = "embedded"\ndatasets = ["ag_news"]\nmethods = ["one"]\nreference = "one"\n'
        'backbones = { en = "embedded", zh = "embedded" }\nmax_length = 16\n'
    )
    monkeypatch.setattr("harness.running.fits.dry_run.PROBE", 0.0)
    assert main(["run", "--profile", "tiny.toml", "--device", "cpu", "--dry-run"]) == 0
    said = capfd.readouterr().out
    assert "ag_news" in said and "fits: 1 missing" in said and "cells: 1 missing" in said
    assert not (tmp_path / "runs" / "tiny").exists() and stage.fits == []
    assert main(["run", "--profile", "tiny.toml", "--methods", "four", "--dry-run"]) == 2
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_what_a_run_refuses_is_refused(stage: Any, grid_settings: Settings, tmp_path: Path) -> None:
    """No data folder, or a language without a backbone."""
    with pytest.raises(DataError, match="nowhere"):
        forecast(replace(grid_settings, data=tmp_path / "nowhere"))
    english = grid_settings.profile.model_copy(update={"backbones": {"en": "some"}})
    with pytest.raises(ConfigError, match="lcqmc"):
        forecast(replace(grid_settings, profile=english))


def report(dataset: str, name: str, key: str, facts: dict[str, Any] | None) -> None:
    """Write the training report of a fit into the cache."""
    place = cache_root() / FITS / f"{dataset}--{name}--{key}"
    place.mkdir(parents=True)
    (place / "training.json").write_text(json.dumps(facts))


def test_times_come_from_the_cache_or_from_shapes() -> None:
    """A fit takes what others of its method took, less its teachers' time, scaled to the dataset's rows; else all its epochs."""
    for seed, seconds in ((0, 90.0), (1, 110.0)):
        report("long", "bert", f"{seed}", {"seconds": seconds, "sample_passes": 800})
        report("long", "fastbert", f"{seed}", {"seconds": seconds + 40, "sample_passes": 1600})
    report("long", "fastbert", "of-other-rows", {"seconds": 9999.0, "sample_passes": 730})
    report("long", "geep-verified", "0", None)
    profile = Profile(
        title="t",
        source="embedded",
        datasets=["long", "short"],
        methods=["bert"],
        training={"epochs": 4},
        method={"small": {"like": "bert-truncated", "layers": 3}},
    )
    times = FitTimes(
        profile, {"long": 100, "short": 100}, {"long": RowTimes(2.0, 0.5), "short": RowTimes(1.0, 0.25)}, 12
    )
    assert times.of("long", "bert") == (100.0, True)
    assert times.of("long", "fastbert") == (40.0, True)
    assert times.of("short", "bert") == (50.0, True)
    assert times.of("long", "geep-verified") == (CHOOSING, True)
    assert times.of("short", "small") == (CHOOSING + 4 * 100 * 1.0 / 4, False)
    assert times.of("short", "distilbert") == (CHOOSING + 4 * 100 * 1.25, False)
    assert times.of("short", "control-random") == times.of("short", "geep-look1") == (CHOOSING, False)


def test_the_longest_chain() -> None:
    """Fits that wait for each other add up, others run beside them."""
    needs: dict[str, list[str]] = {"bert": [], "fastbert": ["bert"], "geep": [], "control": ["geep", "bert"]}
    assert longest_chain(needs, {"bert": 3.0, "fastbert": 4.0, "geep": 5.0, "control": 1.0}) == 7.0
    assert longest_chain({}, {}) == 0.0
