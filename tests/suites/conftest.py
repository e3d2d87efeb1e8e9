"""A small dataset in files and an untrained backbone, for commands that are run like a user runs them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from harness.pretraining.untrained import make_scratch

PROFILE = """
title = "toy"
source = "local"
datasets = ["toy"]
methods = ["bert", "geep"]
speeds = [0.1, 0.5]
rounds = 2
max_length = 16

[training]
epochs = 1
learning_rate = 3e-3
batch_size = 8
head = "linear"
precision = "float32"
"""


def write_toy(folder: Path, texts: list[str], layers: int = 3) -> list[str]:
    """Write a dataset with one easy word per class and a backbone, and return their options."""
    (folder / "data" / "toy").mkdir(parents=True)
    for name, rows in (("train", range(40)), ("dev", range(40, 50)), ("test", range(50, len(texts)))):
        frame = pd.DataFrame({"text": [texts[i] for i in rows], "label": [i % 2 for i in rows]})
        frame.to_csv(folder / "data" / "toy" / f"{name}.csv", index=False)
    make_scratch(texts, folder / "backbone", layers=layers, width=16, heads=2, vocab=200, seed=0)
    return ["--data", str(folder / "data"), "--backbone", f"en={folder / 'backbone'}", "--device", "cpu"]


def write_mini(folder: Path) -> list[str]:
    """Write 40 training and 10 test rows and a backbone; return their options and those of profile ``mini``."""
    texts = [f"{'good' if i % 2 else 'bad'} thing number {i}" for i in range(60)]
    return ["--profile", "mini", "--datasets", "toy", *write_toy(folder, texts, 4)]


@pytest.fixture
def make_toy(tmp_path: Path, few_single_samples: None) -> Callable[..., list[str]]:
    """Return :func:`write_toy` for the test's folder."""
    return partial(write_toy, tmp_path)


@pytest.fixture
def toy_options(make_toy: Callable[..., list[str]], tmp_path: Path) -> list[str]:
    """Options for 40 training and 24 test rows of different lengths, and a profile of ``bert`` and ``geep``."""
    texts = [f"{'good' if i % 2 else 'bad'} thing number {' '.join(map(str, range(i % 7)))}" for i in range(74)]
    (tmp_path / "toy.toml").write_text(PROFILE, encoding="utf-8")
    return ["--profile", str(tmp_path / "toy.toml"), *make_toy(texts)]


@pytest.fixture(scope="session")
def write_mini_options() -> Callable[[Path], list[str]]:
    """Return :func:`write_mini`, for fixtures that are made once."""
    return write_mini


@pytest.fixture
def mini_options(tmp_path: Path, few_single_samples: None) -> list[str]:
    """Options for 40 training and 10 test rows, and profile ``mini``."""
    return write_mini(tmp_path)


@pytest.fixture
def run_benchmarks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Return a function that runs pytest-benchmark in this process; it returns the exit code and all output.

    A process of its own would spend most of its time on imports.
    """

    def run(*arguments: str, mode: str = "--benchmark-only") -> tuple[int, str]:
        monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # pytest-benchmark refuses to measure in a worker
        monkeypatch.chdir(Path(__file__).parents[2])
        options = [mode, "-q", "-p", "no:faulthandler", "-p", "no:hypothesispytest"]
        code = int(pytest.main([*arguments, *options]))
        return code, "".join(capsys.readouterr())

    return run
