"""Measure the latency of single calls: p50, p90 and p99 at batch 1 and at each method's best batch size.

::

    python -m suites.studies.latency --profile quick --datasets ag_news

A call is one batch, from ids on the device to logits on the host. Methods alternate in turns of ten calls (A B C, C B A) on the
same samples in random order. One uncounted call precedes each turn, so that the method's weights are in the caches, as in a
server. --calls are measured per method and batch size (400: fewer than 368 give p99 no upper limit), unless the budget of
--seconds ends first; the table shows the number reached as n. No call is left out, because a p99 is about outliers. Quantiles
have a 95 % interval by order statistics, which assumes independent calls and nothing else. The best batch size is found as in
suites.studies.orders.
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

from harness.cli.argument_types import OneLineParser, positive_number, whole_number
from harness.contracts import Execution
from harness.core.tokens import TokenSet
from harness.measure.passes import TimedPass
from suites.studies.shared.study import DatasetStudy, add_batch_sizes
from suites.studies.shared.study_methods import StudyMethod
from suites.studies.shared.study_page import Page, dataset_title, number, scale, seconds
from suites.studies.shared.sweep import Pass, samples_of

QUANTILES = (0.5, 0.9, 0.99)
TURN = 10  # calls of one method before the next method
LEAST = 2 * TURN  # calls, even beyond the budget


def quantile_interval(values: Sequence[float], share: float, level: float = 0.95) -> tuple[float | None, float | None]:
    """Return a distribution-free interval that covers the true quantile with at least ``level``.

    Its ends are order statistics: the number of values below the quantile is Binomial(n, share). An end beyond the values
    is ``None``. Source: David and Nagaraja, Order Statistics (2003), section 7.1.

    Args:
        values: independent, at least one.
        share: the quantile, 0..1.
    """
    ranked, count = np.sort(values), len(values)
    tail = (1 - level) / 2
    low, high = int(binom.ppf(tail, count, share)), int(binom.ppf(1 - tail, count, share)) + 1
    return (float(ranked[low - 1]) if low >= 1 else None, float(ranked[high - 1]) if high <= count else None)


def summary(times: Sequence[float], samples: int, tokens: int) -> dict[str, Any]:
    """Return quantiles of calls with their intervals, and throughput.

    Args:
        times: seconds of every call.
        samples: number of samples in all calls together.
        tokens: number of tokens in these samples.
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
    """Time single calls in turns until every method has ``wanted`` calls, or the common budget is used up.

    Args:
        runs: by name: a function that makes one call on the given samples.
        sizes: by name: samples per call.
        budget: seconds per method.
        rehearse: run all samples once before, uncounted: code is compiled and graphs are captured at a shape's first use.

    Returns:
        By name: ``seconds`` of every call, and ``samples`` and ``tokens`` of all calls.
    """
    found: dict[str, dict[str, Any]] = {name: {"seconds": [], "samples": 0, "tokens": 0} for name in runs}
    lengths = tokens.lengths.cpu().numpy()

    def call(name: str, number_: int) -> tuple[float, np.ndarray]:
        """Take the next samples; each time all samples were used, their order changes."""
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
            call(name, last)  # uncounted: it brings the weights into the caches
            for number_ in range(first, last):
                seconds_, chosen = call(name, number_)
                found[name]["seconds"].append(seconds_)
                found[name]["samples"] += len(chosen)
                found[name]["tokens"] += int(lengths[chosen].sum())
                spent += seconds_
        if tell is not None:
            tell(last)
    return found


class LatencyStudy(DatasetStudy):
    """Single calls of every method, at batch 1 and at its best batch size."""

    name = "latency"
    options = ("batch_sizes", "calls", "seconds", "samples", "rounds", "speed")

    @classmethod
    def add_options(cls, parser: OneLineParser) -> None:
        count = whole_number(1)
        add_batch_sizes(parser)
        parser.add_argument("--calls", type=count, default=400, metavar="N", help="calls per method; default 400")
        parser.add_argument(
            "--seconds", type=positive_number, default=30.0, metavar="S", help="seconds per method; default 30"
        )

    def measure(self, dataset: str, seed: int) -> list[dict[str, Any]]:
        samples = self.samples(dataset, seed, self.settings.profile.methods, 32)
        base = replace(self.settings.execution, order="length", window=0)
        best = {one["label"]: one["best"] for one in self.sweep(f"{dataset}/seed{seed}", samples, base, seed)}
        rows = []
        for regime, sizes in (("batch 1", dict.fromkeys(best, 1)), ("best", best)):
            part = f"{dataset}/seed{seed}/{regime}"
            if part not in self.stored:
                tell = self.describe(f"{dataset} {regime}: calls")
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
                    tell=lambda done, tell=tell: tell(str(done)),  # type: ignore[misc]
                )
                self.stored.store(part, found)
            for entry in samples.entries:
                one = self.stored[part][entry.label]
                rows.append(
                    {
                        **self.facts(dataset, seed, entry),
                        "regime": regime,
                        "batch_size": sizes[entry.label],
                        **summary(one["seconds"], one["samples"], one["tokens"]),
                        "seconds": one["seconds"],
                    }
                )
        return rows

    def page(self) -> Page:
        out = Page("Latency of single calls", self.rows, self.settings.dtype)
        for (_, _, regime), group in itertools.groupby(
            self.rows, key=lambda row: (row["dataset"], row["seed"], row["regime"])
        ):
            mine = list(group)
            calls = "one sample a call" if regime == "batch 1" else "each at its best batch size"
            out.heading(f"{dataset_title(mine[0])}: {calls}")
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
            "n: number of calls, none left out; the time of a bound excludes its look-ahead",
        )
        return out


def _call(entry: StudyMethod, execution: Execution, tokens: TokenSet, numbers: np.ndarray) -> TimedPass:
    return entry.run(tokens, numbers, execution)


def _with_interval(row: Mapping[str, Any], name: str) -> str:
    """``2.05 (1.90–2.20) ms``."""
    unit, factor = scale(row[name])
    low, high = (
        number(row[f"{name}_{end}"] * factor) if row[f"{name}_{end}"] is not None else "?" for end in ("low", "high")
    )
    return f"{number(row[name] * factor)} ({low}–{high}) {unit}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return LatencyStudy.main(__doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
