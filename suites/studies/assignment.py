"""Which assignment rule uses the signal of the exit table? Every rule on the same trained weights, over datasets and seeds.

::

    python -m suites.studies.assignment --profile twelve-layers --data DATA --backbone en=DIR,zh=DIR --methods geep

For every method of the profile with a setting ``rule`` (GEEP and its variants, e.g. with other ``table_rows`` or ``folds``), the
study fills the tables and chooses all points on dev, once per rule. It prints, per rule and set:

* agreement with full depth less that of random assignments of the same exits, in standard deviations over these (exact);
* accuracy less that of the hull of constant depths at equal mean layers; the hull's depths are chosen on dev.

Pooled differences at ``--point`` weigh every set the same and cover test rows, with the seeds of a row kept together; beside each
stands the difference that could have been found with 80 % power.

**The rule that dev prefers** has the highest accuracy less the hull's, averaged over budgets, seeds and the sets of the profile's
``[search]`` (all sets without one). Points are chosen on one half of dev and scored on the other, because rules have different
numbers of candidates. Test rows take no part in it.

Nothing is timed, and nothing is trained whose weights are in the cache; a stopped study resumes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from harness.cli.argument_types import OneLineParser, comma_separated
from harness.contracts import Execution, LearnsInStages
from harness.core.errors import ConfigError
from harness.core.tokens import Split, Task
from harness.encoder.multi_exit import MultiExitModel
from harness.execution.executors import exit_logits
from harness.measure.detectable import detectable_mean
from harness.measure.expected_exits import (
    expected_at_random,
    expected_at_two_depths,
    share_of_deeper,
    spread_at_random,
)
from harness.measure.paired_tests import stratified_difference
from harness.running.run_settings import Settings
from harness.running.session import Session
from suites.studies.shared.study import DatasetStudy
from suites.studies.shared.study_page import Page

EVALUATION = Execution(batch_size=64)
RULES = ("quantile", "cuts", "expected")
MEASURES = ("accuracy", "agreement")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Heads:
    """What every head of a model says about some rows.

    Attributes:
        right, agrees: bool [N, L], against the labels and the last layer; layers without a head have no entry set.
        answers: layers that have a head, from 1.
    """

    right: np.ndarray
    agrees: np.ndarray
    answers: tuple[int, ...]

    @classmethod
    def of(cls, model: MultiExitModel, rows: Split) -> Heads:
        said = exit_logits(model, rows.tokens, EVALUATION).argmax(-1).cpu()
        right, agrees = np.zeros((2, len(rows), model.depth), dtype=bool)
        right[:, list(model.answers)] = (said == rows.labels.cpu()).T.numpy()
        agrees[:, list(model.answers)] = (said == said[-1]).T.numpy()
        return cls(right, agrees, tuple(answer + 1 for answer in model.answers))

    def hull(self) -> list[int]:
        """Return the layers of the concave hull of accuracy over constant depths, from the first head to the last."""
        accuracy = self.right.mean(0)
        hull = [self.answers[0]]
        while hull[-1] != self.answers[-1]:
            at = hull[-1]
            deeper = [layer for layer in self.answers if layer > at]
            hull.append(max(deeper, key=lambda k: ((accuracy[k - 1] - accuracy[at - 1]) / (k - at), k)))
        return hull


def against_controls(exits: np.ndarray, heads: Heads, hull: Sequence[int]) -> dict[str, Any]:
    """Compare exits with random ones of the same histogram, and with the hull at equal mean layers.

    Args:
        exits: layer indices, int [N].
        hull: layers of the mixes, rising from the first head to the last.
    """
    samples, depth = np.arange(len(exits)), heads.right.shape[1]
    histogram = np.bincount(exits, minlength=depth).tolist()
    layers = float((exits + 1).mean())
    right, agrees = heads.right[samples, exits], heads.agrees[samples, exits]
    place = int(np.clip(np.searchsorted(hull, layers), 1, len(hull) - 1))
    shallow, deep = hull[place - 1], hull[place]
    share = share_of_deeper(layers, shallow, deep)
    assert share is not None
    mixed = expected_at_two_depths(heads.right, shallow, deep, share)
    by_chance = expected_at_random(heads.agrees, histogram)
    spread = spread_at_random(heads.agrees, histogram)
    gain = float((agrees - by_chance).mean())
    return {
        "layers": layers,
        "histogram": histogram,
        "accuracy": float(right.mean()),
        "less_hull": float(right.mean() - mixed.mean()),
        "agreement": float(agrees.mean()),
        # Without spread (one depth for all) chance gives the same answers.
        "agreement_sd": gain / spread if spread else 0.0,
        "delta_accuracy": (right - mixed).round(6).tolist(),
        "delta_agreement": (agrees - by_chance).round(6).tolist(),
    }


def halves(task: Task) -> list[tuple[Task, Split]]:
    """Return two tasks with half of dev each, and the other half; the halves are drawn with seed 0.

    Raises:
        ConfigError: dev has fewer than two rows.
    """
    if len(task.dev) < 2:
        raise ConfigError(f"dataset '{task.name}' has {len(task.dev)} dev rows: rules are chosen on two halves of dev")
    order = torch.randperm(len(task.dev), generator=torch.Generator().manual_seed(0))
    parts = [
        Split(task.dev.tokens.select(index), task.dev.labels[index])
        for index in (order[: len(order) // 2].sort().values, order[len(order) // 2 :].sort().values)
    ]
    return [(replace(task, dev=parts[0]), parts[1]), (replace(task, dev=parts[1]), parts[0])]


def methods_with_rules(settings: Settings) -> list[str]:
    """Return the methods of the profile that have assignment rules.

    Raises:
        ConfigError: there is none.
    """
    found = []
    for name in settings.profile.methods:
        method = settings.profile.method_of(name)
        if isinstance(method, LearnsInStages) and "rule" in method.choices:
            found.append(name)
    if not found:
        given = ", ".join(settings.profile.methods)
        raise ConfigError(f"none of {given} has assignment rules: choose geep, or variants of it, with --methods")
    return found


class AssignmentRules(DatasetStudy):
    """Every rule on the same weights: test figures, pooled differences, and the choice of dev."""

    name = "assignment"
    options = ("rules", "point")

    @classmethod
    def add_options(cls, parser: OneLineParser) -> None:
        parser.add_argument("--rules", type=comma_separated(str), default=list(RULES), help="rules to compare")
        parser.add_argument("--point", default="budget=0.5", help="operating point of the pooled differences")

    @classmethod
    def check(cls, settings: Settings, args: Any) -> None:
        super().check(settings, args)
        for name in methods_with_rules(settings):
            method: Any = settings.profile.method_of(name)
            points = method.point_names(settings.profile.config(name))
            if args.point not in points:
                raise ConfigError(f"method '{name}' has no point '{args.point}': it has {', '.join(points)} (--point)")
        unknown = [rule for rule in args.rules if rule not in RULES]
        if unknown:
            raise ConfigError(f"no rule '{unknown[0]}': choose from {', '.join(RULES)} (--rules)")

    def measure(self, dataset: str, seed: int) -> list[dict[str, Any]]:
        session, rows = Session(self.settings, dataset, seed), []
        for name in methods_with_rules(self.settings):
            method, config = self.settings.profile.method_of(name), self.settings.profile.config(name)
            assert isinstance(method, LearnsInStages)
            weights: Any = session.weights(name)
            own_seed = session.keys.seed_of(name)  # of a variant with seed_offset: it tells which rows were held out
            test, task = session.prepared.test, session.prepared.task
            heads, dev = Heads.of(weights.model, test), Heads.of(weights.model, task.dev)
            parts = [
                (part, other, Heads.of(weights.model, other), Heads.of(weights.model, part.dev))
                for part, other in halves(task)
            ]
            for rule in self.args.rules:
                self.describe(f"{dataset} seed {seed} {name} {rule}")
                chosen = {**config, "rule": rule}
                facts = {**self.facts(dataset, seed), "method": name, "rule": rule}
                fitted: Any = method.choose(weights, task, config=chosen, seed=own_seed)
                scores = []
                for part, other, seen, own in parts:
                    half: Any = method.choose(weights, part, config=chosen, seed=own_seed)
                    for point in half.points:
                        if "budget" in point.params:
                            exits = half.assign(other.tokens, at=point).cpu().numpy()
                            scores.append(against_controls(exits, seen, own.hull())["less_hull"])
                for point in fitted.points:
                    if point.params.get("answer") == "student":
                        exits = fitted.assign(test.tokens, at=point).cpu().numpy()
                        found = against_controls(exits, heads, dev.hull())
                        if point.name != self.args.point:
                            del found["delta_accuracy"], found["delta_agreement"]
                        over = bool(point.params.get("over_budget"))
                        dev_score = float(np.mean(scores)) if scores else None
                        rows.append({**facts, "point": point.name, "over_budget": over, "dev": dev_score, **found})
        return rows

    def results(self) -> dict[str, Any]:
        """Return rows without values of single samples, pooled differences, and the preferred rule."""
        short = [{key: value for key, value in row.items() if not key.startswith("delta")} for row in self.rows]
        return {"rows": short, "pooled": self.pooled(), "dev": self.preferences(), "preferred": self.preferred()}

    def _pairs(self) -> list[tuple[str, str]]:
        return list(dict.fromkeys((row["method"], row["rule"]) for row in self.rows))

    def _of(self, pair: tuple[str, str], dataset: str, point: str) -> list[Row]:
        wanted = (*pair, dataset, point)
        return [row for row in self.rows if (row["method"], row["rule"], row["dataset"], row["point"]) == wanted]

    def pooled(self) -> list[dict[str, Any]]:
        """Return per method and rule the differences at the chosen point, over all sets and seeds."""
        found = []
        for pair in self._pairs():
            one: dict[str, Any] = {"method": pair[0], "rule": pair[1], "point": self.args.point}
            for measure in MEASURES:
                strata = [
                    np.mean([row[f"delta_{measure}"] for row in self._of(pair, dataset, self.args.point)], axis=0)
                    for dataset in self.settings.profile.datasets
                ]
                difference = stratified_difference(strata)
                one[measure] = {**difference._asdict(), "detectable": detectable_mean(difference.se)}
            found.append(one)
        return found

    @property
    def search_sets(self) -> list[str]:
        """The sets of the profile's search that were measured; all, if it has none of them."""
        profile = self.settings.profile
        named = [] if profile.search is None else list(profile.search.datasets)
        return [name for name in profile.datasets if name in named] or list(profile.datasets)

    def preferences(self) -> list[dict[str, Any]]:
        """Return per method and rule what dev says: accuracy less the hull's, mean over budgets, seeds and search sets."""
        found = []
        for method, rule in self._pairs():
            by_set = {
                name: float(np.mean([row["dev"] for row in self._of((method, rule), name, self.args.point)]))
                for name in self.search_sets
            }
            found.append({"method": method, "rule": rule, "sets": by_set, "mean": float(np.mean([*by_set.values()]))})
        return found

    def preferred(self) -> dict[str, str]:
        """Return the rule that dev prefers, per method; the first one asked for on ties."""
        best: dict[str, dict[str, Any]] = {}
        for one in self.preferences():
            if one["method"] not in best or one["mean"] > best[one["method"]]["mean"]:
                best[one["method"]] = one
        return {method: one["rule"] for method, one in best.items()}

    def page(self) -> Page:
        page = Page("Assignment rules", self.rows, self.settings.dtype)
        page.text(
            f"{len(self.settings.profile.seeds)} seed(s), means over them. sd: over random exits of the same histogram. hull: "
            "mixes of two constant depths at equal mean layers. A star: more layers on dev than the budget.",
        )
        heads = ("method, rule", "point", "layers", "accuracy %", "less hull", "agreement %", "less random, sd")
        for dataset in self.settings.profile.datasets:
            page.heading(dataset)
            lines = []
            for pair in self._pairs():
                points = dict.fromkeys(row["point"] for row in self.rows if (row["method"], row["rule"]) == pair)
                for point in points:
                    lines.append(self._line(pair, point, self._of(pair, dataset, point)))
            page.table(heads, lines)
        page.heading(f"Pooled over datasets and seeds, {self.args.point}")
        page.table(
            ("method, rule", "accuracy less hull, points", "agreement less random, points"),
            [
                [f"{one['method']}, {one['rule']}", *(difference(one[what]) for what in MEASURES)]
                for one in self.pooled()
            ],
        )
        sets = self.search_sets
        page.heading("What dev prefers")
        page.text(
            "Accuracy less the hull's on the half of dev that points were not chosen on, mean over budgets, points."
        )
        page.table(
            ("method, rule", *sets, "mean"),
            [
                [
                    f"{one['method']}, {one['rule']}",
                    *(f"{100 * one['sets'][name]:+.2f}" for name in sets),
                    f"{100 * one['mean']:+.2f}",
                ]
                for one in self.preferences()
            ],
        )
        page.text(*(f'For {method}, dev prefers rule = "{rule}".' for method, rule in self.preferred().items()))
        return page

    def _line(self, pair: tuple[str, str], point: str, rows: Sequence[Row]) -> list[str]:
        def mean(key: str) -> float:
            return float(np.mean([row[key] for row in rows]))

        star = "*" if any(row["over_budget"] for row in rows) else ""
        return [
            ", ".join(pair),
            point + star,
            f"{mean('layers'):.2f}",
            f"{100 * mean('accuracy'):.1f}",
            f"{100 * mean('less_hull'):+.1f}",
            f"{100 * mean('agreement'):.1f}",
            f"{mean('agreement_sd'):+.1f}",
        ]


def difference(found: Mapping[str, float]) -> str:
    """Return a pooled difference in points, with its 95 % interval and what could have been found."""
    mean, low, high, power = (100 * found[key] for key in ("mean", "low", "high", "detectable"))
    return f"{mean:+.2f} ({low:+.2f} to {high:+.2f}); 80 % power for {power:.2f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return AssignmentRules.main(__doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
