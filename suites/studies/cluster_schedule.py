"""Simulate the fits of a profile on clusters of several sizes: how long they take, and how long nodes have nothing to do.

::

    python -m suites.studies.cluster_schedule --profile twelve --nodes 1,2,8,64 --out cluster-schedule.json

Nothing is fitted and no data is loaded. The scheduler is that of a run; each node carries out one fit at a time. Fits take what
fits of the same method on the same dataset took, as the cache says, whatever their settings (``recorded``). Where there is none,
seconds are scaled by train rows from other datasets (``scaled``), or computed from the settings with a rough time of one row
(``guessed``). The bound is the longest chain of fits that wait for each other or an even share of all seconds, the longer one.
Methods that share weights count as if each of them trained, since only the data tells; those that train nothing take a few seconds.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

from harness.cli.argument_types import comma_separated, whole_number
from harness.cli.main import settings_of
from harness.core.command_line import exit_codes
from harness.core.environment import environment_facts
from harness.core.files import write_json
from harness.core.terminal_table import terminal_table
from harness.data.cards import CARDS
from harness.running.fits.fit_plan import FitJob, shown_time, trains
from harness.running.fits.fit_times import CHOOSING, FitTimes, RowTimes, recorded_seconds
from harness.running.profile import Profile
from harness.running.scheduling.simulation import Makespan, makespan
from harness.running.scheduling.work_items import Node, WorkItem
from suites.studies.shared.study import study_parser

NAME = "cluster_schedule"
ROW = RowTimes(0.01, 0.003)  # seconds of one row, roughly; for what nothing is recorded of


def train_rows(profile: Profile, dataset: str) -> int:
    """Return the train rows of a dataset: those of its card, at most as many as the profile takes."""
    most = profile.with_rows_of(dataset).max_train
    known = CARDS[dataset].expected_sizes.get("train") if dataset in CARDS else None
    return min(most or known or 10_000, known or most or 10_000)


def fits_of(profile: Profile) -> tuple[list[WorkItem], Counter[str]]:
    """Return the fits of a profile as tasks, and how many of their seconds are recorded, scaled and guessed."""
    sizes = {dataset: train_rows(profile, dataset) for dataset in profile.datasets}
    # As if each dataset had one row, which takes as long as all: so that fits with any number of rows count.
    times = {name: RowTimes(ROW.train * size, ROW.predict * size) for name, size in sizes.items()}
    estimates = FitTimes(profile, dict.fromkeys(sizes, 1), times)
    items, basis = list[WorkItem](), Counter[str]()
    method_of, fit_of = cache(profile.method_of), cache(profile.fit_of)
    for dataset in profile.datasets:
        for seed in profile.seeds:
            names = profile.fits([name for name in profile.methods if seed in profile.seeds_of(name)])
            for name in names:
                method = method_of(name)
                seconds, known = estimates.of(dataset, name)
                if not trains(method):
                    seconds = min(seconds, CHOOSING)
                own = bool(recorded_seconds(dataset, name, 1))
                basis["recorded" if own else "scaled" if known else "guessed"] += 1
                needs = tuple(FitJob(dataset, seed, fit_of(need)) for need in method.needs)
                items.append(WorkItem(FitJob(dataset, seed, name), needs=needs, seconds=seconds, place=dataset))
    return items, basis


def simulate(items: Sequence[WorkItem], nodes: int) -> Makespan:
    """Return how long fits take on nodes that carry out one at a time."""
    return makespan(items, [Node(f"node{number}", 1.0) for number in range(nodes)])


def shown(found: Makespan) -> list[str]:
    """Return a row of the table."""
    return [
        str(found.nodes),
        shown_time(found.seconds),
        shown_time(found.bound),
        "chain" if found.chain >= found.work / found.nodes else "even share",
        f"{found.seconds / found.bound:.2f}" if found.bound else "",
        f"{found.idle:.0%}",
    ]


@exit_codes(NAME)
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = study_parser(NAME, __doc__)
    parser.add_argument(
        "--nodes",
        type=comma_separated(whole_number(1)),
        default=[1, 2, 8, 64],
        metavar="1,8,64",
        help="sizes of clusters",
    )
    parser.add_argument("--out", type=Path, metavar="JSON", help="also write the figures here")
    args = parser.parse_args(arguments)
    profile = settings_of(argparse.Namespace(**{**vars(args), "out": None})).profile
    items, basis = fits_of(profile)
    found = [simulate(items, count) for count in args.nodes]
    heads = ["nodes", "fits take", "bound", "bound by", "ratio", "idle"]
    print(terminal_table(heads, [shown(one) for one in found]), end="")
    if args.out:
        rows = [{**asdict(one), "bound": one.bound, "idle": one.idle} for one in found]
        facts = {"suite": NAME, "profile": profile.name, "fits": len(items), "seconds_are": dict(basis)}
        write_json(args.out, {**facts, "rows": rows, "fingerprint": environment_facts()})
    print(f"fits: {len(items)}; seconds {', '.join(f'{kind} {count}' for kind, count in basis.items())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
