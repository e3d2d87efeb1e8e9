"""A cluster with a store: nothing in the store is trained or lost a second time, and records of failures stay."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import registry
from harness.core.errors import WriteError
from harness.results.run_folder import RunFolder
from harness.running.cluster.file_store import FileStore, RunMirror
from harness.running.grid import Grid, GridOutcome
from harness.running.run_settings import Settings
from harness.running.scheduling.work_items import Node

OnCluster = Callable[..., GridOutcome]


class StagedFake:
    """A fake that learns in stages: its training counts as a fit of the stage."""

    choices = frozenset({"budgets"})
    weights_version = 1

    def __init__(self, fake: Any) -> None:
        self._fake = fake

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fake, name)

    def train_weights(self, task: Any, backbone: Any, teachers: Any, *, config: Any, seed: int) -> Any:
        return self._fake.fit(task, backbone, teachers, config=config, seed=seed)

    def choose(self, weights: Any, task: Any, *, config: Any, seed: int) -> Any:
        return weights


def of(settings: Settings, *methods: str, **changes: Any) -> Settings:
    changed = settings.profile.model_copy(update={"datasets": ["ag_news"], "methods": [*methods], **changes})
    return replace(settings, profile=changed)


def test_teachers_that_learn_in_stages_are_trained_once(
    stage: Any, settings: Settings, nodes: Any, on_cluster: OnCluster
) -> None:
    """A student that is trained on another node starts from the weights of the teacher's training, not from a second one."""
    for name in ("one", "three"):
        registry._registered[name] = StagedFake(registry._registered[name])  # type: ignore[assignment]
    settings = of(settings, "one", "three")
    on_cluster(of(settings, "one"), store="memory://geep-staged", fit_only=True)
    nodes.machines = [Node("r", 1.0)]
    on_cluster(settings, store="memory://geep-staged", fit_only=True)
    assert sorted(stage.fits) == ["one ag_news 0", "three ag_news 0"]


def test_the_reference_of_an_earlier_run_is_not_fitted_again(
    stage: Any, settings: Settings, nodes: Any, on_cluster: OnCluster
) -> None:
    """A node that measures a new method takes the reference, whose own cells are finished, from the store."""
    on_cluster(of(settings, "one"), store="memory://geep-reference")
    nodes.machines = [Node("r", 1.0)]
    outcome = on_cluster(of(settings, "one", "two"), store="memory://geep-reference")
    assert (outcome.measured, outcome.kept) == (2, 2)
    assert stage.fits == ["one ag_news 0", "two ag_news 0"]


@pytest.mark.parametrize("store", [None, "memory://geep-failures"])
def test_failures_stay_in_the_run_folder(
    stage: Any, settings: Settings, nodes: Any, on_cluster: OnCluster, store: str | None
) -> None:
    """Tasks that are lost each time leave a record for every method, which a later run that succeeds deletes."""
    nodes.losses = {"plan ag_news seed 0": 9, "measure lcqmc seed 0": 9}
    assert on_cluster(settings, store=store).failed == 6
    failed = [(one["cell"]["dataset"], one["cell"]["method"]) for one in RunFolder.open(settings.out).failures()]
    assert sorted(failed) == [(name, method) for name in ("ag_news", "lcqmc") for method in ("one", "three", "two")]
    nodes.losses = {}
    assert on_cluster(settings, store=store).failed == 0
    assert RunFolder.open(settings.out).failures() == []


def test_cells_of_other_settings_do_not_count_for_a_lost_measurement(
    stage: Any, settings: Settings, nodes: Any, on_cluster: OnCluster
) -> None:
    """If the settings have changed since, the old cells are neither measured nor a reason not to record the failure."""
    settings = of(settings, "one", "two")
    assert on_cluster(settings).measured == 4
    nodes.losses = {"measure ag_news seed 0": 9}
    outcome = on_cluster(of(settings, "one", "two", max_length=12))
    assert (outcome.measured, outcome.failed) == (0, 2)
    assert len(RunFolder.open(settings.out).failures()) == 2


def test_a_run_of_this_machine_is_continued_after_a_store_that_failed(
    stage: Any, settings: Settings, nodes: Any, on_cluster: OnCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cells that had not reached the store when it failed are kept, and not deleted as if the store had lost them."""
    Grid(settings).execute()
    write, left = FileStore.write, [7]

    def failing(store: FileStore, key: str, data: bytes) -> None:
        if "/results/" in key:
            left[0] -= 1
            if left[0] <= 0:
                raise WriteError("the store is full")
        write(store, key, data)

    monkeypatch.setattr(FileStore, "write", failing)
    with pytest.raises(WriteError):
        on_cluster(settings, store="memory://geep-full")
    monkeypatch.setattr(FileStore, "write", write)
    outcome = on_cluster(settings, store="memory://geep-full")
    assert (outcome.measured, outcome.kept) == (0, 12)
    assert len(RunFolder.open(settings.out).results()) == 12


def test_a_result_that_contradicts_its_rows_is_measured_again(
    stage: Any, settings: Settings, nodes: Any, on_cluster: OnCluster
) -> None:
    """The driver sets it aside; nodes, which find it in the store, do not count it as finished."""
    url = "memory://geep-contradicts"
    on_cluster(settings, store=url)
    store = FileStore(url)
    (name,) = [name for name in store.names("runs") if "results/ag_news--two--a--" in name]
    result = json.loads(store.read(f"runs/{name}") or b"")
    result["quality"]["accuracy"] = 0.123
    store.write(f"runs/{name}", json.dumps(result).encode())
    outcome = on_cluster(settings, store=url)
    assert (outcome.measured, outcome.kept) == (1, 10)  # "kept" are those of methods with nothing to measure
    assert 0.123 not in [one.quality.accuracy for one in RunFolder.open(settings.out).results()]


def test_a_pull_does_not_make_pulled_files_count_as_changed(tmp_path: Path) -> None:
    """Only files that this side has changed are written to the store."""
    here, there = (RunMirror(FileStore("memory://geep-seen"), "runs/k", tmp_path / name) for name in ("here", "there"))
    here.push()
    (tmp_path / "there" / "results").mkdir(parents=True)
    (tmp_path / "there" / "results" / "a.json").write_text("a")
    changed = there.push()
    here.pull_files(changed)
    assert here.push() == []
