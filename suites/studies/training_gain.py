"""How well are models trained? Test accuracy of the last layer, and the area under accuracy over layers, over datasets and seeds.

::

    python -m suites.studies.training_gain --profile twelve-layers --data DATA --backbone en=DIR,zh=DIR --tuned search.json

The last layer is compared with that of the reference (``bert``), the area with that of ``--rival`` (``fastbert``). The area is the
mean accuracy over budgets of the sequential entropy exit, the same rule for all methods, so that it compares weights, not rules
(``harness/toolkit/dev_scores.py``). Intervals of single values cover seeds. Pooled differences weigh every set the same and cover
test rows, with the seeds of a row kept together; beside each stands the difference that could have been found with 80 % power.
Nothing is timed. Cached fits are used, and others are made; a stopped study resumes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from harness.cli.argument_types import OneLineParser
from harness.contracts import Execution
from harness.core.errors import ConfigError
from harness.encoder.multi_exit import MultiExitModel
from harness.execution.executors import exit_logits
from harness.measure.detectable import detectable_mean
from harness.measure.paired_tests import stratified_difference
from harness.measure.statistics import spread
from harness.running.session import Session
from harness.toolkit.dev_scores import area_by_sample
from suites.studies.shared.study import DatasetStudy
from suites.studies.shared.study_page import Page

EVALUATION = Execution(batch_size=64)
Row = Mapping[str, Any]


def quality_on_test(session: Session, method: str) -> dict[str, Any]:
    """Return what a fitted method's weights do on test, by layer and by sample, and what its training took.

    Raises:
        ConfigError: the method has no model with exit heads.
    """
    fitted: Any = session.fitted(method)
    model = getattr(fitted, "model", None)
    if not isinstance(model, MultiExitModel):
        raise ConfigError(f"method '{method}' is no model of this project's encoder: choose others with --methods")
    test, report = session.prepared.test, getattr(fitted, "training", None)
    logits = exit_logits(model, test.tokens, EVALUATION)
    right = logits.argmax(-1) == test.labels
    return {
        "layers": [answer + 1 for answer in model.answers],
        "accuracy": [round(float(each), 6) for each in right.double().mean(1)],
        "last": right[-1].int().tolist(),
        "area": area_by_sample(logits, test.labels, model.answers).round(5).tolist(),
        "early": len(model.answers) > 1,
        "steps": None if report is None else report.steps,
        "best_epoch": None if report is None else report.best_epoch,
        "epochs": None if report is None else report.epochs,
    }


class TrainingGain(DatasetStudy):
    """Accuracy of every layer, and what it is worth beside the reference and a rival."""

    name = "training_gain"
    options = ("rival",)

    @classmethod
    def add_options(cls, parser: OneLineParser) -> None:
        parser.add_argument("--rival", default="fastbert", help="the method whose area others are compared with")

    def measure(self, dataset: str, seed: int) -> list[dict[str, Any]]:
        session = Session(self.settings, dataset, seed)
        rows = []
        for method in self.settings.profile.methods:
            self.describe(f"{dataset} seed {seed} {method}")
            rows.append({**self.facts(dataset, seed), "method": method, **quality_on_test(session, method)})
        return rows

    def results(self) -> dict[str, Any]:
        """Return means over seeds and pooled differences, without values of single samples."""
        short = [{key: value for key, value in row.items() if key not in ("last", "area")} for row in self.rows]
        means = [{**row, "area": float(np.mean(full["area"]))} for row, full in zip(short, self.rows, strict=True)]
        return {"rows": means, "pooled": self.pooled()}

    def _of(self, method: str, dataset: str) -> list[Row]:
        return [row for row in self.rows if (row["method"], row["dataset"]) == (method, dataset)]

    def _difference(self, method: str, other: str, what: str, datasets: Sequence[str]) -> dict[str, float] | None:
        """Return the difference of two methods in ``"last"`` or ``"area"``, pooled over datasets and seeds."""
        if method == other or any(not self._of(name, one) for name in (method, other) for one in datasets):
            return None
        strata = []
        for dataset in datasets:
            mine, theirs = (np.array([row[what] for row in self._of(name, dataset)]) for name in (method, other))
            strata.append((mine - theirs).mean(0))
        found = stratified_difference(strata)
        return {**found._asdict(), "detectable": detectable_mean(found.se)}

    def pooled(self) -> list[dict[str, Any]]:
        """Return the pooled differences of every method."""
        profile = self.settings.profile
        found = []
        for method in profile.methods:
            early = all(row["early"] for name in profile.datasets for row in self._of(method, name))
            last = self._difference(method, profile.reference, "last", profile.datasets)
            area = self._difference(method, self.args.rival, "area", profile.datasets) if early else None
            found.append({"method": method, "last_layer": last, "area": area})
        return found

    def _line(self, method: str, dataset: str) -> list[str]:
        group = self._of(method, dataset)
        last = [100 * float(np.mean(row["last"])) for row in group]
        gap = self._difference(method, self.settings.profile.reference, "last", [dataset])
        line = [method, trained(group), shown(last), difference(gap)]
        if not group[0]["early"]:
            return [*line, "—", "—", "—"]
        first = [100 * row["accuracy"][0] for row in group]
        area = [100 * float(np.mean(row["area"])) for row in group]
        ahead = self._difference(method, self.args.rival, "area", [dataset])
        return [*line, shown(first), shown(area), difference(ahead)]

    def page(self) -> Page:
        profile, rival = self.settings.profile, self.args.rival
        page = Page("What training is worth", self.rows, self.settings.dtype)
        page.text(
            f"{len(profile.seeds)} seed(s); +- is half the 95 % interval of the mean over seeds (Student's t).",
            "Area: mean accuracy over budgets from the first to the last layer, sequential entropy exit for all methods.",
        )
        last, area = f"less {profile.reference}", f"less {rival}"
        heads = ("method", "steps; epoch kept", "last layer %", last, "first layer %", "area %", area)
        for dataset in profile.datasets:
            rows = len(self._of(profile.methods[0], dataset)[0]["last"])
            page.heading(f"{dataset}, {rows} test rows")
            page.table(heads, [self._line(method, dataset) for method in profile.methods])
        page.heading("Pooled over datasets and seeds")
        lines = [
            [one["method"], *(difference(one[what], pooled=True) for what in ("last_layer", "area"))]
            for one in self.pooled()
        ]
        page.table(("method", f"last layer less {profile.reference}, points", f"area less {rival}, points"), lines)
        return page


def trained(group: Sequence[Row]) -> str:
    """Return steps and kept epochs of the seeds: ``512; 7 8* 6 of 8``. A star marks the last epoch allowed."""
    if group[0]["steps"] is None:
        return "—"
    steps = "/".join(str(steps) for steps in dict.fromkeys(row["steps"] for row in group))
    if any(row["best_epoch"] is None for row in group):
        return f"{steps}; last"
    kept = " ".join(f"{row['best_epoch']}{'*' if row['best_epoch'] == row['epochs'] else ''}" for row in group)
    return f"{steps}; {kept} of {group[0]['epochs']}"


def shown(values: Sequence[float]) -> str:
    """Return the mean of values in percent, with half the interval over seeds."""
    if not values:
        return "—"
    found = spread(values)
    return f"{found.mean:.1f}" + (f" +- {found.high - found.mean:.1f}" if found.high is not None else "")


def difference(found: Mapping[str, float] | None, *, pooled: bool = False) -> str:
    """Return a difference in points with its 95 % interval; pooled ones also say what could have been found."""
    if found is None:
        return "—"
    mean, low, high, power = (100 * found[key] for key in ("mean", "low", "high", "detectable"))
    text = f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"
    return f"{text}; 80 % power for {power:.1f}" if pooled else text


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return TrainingGain.main(__doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
