"""Fits in worker processes follow their needs, respect the limit, and equal those of one process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.cli.main import main
from harness.core.errors import MethodError, WriteError
from harness.encoder import checkpoint
from harness.encoder.backbone import Backbone
from harness.running.fits.fit_pool import FitPool, fit_in_order
from harness.running.fits.fit_store import FITS
from harness.running.grid import Grid
from harness.running.profile import Profile
from harness.running.run_settings import Settings
from harness.running.session import Session

PROFILE = """
title = "tiny"
source = "local"
datasets = ["mine"]
methods = ["bert", "fastbert", "geep", "geep-verified", "geep-unseen"]
rounds = 1
max_length = 16
max_train = 16
speeds = [0.5]
[execution]
batch_size = 8
[training]
epochs = 1
batch_size = 16
[method.geep-unseen]
like = "geep"
table_rows = "unlabelled"
"""


@st.composite
def graphs(draw: st.DrawFn) -> tuple[dict[str, list[str]], set[str], int]:
    """Draw methods with their needs, failing methods, and the number of parallel fits."""
    count = draw(st.integers(1, 8))
    names = [f"m{number}" for number in range(count)]
    needs = {
        name: draw(st.lists(st.sampled_from(names[:at]), unique=True) if at else st.just([]))
        for at, name in enumerate(names)
    }
    failing = set(draw(st.lists(st.sampled_from(names), unique=True, max_size=2)))
    return needs, failing, draw(st.integers(1, 3))


@given(graphs())
@settings(max_examples=60)
def test_every_method_is_fitted_once_after_its_needs(graph: tuple[dict[str, list[str]], set[str], int]) -> None:
    """With any failures and limit, a method whose need failed is skipped and reported."""
    needs, failing, at_a_time = graph
    lock, fitted, running, most = threading.Lock(), list[str](), set[str](), 0

    def fit(name: str) -> str | None:
        nonlocal most
        with lock:
            assert set(needs[name]) <= set(fitted)
            running.add(name)
            most = max(most, len(running))
        with lock:
            running.remove(name)
            if name in failing:
                return "on purpose"
            fitted.append(name)
            return None

    failed = fit_in_order(list(needs), needs, fit, at_a_time)
    spoilt: set[str] = set()
    for name in needs:
        if name in failing or spoilt & set(needs[name]):
            spoilt.add(name)
    assert set(failed) == spoilt
    assert sorted(fitted) == sorted(set(needs) - spoilt)
    assert most <= at_a_time
    assert all(failed[name] == "on purpose" for name in spoilt & failing if not spoilt & set(needs[name]))


def fits(cache: Path) -> dict[str, bytes]:
    """Return the weights in a cache, by file."""
    return {str(path.relative_to(cache)): path.read_bytes() for path in sorted((cache / FITS).rglob("*.safetensors"))}


def test_workers_equal_one_process(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_backbone: Callable[..., Backbone],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The cache has the same files with the same weights, bit for bit, and the run uses all of them."""
    torch.set_num_threads(1)
    (tmp_path / "tiny.toml").write_text(PROFILE)
    words = ["good", "bad"]
    for split, rows in (("train", 24), ("dev", 8), ("test", 6)):
        table = pd.DataFrame(
            {"text": [f"{words[i % 2]} number {i}" for i in range(rows)], "label": np.arange(rows) % 2}
        )
        (tmp_path / "data" / "mine").mkdir(parents=True, exist_ok=True)
        table.to_parquet(tmp_path / "data" / "mine" / f"{split}.parquet")
    made = make_backbone()
    (tmp_path / "backbone").mkdir()
    checkpoint.write_folder(tmp_path / "backbone", made.shape, made.state)
    made.tokenizer.save_pretrained(tmp_path / "backbone")
    monkeypatch.chdir(tmp_path)
    given = ["run", "--profile", "tiny.toml", "--data", "data", "--backbone", "en=backbone", "--device", "cpu"]
    found = []
    for processes in ("1", "2"):
        monkeypatch.setenv("GEEP_BENCH_CACHE", str(tmp_path / f"cache-{processes}"))
        assert main([*given, "--out", f"out-{processes}", "--fit-processes", processes, "--fit-only"]) == 0
        found.append(fits(tmp_path / f"cache-{processes}"))
    assert len(found[0]) >= 4 and any("geep-unseen" in name for name in found[0])
    assert found[0] == found[1]
    assert "not fitted in a worker" not in capfd.readouterr().err


def test_bad_input_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Missing data is reported once, by the run and not by its workers."""
    (tmp_path / "tiny.toml").write_text(PROFILE.replace('"fastbert", "geep", "geep-verified", "geep-unseen"', '"geep"'))
    monkeypatch.chdir(tmp_path)
    code = main(["run", "--profile", "tiny.toml", "--data", "nowhere", "--backbone", "en=x", "--fit-processes", "2"])
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

    def __init__(self, error: Exception) -> None:
        self.error = error


def test_a_broken_plug_in_does_not_end_the_run(tmp_path: Path) -> None:
    """An error of one method is left to the grid, which reports it in its turn; a full disk ends the run at once."""
    profile = Profile(title="tiny", source="local", datasets=["mine"], methods=["bert", "fastbert"], fit_processes=2)
    with FitPool(Settings(profile, tmp_path)) as pool:
        pool.fit(Raising(MethodError("its plug-in is broken")), profile.methods)  # type: ignore[arg-type]
        with pytest.raises(WriteError):
            pool.fit(Raising(WriteError("the disk is full")), profile.methods)  # type: ignore[arg-type]


def test_longest_chains_start_first() -> None:
    """Of the fits that may start, the one with the longest chain of fits after it starts, by the seconds of earlier ones."""
    needs = {"bert": [], "short": ["bert"], "long": ["bert"], "geep": [], "control": ["geep"]}
    order: list[str] = []
    fit_in_order(list(needs), needs, lambda name: order.append(name), 1)
    assert order == ["bert", "geep", "short", "long", "control"]
    order.clear()
    fit_in_order(list(needs), needs, lambda name: order.append(name), 1, seconds={"long": 9.0, "geep": 5.0})
    assert order == ["bert", "long", "geep", "short", "control"]


class Noting:
    """A pool that notes what it is asked to fit."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[str]]] = []

    def fit(self, session: Session, methods: list[str]) -> None:
        self.asked.append((session.dataset, methods))


def test_the_first_method_is_fitted_alone(tmp_path: Path) -> None:
    """Until a cell is measured, one method is fitted at a time; then all of a dataset's, once for each dataset."""
    methods = ["bert", "fastbert", "geep"]
    chosen = Profile(title="tiny", source="embedded", datasets=["ag_news", "lcqmc"], methods=methods, fit_processes=2)
    grid, pool = Grid(Settings(chosen, tmp_path)), Noting()
    for dataset, seed, method in grid._jobs():
        grid._session_of(dataset, seed, method, pool)  # type: ignore[arg-type]
        grid.outcome.measured += method != "bert" or dataset == "lcqmc"  # bert fails on the first dataset
    assert pool.asked == [
        ("ag_news", ["bert"]),
        ("ag_news", ["fastbert"]),
        ("ag_news", methods),
        ("lcqmc", methods),
    ]
