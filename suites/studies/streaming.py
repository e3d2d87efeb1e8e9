"""What is left of sorting when samples arrive one by one: throughput by window, and the wait that collecting one adds.

::

    python -m suites.studies.streaming --profile quick --datasets ag_news --windows 256,1024,0 --rates 10,100,1000

takes the options of ``geep-bench run`` beside its own. Each window is one call: its samples are predicted, sorted and run
together, and get their answers together (``bert`` sorts by length). Throughput is that of full windows; what is left of the
test set in a round is not run. Window 0 is all samples; a window that is as large is the same and is not measured twice.

Then the wait, with Poisson arrivals at each rate: collecting (mean (W - 1) / (2 rate), and its p50 and p99, all exact, see
suites/studies/shared/queueing.py), and the whole latency, collecting, queueing and service, by simulation over the measured service
times. A server that is busy more than all of the time cannot keep up: then the queue grows without end and there is no
latency to report. Without --methods: the reference, and the methods that sort by exit.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from tqdm import tqdm

from harness.core.command_line import exit_codes
from harness.core.files import write_atomic
from harness.measure.passes import TimedPass
from harness.running.session import Session
from harness.running.settings import Settings
from suites.studies.shared import queueing
from suites.studies.shared.order_tables import synthetic
from suites.studies.shared.resume_file import ResumeFile
from suites.studies.shared.study import asked, positives, read, suite_options, whole, wholes
from suites.studies.shared.study_methods import StudyMethod, StudySamples
from suites.studies.shared.study_page import Page, number, seconds
from suites.studies.shared.sweep import samples_of, spread

WINDOWS = (256, 1024, 4096, 0)
RATES = (10.0, 100.0, 1000.0)
NEARLY = 0.95  # above this utilisation a simulated queue has not settled
CANNOT = "cannot keep up"


def distinct(windows: Sequence[int], count: int) -> tuple[list[int], list[str]]:
    """Windows worth measuring on ``count`` samples, rising, and what to say about the others."""
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
    """One round: every full window of the samples in this order."""
    way = replace(samples.session.settings.execution, batch_size=batch_size, order="length", window=0)
    found = []
    for begin in range(0, len(order) - window + 1, window):
        chosen = order[begin : begin + window]
        found.append(entry.run(samples.tokens.select(chosen), chosen, way))
    return found


def waits(window: int, rate: float, services: Sequence[float]) -> dict[str, Any]:
    """What a window adds at an arrival rate, seconds; quantiles of the whole latency only where the server keeps up."""
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


def shown_by_default(session: Session) -> list[str]:
    """The reference, and methods that predict exits and sort by them."""
    profile = session.settings.profile

    def sorts(name: str) -> bool:
        known = {"ladder", "exact-k", "assigned", "verified"}
        return profile.method_of(name).kind == "method" and getattr(session.fitted(name), "executor", "own") in known

    return [name for name in profile.methods if name == profile.reference or sorts(name)] or profile.methods


class Study:
    """One run of this suite."""

    def __init__(self, settings: Settings, args: Any, kept: ResumeFile, bar: Any) -> None:
        self.settings, self.args, self.kept, self.bar = settings, args, kept, bar
        self.rows: list[dict[str, Any]] = []

    def execute(self) -> None:
        """Everything that is missing."""
        profile = self.settings.profile
        for dataset, seed in itertools.product(profile.datasets, profile.seeds):
            part = f"{dataset}/seed{seed}"
            if part not in self.kept:
                self.kept.keep(part, self._measure(dataset, seed), instead_of=f"{part}/")
            # Waits follow from what was measured: other rates need no new passes.
            self.rows += [
                {**row, "waits": [waits(row["window"], rate, row["service_seconds"]) for rate in self.args.rates]}
                for row in self.kept[part]
            ]
            self.bar.update()
            if self.bar.disable:
                print(f"done: {part}", file=sys.stderr, flush=True)

    def _measure(self, dataset: str, seed: int) -> list[dict[str, Any]]:
        self.bar.set_description(f"{dataset}: loading")
        session = Session(self.settings, dataset, seed)
        methods = self.args.methods or shown_by_default(session)
        samples = StudySamples(session, methods, self.args.speed, self.args.samples, self.args.fixed)
        sizes, notes = distinct(self.args.windows, len(samples))
        cells = list(itertools.product(samples.entries, sizes))
        # Compiled code and graphs are made when a shape first occurs: there, every window has to.
        some = len(samples) if self.settings.compute != "eager" else 0
        for entry, window in cells:
            calls(entry, samples, window, self.args.fixed, np.arange(some or window))
        for number_ in range(self.args.rounds):
            part = f"{dataset}/seed{seed}/round{number_}"
            if part in self.kept:
                continue
            order = samples_of(number_ + 1, len(samples), seed)  # never as in the file: neighbours may be alike there
            found: dict[str, Any] = {}
            for entry, window in cells if number_ % 2 == 0 else cells[::-1]:
                self.bar.set_description(f"{dataset} round {number_ + 1}: {entry.label} window {window}")
                done = calls(entry, samples, window, self.args.fixed, order)
                said = np.concatenate([one.predictions.logits.argmax(1) for one in done])
                expected = samples.probes[entry.label].labels[order[: len(said)]]
                found[f"{entry.label} | {window}"] = {
                    "seconds": [one.seconds for one in done],
                    "tokens": int(samples.tokens.lengths.cpu().numpy()[order[: len(said)]].sum()),
                    "differing": int((said != expected).sum()),
                }
            self.kept.keep(part, found)
        rounds = [self.kept[f"{dataset}/seed{seed}/round{n}"] for n in range(self.args.rounds)]
        return [self._row(dataset, seed, entry, window, len(samples), rounds, notes) for entry, window in cells]

    def _row(
        self,
        dataset: str,
        seed: int,
        entry: StudyMethod,
        window: int,
        count: int,
        rounds: Sequence[Any],
        notes: list[str],
    ) -> dict[str, Any]:
        mine = [found[f"{entry.label} | {window}"] for found in rounds]
        services = [value for one in mine for value in one["seconds"]]
        ran = sum(len(one["seconds"]) for one in mine) * window
        rates = [len(one["seconds"]) * window / sum(one["seconds"]) for one in mine]
        return {
            "dataset": dataset,
            "seed": seed,
            "source": self.settings.source,
            "synthetic": self.settings.source == "embedded",
            "label": entry.label,
            "method": entry.method,
            "kind": entry.kind,
            "window": window,
            "all": window == count,
            "samples": count,
            "batch_size": self.args.fixed,
            "samples_per_s": spread(rates),
            "tokens_per_s": sum(one["tokens"] for one in mine) / sum(services),
            "service_seconds": services,
            "service": spread(services),
            "labels_agree": 1 - sum(one["differing"] for one in mine) / ran,
            "notes": notes,
        }


def _waiting(out: Page, rows: Sequence[dict[str, Any]], named: str) -> None:
    """Collecting, which is the same for every method, then the whole latency of each."""
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


def page(rows: Sequence[dict[str, Any]], reference: str, dtype: str) -> Page:
    """All tables."""
    out = Page()
    word = "; all data synthetic" if all(row["synthetic"] for row in rows) else ""
    out.heading(f"Windows of arrival ({dtype}{word})", 1)
    for (dataset, seed), group in itertools.groupby(rows, key=lambda row: (row["dataset"], row["seed"])):
        mine = list(group)
        first = mine[0]
        named = f"{dataset}{synthetic(first)}" + (f", seed {seed}" if seed else "")
        sizes = list(dict.fromkeys(row["window"] for row in mine))
        titles = [f"all ({first['samples']:,})" if size == first["samples"] else f"{size:,}" for size in sizes]
        out.heading(f"{named}: samples/s by window, batches of {first['batch_size']}; over {reference} at that window")
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
            out.text("!: labels depend on the window (methods that deal exits out among the samples at hand do that)")
        _waiting(out, mine, named)
    out.text(
        "collecting: a sample waits for the rest of its window, (W - 1) / (2 rate) on average, (W - 1) / rate if it is the "
        "first; exact, for Poisson arrivals; no window is closed early",
        "latency: collecting, queueing behind the windows before, and service; simulated with the measured services",
        f"{CANNOT}: more arrives than is served, and the queue grows without end",
    )
    return out


@exit_codes("streaming", resumes=True)
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    own = suite_options("suites.studies.streaming", __doc__ or "")
    own.add_argument("--windows", type=wholes(0), default=list(WINDOWS), metavar="256,0", help="samples; 0 is all")
    own.add_argument("--rates", type=positives, default=list(RATES), metavar="10,100", help="arriving samples/s")
    own.add_argument("--fixed", type=whole(1), default=32, metavar="N", help="samples per batch; default 32")
    args, settings = read(own, arguments)
    profile = settings.profile
    options = {name: getattr(args, name) for name in ("windows", "fixed", "samples", "rounds", "speed")}
    kept = ResumeFile(args.out, "streaming", asked(settings, named=args.methods, **options), fresh=settings.fresh)
    with tqdm(total=len(profile.datasets) * len(profile.seeds), desc="streaming", disable=None) as bar:
        study = Study(settings, args, kept, bar)
        study.execute()
    kept.finish(rows=study.rows)
    shown = page(study.rows, profile.reference, settings.dtype)
    write_atomic(args.markdown, lambda place: place.write_text(shown.as_markdown, encoding="utf-8"))
    print(shown.for_terminal)
    print(f"\nrows: {args.out}, tables: {args.markdown}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
