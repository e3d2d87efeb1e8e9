"""The study of latency: turns, number of calls, and intervals of quantiles."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from harness.core.tokens import TokenSet
from suites.studies import latency
from suites.studies.shared import study


@given(count=st.integers(1, 2000), share=st.sampled_from([0.5, 0.9, 0.99]))
def test_intervals_have_their_stated_coverage(count: int, share: float) -> None:
    """The interval covers the quantile with a probability of at least 95 %, and no narrower one does."""
    low, high = latency.quantile_interval(list(range(1, count + 1)), share)  # values are their ranks
    first, last = int(low or 0), int(high or count + 1)
    assert binom.cdf(last - 1, count, share) - binom.cdf(first - 1, count, share) >= 0.95
    if high is not None and last - 1 > first:  # an interval one rank narrower does not cover enough
        assert 1 - binom.cdf(last - 2, count, share) > 0.025


def test_a_p99_needs_calls_for_an_upper_limit() -> None:
    """The p99 of 200 calls has no upper limit, that of 400 has one."""
    assert latency.quantile_interval(range(200), 0.99)[1] is None
    assert latency.quantile_interval(range(400), 0.99)[1] == 399


def test_outliers_are_kept() -> None:
    """One very slow call counts in all figures."""
    row = latency.summary([1.0] * 99 + [60.0], samples=200, tokens=1000)
    assert (row["n"], row["p50"], row["p90"], row["largest"]) == (100, 1.0, 1.0, 60.0)
    assert row["p99"] > 1
    assert row["samples_per_s"] == pytest.approx(200 / 159)
    assert row["tokens_per_s"] == pytest.approx(1000 / 159)


def run_calls(
    wanted: int, budget: float, seconds: dict[str, float], sizes: dict[str, int], **more: bool
) -> tuple[list, dict]:
    tokens = TokenSet.from_lists([[i] * (1 + i % 3) for i in range(12)])
    seen: list[tuple[str, list[int]]] = []

    def call(name: str) -> Any:
        def run(some: TokenSet, numbers: np.ndarray) -> Any:
            assert some.ids[some.offsets[:-1]].tolist() == numbers.tolist()
            seen.append((name, numbers.tolist()))
            return SimpleNamespace(seconds=seconds[name])

        return run

    return seen, latency.take_calls({name: call(name) for name in sizes}, sizes, tokens, wanted, budget, 0, **more)


def test_calls_take_turns_through_all_samples() -> None:
    """Turns of ten calls alternate after one uncounted call each, and every sample runs once before any repeats."""
    seen, found = run_calls(24, 1e9, {"a": 1.0, "b": 2.0}, {"a": 1, "b": 1})
    turns = [("a", 11), ("b", 11), ("b", 11), ("a", 11), ("a", 5), ("b", 5)]
    assert [name for name, _ in seen] == [name for name, count in turns for _ in range(count)]
    counted: dict[str, list[int]] = {"a": [], "b": []}
    place = 0
    for name, count in turns:
        counted[name] += [number for _, (number,) in seen[place + 1 : place + count]]
        place += count
    assert counted["a"] == counted["b"]
    assert sorted(counted["a"][:12]) == sorted(counted["a"][12:]) == list(range(12))
    assert counted["a"][:12] != counted["a"][12:]
    assert found["a"]["seconds"] == [1.0] * 24
    assert (found["b"]["samples"], found["b"]["tokens"]) == (24, 2 * 24)


def test_a_rehearsal_is_not_counted() -> None:
    """A rehearsal runs every sample once before the first call counts."""
    seen, found = run_calls(20, 1e9, {"a": 1.0}, {"a": 1}, rehearse=True)
    assert sorted(number for _, (number,) in seen[:12]) == list(range(12))
    assert len(found["a"]["seconds"]) == 20


def test_the_budget_is_common_to_all_methods() -> None:
    """The budget reduces the calls of all methods equally, but not below the minimum."""
    _, found = run_calls(400, 50.0, {"a": 1.0, "b": 3.0}, {"a": 1, "b": 4})
    assert [len(one["seconds"]) for one in found.values()] == [30, 30]  # 100 s together, asked between turns
    assert found["b"]["samples"] == 120
    _, found = run_calls(400, 0.001, {"a": 1.0}, {"a": 5})
    assert len(found["a"]["seconds"]) == latency.LEAST


def test_calls_as_large_as_the_data_work() -> None:
    """A batch size above the number of samples gives calls with all of them."""
    _, found = run_calls(20, 1e9, {"a": 1.0}, {"a": 64})
    assert (found["a"]["samples"], found["a"]["tokens"]) == (240, 20 * 24)


def test_both_batch_sizes_are_shown(
    toy_options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Quantiles with intervals are shown at batch 1 and at the best size, and nothing is measured twice."""
    out = tmp_path / "latency.json"
    options = [*toy_options, "--calls", "30", "--batch-sizes", "2,8", "--out", str(out)]
    assert latency.main(options) == 0
    said = capsys.readouterr().out
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert len(rows) == 2 * 3
    for row in rows:
        assert (row["batch_size"] == 1) == (row["regime"] == "batch 1")
        assert len(row["seconds"]) == row["n"] == 30
        assert row["p50_low"] <= row["p50"] <= row["p90"] <= row["p99"] <= row["largest"]
        assert row["p99_high"] is None
    assert "–?)" in said and "one sample a call" in said and "each at its best batch size" in said
    assert "?: too few calls" in (tmp_path / "latency.md").read_text(encoding="utf-8")
    monkeypatch.setattr(study, "Session", None)
    assert latency.main(options) == 0
    assert latency.main([*options, "--calls", "31"]) == 2
    assert "other settings (calls)" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--calls", "0"], ["--seconds", "0"], ["--batch-sizes", "0"], ["--speed", "x"]])
def test_bad_input_is_one_line(
    toy_options: list[str], wrong: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Bad input gives one line and exit code 2."""
    assert latency.main([*toy_options, "--out", str(tmp_path / "latency.json"), *wrong]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
