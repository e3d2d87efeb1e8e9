"""Profile ``low-bits``: int8 and bfloat16 rows on the weights of ``twelve``."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch

from harness.core.tokens import Task
from harness.encoder.backbone import Backbone
from harness.encoder.device_kernels.packed_linear import can_pack
from harness.engines.choice import WHOLE, check_engine
from harness.running import profile
from harness.running.fits.fit_keys import FitKeys
from harness.running.run_settings import make_settings


def test_it_trains_nothing_that_twelve_has(signal_task: Task, small_backbone: Backbone) -> None:
    """Weights and fits have the keys of twelve; rows on an engine run the fits of the methods that they are like."""
    chosen, twelve = profile.load("low-bits"), profile.load("twelve")
    prepared: Any = SimpleNamespace(task=signal_task, unlabelled_rows="")
    backbone = replace(small_backbone, tokenizer_fingerprint="made up")
    ours, theirs = (FitKeys(make_settings(one, device="cpu"), 0, prepared, backbone) for one in (chosen, twelve))
    trained = [name for name in chosen.methods if name in twelve.methods and chosen.engine(name) is None]
    assert {"bert", "distilbert", "distilbert-3l", "tinybert", "fastbert", "geep-joint", "joint-look1"} <= {*trained}
    assert {name: ours.fit(name) for name in trained} == {name: theirs.fit(name) for name in trained}
    assert {name: ours.weights(name) for name in trained} == {name: theirs.weights(name) for name in trained}
    assert {*chosen.fits(chosen.methods)} - {*trained} == {
        f"joint-{rule}-int8" for rule in ("constant", "random", "sequential")
    }


def test_early_exits_full_depth_and_students_meet_on_the_same_bits() -> None:
    """Each kind has rows in float32, bfloat16 and int8, and every method can use its engine."""
    chosen = profile.load("low-bits")
    for name in ("bert", "distilbert", "fastbert", "joint-look1"):
        alike = {chosen.engine(one) for one in chosen.methods if one == name or one.startswith(f"{name}-")}
        assert {None, "bfloat16", "int8"} <= alike, name
    for name in chosen.methods:
        engine = chosen.engine(name)
        here = engine != "bfloat16" or can_pack(torch.bfloat16)
        if engine is not None and engine not in WHOLE and here:
            check_engine(engine, name, "cpu", getattr(chosen.method_of(name), "fitted", None))
