"""Fits in worker processes follow their needs, respect the limit, and equal those of one process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.cli.main import main
from harness.core.errors import MethodError, WriteError
from harness.results.run_folder import RunFolder
from harness.running.fits import fit_pool
from harness.running.fits.fit_plan import FitJob, TimeLeft, shown_time
from harness.running.fits.fit_pool import FitPool
from harness.running.fits.fit_store import FITS
from harness.running.grid import Grid
from harness.running.profile import Profile
from harness.running.run_settings import Settings
from harness.running.scheduling.scheduler import Event, Scheduler
from harness.running.scheduling.simulation import SimulatedNodes
from harness.running.scheduling.work_items import Node, WorkItem
from harness.running.scheduling.worker_processes import WorkerProcesses
from harness.running.session import Session

PROFILE = """
title = "tiny"
source = "local"
datasets = ["mine", "other"]
methods = ["bert", "fastbert", "geep", "geep-unseen"]
seeds = [0, 1]
rounds = 1
max_length = 16
max_train = 16
speeds = [0.5]
[execution]
batch_size = 8
[training]
epochs = 1
batch_size = 16
[method.fastbert]
seeds = [0]
[method.geep]
seeds = [0]
[method.geep-unseen]
like = "geep"
table_rows = "unlabelled"
"""


def fits(cache: Path) -> dict[str, bytes]:
    """Return the weights in a cache, by file."""
    return {str(path.relative_to(cache)): path.read_bytes() for path in sorted((cache / FITS).rglob("*.safetensors"))}


@pytest.mark.slow
def test_workers_equal_one_process(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_place: Callable[[str], Path],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The cache has the same files with the same weights, bit for bit, and the run uses all of them."""
    torch.set_num_threads(1)
    tiny_place(PROFILE)
    given = ["run", "--profile", "tiny.toml", "--data", "data", "--backbone", "en=backbone", "--device", "cpu"]
    found = []
    for processes in ("1", "2"):
        monkeypatch.setenv("GEEP_BENCH_CACHE", str(tmp_path / f"cache-{processes}"))
        assert main([*given, "--out", f"out-{processes}", "--workers", processes, "--fit-only"]) == 0
        found.append(fits(tmp_path / f"cache-{processes}"))
    assert len(found[0]) >= 10 and any("geep-unseen" in name for name in found[0])
    assert len([name for name in found[0] if "fastbert" in name]) == 2  # sets, with one seed
    assert found[0] == found[1]
    said = capfd.readouterr().err
    assert "other bert seed 1: fitted in" in said and "failed" not in said
    assert main([*given, "--out", "out-2", "--workers", "2", "--fit-only"]) == 0
    ended = capfd.readouterr()
    assert "fits: 10 ready, 0 failed" in ended.out and "fitted in" not in ended.err


def test_bad_input_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Missing data is reported once, by the run and not by its workers."""
    (tmp_path / "tiny.toml").write_text(PROFILE.replace('"fastbert", "geep", "geep-unseen"', '"geep"'))
    monkeypatch.chdir(tmp_path)
    code = main(["run", "--profile", "tiny.toml", "--data", "nowhere", "--backbone", "en=x", "--workers", "2"])
    assert code == 2
    assert "nowhere" in capfd.readouterr().err


class Raising:
    """A session without data, one of whose methods is a broken plug-in."""

    dataset, seed, prepared = "mine", 0, None

    def check_engine(self, name: str) -> None:
        """Its methods have no engine of their own."""

    def may_be_cached(self, name: str) -> bool:
        return True

    def is_cached(self, name: str) -> bool:
        if name == "bert":
            return True
        raise self.error

    def __init__(self, error: Exception, settings: Settings) -> None:
        self.error, self.settings = error, settings


def test_a_broken_plug_in_does_not_end_the_run(tmp_path: Path) -> None:
    """An error of one method is left to the grid, which reports it in its turn; a full disk ends the run at once."""
    profile = Profile(title="tiny", source="local", datasets=["mine"], methods=["bert", "fastbert"], workers=2)
    given = Settings(profile, tmp_path)
    with FitPool(given) as pool:
        pool.fit(Raising(MethodError("its plug-in is broken"), given), profile.methods)  # type: ignore[arg-type]
        with pytest.raises(WriteError):
            pool.fit(Raising(WriteError("the disk is full"), given), profile.methods)  # type: ignore[arg-type]


def test_a_failing_fit_fails_its_own_cells(
    stage: Any, grid_settings: Settings, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Fits of all sets and seeds go to the workers, longest chains first; a failure is recorded for what depends on it."""
    asked: list[FitJob] = []

    class Answering(SimulatedNodes):
        """Workers that fit nothing, one of whose fits fails."""

        def start_processes(self, count: int) -> None:
            """They are there already."""

        def close(self) -> None:
            """They need not be ended."""

        def answer(self, key: FitJob) -> dict[str, Any]:
            asked.append(key)
            wrong = key.dataset == "lcqmc" and key.method == "one"
            return {"reason": "on purpose", "traceback": "Traceback: here"} if wrong else {}

    monkeypatch.setattr(fit_pool, "WorkerProcesses", lambda *_: Answering([Node("here", 2)]))
    tables = {"two": {"seeds": [0]}, "one-int8": {"like": "one", "engine": "int8"}}
    methods = [*grid_settings.profile.methods, "one-int8"]
    changes = {"workers": 2, "seeds": [0, 1], "method": tables, "methods": methods}
    chosen = replace(grid_settings, profile=grid_settings.profile.model_copy(update=changes))
    outcome = Grid(chosen).fit()
    assert (outcome.fitted, outcome.failed) == (2 * 3 + 2, 2 * 3)
    assert len(asked) == len(set(asked)) == 2 * (2 + 2 + 1) - 2  # three learns from one, which fails on lcqmc
    assert {job.method for job in asked[:4]} == {"one"} and FitJob("ag_news", 1, "two") not in asked
    records = {(one["cell"]["method"], one["cell"]["seed"]): one for one in RunFolder.open(chosen.out).failures()}
    assert {*records} == {(name, seed) for name in ("one", "one-int8", "three") for seed in (0, 1)}
    assert "Traceback: here" in records["one", 1]["traceback"] and records["one", 1]["reason"] == "on purpose"
    assert "learns from a method that failed" in records["three", 0]["reason"]
    assert "ag_news two seed 0: fitted in" in capfd.readouterr().err


def test_a_worker_that_ends_loses_its_fit_and_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason names the signal, here that of a full memory; the next attempt has a new process."""
    (tmp_path / "dying_once.py").write_text(
        "import os, signal, sys\ninput()\nfor line in sys.stdin:\n"
        "    if not os.path.exists('died'):\n        open('died', 'w')\n        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    print('{}', flush=True)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    workers, events = WorkerProcesses("dying_once", {}, 1, 1), list[Event]()
    assert Scheduler(workers, events.append, back_off=0.0).run([WorkItem("bert")]) == {}
    workers.close()
    assert [event.kind for event in events] == ["started", "lost", "started", "done"]
    assert "SIGKILL" in events[1].reason and "--workers" in events[1].reason


def test_time_left_follows_what_fits_took() -> None:
    """Estimates of a machine that is twice as slow are doubled, and two processes halve the rest."""
    left = TimeLeft({"a": 10.0, "b": 30.0, "c": 20.0}, 2)
    assert left.after("a", 20.0) == pytest.approx(2 * 50 / 2)
    assert left.after("c", 10.0) == pytest.approx(30 * (30 / 30) / 2)
    assert left.after("b", 1.0) == 0
    assert [shown_time(seconds) for seconds in (9, 600, 9000)] == ["9 s", "10 min", "2.5 h"]


class Noting:
    """A pool that notes what it is asked to fit."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[str]]] = []

    def fit(self, session: Session, methods: list[str]) -> None:
        self.asked.append((session.dataset, methods))


def test_the_first_method_is_fitted_alone(tmp_path: Path) -> None:
    """Until a cell is measured, one method is fitted at a time; then all of a dataset's, once for each dataset."""
    methods = ["bert", "fastbert", "geep"]
    chosen = Profile(title="tiny", source="embedded", datasets=["ag_news", "lcqmc"], methods=methods, workers=2)
    grid, pool = Grid(Settings(chosen, tmp_path)), Noting()
    for dataset, seed, method in grid.jobs():
        grid._session_of(dataset, seed, method, pool)  # type: ignore[arg-type]
        grid.outcome.measured += method != "bert" or dataset == "lcqmc"  # bert fails on the first dataset
    assert pool.asked == [
        ("ag_news", ["bert"]),
        ("ag_news", ["fastbert"]),
        ("ag_news", methods),
        ("lcqmc", methods),
    ]
