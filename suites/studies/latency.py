"""How long one call takes: p50, p90 and p99 at batch 1 and at each method's best batch size, samples/s and tokens/s.

::

    python -m suites.studies.latency --profile quick --datasets ag_news

takes the options of ``geep-bench run`` beside its own. A call is one batch, from ids on the device to logits on the host.
Methods take turns, ten calls each (A B C, C B A), on the same samples, which come in random order; a call before the ten is
not counted, so that everybody finds its own weights in the caches, as a server does. --calls are wanted (400:
fewer than 368 give p99 no upper limit), within --seconds for each method and batch size; what was reached is shown as n.
Nothing is left out: outliers are what a p99 is about. Quantiles bear a 95 % interval by order statistics, which assumes
nothing of the distribution, but that calls do not depend on each other. The best batch size is found as in suites.studies.orders.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from scipy.stats import binom
from tqdm import tqdm

from harness.core.command_line import exit_codes
from harness.core.files import write_atomic
from harness.core.tokens import TokenSet
from harness.running.session import Session
from harness.running.settings import Settings
from suites.studies.shared.order_tables import synthetic
from suites.studies.shared.resume_file import ResumeFile
from suites.studies.shared.study import asked, positive, read, suite_options, whole, wholes
from suites.studies.shared.study_methods import StudySamples
from suites.studies.shared.study_page import Page, number, scale, seconds
from suites.studies.shared.sweep import SIZES, Pass, samples_of, sweep

QUANTILES = (0.5, 0.9, 0.99)
TURN = 10  # calls of one method before the next one's turn
LEAST = 2 * TURN  # calls, whatever the budget says


def quantile_interval(values: Sequence[float], share: float, level: float = 0.95) -> tuple[float | None, float | None]:
    """Interval that covers the true quantile with at least ``level``, whatever the distribution.

    Its ends are order statistics: the number of values below the quantile is Binomial(n, share). An end that would need
    more values than there are is ``None``. Source: David and Nagaraja, Order Statistics (2003), section 7.1.

    Args:
        values: independent, at least one.
        share: which quantile, in 0..1.
    """
    ranked, count = np.sort(values), len(values)
    tail = (1 - level) / 2
    low, high = int(binom.ppf(tail, count, share)), int(binom.ppf(1 - tail, count, share)) + 1
    return (float(ranked[low - 1]) if low >= 1 else None, float(ranked[high - 1]) if high <= count else None)


def summary(times: Sequence[float], samples: int, tokens: int) -> dict[str, Any]:
    """Quantiles of calls with their intervals, and throughput.

    Args:
        times: seconds of every call.
        samples: that all calls together answered.
        tokens: of these samples.
    """
    row: dict[str, Any] = {
        "n": len(times),
        "mean": float(np.mean(times)),
        "largest": float(np.max(times)),
        "samples_per_s": samples / float(np.sum(times)),
        "tokens_per_s": tokens / float(np.sum(times)),
    }
    for share in QUANTILES:
        name = f"p{round(100 * share)}"
        low, high = quantile_interval(times, share)
        row |= {name: float(np.quantile(times, share)), f"{name}_low": low, f"{name}_high": high}
    return row


def take_calls(
    runs: Mapping[str, Pass],
    sizes: Mapping[str, int],
    tokens: TokenSet,
    wanted: int,
    budget: float,
    seed: int,
    *,
    rehearse: bool = False,
    tell: Callable[[int], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Time single calls, all methods in turns, until everybody has ``wanted`` or they have used up the budget together.

    Args:
        runs: one call on the samples given, by name.
        sizes: samples per call, by name.
        budget: seconds per method.
        rehearse: first go through all samples once, uncounted: compiled code and graphs are made when a shape first occurs.

    Returns:
        By name: ``seconds`` of every call, ``samples`` and ``tokens`` of all.
    """
    found: dict[str, dict[str, Any]] = {name: {"seconds": [], "samples": 0, "tokens": 0} for name in runs}
    lengths = tokens.lengths.cpu().numpy()

    def call(name: str, number_: int) -> tuple[float, np.ndarray]:
        """Calls go through the samples, in another order each time that they have been through."""
        size = min(sizes[name], len(tokens))
        through, place = divmod(number_, len(tokens) // size)
        chosen = samples_of(1 + through, len(tokens), seed)[place * size : (place + 1) * size]
        return runs[name](tokens.select(chosen), chosen).seconds, chosen

    for name in runs if rehearse else ():
        for number_ in range(len(tokens) // min(sizes[name], len(tokens))):
            call(name, number_)
    spent = 0.0
    for turn, first in enumerate(range(0, wanted, TURN)):
        if first >= LEAST and spent >= budget * len(runs):
            break
        last = min(first + TURN, wanted)
        for name in list(runs) if turn % 2 == 0 else list(runs)[::-1]:
            call(name, last)  # not counted: the next one's sample, for its weights
            for number_ in range(first, last):
                seconds_, chosen = call(name, number_)
                found[name]["seconds"].append(seconds_)
                found[name]["samples"] += len(chosen)
                found[name]["tokens"] += int(lengths[chosen].sum())
                spent += seconds_
        if tell is not None:
            tell(last)
    return found


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
            self.rows += self.kept[part]
            self.bar.update()
            if self.bar.disable:
                print(f"done: {part}", file=sys.stderr, flush=True)

    def _measure(self, dataset: str, seed: int) -> list[dict[str, Any]]:
        self.bar.set_description(f"{dataset}: loading")
        session = Session(self.settings, dataset, seed)
        samples = StudySamples(session, self.settings.profile.methods, self.args.speed, self.args.samples, 32)
        base = replace(self.settings.execution, order="length", window=0)
        best = {}
        for entry in samples.entries:
            part = f"{dataset}/seed{seed}/sweep/{entry.label}"
            self.bar.set_description(f"{dataset} sweep {entry.label}")
            if part not in self.kept:
                args = self.args
                self.kept.keep(
                    part,
                    sweep(entry, samples.tokens, base, args.batch_sizes, args.rounds, seed, self.bar.set_postfix_str),
                )
            best[entry.label] = self.kept[part]["best"]
        rows = []
        for regime, sizes in (("batch 1", dict.fromkeys(best, 1)), ("best", best)):
            part = f"{dataset}/seed{seed}/{regime}"
            if part not in self.kept:
                self.bar.set_description(f"{dataset} {regime}: calls")
                runs: dict[str, Pass] = {
                    entry.label: partial(_call, entry, replace(base, batch_size=sizes[entry.label]))
                    for entry in samples.entries
                }
                found = take_calls(
                    runs,
                    sizes,
                    samples.tokens,
                    self.args.calls,
                    self.args.seconds,
                    seed,
                    rehearse=base.compute != "eager",
                    tell=lambda done: self.bar.set_postfix_str(str(done)),
                )
                self.kept.keep(part, found)
            for entry in samples.entries:
                one = self.kept[part][entry.label]
                rows.append(
                    {
                        "dataset": dataset,
                        "seed": seed,
                        "source": self.settings.source,
                        "synthetic": self.settings.source == "embedded",
                        "label": entry.label,
                        "method": entry.method,
                        "kind": entry.kind,
                        "regime": regime,
                        "batch_size": sizes[entry.label],
                        **summary(one["seconds"], one["samples"], one["tokens"]),
                        "seconds": one["seconds"],
                    }
                )
        return rows


def _call(entry: Any, execution: Any, tokens: TokenSet, numbers: np.ndarray) -> Any:
    return entry.run(tokens, numbers, execution)


def _with_interval(row: Mapping[str, Any], name: str) -> str:
    """``2.05 (1.90–2.20) ms``."""
    unit, factor = scale(row[name])
    low, high = (
        number(row[f"{name}_{end}"] * factor) if row[f"{name}_{end}"] is not None else "?" for end in ("low", "high")
    )
    return f"{number(row[name] * factor)} ({low}–{high}) {unit}"


def page(rows: Sequence[Mapping[str, Any]], dtype: str) -> Page:
    """All tables."""
    out = Page()
    word = "; all data synthetic" if all(row["synthetic"] for row in rows) else ""
    out.heading(f"Latency of single calls ({dtype}{word})", 1)
    for (dataset, seed, regime), group in itertools.groupby(
        rows, key=lambda row: (row["dataset"], row["seed"], row["regime"])
    ):
        mine = list(group)
        named = f"{dataset}{synthetic(mine[0])}" + (f", seed {seed}" if seed else "")
        out.heading(f"{named}: {'one sample a call' if regime == 'batch 1' else 'each at its best batch size'}")
        heads = ["method", "batch", "n", "p50", "p90", "p99", "largest", "samples/s", "tokens/s"]
        body = [
            [
                row["label"] + (" (bound)" if row["kind"] == "bound" else ""),
                str(row["batch_size"]),
                str(row["n"]),
                *(_with_interval(row, f"p{round(100 * share)}") for share in QUANTILES),
                seconds(row["largest"]),
                number(row["samples_per_s"]),
                number(row["tokens_per_s"]),
            ]
            for row in mine
        ]
        out.table(heads, body)
    out.text(
        "in brackets: 95 % interval of the quantile by order statistics; ?: too few calls for a limit",
        "n: calls; none is left out; a bound's look ahead is not in its time",
    )
    return out


@exit_codes("latency", resumes=True)
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    own = suite_options("suites.studies.latency", __doc__ or "")
    own.add_argument("--batch-sizes", type=wholes(1), default=list(SIZES), metavar="1,2,4", help="sizes of the sweep")
    own.add_argument("--calls", type=whole(1), default=400, metavar="N", help="calls per method; default 400")
    own.add_argument("--seconds", type=positive, default=30.0, metavar="S", help="budget per method; default 30")
    args, settings = read(own, arguments)
    profile = settings.profile
    options = {name: getattr(args, name) for name in ("batch_sizes", "calls", "seconds", "samples", "rounds", "speed")}
    kept = ResumeFile(args.out, "latency", asked(settings, **options), fresh=settings.fresh)
    with tqdm(total=len(profile.datasets) * len(profile.seeds), desc="latency", disable=None) as bar:
        study = Study(settings, args, kept, bar)
        study.execute()
    kept.finish(rows=study.rows)
    shown = page(study.rows, settings.dtype)
    write_atomic(args.markdown, lambda place: place.write_text(shown.as_markdown, encoding="utf-8"))
    print(shown.for_terminal)
    print(f"\nrows: {args.out}, tables: {args.markdown}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
