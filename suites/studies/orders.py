"""Does early exit make it fast, or the order of the samples? Every order with every method, each at its best batch size.

::

    python -m suites.studies.orders --profile quick --datasets lcqmc,ag_news

takes the options of ``geep-bench run`` beside its own. For each dataset and protocol (``modern``: packed; ``paper``: all
padded to the profile's ``max_length``) a sweep finds the batch size at which each method is fastest; then all methods run
in all orders, first at one batch size for everybody, then at each one's best:

arrival    as the samples come
length     longest first
predicted  deepest predicted exit first (GEEP's table at --speed); predicting and sorting are in the timed region
oracle     deepest true exit first: for methods that find exits on the way, and the bound, their own; for the others those
           of the sequential rule on GEEP's weights. Looked up beforehand and not timed: no method, a bound
own        as methods that predict exits sort by themselves: all samples by (exit, length)

Code that knows nothing of a method puts its samples into the order, and the answers back; batches are then cut from that.
Under the first four orders, methods that sort by exit (ladder, exact-k, verified) get one batch at a time and sort within
it. Rounds take turns (A B C, C B A) over samples in another order each; one method is measured twice (A/A) to show what
is noise. Finished rounds are kept in the --out file: stopped and started again, it goes on.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from tqdm import tqdm

from harness.contracts import Execution
from harness.core.command_line import exit_codes
from harness.core.errors import ConfigError
from harness.core.files import write_atomic
from harness.core.tokens import TokenSet
from harness.measure.passes import TimedPass
from harness.running.session import Session
from harness.running.settings import Settings, validate_settings
from suites.studies.shared.order_tables import page
from suites.studies.shared.ordering import ORDERS, PREDICTING, SORTING, around, execution_for, pointless
from suites.studies.shared.resume_file import ResumeFile
from suites.studies.shared.study import asked, choices, read, suite_options, whole, wholes
from suites.studies.shared.study_methods import PREDICTOR, StudyMethod, StudySamples, with_protocol
from suites.studies.shared.sweep import SIZES, Pass, samples_of, spread, sweep, take_turns, warm_up

AGAIN = "again"  # the second of the A/A pair
REGIMES = ("fixed", "best")


def timed_in_order(order: str, entry: StudyMethod, samples: StudySamples, execution: Execution) -> Pass:
    """Passes of one cell of the factorial."""
    way = execution_for(order, execution, samples.probes[entry.label].sorts)
    exits = samples.foreseen(entry)[0] if order == "oracle" else None

    def run(tokens: TokenSet, numbers: np.ndarray) -> TimedPass:
        sorter = around(order, entry, samples, None if exits is None else exits[numbers])
        return entry.run(tokens, numbers, way, sorter)

    return run


def facts_of(done: TimedPass, numbers: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """What is kept of a pass: time, what ordering took of it, work, and samples whose label is not the one in ``labels``."""
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


class Study:
    """One run of this suite.

    Attributes:
        rows: results so far.
    """

    def __init__(self, settings: Settings, args: Any, kept: ResumeFile, bar: Any) -> None:
        self.settings, self.args, self.kept, self.bar = settings, args, kept, bar
        self.rows: list[dict[str, Any]] = []
        self.sweeps: list[dict[str, Any]] = []
        self._samples: tuple[tuple[str, int], StudySamples] | None = None
        self._steps = 0

    def execute(self) -> None:
        """Everything that is missing."""
        profile = self.settings.profile
        for dataset, seed, protocol in itertools.product(profile.datasets, profile.seeds, self.args.protocols):
            best = self._best(dataset, seed, protocol)
            for regime in REGIMES:
                self.rows += self._block(dataset, seed, protocol, regime, best)

    def samples(self, dataset: str, seed: int) -> StudySamples:
        if self._samples is None or self._samples[0] != (dataset, seed):
            self.bar.set_description(f"{dataset}: loading")
            session = Session(self.settings, dataset, seed)
            found = StudySamples(
                session, self.settings.profile.methods, self.args.speed, self.args.samples, self.args.fixed
            )
            if min([*self.args.batch_sizes, self.args.fixed]) >= len(found):
                raise ConfigError(
                    f"{dataset}: its {len(found)} samples fit into one batch, which no order changes: name smaller sizes "
                    "with --batch-sizes and --fixed"
                )
            self._samples = ((dataset, seed), found)
        return self._samples[1]

    def execution(self, protocol: str) -> Execution:
        return with_protocol(self.settings, protocol).execution

    def _done(self, what: str, steps: int = 1) -> None:
        self.bar.update(steps)
        self._steps += steps
        if self.bar.disable:  # not a terminal: a line now and then instead of a bar
            print(f"[{self._steps}/{self.bar.total}] {what}", file=sys.stderr, flush=True)

    def _tell(self, what: str) -> Callable[[str], None]:
        self.bar.set_description(what)
        return self.bar.set_postfix_str

    def _best(self, dataset: str, seed: int, protocol: str) -> dict[str, int]:
        """Best batch size of every entry, by its label."""
        where = f"{dataset}/seed{seed}/{protocol}"
        if f"{where}/sweeps" not in self.kept:
            samples = self.samples(dataset, seed)
            found = []
            for entry in samples.entries:
                part = f"{where}/sweep/{entry.label}"
                if part not in self.kept:
                    tell = self._tell(f"{dataset} {protocol} sweep {entry.label}")
                    way = self.execution(protocol)
                    done = sweep(entry, samples.tokens, way, self.args.batch_sizes, self.args.rounds, seed, tell)
                    self.kept.keep(part, done)
                found.append({"label": entry.label, **self.kept[part]})
            self.kept.keep(f"{where}/sweeps", found, instead_of=f"{where}/sweep/")
        found = self.kept[f"{where}/sweeps"]
        common = {"dataset": dataset, "seed": seed, "protocol": protocol, "source": self.settings.source}
        self.sweeps += [{**common, **done} for done in found]
        self._done(f"{where} sweeps")
        return {done["label"]: done["best"] for done in found}

    def _block(self, dataset: str, seed: int, protocol: str, regime: str, best: dict[str, int]) -> list[dict[str, Any]]:
        """Rows of one dataset, protocol and choice of batch sizes: rounds over all methods and orders."""
        where = f"{dataset}/seed{seed}/{protocol}/{regime}"
        if f"{where}/rows" in self.kept:
            self._done(where, self.args.rounds)
            return list(self.kept[f"{where}/rows"])
        samples = self.samples(dataset, seed)
        base = self.execution(protocol)
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
        again = self._twin(samples)
        cells[f"{again.label} | {AGAIN}"] = cells[f"{again.label} | arrival"]
        kept = self._rounds(where, cells, samples, seed, base)
        common = {
            "dataset": dataset,
            "seed": seed,
            "source": self.settings.source,
            "synthetic": self.settings.source == "embedded",
            "protocol": protocol,
            "pad_to": base.max_length if protocol == "paper" else None,
            "regime": regime,
            "samples": len(samples),
            "tokens": len(samples.tokens.ids),
        }
        rows = rows_of(heads, kept, common, again.label, self._reference(samples))
        self.kept.keep(f"{where}/rows", rows, instead_of=f"{where}/round/")
        return rows

    def _reference(self, samples: StudySamples) -> str | None:
        name = self.settings.profile.reference
        return next((entry.label for entry in samples.entries if entry.method == name), None)

    def _twin(self, samples: StudySamples) -> StudyMethod:
        """Who is measured twice: the reference, or whoever is first."""
        label = self._reference(samples)
        return next((entry for entry in samples.entries if entry.label == label), samples.entries[0])

    def _rounds(
        self, where: str, cells: dict[str, Pass], samples: StudySamples, seed: int, execution: Execution
    ) -> list[dict[str, Any]]:
        """What is kept of every round: by cell. Missing ones are measured."""
        tell = self._tell(where)
        missing = [n for n in range(self.args.rounds) if f"{where}/round/{n}" not in self.kept]
        if missing:
            for name, run in cells.items():
                tell(f"warm-up {name}")
                warm_up(run, samples.tokens, execution)
        for number in missing:
            numbers = samples_of(number, len(samples), seed)
            found = take_turns(cells, samples.tokens, number, seed, tell)
            self.kept.keep(
                f"{where}/round/{number}",
                {
                    name: facts_of(done, numbers, samples.probes[name.rpartition(" | ")[0]].labels)
                    for name, done in found.items()
                },
            )
            self._done(f"{where} round {number + 1}")
        if len(missing) < self.args.rounds:
            self._done(f"{where} kept", self.args.rounds - len(missing))
        return [self.kept[f"{where}/round/{number}"] for number in range(self.args.rounds)]


def rows_of(
    heads: dict[str, dict[str, Any]],
    rounds: Sequence[dict[str, Any]],
    common: dict[str, Any],
    twin: str,
    reference: str | None,
) -> list[dict[str, Any]]:
    """Rows of a block: medians with p10 and p90, ratios round by round.

    ``over_arrival``: the method's own arrival seconds / its seconds. ``over_reference``: seconds of the reference in the
    same order / its seconds (length, for ``own``), so that no order is credited to it. ``noise``, a factor: how far the
    A/A pair's ratios lie from 1 or, if that is more, by what most cells' ratios to arrival differ from round to round
    (their median; a load that comes and goes may spare the pair).
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
                # Where no order changes the reference's work, its one measurement stands for all.
                there = same if heads[f"{reference} | {same}"]["skipped"] is None else "arrival"
                row["over_reference"] = spread(times(f"{reference} | {there}") / own)
        rows.append(row)
    return rows


def disagreeing(rows: Sequence[dict[str, Any]], dtype: str) -> list[dict[str, Any]]:
    """Rows whose labels change with the order by more than rounding in ``dtype`` may do."""
    least = 1.0 if dtype == "float32" else 0.99
    return [row for row in rows if row["skipped"] is None and row["labels_agree"] < least]


@exit_codes("orders", resumes=True)
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    own = suite_options("suites.studies.orders", __doc__ or "")
    own.add_argument("--batch-sizes", type=wholes(1), default=list(SIZES), metavar="1,2,4", help="sizes of the sweep")
    own.add_argument("--fixed", type=whole(1), default=32, metavar="N", help="the one size for everybody; default 32")
    own.add_argument(
        "--protocols", type=choices("modern", "paper"), default=["modern", "paper"], metavar="modern,paper"
    )
    args, settings = read(own, arguments)
    for protocol in args.protocols:
        validate_settings(with_protocol(settings, protocol))
    if max([*args.batch_sizes, args.fixed]) == 1:
        raise ConfigError("batches of one have no order: name a size above 1 with --batch-sizes or --fixed")
    profile = settings.profile
    options = {
        name: getattr(args, name) for name in ("batch_sizes", "fixed", "protocols", "samples", "rounds", "speed")
    }
    kept = ResumeFile(args.out, "orders", asked(settings, predictor=PREDICTOR, **options), fresh=settings.fresh)
    jobs = len(profile.datasets) * len(profile.seeds) * len(args.protocols)
    with tqdm(total=jobs * (1 + len(REGIMES) * args.rounds), desc="orders", disable=None) as bar:
        study = Study(settings, args, kept, bar)
        study.execute()
    kept.finish(sweeps=study.sweeps, rows=study.rows)
    shown = page(study.rows, study.sweeps, profile.reference, settings.dtype)
    write_atomic(args.markdown, lambda place: place.write_text(shown.as_markdown, encoding="utf-8"))
    print(shown.for_terminal)
    print(f"\nrows: {args.out}, tables: {args.markdown}")
    wrong = disagreeing(study.rows, settings.dtype)
    for row in wrong:
        print(
            f"orders: {row['dataset']} {row['protocol']} batch {row['batch_size']} {row['label']} {row['order']}: "
            f"{1 - row['labels_agree']:.2%} of the labels depend on the order",
            file=sys.stderr,
        )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
