"""A dataset of easy words in files, for suites run as a user runs them."""

from __future__ import annotations

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


@pytest.fixture
def toy_options(tmp_path: Path) -> list[str]:
    """Options for 40 training and 24 test rows of one easy word a class, and a backbone of three narrow layers."""
    texts = [f"{'good' if i % 2 else 'bad'} thing number {' '.join(map(str, range(i % 7)))}" for i in range(74)]
    (tmp_path / "data" / "toy").mkdir(parents=True)
    for name, rows in (("train", range(40)), ("dev", range(40, 50)), ("test", range(50, 74))):
        frame = pd.DataFrame({"text": [texts[i] for i in rows], "label": [i % 2 for i in rows]})
        frame.to_csv(tmp_path / "data" / "toy" / f"{name}.csv", index=False)
    make_scratch(texts, tmp_path / "backbone", layers=3, width=16, heads=2, vocab=200, seed=0)
    (tmp_path / "toy.toml").write_text(PROFILE, encoding="utf-8")
    return [
        *("--profile", str(tmp_path / "toy.toml"), "--data", str(tmp_path / "data"), "--device", "cpu"),
        *("--backbone", f"en={tmp_path / 'backbone'}"),
    ]
