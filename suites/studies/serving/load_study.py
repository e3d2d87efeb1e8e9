"""Measure latency and throughput of methods under load, with the scenarios of MLPerf LoadGen.

::

    python -m suites.studies.serving --profile quick --datasets ag_news --methods bert,fastbert,geep --p99-ms 50

SingleStream sends the next query with the answer to the last one, Offline sends all at once, Server sends them at random
(Poisson) at a rate. In Server, a call takes what waits, at most N queries (--at-most N), or waits for a window of N
(--windows N); a call orders its samples as the method does, and runs them in batches of --fixed. A real clock measures. LoadGen
counts a latency from the time at which a query was due.

--rates are queries/s, by default shares of the Offline throughput of the reference. Each rate runs every method and rule in turn
(A B C, C B A). A method leaves when it cannot keep up. The highest rate with p99 within --p99-ms is then searched: higher rates
while the bound holds, and --refine halvings between the best rate and the next one that was too high. Every rate has at least
--queries queries and --seconds seconds.

Beside each measurement stands what queueing predicts for the same arrivals (docs/how-to/load.md). Runs of seconds are no MLPerf
results. Exit code 1: no method keeps to the bound, and the best one is named.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from harness.cli.argument_types import OneLineParser, comma_separated, positive_number, whole_number
from harness.core import clock
from harness.core.errors import ConfigError
from harness.core.files import write_text
from harness.running.run_settings import Settings
from suites.studies.serving.batching import Batching
from suites.studies.serving.expected_waits import CallTimes, expected_latencies
from suites.studies.serving.load_figure import load_figure
from suites.studies.serving.load_generator import (
    LoadMeasured,
    LoadTest,
    generator_capacity,
    load_generator,
    run_test,
)
from suites.studies.serving.load_page import load_page
from suites.studies.shared import queueing
from suites.studies.shared.study import Study
from suites.studies.shared.study_methods import StudyMethod, StudySamples
from suites.studies.shared.study_page import Page

AT_MOST, WINDOWS = (128,), (32, 128)
SHARES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)  # of the reference's Offline throughput: the default rates
HIGHER = 1.5  # factor of the next rate while the bound holds
GENERATED = 0.8  # share of the generator's capacity up to which rates are measured
BEHIND = 0.1  # a queue that takes this share of the test to empty after the last arrival has grown
TURNS = 20  # calls of every size for CallTimes
STEP = 4  # factor between their sizes


def idle_sizes(rules: Sequence[Batching]) -> list[int]:
    """Return the sizes of calls whose times suffice for all rules: those of windows, and 1, 4, 16, ... for the others."""
    sizes = {rule.size for rule in rules}
    largest = max((rule.size for rule in rules if not rule.waits), default=0)
    size = 1
    while size < largest:
        sizes.add(size)
        size *= STEP
    return sorted(sizes)


def keeps_up(found: LoadMeasured) -> bool:
    """Return whether the queue did not grow: it was soon empty after the last arrival."""
    calls = found.served.calls
    longest = max(end - begin for begin, end, _ in calls)
    lasted = found.served.arrivals[-1] - found.served.arrivals[0]
    return found.drained <= max(BEHIND * lasted, 2 * longest)


def latency_row(values: np.ndarray) -> dict[str, float]:
    """Return mean, p50 and p99 of latencies."""
    p50, p99 = np.quantile(values, [0.5, 0.99])
    return {"mean": float(values.mean()), "p50": float(p50), "p99": float(p99)}


def server_facts(found: LoadMeasured, rule: Batching, rate: float, idle: CallTimes) -> dict[str, Any]:
    """Return what a test in scenario Server says: measured, noted by the server, and expected from its arrivals.

    Args:
        idle: times of calls without load.
    """
    served, arrivals = found.served, np.array(found.served.arrivals)
    sizes = [size for _, _, size in served.calls]
    busy = sum(end - begin for begin, end, _ in served.calls)
    starts = np.repeat([begin for begin, _, _ in served.calls], sizes)
    own = latency_row(served.latencies)
    return {
        "rate": rate,
        "queries": found.queries,
        **{name: getattr(found, name) for name in ("mean", "p50", "p90", "p99", "completed_per_s", "scheduled_per_s")},
        "keeps_up": keeps_up(found),
        "drained": found.drained,
        "busy": busy / (max(served.answered) - served.arrivals[0]),
        "calls": len(sizes),
        "mean_size": float(np.mean(sizes)),
        "waiting": float((starts - arrivals).mean()),
        "late": found.p99 - own["p99"],
        "own": own,
        "expected": latency_row(expected_latencies(rule, arrivals, CallTimes.of_calls(served.calls))),
        "expected_idle": latency_row(expected_latencies(rule, arrivals, idle)),
        "slower_than_idle": busy / len(sizes) / idle.mean(sizes),
        "collecting": queueing.collecting_mean(rule.size, rate) if rule.waits else 0.0,
    }


class LoadStudy(Study):
    """Latency over the rate of arrivals, and the highest rate within a bound."""

    name = "serving"
    options = ("fixed", "samples", "speed", "named", "queries", "seconds")

    @classmethod
    def add_options(cls, parser: OneLineParser) -> None:
        counts, rates = comma_separated(whole_number(1)), comma_separated(positive_number)
        count = whole_number(1)
        parser.add_argument(
            "--rates",
            type=rates,
            metavar="10,100",
            help="arriving queries/s; default: shares of the reference's throughput",
        )
        parser.add_argument(
            "--p99-ms", type=positive_number, default=50.0, metavar="MS", help="limit of p99; default 50"
        )
        parser.add_argument(
            "--at-most", type=counts, default=list(AT_MOST), metavar="1,128", help="calls of at most N waiting queries"
        )
        parser.add_argument(
            "--windows", type=comma_separated(whole_number(0)), default=list(WINDOWS), metavar="32,128",
            help="calls that wait for N queries; 0: none",
        )  # fmt: skip
        parser.add_argument("--fixed", type=count, default=32, metavar="N", help="batch size in a call; default 32")
        parser.add_argument(
            "--queries", type=count, default=400, metavar="N", help="least queries per test; default 400"
        )
        parser.add_argument(
            "--seconds", type=positive_number, default=2.0, metavar="S", help="least seconds per rate; default 2"
        )
        parser.add_argument(
            "--refine", type=whole_number(0), default=2, metavar="N", help="bisections of the highest rate; default 2"
        )
        parser.add_argument("--figures", type=Path, metavar="DIR", help="folder of figures; default: that of the JSON")

    @classmethod
    def check(cls, settings: Settings, args: Any) -> None:
        super().check(settings, args)
        load_generator()
        args.rules = [Batching(size, waits=False) for size in dict.fromkeys(args.at_most)]
        args.rules += [Batching(size, waits=True) for size in dict.fromkeys(args.windows) if size]
        args.figures = args.figures or args.out.parent

    def execute(self) -> None:
        """Measure everything that is not stored yet."""
        for dataset, seed in itertools.product(self.settings.profile.datasets, self.settings.profile.seeds):
            self.rows += _DatasetLoad(self, dataset, seed).rows()
            self.advance(f"{dataset}/seed{seed}")

    @cached_property
    def loadgen(self) -> Any:
        return load_generator()

    def page(self) -> Page:
        for (dataset, seed), some in itertools.groupby(self.rows, key=lambda row: (row["dataset"], row["seed"])):
            place = self.args.figures / f"{self.args.out.stem}-{dataset}{f'-seed{seed}' if seed else ''}.svg"
            write_text(place, load_figure(list(some), self.args.p99_ms / 1000))
        return load_page(self.rows, self.args.p99_ms / 1000, self.settings.profile.reference, self.settings.dtype)

    def results(self) -> dict[str, Any]:
        return {"rows": self.rows, "p99_bound_ms": self.args.p99_ms}

    def exit_code(self) -> int:
        """Return 1 if no method keeps to the bound on some dataset."""
        groups = itertools.groupby(self.rows, key=lambda row: (row["dataset"], row["seed"]))
        return 1 if any(not any(row.get("meets") for row in some) for _, some in groups) else 0


class _DatasetLoad:
    """The tests of one dataset and seed; everything is stored, and loaded only if a test is missing."""

    def __init__(self, study: LoadStudy, dataset: str, seed: int) -> None:
        self.study, self.dataset, self.seed = study, dataset, seed
        self.args, self.stored = study.args, study.stored
        self.where = f"{dataset}/seed{seed}"

    @cached_property
    def samples(self) -> StudySamples:
        return self.study.samples(self.dataset, self.seed, self.study.settings.profile.methods, self.args.fixed)

    @cached_property
    def entries(self) -> dict[str, StudyMethod]:
        return {entry.label: entry for entry in self.samples.entries}

    def _part(self, name: str, make: Callable[[], Any]) -> Any:
        part = f"{self.where}/{name}"
        if part not in self.stored:
            self.study.describe(part)
            self.stored.store(part, make())
        return self.stored[part]

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per method and test."""
        known = self._part("methods", self._facts)
        labels = {facts["label"]: facts for facts in known["methods"]}
        alone = {label: self._alone(label) for label in labels}
        cells = list(itertools.product(labels, self.args.rules))
        curves: dict[tuple[str, str], dict[float, Any]] = {(label, rule.name): {} for label, rule in cells}
        self._climb(cells, curves, self._rates(known, alone), known["capacity"])
        self._refine(cells, curves)
        rows = []
        for label in labels:
            facts = {**labels[label], "capacity": known["capacity"]}
            rows += [{**facts, **row} for row in alone[label]]
            for rule in self.args.rules:
                shared = {"scenario": "Server", "rule": rule.name, "size": rule.size, "waits": rule.waits}
                rows += [{**facts, **shared, **row} for _, row in sorted(curves[label, rule.name].items())]
        return rows

    def _facts(self) -> dict[str, Any]:
        methods = [self.study.facts(self.dataset, self.seed, entry) for entry in self.samples.entries]
        return {"methods": methods, "capacity": generator_capacity(self.study.loadgen, len(self.samples))}

    def _rates(self, known: Mapping[str, Any], alone: Mapping[str, Any]) -> list[float]:
        """Return the rates to begin with, and tell which ones the generator cannot make.

        Raises:
            ConfigError: it can make none of them.
        """
        rates = self.args.rates
        if rates is None:
            reference = self.study.settings.profile.reference
            named = [facts["label"] for facts in known["methods"] if facts["method"] == reference]
            offline = next(row for row in alone[[*named, *alone][0]] if row["scenario"] == "Offline")
            rates = [float(f"{share * offline['completed_per_s']:.2g}") for share in SHARES]
        most = GENERATED * known["capacity"]
        beyond = [rate for rate in rates if rate > most]
        told = f"{self.where}: this machine generates at most {most:,.0f} queries/s"
        if len(beyond) == len(rates):
            raise ConfigError(f"{told}: give lower --rates")
        if beyond:
            said = ", ".join(f"{rate:g}" for rate in beyond)
            print(f"serving: {told}; not measured: {said}", file=sys.stderr)
        return sorted({rate for rate in rates if rate <= most})

    def _alone(self, label: str) -> list[dict[str, Any]]:
        """Return the rows of SingleStream and Offline."""
        queries = self.args.queries

        def make() -> list[dict[str, Any]]:
            rows = []
            offline = max(queries, len(self.samples))
            for test, size in ((LoadTest("SingleStream", queries), 1), (LoadTest("Offline", offline), offline)):
                found, facts = self._test(label, test, Batching(size, waits=False))
                names = ("queries", "mean", "p50", "p90", "p99", "completed_per_s")
                rows.append({"scenario": test.scenario, **{name: getattr(found, name) for name in names}, **facts})
            return rows

        return list(self._part(f"{label}/alone", make))

    def _test(self, label: str, test: LoadTest, rule: Batching) -> tuple[LoadMeasured, dict[str, Any]]:
        """Run a test, and compare its labels with those of an untimed pass."""
        count, probe = len(self.samples), self.samples.probes[label]
        self._answer(label, np.arange(min(rule.size, count)))  # uncounted: weights come into the caches
        seeded = replace(test, seed=self.seed)
        found = run_test(self.study.loadgen, seeded, rule, partial(self._answer, label), count)
        wrong = np.array(found.served.labels) != probe.labels[np.array(found.served.samples)]
        return found, {"labels_agree": 1 - float(wrong.mean())}

    def _answer(self, label: str, chosen: np.ndarray) -> np.ndarray:
        """Return the labels of samples (int64 [M]), in one call."""
        way = replace(self.study.settings.execution, batch_size=self.args.fixed, order="length", window=0)
        done = self.entries[label].run(self.samples.tokens.select(chosen), chosen, way)
        return np.asarray(done.predictions.logits.argmax(1))

    def _idle(self) -> dict[str, dict[int, list[float]]]:
        """Return the seconds of calls without load, by method and size."""
        sizes = idle_sizes(self.args.rules)

        def make() -> dict[str, dict[str, list[float]]]:
            rng = np.random.default_rng(self.seed)
            found: dict[str, dict[str, list[float]]] = {label: {str(s): [] for s in sizes} for label in self.entries}
            for turn in range(-1, TURNS):  # the first turn is not counted
                for label in list(self.entries)[:: -1 if turn % 2 else 1]:
                    for size in sizes:
                        begin = clock.now()
                        self._answer(label, rng.integers(len(self.samples), size=size))
                        found[label][str(size)] += [clock.now() - begin] if turn >= 0 else []
            return found

        found = self._part(f"calls/{','.join(map(str, sizes))}", make)
        return {label: {int(size): times for size, times in one.items()} for label, one in found.items()}

    def _server(self, label: str, rule: Batching, rate: float) -> dict[str, Any]:
        def make() -> dict[str, Any]:
            idle = CallTimes(self._idle()[label])
            found, facts = self._test(label, LoadTest("Server", self.args.queries, self.args.seconds, rate), rule)
            return {**server_facts(found, rule, rate, idle), **facts}

        row: dict[str, Any] = self._part(f"{label}/{rule.name}/{rate:g}", make)
        return {**row, "meets": row["keeps_up"] and row["p99"] <= self.args.p99_ms / 1000}

    def _climb(
        self,
        cells: Sequence[tuple[str, Batching]],
        curves: Mapping[tuple[str, str], dict[float, Any]],
        rates: Sequence[float],
        capacity: float,
    ) -> None:
        """Measure the rates, then higher ones while the bound holds; without those that keep up no more."""
        going, number = list(cells), 0
        rate = rates[0]
        while going and rate <= GENERATED * capacity:
            for label, rule in going if number % 2 == 0 else going[::-1]:
                curves[label, rule.name][rate] = self._server(label, rule, rate)
            last = {cell: curves[cell[0], cell[1].name][rate] for cell in going}
            number += 1
            given = number < len(rates)
            going = [cell for cell in going if last[cell]["keeps_up"] and (given or self._may_rise(last[cell]))]
            rate = rates[number] if given else float(f"{HIGHER * rate:.3g}")

    def _may_rise(self, row: Mapping[str, Any]) -> bool:
        """Return whether the bound may hold at a higher rate: it does here, or collecting the window alone exceeds it."""
        return bool(row["meets"]) or 2 * row["collecting"] > self.args.p99_ms / 1000

    def _refine(
        self, cells: Sequence[tuple[str, Batching]], curves: Mapping[tuple[str, str], dict[float, Any]]
    ) -> None:
        """Halve the distance between the highest rate within the bound and the next one above, of each cell in turn."""
        for number in range(self.args.refine):
            for label, rule in cells if number % 2 == 0 else cells[::-1]:
                curve = curves[label, rule.name]
                good = max((rate for rate, row in curve.items() if row["meets"]), default=None)
                bad = min((rate for rate in curve if good is not None and rate > good), default=None)
                if good is not None and bad is not None:
                    rate = float(f"{(good * bad) ** 0.5:.3g}")
                    if rate not in curve:
                        curve[rate] = self._server(label, rule, rate)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return LoadStudy.main(__doc__, arguments)
