"""Grids of cells are complete, resumable and never stale; fake methods use a random backbone and embedded data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness import registry
from harness.api import Run
from harness.contracts import OperatingPoint
from harness.core.errors import ConfigError, DeviceError, ResultError, WriteError
from harness.core.tokens import TokenSet
from harness.measure import resources
from harness.results.run_folder import RunFolder
from harness.results.schema import SCHEMA
from harness.running import session
from harness.running.grid import Grid, GridOutcome
from harness.running.profile import ExecutionSettings
from harness.running.run_settings import Settings

TEST_ROWS = 12  # of a dataset of the stage


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


def test_every_cell_is_measured_and_stored(stage: Any, settings: Settings) -> None:
    """Every dataset, seed, method and point has a result with rows, and every method is fitted once."""
    settings = change(settings, seeds=[0, 3])
    assert counts(run(settings)) == (24, 0, 0)
    assert cells(settings) == expected(settings)
    assert len(stage.fits) == len(set(stage.fits)) == 12
    assert stage.loads == 2  # once per dataset, for all seeds
    assert json.loads((settings.out / "run.json").read_text())["profile"]["name"] == "test"


def test_answers_of_all_layers_are_stored_with_the_labels_applied(stage: Any, settings: Settings) -> None:
    """Only a method that says what its exits answer has the bit masks, in its own cells and beside others in a table."""
    plain: Any = registry._registered["two"]

    class Deep(plain.fitted):  # type: ignore[misc]
        def depth_answers(self, tokens: TokenSet, *, at: OperatingPoint) -> tuple[tuple[int, ...], np.ndarray]:
            full = self.predict(tokens, at=at).logits.argmax(1)
            return (0, 2), np.stack([np.zeros_like(full), full])

    stage.add("two", fitted=Deep)
    run(settings)
    stored = RunFolder.open(settings.out)
    for result in stored.results():
        rows = stored.samples(result.cell)
        if result.cell.method == "two":
            label, said = rows["label"].to_numpy(), rows["prediction"].to_numpy()
            assert rows["right_layers"].tolist() == ((label == 0) * 1 + (label == said) * 4).tolist()
            assert rows["agreeing_layers"].tolist() == ((said == 0) * 1 + 4).tolist()
        else:
            assert "right_layers" not in rows
    table = Run(settings.out).samples()
    assert (table["right_layers"].isna() == (table["method"] != "two")).all()
    assert set(table["agreeing_layers"].dropna()) <= {4, 5}


def test_facts_of_a_result(stage: Any, settings: Settings) -> None:
    """Numbers follow from the rows; the result marks embedded data and names reference and machine."""
    run(settings)
    stored = RunFolder.open(settings.out)
    for result in stored.results():
        rows = stored.samples(result.cell)
        assert result.synthetic
        assert result.language == ("en" if result.cell.dataset == "ag_news" else "zh")
        assert result.quality.n == len(rows) == sum(result.exit_histogram) == TEST_ROWS
        assert result.quality.accuracy == pytest.approx(rows["correct"].mean())
        assert (rows["correct"] == (rows["label"] == rows["prediction"])).all()
        assert rows["index"].tolist() == list(range(TEST_ROWS))
        assert set(rows["exit_layer"]) == {3}
        assert set(rows["difficulty"]) <= {0, 1, 2}
        assert rows["length"].between(2, 16).all()
        assert (result.cost.mean_layers, result.cost.mean_heads, result.cost.depth) == (3, 1, 3)
        assert result.cost.flops_full > result.cost.flops_linear * 0.5 > 0
        assert result.params == {"width": 1}
        assert (result.speed.reference, result.speed.rounds, result.checks.rounds_agree) == ("one", 2, 1.0)
        assert result.kind == "method"
        assert result.fingerprint["versions"]["torch"]
        assert (result.checks.batches_agree, result.checks.state_unchanged, result.checks.syncs) == (1.0, True, None)
        assert result.latency[0].batch_size == 1
        assert result.resources is not None
        assert (result.resources.disk_bytes or 0) > 0
        assert result.speedup_factors is not None
        assert result.speedup_factors.product == pytest.approx(result.speedup_factors.measured)
        assert result.overlaps is not None
        assert result.overlaps.train_test >= 0
        assert len(result.speed.round_seconds) == len(result.speed.reference_seconds) == 2


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


def test_folders_are_stored_by_name_only(stage: Any, settings: Settings, tmp_path: Path) -> None:
    """Results contain no path of the machine, neither for backbones nor in a method's settings."""
    folder = tmp_path / "my-student"
    folder.mkdir()
    tables = {"one": {"student": str(folder), "other": "x", "more": {"en": str(folder), "zh": "y"}}}
    run(change(settings, datasets=["ag_news"], methods=["two"], method=tables))
    text = (settings.out / "run.json").read_text()
    assert json.loads(text)["profile"]["method"]["one"] == {
        "student": "my-student",
        "other": "x",
        "more": {"en": "my-student", "zh": "y"},
    }
    assert str(tmp_path) not in text


def test_a_second_run_does_nothing(stage: Any, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps every cell and loads neither data nor backbone."""
    run(settings)
    passes = len(stage.passes)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("nothing should be loaded")

    monkeypatch.setattr(session, "load_raw", never)
    monkeypatch.setattr(session, "load_backbone", never)
    assert counts(run(settings)) == (0, 12, 0)
    assert len(stage.passes) == passes


def test_added_methods_and_seeds_measure_only_new_cells(stage: Any, settings: Settings) -> None:
    """Finished cells of a growing run are kept."""
    run(change(settings, methods=["one"], datasets=["ag_news"]))
    assert counts(run(change(settings, methods=["one", "two"], datasets=["ag_news"]))) == (2, 2, 0)
    assert counts(run(change(settings, methods=["one"], datasets=["ag_news"], seeds=[0, 1]))) == (2, 2, 0)


@pytest.mark.parametrize(
    "update",
    [
        {"rounds": 3},
        {"max_test": 8},
        {"max_length": 12},
        {"training": {"epochs": 2}},
        {"execution": ExecutionSettings(batch_size=5, window=6)},
    ],
)
def test_changed_settings_are_measured_again(stage: Any, settings: Settings, update: dict) -> None:
    """Settings are part of a cell's key, and results of other settings are removed."""
    settings = change(settings, datasets=["ag_news"], methods=["one"])
    run(settings)
    assert counts(run(change(settings, **update))) == (2, 0, 0)
    assert cells(settings) == ["ag_news one a 0", "ag_news one b 0"]


def test_a_new_version_of_a_method_is_fitted_again(stage: Any, settings: Settings) -> None:
    """Its cells and those of methods that learn from it are measured again; others are kept."""
    settings = change(settings, datasets=["ag_news"], reference="two")
    run(settings)
    registry.get("one").version = 2
    assert counts(run(settings)) == (4, 2, 0)
    assert stage.fits.count("one ag_news 0") == stage.fits.count("three ag_news 0") == 2


def test_results_of_removed_points_are_deleted(stage: Any, settings: Settings) -> None:
    """Changed settings may move operating points; results at the old points are deleted."""
    settings = change(settings, datasets=["ag_news"], methods=["one"])
    run(settings)
    stage.points = ("c",)
    changed = change(settings, rounds=1)
    assert counts(run(changed)) == (1, 0, 0)
    assert cells(settings) == ["ag_news one c 0"]
    assert len(list((settings.out / "samples").iterdir())) == 1


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


def test_fresh_fits_and_measures_again(stage: Any, settings: Settings) -> None:
    """Neither fits nor results of earlier runs are used."""
    settings = change(settings, datasets=["ag_news"])
    run(settings)
    stage.fits.clear()
    assert counts(run(replace(settings, fresh=True))) == (6, 0, 0)
    assert sorted(stage.fits) == ["one ag_news 0", "three ag_news 0", "two ag_news 0"]


def test_fits_are_shared_between_runs(stage: Any, settings: Settings, tmp_path: Path) -> None:
    """Another run folder measures again but loads existing fits."""
    run(settings)
    stage.fits.clear()
    assert counts(run(replace(settings, out=tmp_path / "other"))) == (12, 0, 0)
    assert stage.fits == []


def test_fitting_first_leaves_only_measurements(
    stage: Any, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    """All fits are cached and none is measured; one failing fit does not stop the others, and the run then fits nothing."""
    stage.raises["two fit"] = RuntimeError("a plug-in's bug")
    assert Grid(settings).fit() == GridOutcome(fitted=4, failed=2)
    assert capsys.readouterr().err.count("continuing") == 2
    stage.raises.clear()
    assert Grid(settings).fit() == GridOutcome(fitted=6)
    assert cells(settings) == []
    fits = len(stage.fits)
    assert counts(run(settings))[0] == len(expected(settings))
    assert len(stage.fits) == fits


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


def test_methods_with_foresight_are_bounds(stage: Any, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method with foresight is a bound, whatever kind it declares."""
    monkeypatch.setattr(registry.get("one"), "fitted", stage.foreseeing)
    settings = change(settings, datasets=["ag_news"], methods=["one"])
    run(settings)
    assert {result.kind for result in RunFolder.open(settings.out).results()} == {"bound"}


def test_without_the_reference_there_is_no_speedup(stage: Any, settings: Settings) -> None:
    """A run without the reference is valid."""
    settings = change(settings, datasets=["ag_news"], methods=["two"])
    run(settings)
    assert {(r.speed.reference, r.speed.speedup) for r in RunFolder.open(settings.out).results()} == {(None, None)}


def test_borrowed_weights_count_on_disk_through_others(stage: Any, settings: Settings) -> None:
    """A method that borrows from one that borrows itself has the weights behind both on disk."""
    for name, lender in (("four", "one"), ("five", "four")):
        fake = stage.add(name, lender)
        bare = {"save": lambda self, folder: (folder / "points.json").write_text("[]", encoding="utf-8")}
        fake.fitted = type("Borrowing", (fake.fitted,), bare)
    settings = change(settings, methods=["one", "four", "five"], datasets=["ag_news"])
    run(settings)
    results = RunFolder.open(settings.out).results()
    found = {one.cell.method: one.resources.disk_bytes or 0 for one in results if one.resources}
    assert 0 < found["one"] < found["four"] < found["five"]


def test_cells_without_a_speedup_are_measured_again_beside_the_reference(stage: Any, settings: Settings) -> None:
    """Cells that were timed when the reference was left out get their speed-ups when it is there, and keep them later."""
    settings = change(settings, datasets=["ag_news"])
    alone, both = (change(settings, methods=names) for names in (["two"], ["one", "two"]))
    assert counts(run(alone)) == (2, 0, 0)
    assert counts(run(both)) == (4, 0, 0)
    speeds = [one.speed.speedup for one in RunFolder.open(settings.out).results() if one.speed]
    assert len(speeds) == 4 and None not in speeds
    assert counts(run(both)) == (0, 4, 0)
    assert counts(run(alone)) == (0, 2, 0)
