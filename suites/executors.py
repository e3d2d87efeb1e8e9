"""Executors against full depth at BERT-base's shape: how much of the layer ratio becomes wall time.

Random weights, random ids of realistic lengths, exits as an exit table predicts them::

    python -m suites.executors --samples 192 --rounds 3 --out executors.json

Rounds alternate the executors (A B C, C B A, ...). Prints and stores, per executor, the median ratio of wall times, the
ratio of executed layers, what part of the latter the former reaches, and the share of prediction and sorting.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from geep.exit_table import ExitTable
from harness.contracts import Execution, Predictions, TokenSet
from harness.encoder.backbone import default_device, shape_of
from harness.encoder.executors import run_assigned, run_full
from harness.encoder.model import Encoder
from harness.encoder.multi_exit import MultiExitModel
from harness.errors import GeepBenchError
from harness.fingerprint import fingerprint
from harness.measure import clock
from harness.measure.clock import Phases
from harness.store import write_json


def random_samples(count: int, vocab: int, rng: np.random.Generator, longest: int = 128) -> TokenSet:
    """Ids after Zipf's law, lengths log-normal around 50 tokens (as AG News has them), cut at ``longest``."""
    lengths = np.clip(np.exp(rng.normal(3.9, 0.45, count)), 8, longest).astype(np.int64)
    ids = [np.minimum(rng.zipf(1.3, size) + 999, vocab - 1).tolist() for size in lengths]
    return TokenSet.from_lists(ids)


def table_for(tokens: TokenSet, answers: Sequence[int], depth: int, rng: np.random.Generator) -> ExitTable:
    """A table whose samples left at random exits, shallow ones more often."""
    weight = np.linspace(2.0, 0.5, len(answers))
    exits = rng.choice(np.array(answers), len(tokens), p=weight / weight.sum())
    table = ExitTable(depth)
    table.insert(tokens, torch.from_numpy(exits))
    table.freeze(min_count=1, smoothing=0)
    return table


def measure(samples: int, rounds: int, batch_size: int, backbone: str, device: str, seed: int = 0) -> dict[str, Any]:
    """All executors on the same samples; see the module's docstring for what is returned."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    shape = shape_of(backbone)
    model = MultiExitModel(Encoder(shape).to(device), 2, range(shape.layers - 2)).eval()
    tokens = random_samples(samples, shape.vocab_size, rng).to(device)
    table = table_for(tokens.to("cpu"), model.answers, shape.layers, rng)
    # Exits vary from sample to sample as they would with a sharp predictor; predicting them is timed all the same.
    exits = torch.from_numpy(
        rng.choice(np.array(model.answers, dtype=np.int16), samples, p=shallow(len(model.answers)))
    ).to(device)

    def full() -> Predictions:
        return run_full(model, tokens, Execution(batch_size))

    def assigned(executor: Any) -> Callable[[], Predictions]:
        def run() -> Predictions:
            phases = Phases(device)
            with phases("predict"):
                table.predict(tokens, 500)
            return run_assigned(model, tokens, exits, Execution(batch_size, executor=executor), phases=phases)

        return run

    runs = {"bert": full, "ladder": assigned("ladder"), "exact-k": assigned("exact-k")}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    found: dict[str, Predictions] = {}
    for number in tqdm(range(-1, rounds), desc="rounds", disable=None):
        names = list(runs) if number % 2 == 0 else list(runs)[::-1]
        for name in names:
            clock.synchronise(device)
            start = clock.now()
            found[name] = runs[name]()
            clock.synchronise(device)
            if number >= 0:  # the first round warms up
                seconds[name].append(clock.now() - start)
    rows = {}
    for name, predictions in found.items():
        layers = predictions.work.rows("layer") / samples
        wall = float(np.median(np.array(seconds["bert"]) / np.array(seconds[name])))
        phases = predictions.phases
        rows[name] = {
            "seconds": float(np.median(seconds[name])),
            "mean_layers": layers,
            "wall_ratio": wall,
            "layer_ratio": shape.layers / layers,
            "reached": wall * layers / shape.layers,
            "predict_and_sort_share": (phases.get("predict", 0) + phases["schedule"]) / seconds[name][-1],
        }
    return {
        "backbone": backbone,
        "samples": samples,
        "mean_tokens": float(tokens.lengths.float().mean()),
        "batch_size": batch_size,
        "rounds": rounds,
        "device": device,
        "executors": rows,
        "fingerprint": fingerprint(),
    }


def shallow(count: int) -> np.ndarray:
    """Probabilities of ``count`` exits, shallow ones more likely: mean about a third of the way."""
    weight = np.linspace(2.0, 0.2, count)
    return weight / weight.sum()


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m suites.executors", description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="bert-base-uncased", help="shape to use (known names work offline)")
    parser.add_argument("--samples", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default_device())
    parser.add_argument("--out", type=Path, help="also write JSON here")
    args = parser.parse_args(arguments)
    try:
        facts = measure(args.samples, args.rounds, args.batch_size, args.backbone, args.device)
        if args.out:
            write_json(args.out, facts)
    except GeepBenchError as error:
        print(f"executors: {error}", file=sys.stderr)
        return error.exit_code
    for name, row in facts["executors"].items():
        print(
            f"{name:8} {row['seconds']:8.2f} s  {row['mean_layers']:5.2f} layers  wall {row['wall_ratio']:5.2f}x  "
            f"layers {row['layer_ratio']:5.2f}x  reached {row['reached']:6.1%}  "
            f"prediction and sorting {row['predict_and_sort_share']:.3%}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
