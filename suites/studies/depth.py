"""Does depth matter on a dataset? Measure the test accuracy of every layer's head, and where easy and hard samples exit.

::

    python -m suites.studies.depth --profile quick
    python -m suites.studies.depth --method geep --profile mini --data DATA --datasets ag_news --backbone en=DIR

The heads are FastBERT's, trained on a frozen, fine-tuned backbone, and thus show what each layer knows; or those of ``--method``
(``geep`` trains heads and backbone together). Cached fits are used; others are made.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from harness.core.command_line import exit_codes
from harness.core.environment import environment_facts
from harness.core.errors import ConfigError
from harness.core.files import write_json
from harness.encoder.multi_exit import MultiExitModel
from harness.execution.executors import exit_logits
from harness.execution.exit_rules import first_exit
from harness.running.session import Session
from suites.studies.shared.study import settings_from, study_parser


def depth_of(session: Session, method: str, speed: float) -> dict[str, Any]:
    """Return the accuracy of every layer with a head, in rising order, and the mean exit layer (from 1) by true difficulty."""
    fitted: Any = session.fit(method)
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
    """Run the command and return its exit code."""
    parser = study_parser("depth", __doc__)
    parser.add_argument("--method", default="fastbert", help="a method with heads at several depths")
    parser.add_argument("--speed", type=float, default=0.5, help="entropy threshold for the exits by difficulty")
    parser.add_argument("--out", type=Path, metavar="JSON", help="also write JSON here")
    args = parser.parse_args(arguments)
    settings = settings_from(args)
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
