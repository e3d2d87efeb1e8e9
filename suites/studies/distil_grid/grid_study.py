"""Which knowledge, which matching of layers and which start make a good student? Accuracy of every combination on test.

::

    python -m suites.studies.distil_grid --profile teachers --data DATA --backbone en=DIR,zh=DIR --datasets ag_news,lcqmc \\
        --seeds 0,1,2 --tuned search.json

Every cell is a variant of one method (``--base``, by default ``distil``) with its shape, rates and epochs, so that cells differ in
the three axes only; ``--set distil.layers=2`` or ``--set distil.width=0.5`` change the student of all cells, whose usual starts
follow. All kinds of knowledge but ``labels`` also have the teacher's answers and the labels; ``logits`` has nothing else, and is
their control. Nothing is timed. Fits are cached, and a stopped study resumes; the same command tries failed cells
again. Heat maps are stored beside the tables.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from harness.cli.argument_types import OneLineParser, comma_separated, one_of
from harness.contracts import Execution
from harness.core.errors import ConfigError, format_error
from harness.core.files import write_text
from harness.encoder.multi_exit import MultiExitModel
from harness.execution.executors import exit_logits
from harness.measure.detectable import detectable_mean
from harness.measure.many_tests import holm
from harness.measure.paired_tests import stratified_difference
from harness.measure.statistics import spread
from harness.running.run_settings import Settings, validate_settings
from harness.running.session import Session
from harness.running.variants import lineage
from suites.studies.distil_grid.grid_cells import (
    INITS,
    KNOWLEDGE,
    MATCHINGS,
    NONE,
    GridCell,
    cells,
    check_starts,
    usual_starts,
    with_cells,
)
from suites.studies.distil_grid.heat_maps import heat_maps, shown
from suites.studies.shared.study import DatasetStudy
from suites.studies.shared.study_page import Page

EVALUATION = Execution(batch_size=64)
AXES = ("knowledge", "matching", "init")
CONTROL = "logits"
Row = Mapping[str, Any]


def names(known: Sequence[str]) -> Any:
    """Return a type that reads some of the known words."""
    return comma_separated(one_of(*known))


class DistilGrid(DatasetStudy):
    """Accuracy of every cell of the grid, and what each value of an axis is worth."""

    name = "distil_grid"
    options = ("base",)

    @classmethod
    def add_options(cls, parser: OneLineParser) -> None:
        parser.add_argument("--base", default="distil", metavar="NAME", help="the method whose settings all cells have")
        for axis, known in (("knowledge", tuple(KNOWLEDGE)), ("matching", MATCHINGS), ("init", INITS)):
            usual = "by default those that fit the student" if axis == "init" else "by default all"
            parser.add_argument(
                f"--{axis}",
                type=names(known),
                default=None if axis == "init" else list(known),
                metavar="A,B",
                help=f"{', '.join(known)}; {usual}",
            )

    @classmethod
    def _read(cls, doc: str | None, arguments: Sequence[str] | None) -> tuple[argparse.Namespace, Settings]:
        args, settings = super()._read(doc, arguments)
        if args.methods is not None:
            raise ConfigError("the grid has no --methods: its cells are variants of --base, see --knowledge")
        profile = settings.profile
        profile.method_of(args.base)  # raises for an unknown name
        if (method := lineage(profile.method, args.base)[-1]) != "distil":
            raise ConfigError(
                f"--base {args.base} is like '{method}', which has no axes: choose distil or a variant of it"
            )
        config = profile.config(args.base)
        args.init = args.init or list(usual_starts(config))
        check_starts(args.base, config, args.init)
        args.cells = list(cells(args.knowledge, args.matching, args.init))
        settings = replace(settings, profile=with_cells(profile, args.base, args.cells))
        validate_settings(settings)
        return args, settings

    def measure(self, dataset: str, seed: int) -> list[dict[str, Any]]:
        session = Session(self.settings, dataset, seed)
        reference = self.settings.profile.reference
        found = []
        for name, axes in [(reference, {}), *((cell.name, asdict(cell)) for cell in self.args.cells)]:
            self.describe(f"{dataset} seed {seed} {name}")
            part = f"{dataset}/seed{seed}/{name}"
            if part not in self.stored or self.stored[part]["failed"]:
                self.stored.store(
                    part, {**self.facts(dataset, seed), "method": name, **axes, **answered(session, name)}
                )
            found.append(self.stored[part])
        return found

    def results(self) -> dict[str, Any]:
        """Return rows without single samples, cells over seeds, and effects of the axes."""
        rows = [{key: value for key, value in row.items() if key != "right"} for row in self.rows]
        return {"rows": rows, "cells": self.summaries(), "effects": self.effects()}

    def exit_code(self) -> int:
        return int(any(row["failed"] for row in self.rows))

    def right(self, dataset: str, method: str) -> np.ndarray | None:
        """Return whether each test row was right, by seed: [S, N]; ``None`` if a fit failed."""
        group = [row["right"] for row in self.rows if (row["dataset"], row["method"]) == (dataset, method)]
        return None if any(one is None for one in group) else np.array(group, dtype=np.float64)

    def summaries(self) -> list[dict[str, Any]]:
        """Return accuracy of every cell in percent, with half the interval over seeds."""
        found = []
        for dataset, cell in itertools.product(self.settings.profile.datasets, self.args.cells):
            right = self.right(dataset, cell.name)
            over = None if right is None else spread([100 * float(one) for one in right.mean(1)])
            found.append(
                {
                    "dataset": dataset,
                    **asdict(cell),
                    "accuracy": None if over is None else over.mean,
                    "half": None if over is None or over.high is None else over.high - over.mean,
                    "gain": self.difference([(dataset, cell, replace(cell, knowledge=CONTROL, matching=NONE))]),
                }
            )
        return found

    def difference(self, pairs: Sequence[tuple[str, GridCell, GridCell]]) -> dict[str, float] | None:
        """Return the mean difference of pairs of cells, each dataset with the same weight; ``None`` without a pair.

        Differences are by test row, whose seeds and pairs are kept together.
        """
        strata: dict[str, list[np.ndarray]] = {}
        for dataset, one, other in pairs:
            if one == other or not {one, other} <= {*self.args.cells}:
                continue
            mine, theirs = self.right(dataset, one.name), self.right(dataset, other.name)
            if mine is not None and theirs is not None:
                strata.setdefault(dataset, []).append((mine - theirs).mean(0))
        if not strata:
            return None
        found = stratified_difference([np.mean(each, axis=0) for each in strata.values()])
        count = sum(map(len, strata.values()))
        return {**found._asdict(), "detectable": detectable_mean(found.se), "pairs": count}

    def effects(self) -> list[dict[str, Any]]:
        """Return for each value of an axis the difference from its first one, all else equal, and p by Holm over all of them."""
        found: list[dict[str, Any]] = []
        for axis in AXES:
            values = list(dict.fromkeys(getattr(cell, axis) for cell in self.args.cells))
            if axis == "matching":
                values = [value for value in values if value in MATCHINGS]
            for value, first in self._compared(axis, values):
                pairs = list(self._pairs(axis, value, first))
                if (difference := self.difference(pairs)) is not None:
                    found.append({"axis": axis, "value": value, "less": first, **difference})
        adjusted = holm([one["p"] for one in found])
        return [{**one, "holm": p} for one, p in zip(found, adjusted, strict=True)]

    def _compared(self, axis: str, values: Sequence[str]) -> Iterator[tuple[str, str]]:
        first = CONTROL if axis == "knowledge" and CONTROL in values else values[0] if values else ""
        return ((value, first) for value in values if value != first)

    def _pairs(self, axis: str, value: str, first: str) -> Iterator[tuple[str, GridCell, GridCell]]:
        """Yield cells with a value and those that differ from them in one axis only."""
        for dataset, cell in itertools.product(self.settings.profile.datasets, self.args.cells):
            if getattr(cell, axis) != value:
                continue
            other = replace(cell, **{axis: first})
            yield dataset, cell, other if axis != "knowledge" or first != CONTROL else replace(other, matching=NONE)

    def page(self) -> Page:
        profile, summaries = self.settings.profile, self.summaries()
        page = Page("The grid of distillation", self.rows, self.settings.dtype)
        page.text(
            f"{len(profile.seeds)} seed(s); ± is half the 95 % interval of the mean over seeds (Student's t).",
            f"Gains are points over `{CONTROL}` with the same start, by test row, with the 95 % interval over test rows.",
            f"All cells have the settings of `{self.args.base}`; rates and epochs are not searched for each cell.",
        )
        for dataset in profile.datasets:
            group = [one for one in summaries if one["dataset"] == dataset]
            reference = self.right(dataset, profile.reference)
            count = 0 if reference is None else reference.shape[1]
            teacher = "failed" if reference is None else f"{100 * reference.mean():.1f} %"
            page.heading(f"{dataset}, {count} test rows; {profile.reference}: {teacher}")
            page.table(
                ("knowledge", "matching", "start", "accuracy %", "gain, points"),
                [[*(one[a] for a in AXES), shown(one).replace("\n", " "), difference(one["gain"])] for one in group],
            )
        effects = self.effects()
        page.heading("What each choice is worth, over all sets and cells that differ in it alone")
        page.table(
            ("axis", "value", "less", "pairs", "points", "p (Holm)", "80 % power for"),
            [
                [
                    one["axis"],
                    one["value"],
                    one["less"],
                    str(one["pairs"]),
                    difference(one),
                    f"{one['holm']:.3f}",
                    f"{100 * one['detectable']:.1f}",
                ]
                for one in effects
            ],
        )
        for line in [
            f"{row['dataset']} seed {row['seed']} {row['method']}: {row['failed']}"
            for row in self.rows
            if row["failed"]
        ]:
            page.text(f"failed: {line}")
        return page

    def draw(self) -> list[Path]:
        """Write the heat maps and return their places."""
        places = []
        for dataset in self.settings.profile.datasets:
            group = [one for one in self.summaries() if one["dataset"] == dataset]
            rows = [row for row in self.rows if row["dataset"] == dataset]
            synthetic = " (synthetic)" if rows[0]["synthetic"] else ""
            title = f"{dataset}{synthetic}: accuracy of students, {len(self.settings.profile.seeds)} seed(s)"
            places.append(self.args.out.with_name(f"{self.args.out.stem}-{dataset}.svg"))
            write_text(places[-1], heat_maps(title, group))
        return places

    def execute(self) -> None:
        """Measure everything that is not stored yet, and failed cells again, as ``geep-bench run`` does."""
        for dataset, seed in itertools.product(self.settings.profile.datasets, self.settings.profile.seeds):
            part = f"{dataset}/seed{seed}"
            if part not in self.stored:
                continue
            finished = {row["method"]: row for row in self.stored[part] if not row["failed"]}
            if failed := len(self.stored[part]) - len(finished):
                print(f"{part}: {failed} failed cell(s) are tried again", file=sys.stderr)
                self.stored.reopen(part, finished)
        super().execute()
        print("heat maps: " + ", ".join(map(str, self.draw())), file=sys.stderr)


def answered(session: Session, method: str) -> dict[str, Any]:
    """Return which test rows a method gets right, and what its training took, or why it failed."""
    try:
        fitted: Any = session.fitted(method)
    except ConfigError as error:
        return {"right": None, "accuracy": None, "steps": None, "flops": None, "failed": format_error(error)}
    model, test = fitted.model, session.prepared.test
    assert isinstance(model, MultiExitModel)
    right = exit_logits(model, test.tokens, EVALUATION)[-1].argmax(-1) == test.labels
    report = fitted.training
    return {
        "right": right.int().tolist(),
        "accuracy": round(float(right.double().mean()), 6),
        "steps": None if report is None else report.steps,
        "flops": None if report is None else report.flops,
        "failed": "",
    }


def difference(found: Mapping[str, float] | None) -> str:
    """Return a difference in points with its 95 % interval."""
    if found is None:
        return "—"
    mean, low, high = (100 * found[key] for key in ("mean", "low", "high"))
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return DistilGrid.main(__doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
