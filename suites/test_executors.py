"""Benchmarks of the executors on one random model: the same samples, the same exits, different ways to run them.

``pytest suites/test_executors.py --benchmark-only --shape bert-base-uncased --samples 10000 --batch-size 256 --device cuda``

Random weights and ids of realistic lengths: what counts is time and executed layers, not answers. Exits are drawn, shallow
ones more often; ``ladder``, ``exact-k`` and ``verified`` know them beforehand, ``shrink`` finds out layer by layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.contracts import Execution, Predictions, TokenSet
from harness.encoder.backbone import default_device, shape_of
from harness.encoder.executors import exit_logits, run_assigned, run_full
from harness.encoder.exits import entropy_rule, normalised_entropy
from harness.encoder.model import Encoder
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.sequential import run_sequential
from harness.encoder.verified import run_verified
from harness.measure import clock
from harness.measure.throughput import precision
from suites.executors import random_samples, shallow

WINDOWS = (256, 1024, 0)


@dataclass
class World:
    """A random model and random samples on a device."""

    shape: str
    samples: int
    batch_size: int
    device: str

    @cached_property
    def model(self) -> MultiExitModel:
        torch.manual_seed(0)
        shape = shape_of(self.shape)
        return MultiExitModel(Encoder(shape).to(self.device), 2, range(shape.layers - 2)).to(self.device).eval()

    @cached_property
    def tokens(self) -> TokenSet:
        vocab = self.model.encoder.shape.vocab_size
        return random_samples(self.samples, vocab, np.random.default_rng(0)).to(self.device)

    @cached_property
    def exits(self) -> Tensor:
        answers = np.array(self.model.answers, dtype=np.int16)
        drawn = np.random.default_rng(1).choice(answers, self.samples, p=shallow(len(answers)))
        return torch.from_numpy(drawn).to(self.device)

    @cached_property
    def threshold(self) -> float:
        """An entropy at which about half the samples are sure, at whatever layer."""
        few = self.tokens.select(np.arange(min(64, self.samples)))
        return float(normalised_entropy(exit_logits(self.model, few, Execution(self.batch_size))).median())

    def run(self, executor: str, window: int = 0) -> Predictions:
        execution = Execution(self.batch_size, window=window)
        if executor == "full":
            return run_full(self.model, self.tokens, execution)
        if executor == "shrink":
            return run_sequential(self.model, self.tokens, execution, entropy_rule(self.threshold))
        if executor == "verified":
            return run_verified(self.model, self.tokens, self.exits[:, None], execution, entropy_rule(self.threshold))
        execution = Execution(self.batch_size, window=window, executor=executor)  # type: ignore[arg-type]
        return run_assigned(self.model, self.tokens, self.exits, execution)


@pytest.fixture(scope="module")
def world(request: pytest.FixtureRequest) -> World:
    """The one that the command line asks for."""
    option = request.config.getoption
    return World(option("--shape"), option("--samples"), option("--batch-size"), option("--device") or default_device())


def _measure(benchmark: Any, world: World, run: Callable[[], Predictions]) -> None:
    dtype = "bfloat16" if world.device == "cuda" else "float32"

    def once() -> Predictions:
        found = run()
        clock.synchronise(world.device)
        return found

    with torch.inference_mode(), precision(torch.device(world.device), dtype):
        found = benchmark.pedantic(once, rounds=3, warmup_rounds=1, iterations=1)
    layers = found.work.rows("layer") / world.samples
    depth = world.model.depth
    benchmark.extra_info.update(
        {
            "shape": world.shape,
            "device": world.device,
            "dtype": dtype,
            "batch_size": world.batch_size,
            "samples": world.samples,
            "mean_tokens": float(world.tokens.lengths.float().mean()),
            "mean_layers": layers,
            "layer_ratio": depth / layers,
            "mean_heads": found.work.rows("head") / world.samples,
            "samples_per_s": world.samples / benchmark.stats["median"],
            "phases": found.phases,
        }
    )
    # Not a timing assertion: what was timed must have run what its exits say.
    assert layers == pytest.approx(found.exit_layer.mean() + 1)


@pytest.mark.parametrize("executor", ["full", "shrink", "exact-k", "ladder", "verified"])
def test_executor(benchmark: Any, world: World, executor: str) -> None:
    """All samples known at once."""
    benchmark.group = f"executors, {world.shape}, batch {world.batch_size}"
    _measure(benchmark, world, lambda: world.run(executor))


@pytest.mark.parametrize("window", WINDOWS, ids=lambda size: f"{size or 'all'}")
@pytest.mark.parametrize("executor", ["exact-k", "ladder"])
def test_window(benchmark: Any, world: World, executor: str, window: int) -> None:
    """Sorting needs samples to sort: so many are waited for, then run."""
    benchmark.group = f"windows, {executor}, {world.shape}"
    benchmark.extra_info["window"] = window
    _measure(benchmark, world, lambda: world.run(executor, window))
