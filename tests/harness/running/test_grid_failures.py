"""A cell that fails does not stop the run; a full disk, a lost device or a kill loses at most one cell."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.core.errors import ConfigError, DeviceError, ResultError, WriteError
from harness.measure import resources
from harness.results.run_folder import RunFolder
from harness.results.schema import SCHEMA
from harness.running.run_settings import Settings
from tests.harness.running.conftest import cells, change, counts, expected, run


@pytest.mark.parametrize("where", ["../../kept", "../kept", "{folder}/kept", "a\x00b"])
def test_a_plan_cannot_delete_outside_the_run_folder(
    stage: Any, settings: Settings, tmp_path: Path, where: str
) -> None:
    """A plan that names files elsewhere counts as damaged: it is made again, and nothing else is touched."""
    settings = change(settings, datasets=["ag_news"], methods=["one"])
    run(settings)
    kept = [tmp_path / "kept.json", settings.out / "kept.json", tmp_path / "kept.parquet"]
    for file in kept:
        file.write_text("{}")
    (plan,) = (settings.out / "plan").glob("*.json")
    facts = json.loads(plan.read_text())
    plan.write_text(json.dumps({"key": facts["key"], "cells": [*facts["cells"], where.format(folder=tmp_path)]}))
    assert counts(run(settings)) == (0, 2, 0)
    assert json.loads(plan.read_text()) == facts
    plan.write_text(json.dumps({"key": "other", "cells": [where.format(folder=tmp_path)]}))
    assert counts(run(change(settings, rounds=1))) == (2, 0, 0)
    assert all(file.read_text() == "{}" for file in kept)


@pytest.mark.parametrize("where", ["two fit", "two", "two b"])
def test_a_method_that_raises_does_not_stop_the_others(
    stage: Any, settings: Settings, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    """The failure is recorded with its traceback and reported in one line; after a repair, only its cells are measured."""
    settings = change(settings, datasets=["ag_news"])
    stage.raises[where] = RuntimeError("a plug-in's bug")
    lost = 1 if where == "two b" else 2
    failed = 1 if where == "two fit" else lost
    assert counts(run(settings)) == (6 - lost, 0, failed)
    records = RunFolder.open(settings.out).failures()
    assert len(records) == failed
    assert all("a plug-in's bug" in record["traceback"] for record in records)
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("[")]  # not progress
    assert len(lines) == failed
    assert all("ag_news two" in line and "a plug-in's bug" in line and "continuing" in line for line in lines)

    stage.raises.clear()
    assert counts(run(settings)) == (lost, 6 - lost, 0)
    assert cells(settings) == expected(settings)
    assert RunFolder.open(settings.out).failures() == []


def test_a_lost_device_ends_the_run(stage: Any, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished cells are kept, no other cell is tried, and the next run resumes there."""
    stage.raises["two a"] = RuntimeError("CUDA error: unspecified launch failure")

    def dead(_: str) -> None:
        raise RuntimeError("CUDA error: device-side assert\nmore")

    monkeypatch.setattr(resources, "_touch", dead)
    with pytest.raises(DeviceError, match="stopped working .*finished cells are kept"):
        run(settings)
    assert cells(settings) == ["ag_news one a 0", "ag_news one b 0"]
    monkeypatch.setattr(resources, "_touch", lambda _: None)
    stage.raises.clear()
    assert counts(run(settings)) == (10, 2, 0)


def test_out_of_memory_is_reported_with_advice(
    stage: Any, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    """The cell fails, and the others are measured."""
    stage.raises["two a"] = torch.OutOfMemoryError("CUDA out of memory")
    assert counts(run(change(settings, datasets=["ag_news"]))) == (5, 0, 1)
    assert "lower --batch-size" in capsys.readouterr().err


def test_a_broken_reference_does_not_stop_the_run(stage: Any, settings: Settings) -> None:
    """The reference's error is recorded for every cell that needs it, and the run finishes."""
    stage.raises["one fit"] = RuntimeError("broken")
    settings = change(settings, datasets=["ag_news"], methods=["two", "one"])
    measured, _, failed = counts(run(settings))
    assert measured == 0
    assert failed == 3  # two points of two, and the fit of one
    stage.raises.clear()
    assert counts(run(settings)) == (4, 0, 0)


@pytest.mark.parametrize("problem", [WriteError("cannot write x"), OSError(28, "No space left on device")])
@pytest.mark.parametrize("where", ["two fit", "two b"])
def test_a_full_disk_stops_the_run(stage: Any, settings: Settings, problem: Exception, where: str) -> None:
    """Nothing is trained whose result cannot be stored; finished cells are kept, and no cell counts as failed."""
    stage.raises[where] = problem
    with pytest.raises(type(problem)):
        run(change(settings, datasets=["ag_news"]))
    assert cells(settings)[:2] == ["ag_news one a 0", "ag_news one b 0"]
    assert "three ag_news 0" not in stage.fits
    assert RunFolder.open(settings.out).failures() == []


@pytest.mark.parametrize("problem", [ConfigError("no setting 'x'"), DeviceError("no compiler"), MemoryError()])
def test_what_fails_after_the_check_fails_its_own_cells(stage: Any, settings: Settings, problem: Exception) -> None:
    """An invalid setting that only the method knows, a missing compiler or too little memory do not end the run."""
    stage.raises["two fit"] = problem
    settings = change(settings, datasets=["ag_news"])
    assert counts(run(settings)) == (4, 0, 1)
    assert [record["cell"]["method"] for record in RunFolder.open(settings.out).failures()] == ["two"]
    stage.raises.clear()
    assert counts(run(settings)) == (2, 4, 0)
    assert RunFolder.open(settings.out).failures() == []


@pytest.mark.parametrize("where", ["one b", "two fit", "two a", "three b"])
def test_a_killed_run_loses_only_the_current_cell(stage: Any, settings: Settings, where: str) -> None:
    """The next run measures the rest, fits nothing twice, and ends with the same results."""
    settings = change(settings, datasets=["ag_news"])
    stage.raises[where] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run(settings)
    done = cells(settings)
    before = len(done)
    order = [f"ag_news {m} {p} 0" for m in ("one", "two", "three") for p in ("a", "b")]
    assert done == sorted(order[:before])
    stage.raises.clear()
    stage.fits.clear()
    assert counts(run(settings)) == (6 - before, before, 0)
    assert cells(settings) == sorted(order)
    assert "one ag_news 0" not in stage.fits
    assert RunFolder.open(settings.out).failures() == []


def test_killed_after_a_change_no_stale_result_remains(stage: Any, settings: Settings) -> None:
    """If the second run dies before it measures, the third does not keep results of the first."""
    settings = change(settings, datasets=["ag_news"], methods=["one"])
    run(settings)
    changed = change(settings, rounds=3)
    stage.raises["one"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run(changed)
    stage.raises.clear()
    assert counts(run(changed)) == (2, 0, 0)
    assert {result.speed.rounds for result in RunFolder.open(settings.out).results()} == {3}


def test_a_broken_fit_in_the_cache_is_fitted_again(
    stage: Any, settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A damaged fit is fitted again, with one line in the log."""
    settings = change(settings, datasets=["ag_news"], methods=["one"])
    run(settings)
    for path in (tmp_path / "geep-bench-cache").rglob("model.safetensors"):
        path.write_bytes(b"broken")
    stage.fits.clear()
    assert counts(run(replace(settings, out=tmp_path / "other"))) == (2, 0, 0)
    assert stage.fits == ["one ag_news 0"]
    assert "fitting again" in capsys.readouterr().err


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize(
    "content", ["{half", "[]", '{"key": 1}', '{"key": "x", "cells": [3]}', '{"key": "x", "cells": []}']
)
def test_a_broken_plan_costs_nothing(stage: Any, settings: Settings, content: str, fresh: bool) -> None:
    """Results say themselves which settings they come from: a damaged plan is made again, and they are kept."""
    settings = change(settings, datasets=["ag_news"], methods=["one"])
    run(settings)
    (plan,) = (settings.out / "plan").iterdir()
    plan.write_text(content)
    assert counts(run(replace(settings, fresh=fresh))) == ((2, 0, 0) if fresh else (0, 2, 0))
    assert json.loads(plan.read_text())["cells"]


def test_a_broken_result_is_measured_again(stage: Any, settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    """A broken result is set aside and reported; the others are kept."""
    run(settings)
    path = next((settings.out / "results").iterdir())
    path.write_text("{half")
    assert counts(run(settings)) == (1, 11, 0)
    assert "set-aside" in capsys.readouterr().err
    assert cells(settings) == expected(settings)


def test_results_of_another_schema_are_rejected_before_any_work(stage: Any, settings: Settings) -> None:
    """Nothing is fitted and no file is changed."""
    run(settings)
    stage.fits.clear()
    path = next((settings.out / "results").iterdir())
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": SCHEMA + 1}))
    with pytest.raises(ResultError, match="schema"):
        run(replace(settings, fresh=True))
    assert stage.fits == []
    assert path.is_file()
