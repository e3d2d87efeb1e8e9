"""Does depth matter on a profile's data? Accuracy of every layer's head on test, and where easy and hard samples leave.

::

    python -m suites.studies.depth --profile quick
    python -m suites.studies.depth --method geep --profile mini --data DATA --datasets ag_news --backbone en=DIR

Heads are FastBERT's: on a frozen, fine-tuned backbone, so that they show what each layer holds; or those of ``--method``
(``geep``: trained together with the backbone, all at once). Takes the other options of ``geep-bench run``, and the fits that
it has cached, or makes them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from harness.cli.main import parser, settings_of
from harness.core.command_line import exit_codes
from harness.core.environment import environment_facts
from harness.core.errors import ConfigError
from harness.core.files import write_json
from harness.encoder.multi_exit import MultiExitModel
from harness.execution.executors import exit_logits
from harness.execution.exit_rules import first_exit
from harness.running.session import Session
from harness.running.settings import validate_settings


def depth_of(session: Session, method: str, speed: float) -> dict[str, Any]:
    """Accuracy per answering layer (index order), and mean exit layer (from 1) and accuracy by true difficulty."""
    fitted: Any = session.fitted(method)
    if not isinstance(getattr(fitted, "model", None), MultiExitModel) or not fitted.model.exits:
        raise ConfigError(f"--method {method} has no heads at several depths: choose fastbert or geep")
    test = session.prepared.test
    logits = exit_logits(fitted.model, test.tokens, replace(session.settings.execution, batch_size=64))
    correct = (logits.argmax(-1) == test.labels).numpy()
    exits = np.array(fitted.model.answers)[first_exit(logits, speed).numpy()] + 1
    difficulty = session.prepared.difficulty
    return {
        "dataset": session.dataset,
        "source": session.settings.source,
        "method": method,
        "backbone": Path(session.backbone_name).name,
        "train_rows": len(session.prepared.task.train),
        "test_rows": len(test),
        "layers": [answer + 1 for answer in fitted.model.answers],
        "accuracy": [float(value) for value in correct.mean(1)],
        "gain_points": 100 * float(correct[-1].mean() - correct[0].mean()),
        "speed": speed,
        "mean_exit_by_difficulty": {
            str(degree): float(exits[difficulty == degree].mean()) for degree in np.unique(difficulty) if degree >= 0
        },
    }


@exit_codes("depth")
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    own = argparse.ArgumentParser(
        prog="python -m suites.studies.depth",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    own.add_argument("--method", default="fastbert", help="a method with heads at several depths")
    own.add_argument("--speed", type=float, default=0.5, help="entropy threshold for the exits by difficulty")
    own.add_argument("--out", type=Path, help="also write JSON here")
    args, rest = own.parse_known_args(arguments)
    settings = settings_of(parser().parse_args(["run", *rest]))
    validate_settings(settings)
    rows = [
        depth_of(Session(settings, name, settings.profile.seeds[0]), args.method, args.speed)
        for name in settings.profile.datasets
    ]
    if args.out:
        write_json(args.out, {"rows": rows, "fingerprint": environment_facts()})
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
