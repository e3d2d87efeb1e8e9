"""Measure the time and size of a report on a run of random numbers.

Run it as ``python -m reports.scale``. The run has the shape of a full comparison: by default twelve datasets, eleven methods at up
to six operating points and three seeds. Its numbers are random and without meaning, so all of it is marked synthetic.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import numpy as np
import pandas as pd

from harness.core.command_line import exit_codes
from harness.results.rows.sample_columns import SAMPLE_COLUMNS
from harness.results.run_folder import RunFolder
from harness.results.schema import Result
from reports.build import write_report

DEPTH = 12
_FULL = 2.2e10  # FLOPs of full depth
_FACTORS = (
    *("layers", "length", "attention and padding", "heads", "kernels"),
    *("prediction", "sorting", "answers", "rest"),
)
_SPEEDS = (0.1, 0.5)
_PHASES = {"predict": 0.001, "schedule": 0.002, "layers": 0.99}
_SETTING: dict[str, object] = {"source": "embedded", "backbone": "made-up", "protocol": "modern", "order": "length"}
_SETTING |= {"executor": "made-up", "batch_size": 32, "device": "cpu", "dtype": "float32"}


def points_of(method: str) -> list[str]:
    """Return the operating points of a method, named as the methods of this project name theirs."""
    if method in ("bert", "distilbert", "tinybert"):
        return ["full"]
    if method == "oracle":
        return ["agree"]
    variants = {"geep": ("", "/shared"), "geep-verified": ("/once", "/steps")}.get(method, ("",))
    return [f"speed={speed:g}{variant}" for speed in _SPEEDS for variant in variants]


METHODS = (
    *("bert", "distilbert", "tinybert", "fastbert", "geep", "geep-verified"),
    *("control-constant", "control-random", "control-length", "control-sequential", "oracle"),
)


def make_run(path: Path, *, datasets: int, seeds: int, samples: int) -> int:
    """Write a run of random numbers; return the number of its cells.

    Args:
        path: the run folder.
        datasets: number of datasets, half of them Chinese.
        seeds: seeds per cell.
        samples: test rows per dataset.

    Raises:
        ResultError: the folder cannot be written.
    """
    run = RunFolder.create(path)
    rng = np.random.default_rng(0)
    cells = 0
    for number in range(datasets):
        for seed in range(seeds):
            left = rng.integers(1, DEPTH + 1, samples)
            for method in METHODS:
                for point in points_of(method):
                    run.save(*_cell(rng, f"dataset_{number}", "zh" if number % 2 else "en", method, point, seed, left))
                    cells += 1
    return cells


def _cell(
    rng: np.random.Generator, dataset: str, language: str, method: str, point: str, seed: int, left: np.ndarray
) -> tuple[Result, pd.DataFrame]:
    """Return one result and its rows; exits scatter around ``left``, the exits of the sequential control."""
    n = len(left)
    kind = "bound" if method == "oracle" else "control" if method.startswith("control") else "method"
    full = point == "full"
    exits = np.full(n, DEPTH) if full else np.clip(left + rng.integers(-3, 3, n), 1, DEPTH)
    correct = rng.random(n) < rng.uniform(0.8, 0.95)
    share, mean = float(correct.mean()), float(exits.mean())
    ratios = np.exp(rng.normal(0, 0.1, len(_FACTORS))).tolist()
    speedup = float(np.prod(ratios))
    passes = np.exp(rng.normal(0, 0.03, 9)).tolist()
    predicts = not full and method not in ("fastbert", "control-sequential")
    frame = pd.DataFrame(
        {
            "index": np.arange(n, dtype=np.int64),
            "length": (5 + np.arange(n) % 123).astype(np.int32),
            "label": np.zeros(n, dtype=np.int64),
            "prediction": np.where(correct, 0, 1).astype(np.int64),
            "correct": correct,
            "confidence": rng.random(n).astype(np.float32),
            "exit_layer": exits.astype(np.int16),
            "predicted_exit": (exits if predicts else np.zeros(n)).astype(np.int16),
            "difficulty": (np.arange(n) * 3 // n).astype(np.int8),
        }
    )
    flops = _FULL * mean / DEPTH
    seconds = n / 100 / speedup
    made_up: dict[str, object] = {
        "schema": 1,
        "cell": {**_SETTING, "method": method, "dataset": dataset, "seed": seed, "point": point},
        "kind": kind,
        "synthetic": True,
        "language": language,
        "params": {},
        "quality": {"accuracy": share, "accuracy_low": share - 0.01, "accuracy_high": min(1.0, share + 0.01)}
        | {"macro_f1": share, "n": n},
        "cost": {"flops_linear": flops, "flops_full": 1.03 * flops, "params": 110_000_000, "mean_layers": mean}
        | {"mean_heads": 1.0, "depth": DEPTH, "valid_token_ratio": 0.98},
        "speed": {"seconds": seconds, "seconds_p10": 0.95 * seconds, "seconds_p90": 1.05 * seconds, "rounds": 9}
        | {"speedup": speedup, "speedup_p10": 0.95 * speedup, "speedup_p90": 1.05 * speedup, "reference": "bert"}
        | {"samples_per_s": 100 * speedup, "tokens_per_s": 4000 * speedup, "phases": _PHASES}
        | {"round_seconds": passes, "reference_seconds": passes},
        "training": {"seconds": 100.0, "steps": 1000, "layer_passes": 100_000, "passes_ratio": 1.5, "flops": 3e15}
        | {"dev_accuracy": share},
        "checks": {"rounds_agree": 1.0, "batches_agree": 1.0, "state_unchanged": True},
        "exit_histogram": np.bincount(exits, minlength=DEPTH + 1)[1:].tolist(),
        "latency": [{"batch_size": b, "n": 200, "p50": b * 0.01, "p90": b * 0.011, "p99": b * 0.013} for b in (1, 32)],
        "speedup_factors": {
            "factors": [{"name": f, "ratio": r, "what": "made up"} for f, r in zip(_FACTORS, ratios, strict=True)],
            "product": speedup,
            "measured": speedup,
        },
        "resources": {"disk_bytes": 440_000_000, "host_peak_bytes": 2_000_000_000},
        "overlaps": {"train_test": 0, "dev_test": 0, "train_dev": 1, "within_test": 2},
        "unseen_tokens": 0.02 if method.startswith("geep") else None,
        "binding": {"test_rows": dataset, "train_rows": dataset, "backbone": "made-up", "max_length": 128}
        | {"training": {}, "own": [], "fits": {"bert": "made-up"}, "versions": {"bert": "1.1"}},
        "fingerprint": {"cpu": "made up", "commit": "made-up"},
    }
    return Result.model_validate(made_up), frame[list(SAMPLE_COLUMNS)]


@exit_codes("scale")
def main(arguments: Sequence[str] | None = None) -> int:
    """Make a run, report it, print seconds and bytes; return 2 with one line on bad input."""
    parser = argparse.ArgumentParser(prog="python -m reports.scale", description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--datasets", type=int, default=12, help="number of datasets (default 12)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds per cell (default 3)")
    parser.add_argument("--samples", type=int, default=2000, help="test rows per dataset (default 2000)")
    parser.add_argument("--out", type=Path, help="keep the run here (default: a temporary folder)")
    options = parser.parse_args(arguments)
    if min(options.datasets, options.seeds, options.samples) < 1:
        parser.error("--datasets, --seeds and --samples must be 1 or more")
    with tempfile.TemporaryDirectory() as folder:
        path = options.out or Path(folder) / "run"
        cells = make_run(path, datasets=options.datasets, seeds=options.seeds, samples=options.samples)
        start = perf_counter()
        page = write_report(path)
        seconds = perf_counter() - start
        files = [file for file in page.parent.rglob("*") if file.is_file()]
        print(
            f"{cells} cells of {options.samples} samples: report in {seconds:.1f} s; page {page.stat().st_size / 1e6:.2f} MB; "
            f"{len(files)} files, {sum(file.stat().st_size for file in files) / 1e6:.1f} MB"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
