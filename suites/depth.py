"""Does depth matter on a profile's data? Accuracy of every layer's head on test, and where easy and hard samples leave.

::

    python -m suites.depth --profile quick

Heads are FastBERT's: on a frozen, fine-tuned backbone, so that they show what each layer holds. Takes the fits that
``geep-bench run`` has cached, or makes them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from harness import profile
from harness.bench import Bench, Settings, check
from harness.encoder.executors import exit_logits
from harness.encoder.exits import first_exit
from harness.errors import GeepBenchError
from harness.fingerprint import fingerprint
from harness.store import write_json


def depth_of(bench: Bench, method: str, speed: float) -> dict[str, Any]:
    """Accuracy per answering layer (index order), and mean exit layer (from 1) and accuracy by true difficulty."""
    fitted: Any = bench.fitted(method)
    test = bench.prepared.test
    logits = exit_logits(fitted.model, test.tokens, replace(bench.settings.execution, batch_size=64))
    correct = (logits.argmax(-1) == test.labels).numpy()
    exits = np.array(fitted.model.answers)[first_exit(logits, speed).numpy()] + 1
    difficulty = bench.prepared.difficulty
    return {
        "dataset": bench.dataset,
        "source": bench.settings.source,
        "method": method,
        "layers": [answer + 1 for answer in fitted.model.answers],
        "accuracy": [float(value) for value in correct.mean(1)],
        "gain_points": 100 * float(correct[-1].mean() - correct[0].mean()),
        "speed": speed,
        "mean_exit_by_difficulty": {
            str(degree): float(exits[difficulty == degree].mean()) for degree in np.unique(difficulty) if degree >= 0
        },
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m suites.depth", description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--method", default="fastbert", help="a method with a head per layer")
    parser.add_argument("--speed", type=float, default=0.5, help="entropy threshold for the exits by difficulty")
    parser.add_argument("--out", type=Path, help="also write JSON here")
    args = parser.parse_args(arguments)
    try:
        settings = Settings(profile.load(args.profile), Path("."))
        check(settings)
        rows = [
            depth_of(Bench(settings, name, settings.profile.seeds[0]), args.method, args.speed)
            for name in settings.profile.datasets
        ]
        if args.out:
            write_json(args.out, {"rows": rows, "fingerprint": fingerprint()})
    except GeepBenchError as error:
        print(f"depth: {error}", file=sys.stderr)
        return error.exit_code
    for row in rows:
        by_layer = " ".join(f"{100 * value:5.1f}" for value in row["accuracy"])
        exits = ", ".join(f"{degree}: {value:.2f}" for degree, value in row["mean_exit_by_difficulty"].items())
        synthetic = " (synthetic)" if row["source"] == "embedded" else ""
        print(
            f"{row['dataset'] + synthetic:28} layers {by_layer}   gain {row['gain_points']:+.1f}   exit by difficulty {exits}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
