"""Grids of cells are complete, resumable and never stale; fake methods use a random backbone and embedded data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from harness import registry
from harness.api import Run
from harness.contracts import OperatingPoint
from harness.core.tokens import TokenSet
from harness.results.published_run import publish
from harness.results.run_folder import RunFolder
from harness.running import session
from harness.running.grid import Grid, GridOutcome
from harness.running.profile import ExecutionSettings
from harness.running.run_settings import Settings
from harness.toolkit.fitted import FullDepth
from tests.harness.running.conftest import cells, change, counts, expected, run

TEST_ROWS = 12  # of a dataset of the stage


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


class TableOnModel(FullDepth):
    """Another method's model and a table, as ``geep-look1`` has. Saves the table only."""

    def save(self, folder: Path) -> None:
        save_file({"counts": torch.zeros(100, dtype=torch.int64)}, folder / "table.safetensors")


def test_a_table_on_a_borrowed_model_is_not_taken_for_the_model(stage: Any, settings: Settings) -> None:
    """A method that saves tensors, but not those of the model that it runs, has the lender's weights on disk, too."""

    def fit(task: Any, backbone: Any, teachers: Any, *, config: Any, seed: int) -> TableOnModel:
        return TableOnModel(teachers["one"].model)

    def load(folder: Path, task: Any, backbone: Any, teachers: Any) -> TableOnModel:
        return TableOnModel(teachers["one"].model)

    stage.add("table", "one", fit=fit, load=load)
    run(change(settings, methods=["one", "table", "three"], datasets=["ag_news"]))
    results = RunFolder.open(settings.out).results()
    found = {one.cell.method: one.resources.disk_bytes or 0 for one in results if one.resources}
    assert found["table"] > found["one"] + 800
    assert found["three"] == found["one"]  # it learns from "one" and has a model of its own


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


def test_results_of_other_settings_beside_a_plan_of_these_are_measured_again(
    stage: Any, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    """A copy of another run into this folder, or a node that was killed while it stored, leaves a plan with such results."""
    settings = change(settings, datasets=["ag_news"], methods=["one"])
    other = change(replace(settings, out=settings.out.with_name("other")), rounds=1)
    run(settings)
    run(other)
    names = sorted(path.name for path in (settings.out / "results").iterdir())
    assert names == sorted(path.name for path in (other.out / "results").iterdir())
    mixed = names[0]
    (settings.out / "results" / mixed).write_bytes((other.out / "results" / mixed).read_bytes())
    rounds = [result.speed.rounds for result in RunFolder.open(settings.out).results() if result.speed is not None]
    assert sorted(rounds) == [1, 2]

    assert list(Grid(settings).check().values()) == [None]  # a node of a cluster asks this
    capsys.readouterr()
    assert counts(run(settings)) == (1, 1, 0)
    assert "cells of other settings, data or weights" in capsys.readouterr().err
    assert {result.speed.rounds for result in RunFolder.open(settings.out).results() if result.speed} == {2}


def test_a_published_copy_continues(stage: Any, settings: Settings, tmp_path: Path) -> None:
    """A copy without fits keeps its cells: nothing is fitted for them, and only what is new is measured."""
    run(settings)
    publish(settings.out, tmp_path / "copy")
    copied = replace(settings, out=tmp_path / "copy")
    stage.fits.clear()
    assert counts(run(copied)) == (0, len(expected(settings)), 0) and not stage.fits
    assert counts(run(change(copied, seeds=[0, 3]))) == (12, 12, 0)
