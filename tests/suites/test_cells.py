"""The pytest-benchmark front end, run as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pandas as pd
import pytest

from harness import registry
from harness.pretraining.untrained import make_scratch
from harness.running import profile
from harness.running.settings import Settings
from suites.cells import FIRST, cells_of

ROOT = Path(__file__).parents[2]


@pytest.fixture
def toy(tmp_path: Path) -> dict[str, Path]:
    """A local dataset of one easy word a class, and an untrained backbone that knows its words."""
    texts = [f"{'good' if i % 2 else 'bad'} thing number {i}" for i in range(60)]
    for name, rows in (("train", range(40)), ("dev", range(40, 50)), ("test", range(50, 60))):
        (tmp_path / "data" / "toy").mkdir(parents=True, exist_ok=True)
        frame = pd.DataFrame({"text": [texts[i] for i in rows], "label": [i % 2 for i in rows]})
        frame.to_csv(tmp_path / "data" / "toy" / f"{name}.csv", index=False)
    make_scratch(texts, tmp_path / "backbone", layers=3, width=16, heads=2, vocab=200, seed=0)
    return {"data": tmp_path / "data", "backbone": tmp_path / "backbone"}


def run_suites(*options: str, cache: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "GEEP_BENCH_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_XDIST_WORKER", None)  # pytest-benchmark refuses to measure in a worker
    command = [sys.executable, "-m", "pytest", "suites/test_cells.py", "--benchmark-only", "-q", *options]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_a_cell_carries_accuracy_and_cost_beside_its_time(toy: dict[str, Path], tmp_path: Path) -> None:
    """``pytest suites/ --benchmark-only`` times every operating point and stores what came out of the timed pass."""
    out = tmp_path / "benchmark.json"
    done = run_suites(
        *("--profile", "mini", "--datasets", "toy", "--methods", "bert,fastbert", "--data", str(toy["data"])),
        *("--backbone", f"en={toy['backbone']}", "--device", "cpu", f"--benchmark-json={out}"),
        cache=tmp_path / "cache",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text(encoding="utf-8"))
    cells = {b["extra_info"]["cell"]["point"]: b for b in found["benchmarks"]}
    assert set(cells) == {"full", "speed=0.1", "speed=0.5"}
    info = cells["full"]["extra_info"]
    assert info["mean_layers"] == 3
    assert info["mean_heads"] == 1
    assert 0 <= info["accuracy_low"] <= info["accuracy"] <= info["accuracy_high"] <= 1
    assert info["flops_full"] > 0 < info["flops_linear"]
    assert info["samples_per_s"] > 0
    assert not info["synthetic"]
    assert {b["group"] for b in found["benchmarks"]} == {"toy, local data"}
    assert found["machine_info"]["node"] == ""
    assert found["machine_info"]["geep"]["torch_threads"] >= 1


def test_saving_and_comparing_are_pytest_benchmarks_own(toy: dict[str, Path], tmp_path: Path) -> None:
    """``--benchmark-save`` keeps a session, accuracy included, and ``--benchmark-compare`` shows the next one beside it."""
    options = [
        *("--profile", "mini", "--datasets", "toy", "--methods", "bert", "--data", str(toy["data"])),
        *("--backbone", f"en={toy['backbone']}", "--device", "cpu", f"--benchmark-storage=file://{tmp_path / 'kept'}"),
    ]
    first = run_suites(*options, "--benchmark-save=before", cache=tmp_path / "cache")
    assert first.returncode == 0, first.stdout + first.stderr
    (kept,) = (tmp_path / "kept").rglob("0001_before.json")
    (saved,) = json.loads(kept.read_text(encoding="utf-8"))["benchmarks"]
    assert saved["extra_info"]["accuracy"] <= 1
    again = run_suites(*options, "--benchmark-compare=0001", cache=tmp_path / "cache")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "(0001_before)" in again.stdout and "(NOW)" in again.stdout
    assert "machine_info differs" not in again.stdout + again.stderr


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--profile", "quik"], "did you mean quick"),
        (["--profile", "quick", "--methods", "berd"], "did you mean bert"),
        (["--profile", "quick", "--datasets", "ag_new"], "did you mean ag_news"),
    ],
)
def test_an_unknown_name_is_told_before_anything_runs(options: list[str], told: str, tmp_path: Path) -> None:
    """A typo ends the collection with the nearest name."""
    done = run_suites(*options, cache=tmp_path)
    assert done.returncode != 0
    assert told in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_cells_of_quick_are_those_that_run_measures() -> None:
    """Points are known before anything is fitted: two speeds, shared answers, both verified modes, controls, oracle."""
    cells = cells_of(Settings(profile.load("quick"), Path()))
    one = [(c.method, c.point) for c in cells if c.dataset == "lcqmc"]
    assert len(one) == len(set(one)) == 3 + 2 + 4 + 4 + 4 * 2 + 1
    assert ("geep", "speed=0.5/shared") in one
    assert ("geep-verified", "speed=0.1/steps") in one
    assert ("oracle", "agree") in one


def test_variants_have_cells_of_their_own() -> None:
    """A variant's own speeds make its points; a method whose plug-in is broken keeps a cell, to fail in."""
    tables = {"fastbert-one": {"like": "fastbert", "speeds": [0.3]}, "short": {"like": "distilbert", "layers": 2}}
    changes = {"method": tables, "methods": ["fastbert", "fastbert-one", "short"], "datasets": ["lcqmc"]}
    cells = cells_of(Settings(profile.load("quick").model_copy(update=changes), Path()))
    assert [(cell.method, cell.point) for cell in cells] == [
        *(("fastbert", "speed=0.1"), ("fastbert", "speed=0.5")),
        *(("fastbert-one", "speed=0.3"), ("short", FIRST)),
    ]


def test_a_broken_plug_in_leaves_its_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    """It fails when it is run; the cells of others are collected."""
    point = EntryPoint("bad", "no_such_module_at_all:Bad", registry.GROUP)
    monkeypatch.setattr(registry, "_entry_points", lambda: {"bad": point})
    changes = {"method": {}, "methods": ["bad"], "datasets": ["lcqmc"]}
    (cell,) = cells_of(Settings(profile.load("quick").model_copy(update=changes), Path()))
    assert (cell.method, cell.point) == ("bad", FIRST)
