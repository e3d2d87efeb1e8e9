"""The pytest-benchmark front end, run like a user runs it."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from harness import registry
from harness.running import profile
from harness.running.run_settings import Settings
from suites.cells import FIRST, cells_of


def test_a_cell_stores_accuracy_and_cost_with_its_time(
    mini_options: list[str], tmp_path: Path, run_benchmarks: Callable[..., tuple[int, str]]
) -> None:
    """``pytest suites/ --benchmark-only`` times every operating point and stores the results of the timed pass."""
    out = tmp_path / "benchmark.json"
    options = [*mini_options, "--methods", "bert,fastbert", f"--benchmark-json={out}"]
    code, said = run_benchmarks("suites/test_cells.py", *options)
    assert code == 0, said
    found = json.loads(out.read_text(encoding="utf-8"))
    cells = {b["extra_info"]["cell"]["point"]: b for b in found["benchmarks"]}
    assert set(cells) == {"full", "speed=0.1", "speed=0.5"}
    info = cells["full"]["extra_info"]
    assert info["mean_layers"] == 4
    assert info["mean_heads"] == 1
    assert 0 <= info["accuracy_low"] <= info["accuracy"] <= info["accuracy_high"] <= 1
    assert info["flops_full"] > 0 < info["flops_linear"]
    assert info["samples_per_s"] > 0
    assert not info["synthetic"]
    assert {b["group"] for b in found["benchmarks"]} == {"toy, local data"}
    assert found["machine_info"]["node"] == ""
    assert found["machine_info"]["geep"]["torch_threads"] >= 1


def test_saving_and_comparing_use_pytest_benchmark(
    mini_options: list[str], tmp_path: Path, run_benchmarks: Callable[..., tuple[int, str]]
) -> None:
    """``--benchmark-save`` stores a session with its accuracy, and ``--benchmark-compare`` shows the next one beside it."""
    options = [*mini_options, "--methods", "bert", f"--benchmark-storage=file://{tmp_path / 'kept'}"]
    code, said = run_benchmarks("suites/test_cells.py", *options, "--benchmark-save=before")
    assert code == 0, said
    (kept,) = (tmp_path / "kept").rglob("0001_before.json")
    (saved,) = json.loads(kept.read_text(encoding="utf-8"))["benchmarks"]
    assert saved["extra_info"]["accuracy"] <= 1
    code, said = run_benchmarks("suites/test_cells.py", *options, "--benchmark-compare=0001")
    assert code == 0, said
    assert "(0001_before)" in said and "(NOW)" in said
    assert "machine_info differs" not in said


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (["--profile", "quik"], "did you mean quick"),
        (["--profile", "quick", "--methods", "berd"], "did you mean bert"),
        (["--profile", "quick", "--datasets", "ag_new"], "did you mean ag_news"),
    ],
)
def test_an_unknown_name_ends_the_collection(
    options: list[str], hint: str, run_benchmarks: Callable[..., tuple[int, str]]
) -> None:
    """A typo is reported with the nearest name before anything runs."""
    code, said = run_benchmarks("suites/test_cells.py", *options)
    assert code != 0
    assert hint in said
    assert "Traceback" not in said


def test_without_measuring_every_cell_runs_once(
    mini_options: list[str], run_benchmarks: Callable[..., tuple[int, str]]
) -> None:
    """``--benchmark-disable`` fits and predicts, and has no times."""
    code, said = run_benchmarks("suites/test_cells.py", *mini_options, "--methods", "bert", mode="--benchmark-disable")
    assert code == 0, said
    assert "1 passed" in said


def test_measuring_in_several_processes_is_refused(run_benchmarks: Callable[..., tuple[int, str]]) -> None:
    """``-n 2`` ends at once with one line that says what to do instead."""
    code, said = run_benchmarks("suites/", "-n", "2")
    assert code == pytest.ExitCode.USAGE_ERROR
    (line,) = [line for line in said.splitlines() if line.strip()]
    assert "omit -n, or add --benchmark-disable" in line


def test_cells_of_quick_equal_those_of_a_run() -> None:
    """Points are known before any fit: two speeds, shared answers, a budget, verified modes, controls, oracle."""
    cells = cells_of(Settings(profile.load("quick"), Path()))
    one = [(c.method, c.point) for c in cells if c.dataset == "lcqmc"]
    assert len(one) == len(set(one)) == 3 + 2 + (4 + 1) + (4 + 1) + 4 * (2 + 1) + 1
    assert ("geep", "speed=0.5/shared") in one
    assert ("geep-verified", "speed=0.1/steps") in one
    assert ("oracle", "agree") in one


def test_variants_have_their_own_cells() -> None:
    """The points of a variant follow from its own speeds."""
    tables = {"fastbert-one": {"like": "fastbert", "speeds": [0.3]}, "short": {"like": "distilbert", "layers": 2}}
    changes = {"method": tables, "methods": ["fastbert", "fastbert-one", "short"], "datasets": ["lcqmc"]}
    cells = cells_of(Settings(profile.load("quick").model_copy(update=changes), Path()))
    assert [(cell.method, cell.point) for cell in cells] == [
        *(("fastbert", "speed=0.1"), ("fastbert", "speed=0.5")),
        *(("fastbert-one", "speed=0.3"), ("short", "full")),
    ]


def test_a_broken_plug_in_keeps_one_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that cannot be imported keeps one cell, which fails when it is run."""
    point = EntryPoint("bad", "no_such_module_at_all:Bad", registry.GROUP)
    monkeypatch.setattr(registry, "_entry_points", lambda: {"bad": point})
    changes = {"method": {}, "methods": ["bad"], "datasets": ["lcqmc"]}
    (cell,) = cells_of(Settings(profile.load("quick").model_copy(update=changes), Path()))
    assert (cell.method, cell.point) == ("bad", FIRST)
