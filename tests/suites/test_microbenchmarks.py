"""The benchmarks of exit table and executors, in small."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from harness.kernels import host


def test_every_benchmark_has_rates_and_executed_layers(
    tmp_path: Path, run_benchmarks: Callable[..., tuple[int, str]]
) -> None:
    """Exit table and its alternatives have rates and a roofline; every executor has its executed layers and its time."""
    out = tmp_path / "benchmarks.json"
    code, said = run_benchmarks(
        *("suites/test_exit_table.py", "suites/test_executors.py", f"--benchmark-json={out}", "--device", "cpu"),
        *("--tokens", "6000", "--samples", "9", "--shape", "google/bert_uncased_L-4_H-256_A-4", "--batch-size", "4"),
    )
    assert code == 0, said
    found = {row["name"]: row["extra_info"] for row in json.loads(out.read_text(encoding="utf-8"))["benchmarks"]}
    runs = {name: info for name, info in found.items() if "mean_layers" in info}
    tables = {name: info for name, info in found.items() if name not in runs}
    assert all(info["roofline"] > 0 for info in found.values())
    assert len(tables) + len(runs) == len(found)
    for info in tables.values():
        assert info["per_second"] > 0
        assert len(info["device_seconds"]) == 5
        assert info["least_bytes"] > info["count"] > 0
        assert info["counted"] in ("n-grams looked up", "n-grams inserted", "keys frozen", "samples sorted")
    assert found["test_predict[zipf-2-searchsorted]"]["agreement"] == 1
    kinds = Counter(name.partition("[")[0] for name in tables)
    rivals = {"test_predict": 16, "test_insert": 8, "test_freeze": 4, "test_sort": 4}
    if host.problem() is not None:
        assert kinds == rivals
    else:
        assert kinds == {**rivals, "test_predict_by_load": 8, "test_insert_by_load": 8, "test_single_tokens": 4}
        loads = {name: info["load"] for name, info in tables.items() if "load" in info}
        for name, load in loads.items():
            asked = float(name[:-1].rpartition("-")[2])
            assert 0.9 * asked < load <= asked, name
    layers = {name: info["mean_layers"] for name, info in runs.items()}
    assert layers["test_executor[bert]"] == 4
    assert layers["test_executor[ladder]"] == layers["test_executor[exact-k]"] < 4
    assert all(info["waits"] >= 2 and 0 < info["rows_per_launch"] <= 4 for info in runs.values())
    assert all(info["wall_ratio"] > 0 for name, info in runs.items() if "window" not in name)
    assert runs["test_executor[rebatch]"]["waits"] < runs["test_executor[faithful]"]["waits"]
    assert {info["mean_heads"] for name, info in runs.items() if "window" in name} == {1}


def test_without_measuring_every_benchmark_runs_once(run_benchmarks: Callable[..., tuple[int, str]]) -> None:
    """``--benchmark-disable`` checks the results of executors and of the table, without times."""
    code, said = run_benchmarks(
        *("suites/test_exit_table.py", "suites/test_executors.py", "--device", "cpu", "--tokens", "3000"),
        *("--samples", "5", "--shape", "google/bert_uncased_L-4_H-256_A-4", "--batch-size", "4"),
        *("-k", "test_freeze or (test_executor and (ladder or rebatch))"),
        mode="--benchmark-disable",
    )
    assert code == 0, said
    assert "failed" not in said
