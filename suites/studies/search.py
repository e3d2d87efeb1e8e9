"""Find the training settings of methods: as many trials for each, scored on dev. The test split is never used.

::

    python -m suites.studies.search --profile twelve-layers --data DATA --backbone en=DIR,zh=DIR --methods bert,fastbert,geep

The profile's table ``[search]`` names the datasets and the trials. Every method gets the same number of them: the fits of all
datasets together are at most 12 per method, with the profile's first seed. A variant has the trials of the method that it is
like, unless the table names it. The winner has the highest mean dev score over the datasets, by one criterion per kind of
method: accuracy at full depth, or the area under accuracy over layers for early exits (``harness/toolkit/dev_scores.py``).
Methods that others learn from come first, and teach with their winning settings.

Finished trials are stored in ``--out``; the same command resumes. ``geep-bench run --tuned FILE`` uses the winners on all datasets
and stores the search with the results.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from harness.cli.argument_types import path
from harness.contracts import Execution
from harness.core.command_line import exit_codes
from harness.core.errors import ConfigError, SettingsError, format_error
from harness.results.search_record import SUITE, SearchRecord, Trial, winner
from harness.running.profile import Profile
from harness.running.run_settings import Settings
from harness.running.session import Session
from harness.running.variants import lineage
from harness.toolkit.training import TrainingReport
from suites.studies.shared.resume_file import ResumeFile
from suites.studies.shared.study import asked_for, settings_from, study_parser

EVALUATION = Execution(batch_size=64)


def with_settings(settings: Settings, method: str, changes: dict[str, Any]) -> Settings:
    """Return the settings with ``changes`` to one method; its teachers keep theirs."""
    overrides = [(method, key, value) for key, value in changes.items()]
    return replace(settings, profile=settings.profile.with_settings(overrides))


def trials_of(profile: Profile, method: str) -> list[dict[str, Any]]:
    """Return the settings to try for a method: its own, else those of the nearest method that it is like, else the common ones."""
    plan = profile.search
    assert plan is not None
    return next((plan.own[name] for name in lineage(profile.method, method) if name in plan.own), plan.trials)


def session_of(settings: Settings, dataset: str, method: str, changes: dict[str, Any]) -> Session:
    """Return a session with a dataset, in which one method has other settings."""
    return Session(with_settings(settings, method, changes), dataset, settings.profile.seeds[0], quiet=True)


def try_once(session: Session, method: str, changes: dict[str, Any]) -> Trial | None:
    """Fit a method and return its trial; ``None`` if it trains no model of its own."""
    dev = session.prepared.task.dev
    tried = partial(
        Trial, dataset=session.dataset, seed=session.seed, method=method, settings=changes, dev_rows=len(dev)
    )
    needs = session.settings.profile.method_of(method).needs
    try:
        fitted: Any = session.fitted(method)
    except ConfigError as error:
        return tried(failed=format_error(error))
    report: TrainingReport | None = getattr(fitted, "training", None)
    borrowed = [getattr(session.fitted(need), "training", None) for need in needs]
    if report is None or report in borrowed:
        return None
    score = max(report.dev_scores, default=None)
    if score is None:  # a method without a score of its own
        gold = dev.labels.numpy()
        points = [replace(point, execution=EVALUATION) for point in fitted.operating_points(dev)]
        score = float(np.mean([(fitted.predict(dev.tokens, at=one).logits.argmax(1) == gold).mean() for one in points]))
    chance = float(np.bincount(dev.labels.numpy()).max() / len(dev))
    return tried(
        score=score,
        exits=list(report.exit_scores),
        best_epoch=report.best_epoch,
        epochs=report.epochs,
        steps=report.steps,
        seconds=report.seconds,
        failed="" if score > chance else f"no better than the most frequent class of dev ({chance:.1%})",
    )


def line(trial: Trial) -> str:
    """Return the line that shows one trial."""
    chosen = " ".join(f"{name}={value}" for name, value in trial.settings.items())
    layers = " ".join(f"{100 * value:.1f}" for value in trial.exits)
    head = f"{trial.dataset:16} {trial.method:14} {chosen:44} "
    if trial.score is None:
        return head + trial.failed
    kept = "last" if trial.best_epoch is None else str(trial.best_epoch)
    text = f"dev {100 * trial.score:.2f}   layers {layers}   epoch {kept} of {trial.epochs}   {trial.seconds:.0f} s"
    return head + text + (f"   NOT CONVERGED: {trial.failed}" if trial.failed else "")


def search(settings: Settings, methods: Sequence[str], stored: ResumeFile) -> SearchRecord:
    """Try every setting of every method on every dataset of the profile's search; keep only the winners' fits in the cache.

    Raises:
        ConfigError: no trial of a method converged, or no method trains a model of its own.
    """
    profile = settings.profile
    plan = profile.search
    assert plan is not None
    trials: list[Trial] = []
    best: dict[str, dict[str, Any]] = {}
    for method in [name for name in profile.in_order(methods) if name in methods]:
        own: list[Trial] = []
        tries = [] if profile.fit_of(method) != method else trials_of(profile, method)
        for dataset, (number, changes) in itertools.product(plan.datasets, enumerate(tries)):
            part = f"{method}/{dataset}/{number}"
            if part not in stored:
                found = try_once(session_of(settings, dataset, method, changes), method, changes)
                if found is None:
                    break
                stored.store(part, found.model_dump(mode="json"))
            own.append(Trial.model_validate(stored[part]))
            print(line(own[-1]), flush=True)
        if not own:
            print(f"{method} trains no model of its own: left out", flush=True)
            continue
        chosen = winner(own)
        if chosen is None:
            reasons = "; ".join(dict.fromkeys(trial.failed for trial in own if trial.failed))
            raise ConfigError(
                f"no trial of '{method}' converged on all datasets ({reasons}): try lower rates or more epochs"
            )
        for dataset, changes in itertools.product(plan.datasets, tries):
            if changes != chosen:
                session_of(settings, dataset, method, changes).forget(method)
        trials += own
        best[method] = chosen
        settings = with_settings(settings, method, chosen)
        print(f"best for {method}: " + ", ".join(f"{name} = {value}" for name, value in chosen.items()), flush=True)
    if not best:
        raise ConfigError(
            f"{', '.join(methods)}: none trains a model of its own: choose methods that do with --methods"
        )
    return SearchRecord(datasets=list(plan.datasets), trials=trials, best=best)


@exit_codes("search")
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = study_parser("search", __doc__)
    parser.add_argument(
        "--out", type=path, default=Path("search.json"), metavar="FILE", help="all trials; default search.json"
    )
    args = parser.parse_args(arguments)
    settings = settings_from(args)
    profile = settings.profile
    if profile.search is None:
        raise ConfigError(f"profile '{profile.name}' has no table [search]: add one with datasets and trials")
    if args.datasets and args.datasets != profile.search.datasets:
        raise ConfigError(
            f"the table [search] of profile '{profile.name}' names the datasets of a search: change them there"
        )
    settings = settings_from(args, datasets=list(profile.search.datasets))
    profile = settings.profile
    known = profile.in_order(profile.methods)
    problems = [
        problem
        for method in profile.methods
        for changes in trials_of(profile, method)
        for problem in with_settings(settings, method, changes).profile.problems(known)
    ]
    if problems:
        raise SettingsError(*dict.fromkeys(problems))
    stored = ResumeFile(args.out, SUITE, asked_for(settings), fresh=args.fresh)
    record = search(settings, profile.methods, stored)
    stored.finish(**record.model_dump(mode="json"))
    print(f"written: {args.out}; use it with: geep-bench run --tuned {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
