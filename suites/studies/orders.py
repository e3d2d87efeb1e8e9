"""Is a gain due to early exit or to the order of the samples? Measure every method in every order, at its best batch size.

::

    python -m suites.studies.orders --profile quick --datasets lcqmc,ag_news

For each dataset and protocol (``modern``: packed; ``paper``: all samples padded to the profile's ``max_length``) a sweep finds
the batch size at which each method is fastest. All methods then run in all orders, first at one common batch size, then each
at its best:

arrival    as the samples come
length     longest first
predicted  deepest predicted exit first (GEEP's table at --speed); predicting and sorting are in the timed region
oracle     deepest true exit first: a method's own exits where it finds them layer by layer, and for the bound; for others those
           of the sequential rule on GEEP's weights. They are looked up beforehand and not timed: a bound, not a method
own        as methods that predict exits sort by themselves: all samples by (exit, length)

Code outside the method sorts its samples and puts the answers back; batches are cut from that order. In the first four orders,
methods that sort by exit (ladder, exact-k, verified) receive one batch at a time and sort within it. Rounds alternate (A B C,
C B A) over samples in a new random order each. One method is measured twice (A/A) to show the noise. Finished rounds are stored
in the --out file, from which a stopped run resumes.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from harness.cli.argument_types import OneLineParser, comma_separated, one_of, whole_number
from harness.contracts import Execution
from harness.core.errors import ConfigError
from harness.core.tokens import TokenSet
from harness.measure.passes import TimedPass
from harness.running.run_settings import Settings, validate_settings
from suites.studies.shared.order_tables import page
from suites.studies.shared.ordering import ORDERS, PREDICTING, SORTING, around, execution_for, pointless
from suites.studies.shared.study import Study, add_batch_sizes
from suites.studies.shared.study_methods import PREDICTOR, StudyMethod, StudySamples, with_protocol
from suites.studies.shared.study_page import Page
from suites.studies.shared.sweep import Pass, samples_of, spread, take_turns, warm_up

AGAIN = "again"  # the second of the A/A pair
REGIMES = ("fixed", "best")


def timed_in_order(order: str, entry: StudyMethod, samples: StudySamples, execution: Execution) -> Pass:
    """Return a function that makes one timed pass of ``entry`` in this order."""
    way = execution_for(order, execution, samples.probes[entry.label].sorts)
    exits = samples.foreseen(entry)[0] if order == "oracle" else None

    def run(tokens: TokenSet, numbers: np.ndarray) -> TimedPass:
        sorter = around(order, entry, samples, None if exits is None else exits[numbers])
        return entry.run(tokens, numbers, way, sorter)

    return run


def facts_of(done: TimedPass, numbers: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Return what is stored of a pass: times, work, and the samples whose label is not the one in ``labels``."""
    found = done.predictions
    phases = found.phases
    return {
        "seconds": done.seconds,
        "predicting": phases.get(PREDICTING, 0.0),
        "sorting": phases.get(SORTING, 0.0),
        "layers": found.work.rows("layer") / len(numbers),
        "valid": found.work.valid_token_ratio(),
        "differ": sorted(int(i) for i in numbers[found.logits.argmax(1) != labels[numbers]]),
    }


class OrderStudy(Study):
    """Every method in every order, per dataset, seed and protocol."""

    name = "orders"
    options = ("predictor", "batch_sizes", "fixed", "protocols", "samples", "rounds", "speed")

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.sweeps: list[dict[str, Any]] = []
        self._samples: tuple[tuple[str, int], StudySamples] | None = None

    @classmethod
    def add_options(cls, parser: OneLineParser) -> None:
        count, protocols = whole_number(1), ["modern", "paper"]
        add_batch_sizes(parser)
        parser.add_argument("--fixed", type=count, default=32, metavar="N", help="common batch size; default 32")
        parser.add_argument(
            "--protocols", type=comma_separated(one_of(*protocols)), default=protocols, metavar="modern,paper"
        )
        parser.set_defaults(predictor=PREDICTOR)

    @classmethod
    def check(cls, settings: Settings, args: argparse.Namespace) -> None:
        super().check(settings, args)
        for protocol in args.protocols:
            validate_settings(with_protocol(settings, protocol))
        if max([*args.batch_sizes, args.fixed]) == 1:
            raise ConfigError("batches of one have no order: name a size above 1 with --batch-sizes or --fixed")

    @classmethod
    def steps(cls, settings: Settings, args: argparse.Namespace) -> int:
        return super().steps(settings, args) * len(args.protocols) * (1 + len(REGIMES) * args.rounds)

    def execute(self) -> None:
        profile = self.settings.profile
        for dataset, seed, protocol in itertools.product(profile.datasets, profile.seeds, self.args.protocols):
            best = self._best(dataset, seed, protocol)
            for regime in REGIMES:
                self.rows += self._block(dataset, seed, protocol, regime, best)

    def results(self) -> dict[str, Any]:
        return {"sweeps": self.sweeps, "rows": self.rows}

    def page(self) -> Page:
        return page(self.rows, self.sweeps, self.settings.profile.reference, self.settings.dtype)

    def exit_code(self) -> int:
        wrong = disagreeing(self.rows, self.settings.dtype)
        for row in wrong:
            print(
                f"orders: {row['dataset']} {row['protocol']} batch {row['batch_size']} {row['label']} {row['order']}: "
                f"{1 - row['labels_agree']:.2%} of the labels depend on the order",
                file=sys.stderr,
            )
        return 1 if wrong else 0

    def _loaded(self, dataset: str, seed: int) -> StudySamples:
        """Return the samples of one dataset; the last ones stay in memory."""
        if self._samples is None or self._samples[0] != (dataset, seed):
            found = self.samples(dataset, seed, self.settings.profile.methods, self.args.fixed)
            if min([*self.args.batch_sizes, self.args.fixed]) >= len(found):
                raise ConfigError(
                    f"{dataset}: its {len(found)} samples fit into one batch, which no order changes: give smaller sizes "
                    "with --batch-sizes and --fixed"
                )
            self._samples = ((dataset, seed), found)
        return self._samples[1]

    def _best(self, dataset: str, seed: int, protocol: str) -> dict[str, int]:
        """Return the best batch size of every entry, by its label."""
        where = f"{dataset}/seed{seed}/{protocol}"
        if f"{where}/sweeps" not in self.stored:
            execution = with_protocol(self.settings, protocol).execution
            found = self.sweep(where, self._loaded(dataset, seed), execution, seed)
            self.stored.store(f"{where}/sweeps", found, instead_of=f"{where}/sweep/")
        found = self.stored[f"{where}/sweeps"]
        common = {"dataset": dataset, "seed": seed, "protocol": protocol, "source": self.settings.source}
        self.sweeps += [{**common, **done} for done in found]
        self.advance(f"{where} sweeps")
        return {done["label"]: done["best"] for done in found}

    def _block(self, dataset: str, seed: int, protocol: str, regime: str, best: dict[str, int]) -> list[dict[str, Any]]:
        """Return the rows of one dataset, protocol and choice of batch sizes, from rounds over all methods and orders."""
        where = f"{dataset}/seed{seed}/{protocol}/{regime}"
        if f"{where}/rows" in self.stored:
            self.advance(where, self.args.rounds)
            return list(self.stored[f"{where}/rows"])
        samples = self._loaded(dataset, seed)
        base = with_protocol(self.settings, protocol).execution
        cells: dict[str, Pass] = {}
        heads: dict[str, dict[str, Any]] = {}
        for entry in samples.entries:
            size = self.args.fixed if regime == "fixed" else best[entry.label]
            way = replace(base, batch_size=size)
            for order in ORDERS:
                name = f"{entry.label} | {order}"
                why = pointless(order, entry, samples, way)
                heads[name] = {
                    "label": entry.label,
                    "method": entry.method,
                    "point": entry.point.name,
                    "executor": entry.executor,
                    "kind": "bound" if order == "oracle" else entry.kind,
                    "order": order,
                    "batch_size": size,
                    "skipped": why,
                    "exits_from": samples.foreseen(entry)[1] if order == "oracle" else None,
                    "accuracy": float((samples.probes[entry.label].labels == samples.labels).mean()),
                }
                if why is None:
                    cells[name] = timed_in_order(order, entry, samples, way)
        reference = next((e.label for e in samples.entries if e.method == self.settings.profile.reference), None)
        twin = reference or samples.entries[0].label  # measured twice
        cells[f"{twin} | {AGAIN}"] = cells[f"{twin} | arrival"]
        rounds = self._rounds(where, cells, samples, seed, base)
        common = {
            **self.facts(dataset, seed),
            "protocol": protocol,
            "pad_to": base.max_length if protocol == "paper" else None,
            "regime": regime,
            "samples": len(samples),
            "tokens": len(samples.tokens.ids),
        }
        rows = rows_of(heads, rounds, common, twin, reference)
        self.stored.store(f"{where}/rows", rows, instead_of=f"{where}/round/")
        return rows

    def _rounds(
        self, where: str, cells: dict[str, Pass], samples: StudySamples, seed: int, execution: Execution
    ) -> list[dict[str, Any]]:
        """Return the facts of every round, by cell; rounds that are not stored are measured."""
        tell = self.describe(where)
        missing = [n for n in range(self.args.rounds) if f"{where}/round/{n}" not in self.stored]
        for name, run in cells.items() if missing else ():
            tell(f"warm-up {name}")
            warm_up(run, samples.tokens, execution)
        for number in missing:
            numbers = samples_of(number, len(samples), seed)
            found = {
                name: facts_of(done, numbers, samples.probes[name.rpartition(" | ")[0]].labels)
                for name, done in take_turns(cells, samples.tokens, number, seed, tell).items()
            }
            self.stored.store(f"{where}/round/{number}", found)
            self.advance(f"{where} round {number + 1}")
        if len(missing) < self.args.rounds:
            self.advance(f"{where} stored", self.args.rounds - len(missing))
        return [self.stored[f"{where}/round/{number}"] for number in range(self.args.rounds)]


def rows_of(
    heads: dict[str, dict[str, Any]],
    rounds: Sequence[dict[str, Any]],
    common: dict[str, Any],
    twin: str,
    reference: str | None,
) -> list[dict[str, Any]]:
    """Return the rows of a block: medians with p10 and p90, and ratios computed round by round.

    ``over_arrival``: the method's seconds in arrival order / its seconds. ``over_reference``: seconds of the reference in the
    same order (for ``own``: by length) / its seconds, so that no order is credited to the method. ``noise``, a factor: how
    far the A/A pair's ratios lie from 1 or, if larger, the median over cells of how much their ratio to arrival varies from
    round to round (a passing load may miss the pair).
    """

    def times(name: str) -> np.ndarray:
        return np.array([found[name]["seconds"] for found in rounds])

    pair = times(f"{twin} | {AGAIN}") / times(f"{twin} | arrival")
    ratios = [
        times(f"{head['label']} | arrival") / times(name)
        for name, head in heads.items()
        if head["skipped"] is None and head["order"] != "arrival"
    ]
    wobble = float(np.median([ratio.max() / ratio.min() for ratio in ratios])) if ratios else 1.0
    noise = max(float(np.exp(np.abs(np.log(pair)).max())), wobble)
    rows = []
    for name, head in heads.items():
        row = {**common, **head, "noise": noise, "wobble": wobble, "again": spread(pair)}
        if head["skipped"] is None:
            own = times(name)
            mine = [found[name] for found in rounds]
            row["seconds"] = spread(own)
            row["round_seconds"] = own.tolist()
            row["samples_per_s"] = common["samples"] / row["seconds"]["median"]
            row["tokens_per_s"] = common["tokens"] / row["seconds"]["median"]
            row["over_arrival"] = spread(times(f"{head['label']} | arrival") / own)
            row["predicting_share"] = float(np.median([one["predicting"] / one["seconds"] for one in mine]))
            row["sorting_share"] = float(np.median([one["sorting"] / one["seconds"] for one in mine]))
            row["mean_layers"] = mine[0]["layers"]
            row["valid_token_ratio"] = mine[0]["valid"]
            differ = {sample for one in mine for sample in one["differ"]}
            row["labels_agree"] = 1 - len(differ) / common["samples"]
            if reference is not None:
                same = "length" if head["order"] == "own" else head["order"]
                # If no order changes the reference's work, its arrival order is the measurement for all.
                there = same if heads[f"{reference} | {same}"]["skipped"] is None else "arrival"
                row["over_reference"] = spread(times(f"{reference} | {there}") / own)
        rows.append(row)
    return rows


def disagreeing(rows: Sequence[dict[str, Any]], dtype: str) -> list[dict[str, Any]]:
    """Return rows whose labels change with the order more than rounding in ``dtype`` explains."""
    least = 1.0 if dtype == "float32" else 0.99
    return [row for row in rows if row["skipped"] is None and row["labels_agree"] < least]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return OrderStudy.main(__doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
