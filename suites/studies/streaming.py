"""Measure how throughput depends on the window, and the waiting time that collecting a window adds.

::

    python -m suites.studies.streaming --profile quick --datasets ag_news --windows 256,1024,0 --rates 10,100,1000

Each window is one call: its samples are predicted, sorted and run together, and answered together (``bert`` sorts by length).
Only full windows are timed; samples left over in a round are not run. Window 0 holds all samples; a larger window is the same
and is not measured again.

The waiting time assumes Poisson arrivals at each rate. Collecting takes (W - 1) / (2 rate) on average; its mean, p50 and p99 are
exact, see suites/studies/shared/queueing.py. The whole latency (collecting, queueing and service) is simulated with the measured
service times. No latency is reported where samples arrive faster than they are served, because the queue then grows without
limit. Without --methods, the study runs the reference and the methods that sort by exit.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from harness.cli.argument_types import OneLineParser, comma_separated, positive_number, whole_number
from harness.contracts import ASSIGNED, HasExecutor
from harness.measure.passes import TimedPass
from harness.running.session import Session
from suites.studies.shared import queueing
from suites.studies.shared.study import DatasetStudy
from suites.studies.shared.study_methods import StudyMethod, StudySamples
from suites.studies.shared.study_page import Page, dataset_title, number, seconds
from suites.studies.shared.sweep import samples_of, spread

WINDOWS = (256, 1024, 4096, 0)
RATES = (10.0, 100.0, 1000.0)
NEARLY = 0.95  # above this utilisation a simulated queue has not settled
CANNOT = "cannot keep up"


def distinct(windows: Sequence[int], count: int) -> tuple[list[int], list[str]]:
    """Return the windows to measure on ``count`` samples in rising order, and notes about those that are left out."""
    sizes = sorted({min(window or count, count) for window in windows})
    notes = [
        f"a window of {window:,} holds all {count:,} samples: its row is that of 'all'"
        for window in sorted(windows)
        if window >= count
    ]
    return sizes, notes


def calls(
    entry: StudyMethod, samples: StudySamples, window: int, batch_size: int, order: np.ndarray
) -> list[TimedPass]:
    """Run every full window of the samples, in this order."""
    way = replace(samples.session.settings.execution, batch_size=batch_size, order="length", window=0)
    found = []
    for begin in range(0, len(order) - window + 1, window):
        chosen = order[begin : begin + window]
        found.append(entry.run(samples.tokens.select(chosen), chosen, way))
    return found


def waits(window: int, rate: float, services: Sequence[float]) -> dict[str, Any]:
    """Return the waiting times of a window at an arrival rate, in seconds; latency is None if the server cannot keep up."""
    service = float(np.mean(services))
    load = queueing.utilisation(window, rate, service)
    row: dict[str, Any] = {
        "rate": rate,
        "utilisation": load,
        "stable": load < 1,
        "settled": load < NEARLY,
        "collecting_mean": queueing.collecting_mean(window, rate),
        "collecting_worst": queueing.collecting_worst(window, rate),
        "collecting_p50": queueing.collecting_quantile(window, rate, 0.5),
        "collecting_p99": queueing.collecting_quantile(window, rate, 0.99),
        "queueing_mean": None,
        "latency_p50": None,
        "latency_p99": None,
    }
    if load < 1:
        found = queueing.simulate(window, rate, np.asarray(services))
        p50, p99 = np.quantile(found.whole, [0.5, 0.99])
        row |= {
            "queueing_mean": float(found.queueing.mean()),
            "latency_p50": float(p50),
            "latency_p99": float(p99),
        }
    return row


def default_methods(session: Session) -> list[str]:
    """Return the reference and the methods that predict exits and sort by them."""
    profile = session.settings.profile

    def sorts(name: str) -> bool:
        fitted = session.fit(name)
        executor = fitted.executor if isinstance(fitted, HasExecutor) else "own"
        known = {"ladder", "exact-k", ASSIGNED, "verified", "look-once"}
        return profile.method_of(name).kind == "method" and executor in known

    return [name for name in profile.methods if name == profile.reference or sorts(name)] or profile.methods


class StreamingStudy(DatasetStudy):
    """Throughput by window, and waiting times that follow from it."""

    name = "streaming"
    options = ("windows", "fixed", "samples", "rounds", "speed", "named")

    @classmethod
    def add_options(cls, parser: OneLineParser) -> None:
        windows, rates = comma_separated(whole_number(0)), comma_separated(positive_number)
        parser.add_argument("--windows", type=windows, default=list(WINDOWS), metavar="256,0", help="samples; 0: all")
        parser.add_argument("--rates", type=rates, default=list(RATES), metavar="10,100", help="arriving samples/s")
        parser.add_argument("--fixed", type=whole_number(1), default=32, metavar="N", help="batch size; default 32")

    def measure(self, dataset: str, seed: int) -> list[dict[str, Any]]:
        samples = self.samples(dataset, seed, self.args.methods or default_methods, self.args.fixed)
        sizes, notes = distinct(self.args.windows, len(samples))
        cells = list(itertools.product(samples.entries, sizes))
        # Code is compiled and graphs are captured at a shape's first use: there, every window warms up.
        some = len(samples) if self.settings.compute != "eager" else 0
        for entry, window in cells:
            calls(entry, samples, window, self.args.fixed, np.arange(some or window))
        lengths = samples.tokens.lengths.cpu().numpy()
        for number_ in range(self.args.rounds):
            part = f"{dataset}/seed{seed}/round{number_}"
            if part in self.stored:
                continue
            order = samples_of(number_ + 1, len(samples), seed)  # never as stored: neighbours may be alike there
            found: dict[str, Any] = {}
            for entry, window in cells if number_ % 2 == 0 else cells[::-1]:
                self.describe(f"{dataset} round {number_ + 1}: {entry.label} window {window}")
                done = calls(entry, samples, window, self.args.fixed, order)
                labels = np.concatenate([one.predictions.logits.argmax(1) for one in done])
                ran = order[: len(labels)]
                found[f"{entry.label} | {window}"] = {
                    "seconds": [one.seconds for one in done],
                    "tokens": int(lengths[ran].sum()),
                    "differing": int((labels != samples.probes[entry.label].labels[ran]).sum()),
                }
            self.stored.store(part, found)
        rounds = [self.stored[f"{dataset}/seed{seed}/round{n}"] for n in range(self.args.rounds)]
        rows = []
        for entry, window in cells:
            mine = [one[f"{entry.label} | {window}"] for one in rounds]
            services = [value for one in mine for value in one["seconds"]]
            rows.append(
                {
                    **self.facts(dataset, seed, entry),
                    "window": window,
                    "all": window == len(samples),
                    "samples": len(samples),
                    "batch_size": self.args.fixed,
                    "samples_per_s": spread([len(one["seconds"]) * window / sum(one["seconds"]) for one in mine]),
                    "tokens_per_s": sum(one["tokens"] for one in mine) / sum(services),
                    "service_seconds": services,
                    "service": spread(services),
                    "labels_agree": 1 - sum(one["differing"] for one in mine) / (len(services) * window),
                    "notes": notes,
                }
            )
        return rows

    def complete(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Add the waiting times, which need no new passes at other rates."""
        rates = self.args.rates
        return [
            {**row, "waits": [waits(row["window"], rate, row["service_seconds"]) for rate in rates]} for row in rows
        ]

    def page(self) -> Page:
        reference = self.settings.profile.reference
        out = Page("Windows of arrival", self.rows, self.settings.dtype)
        for _, group in itertools.groupby(self.rows, key=lambda row: (row["dataset"], row["seed"])):
            mine = list(group)
            first, named = mine[0], dataset_title(mine[0])
            sizes = list(dict.fromkeys(row["window"] for row in mine))
            titles = [f"all ({first['samples']:,})" if size == first["samples"] else f"{size:,}" for size in sizes]
            what = f"samples/s by window, batches of {first['batch_size']}; over {reference} at that window"
            out.heading(f"{named}: {what}")
            rival = {row["window"]: row["samples_per_s"]["median"] for row in mine if row["method"] == reference}
            body = []
            for label, lines in itertools.groupby(mine, key=lambda row: row["label"]):
                cells = []
                for row in lines:
                    rate = row["samples_per_s"]["median"]
                    over = f" {rate / rival[row['window']]:.2f}x" if rival else ""
                    cells.append(f"{number(rate)}{over}{'' if row['labels_agree'] == 1 else ' !'}")
                body.append([label, *cells])
            out.table(["method", *titles], body)
            out.text(*first["notes"])
            if any(row["labels_agree"] < 1 for row in mine):
                out.text(
                    "!: labels depend on the window, as with methods that distribute exits over the samples of a window"
                )
            _waiting(out, mine, named)
        out.text(
            "collecting: a sample waits for the rest of its window, (W - 1) / (2 rate) on average, (W - 1) / rate if it "
            "is the first; exact, for Poisson arrivals; no window is closed early",
            "latency: collecting, queueing behind the windows before, and service; simulated with the measured services",
            f"{CANNOT}: samples arrive faster than they are served, and the queue grows without limit",
        )
        return out


def _waiting(out: Page, rows: Sequence[dict[str, Any]], named: str) -> None:
    """Add the tables of collecting, which is the same for every method, and of each method's whole latency."""
    every = {row["window"]: row for row in rows}
    title = {size: "all" if row["all"] else f"{size:,}" for size, row in every.items()}
    out.heading(f"{named}: what collecting a window adds, by samples/s that arrive", 3)
    heads = ["window", "arriving", "mean", "p50", "p99", "the first of a window"]
    out.table(
        heads,
        [
            [title[size], f"{wait['rate']:g}/s"]
            + [seconds(wait[f"collecting_{name}"]) for name in ("mean", "p50", "p99", "worst")]
            for size, row in every.items()
            for wait in row["waits"]
        ],
    )
    out.heading(f"{named}: whole latency, p50 / p99 (share of the time that the server is busy)", 3)
    body = []
    for row in rows:
        cells = []
        for wait in row["waits"]:
            if not wait["stable"]:
                cells.append(f"{CANNOT} ({wait['utilisation']:.0%})")
                continue
            mark = "" if wait["settled"] else " ?"
            latency = f"{seconds(wait['latency_p50'])} / {seconds(wait['latency_p99'])}{mark}"
            cells.append(f"{latency} ({wait['utilisation']:.1%})")
        body.append([row["label"], title[row["window"]], *cells])
    out.table(["method", "window", *(f"{wait['rate']:g}/s" for wait in rows[0]["waits"])], body)
    if any(wait["stable"] and not wait["settled"] for row in rows for wait in row["waits"]):
        out.text(f"?: busy more than {NEARLY:.0%} of the time: the simulated queue has not settled")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return StreamingStudy.main(__doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
