"""Find the training settings that suit a method: fit every candidate and score it on dev. The test split is never used.

::

    python -m suites.studies.tuning --try learning_rate=5e-5,1e-4,2e-4 --try epochs=3,5 --profile mini --methods bert,tinybert \\
        --data DATA --backbone en=BACKBONE --datasets ag_news --max-train 1000

Every combination is tried on every method of ``--methods``. A comparison is fair if all methods had the same candidates. Fits are
cached, so that a stopped search resumes. The score is the mean accuracy on dev over the operating points. If points are defined
by a speed, whose exits change with training, it is the mean over all layers with a head instead.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.contracts import Execution
from harness.core.command_line import exit_codes
from harness.core.environment import environment_facts
from harness.core.errors import ConfigError
from harness.core.files import write_json
from harness.running.run_settings import Settings
from harness.running.session import Session
from harness.toolkit.fitted import FittedModel
from harness.toolkit.training import dev_accuracies
from suites.studies.shared.study import settings_from, study_parser

TUNING = Execution(batch_size=64)


def candidate(text: str) -> tuple[str, list[Any]]:
    """Read ``"epochs=3,5"`` as the name of a setting and its values."""
    name, _, values = text.partition("=")
    try:
        found = [json.loads(value) for value in values.split(",")]
    except ValueError:
        found = []
    if not name or not found:
        raise argparse.ArgumentTypeError(f"'{text}' is not SETTING=value,value with numbers, e.g. epochs=3,5")
    return name, found


def combinations(candidates: Sequence[tuple[str, list[Any]]]) -> Iterator[dict[str, Any]]:
    """Yield every way to choose one value per setting."""
    names = [name for name, _ in candidates]
    for values in itertools.product(*(values for _, values in candidates)):
        yield dict(zip(names, values, strict=True))


def with_settings(settings: Settings, method: str, changes: Mapping[str, Any]) -> Settings:
    """Return the settings with ``changes`` to one method; its teachers keep theirs."""
    profile = settings.profile
    own = {**profile.method.get(method, {}), **changes}
    return replace(settings, profile=profile.model_copy(update={"method": {**profile.method, method: own}}))


def score(settings: Settings, dataset: str, seed: int, method: str) -> dict[str, Any]:
    """Return the dev accuracy of every point, or of every layer with a head, and facts about the fit."""
    session = Session(settings, dataset, seed)
    fitted: Any = session.fit(method)
    borrowed = [getattr(session.fit(need), "training", None) for need in settings.profile.method_of(method).needs]
    if getattr(fitted, "training", None) in (None, *borrowed):
        raise ConfigError(f"method '{method}' trains no model of its own: choose methods that do with --methods")
    dev = session.prepared.task.dev
    points = fitted.operating_points(dev)
    if all("speed" in point.params for point in points) and isinstance(fitted, FittedModel):
        accuracy = dev_accuracies(fitted.model, dev)
    else:
        gold = dev.labels.numpy()
        said = [fitted.predict(dev.tokens, at=replace(point, execution=TUNING)).logits.argmax(1) for point in points]
        accuracy = [float((one == gold).mean()) for one in said]
    return {
        "dev_rows": len(session.prepared.task.dev),
        "accuracy": accuracy,
        "score": sum(accuracy) / len(accuracy),
        "best_epoch": fitted.training.best_epoch,
        "fit_seconds": fitted.training.seconds,
    }


def line(row: Mapping[str, Any]) -> str:
    """Return the line that shows one candidate."""
    chosen = " ".join(f"{name}={value}" for name, value in row["settings"].items())
    layers = " ".join(f"{100 * value:.1f}" for value in row["accuracy"])
    return (
        f"{row['dataset']:16} {row['method']:12} {chosen:40} dev {100 * row['score']:.1f}   each {layers}   "
        f"epoch {row['best_epoch']}   {row['fit_seconds']:.0f} s"
    )


def best(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return by method the settings with the highest mean score over datasets and seeds; the first of equals."""
    sums: dict[str, dict[str, float]] = {}
    for row in rows:
        scores = sums.setdefault(row["method"], {})
        key = json.dumps(row["settings"])
        scores[key] = scores.get(key, 0.0) + row["score"]
    return {method: json.loads(max(scores, key=lambda key: scores[key])) for method, scores in sums.items()}


@exit_codes("tuning")
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = study_parser("tuning", __doc__)
    parser.add_argument(
        "--try",
        dest="candidates",
        action="append",
        required=True,
        type=candidate,
        metavar="KEY=A,B",
        help="values to try",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all scores here")
    args = parser.parse_args(arguments)
    settings = settings_from(args)
    rows = []
    profile = settings.profile
    for dataset, seed, method in itertools.product(profile.datasets, profile.seeds, profile.methods):
        for changes in combinations(args.candidates):
            found = score(with_settings(settings, method, changes), dataset, seed, method)
            rows.append({"dataset": dataset, "seed": seed, "method": method, "settings": changes, **found})
            print(line(rows[-1]), flush=True)
    chosen = best(rows)
    if args.json:
        write_json(args.json, {"rows": rows, "best": chosen, "fingerprint": environment_facts()})
    for method, changes in chosen.items():
        print(f"best for {method}: " + ", ".join(f"{name} = {value}" for name, value in changes.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
