"""Measure what the pooled verdict on predicted exits finds, and how often it finds something that is not there.

::

    python -m reports.verdict_power
    python -m reports.verdict_power --effects 1 --sets 2 --seeds 1 --rows 500

Every run is made up: sets whose accuracy rises with depth as it was measured on real ones, several seeds of training, a
predictor of exits and its controls. The predictor assigns a mix of two depths; with an effect it gives the deeper one more
often to samples that need it, so that its accuracy is above that of the same mix at random by the stated number of points,
averaged over sets. The rows go through the code of a report. All numbers are synthetic.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from time import perf_counter

import numpy as np
import pandas as pd

from harness.core.command_line import exit_codes
from harness.core.files import write_json
from harness.core.terminal_table import terminal_table
from harness.results.rows.sample_columns import DEPTH_COLUMNS
from harness.results.schema import Cell, Checks, Cost, Quality, Result, Speed
from reports.analysis.result_rows import ResultRow, average_over_seeds
from reports.analysis.roles import CONSTANT, LENGTH, ORACLE, PREDICTS, SEQUENTIAL
from reports.analysis.verdicts.control_tests import AHEAD, BEHIND, compare_with_controls
from reports.analysis.verdicts.pooled_verdicts import PRIMARY_POINTS, PRIMARY_TEXT, PooledTest, pool

DEPTH, SHALLOW, DEEP = 12, 3, 9
SHARE = 0.5  # of the samples at the deeper depth
# Accuracy of the first and the last head, as measured on LCQMC, Yahoo, THUCNews and Amazon full with a 12-layer encoder.
CURVES = ((0.515, 0.798), (0.415, 0.536), (0.619, 0.774), (0.36, 0.47))
_SPREAD = (0.16, 0.12)  # of a sample's ease from seed to seed, and from layer to layer
_ROLES = {"predictor": PREDICTS, "constant": CONSTANT, "length": LENGTH, "sequential": SEQUENTIAL, "oracle": ORACLE}
_POINT = PRIMARY_POINTS[0]


def _noisy(rng: np.random.Generator, ease: np.ndarray) -> np.ndarray:
    seed_noise, layer_noise = _SPREAD
    return ease[:, None] + rng.normal(0, seed_noise, (len(ease), 1)) + rng.normal(0, layer_noise, (len(ease), DEPTH))


@cache
def _limits(first: float, last: float) -> np.ndarray:
    """Return the limits below which a head is right, float [DEPTH], from a large sample."""
    rng = np.random.default_rng(0)
    curve = last - (last - first) * (1 - np.linspace(0, 1, DEPTH)) ** 2
    return np.quantile(_noisy(rng, rng.random(50_000)), curve, axis=0).diagonal()


def heads(rng: np.random.Generator, ease: np.ndarray, first: float, last: float) -> np.ndarray:
    """Return which heads of one fit are right: bool [n, DEPTH]; accuracy rises from ``first`` to ``last``, steeply at first.

    Args:
        ease: of every sample, uniform in 0..1, the same for all seeds.
    """
    return _noisy(rng, ease) < _limits(first, last)


def gain_of_knowing(right: np.ndarray) -> float:
    """Return how much accuracy a predictor gains per unit of ``knowledge`` (see :func:`exits_of`)."""
    helps, hurts = ~right[:, SHALLOW - 1] & right[:, DEEP - 1], right[:, SHALLOW - 1] & ~right[:, DEEP - 1]
    share = helps.mean()
    return float(share + share / (1 - share) * hurts.mean())


def exits_of(rng: np.random.Generator, right: np.ndarray, knowledge: float) -> np.ndarray:
    """Return exits from 1: the deeper depth with SHARE + ``knowledge`` where it helps, less elsewhere; SHARE on average."""
    helps = ~right[:, SHALLOW - 1] & right[:, DEEP - 1]
    elsewhere = SHARE - knowledge * helps.mean() / (1 - helps.mean())
    return np.where(rng.random(len(right)) < np.where(helps, SHARE + knowledge, elsewhere), DEEP, SHALLOW)


Rows = dict[Cell, pd.DataFrame]


def make_run(rng: np.random.Generator, sets: int, seeds: int, n: int, knowledge: float) -> tuple[list[ResultRow], Rows]:
    """Return the rows of a simulated run, and the per-sample rows of its cells."""
    results: list[Result] = []
    samples: Rows = {}
    for number in range(sets):
        ease = rng.random(n)
        for seed in range(seeds):
            right = heads(rng, ease, *CURVES[number % len(CURVES)])
            predicted = exits_of(rng, right, knowledge)
            exits = {
                "predictor": predicted,
                "constant": rng.permutation(predicted),
                "length": rng.permutation(predicted),
                "sequential": exits_of(rng, right, 0.4),
                "oracle": (right == right[:, -1:]).argmax(1) + 1,
            }
            for name, layers in exits.items():
                result, frame = _cell(name, f"set_{number + 1}", seed, right, layers)
                results.append(result)
                samples[result.cell] = frame
    rows = average_over_seeds(results, dict.fromkeys(samples, ""))
    return [replace(row, slug=row.dataset, label=row.dataset) for row in rows], samples


def _cell(name: str, dataset: str, seed: int, right: np.ndarray, exits: np.ndarray) -> tuple[Result, pd.DataFrame]:
    n = len(exits)
    # The oracle answers as full depth does. Two classes: an answer is right (0) or wrong (1).
    correct = right[:, -1] if name == "oracle" else right[np.arange(n), exits - 1]
    frame = pd.DataFrame({"prediction": (~correct).astype(np.int64), "correct": correct, "exit_layer": exits})
    if name == "oracle":
        bits = 1 << np.arange(DEPTH, dtype=np.int64)
        masks = ((good * bits).sum(1) for good in (right, right == right[:, -1:]))
        frame = frame.assign(**dict(zip(DEPTH_COLUMNS, masks, strict=True)))
    cell = Cell(
        method=name,
        dataset=dataset,
        source="embedded",
        backbone="made-up",
        seed=seed,
        point="agree" if name == "oracle" else _POINT,
        protocol="modern",
        order="length",
        executor="made-up",
        batch_size=32,
        device="cpu",
        dtype="float32",
    )
    share, mean = float(correct.mean()), float(exits.mean())
    cost = {"flops_linear": mean, "flops_full": mean, "params": 1, "mean_heads": 1.0, "valid_token_ratio": 1.0}
    result = Result(
        cell=cell,
        kind={PREDICTS: "method", ORACLE: "bound"}.get(_ROLES[name], "control"),  # type: ignore[arg-type]
        role=_ROLES[name],
        synthetic=True,
        language="en",
        params={"shallow": SHALLOW, "deep": DEEP} if name == "constant" else {},
        quality=Quality(accuracy=share, accuracy_low=share, accuracy_high=share, macro_f1=share, n=n),
        cost=Cost.model_validate({**cost, "mean_layers": mean, "depth": DEPTH}),
        speed=Speed(samples_per_s=1.0, seconds=1.0, seconds_p10=1.0, seconds_p90=1.0, rounds=1),
        training=None,
        checks=Checks(rounds_agree=1.0),
        exit_histogram=np.bincount(exits, minlength=DEPTH + 1)[1:].tolist(),
        fingerprint={},
    )
    return result, frame


@dataclass
class PlantedRuns:
    """What was found in some runs with one planted effect.

    Attributes:
        effect: accuracy that the predictor gains over the hull, 0..1, in expectation.
        runs: number of runs.
        ahead, behind: runs in which the primary endpoint was found ahead, or behind.
        covered: runs whose 95 % interval holds the effect.
        single_sets: share of the sets of all runs in which the same comparison found the predictor ahead by itself.
        detectable: mean of the stated difference that could have been found with 80 % power.
        differences: the primary endpoint of every run.
    """

    effect: float
    runs: int = 0
    ahead: int = 0
    behind: int = 0
    covered: int = 0
    single_sets: float = 0.0
    detectable: float = 0.0
    differences: list[float] | None = None


def measure(effect: float, *, runs: int, sets: int, seeds: int, rows: int, seed: int = 0) -> PlantedRuns:
    """Judge ``runs`` simulated runs and count what was found.

    Args:
        effect: planted advantage over the hull, 0..1.
        sets, seeds, rows: of each run; rows are test rows per set.
    """
    large = np.random.default_rng(0)
    worth = [gain_of_knowing(heads(large, large.random(100_000), *CURVES[i % len(CURVES)])) for i in range(sets)]
    knowledge = effect / float(np.mean(worth))
    tally = PlantedRuns(effect, differences=[])
    stated, alone = [], []
    for number in range(runs):
        table, samples = make_run(np.random.default_rng([seed, number]), sets, seeds, rows, knowledge)
        tests = compare_with_controls(table, samples.get)
        (primary,) = [one for one in pool(tests) if one.primary]
        _count(tally, primary)
        stated.append(primary.detectable or np.nan)
        alone += [
            test.verdict == AHEAD
            for test in tests
            if (test.control_role, test.measure, test.expected) == (primary.control_role, primary.measure, True)
        ]
    tally.detectable, tally.single_sets = float(np.mean(stated)), float(np.mean(alone))
    return tally


def _count(tally: PlantedRuns, primary: PooledTest) -> None:
    assert primary.difference is not None and primary.low is not None and primary.high is not None
    tally.runs += 1
    tally.ahead += primary.verdict == AHEAD
    tally.behind += primary.verdict == BEHIND
    tally.covered += primary.low <= tally.effect <= primary.high
    assert tally.differences is not None
    tally.differences.append(primary.difference)


@exit_codes("verdict_power")
def main(arguments: Sequence[str] | None = None) -> int:
    """Print what was found with and without an effect; return 2 with one line on bad input."""
    parser = argparse.ArgumentParser(prog="python -m reports.verdict_power", description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--effects", default="1,0.5", help="planted effects in points (default 1,0.5)")
    parser.add_argument("--runs", type=int, default=20, help="runs per effect, and as many without one (default 20)")
    parser.add_argument("--sets", type=int, default=4, help="sets per run (default 4)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of training per set (default 3)")
    parser.add_argument("--rows", type=int, default=1000, help="test rows per set (default 1000)")
    parser.add_argument("--out", type=Path, metavar="JSON", help="also write JSON here")
    args = parser.parse_args(arguments)
    if min(args.runs, args.sets, args.seeds) < 1 or args.rows < 50:
        parser.error("--runs, --sets and --seeds must be 1 or more, --rows 50 or more")
    try:
        effects = [float(text) for text in args.effects.split(",")]
    except ValueError:
        parser.error(f"--effects must be numbers with commas between them, not {args.effects!r}")
    if not all(0 < effect <= 3 for effect in effects):
        parser.error(
            "--effects must be above 0 and at most 3 points: the two depths differ by 7 to 17 points on these sets"
        )
    start = perf_counter()
    size = {"runs": args.runs, "sets": args.sets, "seeds": args.seeds, "rows": args.rows}
    found = [measure(effect / 100, **size) for effect in (*effects, 0.0)]
    if args.out:
        about = {"data": "synthetic", "endpoint": PRIMARY_TEXT, "size": size, "curves": CURVES}
        write_json(args.out, {**about, "tallies": [asdict(one) for one in found]})
    heads_of = [
        "planted",
        "found ahead",
        "found behind",
        "interval holds it",
        "could have found",
        "ahead, one set alone",
    ]
    cells = [
        [
            f"{100 * one.effect:.1f} points" if one.effect else "nothing",
            *(f"{count} of {one.runs}" for count in (one.ahead, one.behind, one.covered)),
            f"{100 * one.detectable:.2f} points",
            f"{100 * one.single_sets:.0f} %",
        ]
        for one in found
    ]
    shape = f"synthetic: {args.sets} sets x {args.seeds} seeds x {args.rows} test rows; {perf_counter() - start:.0f} s"
    print(terminal_table(heads_of, cells, notes=[shape]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
