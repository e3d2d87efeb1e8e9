"""What the gate of ``geep-bench compare`` catches, and how often it cries wolf.

::

    python -m suites.gate.power                                  fabricated clocks and answers, in a minute
    python -m suites.gate.power --real DIR                       a method compared with itself: real passes on embedded data

Fabricated: two runs of 88 cells (11 methods, 2 points, 4 datasets) of 2,000 samples. Every pass has log-normal noise, stalls
now and then, and every process shifts the ratios of all methods, and of each of them, by some percent; the defaults are about what
runs of profile ``quick`` on two shared cores show. What is planted: nothing; 10 % more time; 1.5 points less accuracy, at several
shares of discordant samples, since that is what decides whether such a loss can be seen at all.

Real: ``--repetitions`` + 1 runs of ``bert`` and ``geep`` on one embedded dataset, each in a process of its own (kept in DIR, so
that the command goes on where it stopped), neighbours compared; planted by scaling measured passes and by turning answers. What
fewer rounds would have shown is read from the first rounds of the same passes.
"""

from __future__ import annotations

import argparse
import base64
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.core.command_line import exit_codes
from harness.core.environment import environment_facts
from harness.core.errors import ResultError
from harness.core.files import write_json
from harness.regression.compare import Comparison, compare
from harness.results.packed_run import Machine, PackedCell, PackedRun, load
from harness.results.schema import Cell
from harness.running import profile
from harness.running.grid import Grid
from harness.running.settings import Settings

SAMPLES = 2000
LOSS = 0.015
SLOWDOWN = 1.1
FEWER = (3, 5, 7)  # rounds, of real passes that were measured in more
DATASETS = ("one", "two", "three", "four")
# Method -> operating points, as profile quick has them: 22 cells a dataset.
POINTS = {"bert": 1, **{f"m{number}": 1 for number in (1, 2, 3)}, **{f"m{number}": 2 for number in (4, 5, 6, 7, 8)}}
POINTS |= {"m9": 4, "m10": 4}
CELL = ("two", "m10", "c")  # where one cell gets worse


@dataclass(frozen=True)
class Clocks:
    """How fabricated clocks err.

    Attributes:
        noise: standard deviation of the log of one pass.
        stalls: share of passes that take 1.2 to 1.6 times as long.
        process: standard deviation of what a process does to all ratios of a run, in logs.
        method: the same for each method of a run.
    """

    rounds: int = 3
    noise: float = 0.026
    stalls: float = 0.04
    process: float = 0.005
    method: float = 0.005

    def passes(self, rng: np.random.Generator, seconds: float) -> list[float]:
        noise = rng.normal(0, self.noise, self.rounds)
        stalled = np.where(rng.random(self.rounds) < self.stalls, rng.uniform(1.2, 1.6, self.rounds), 1.0)
        return [float(value) for value in seconds * np.exp(noise) * stalled]


Key = tuple[str, str, str]  # dataset, method, point


def keys() -> list[Key]:
    return [(dataset, method, "abcd"[i]) for dataset in DATASETS for method, n in POINTS.items() for i in range(n)]


def fabricate(
    rng: np.random.Generator,
    clocks: Clocks | None,
    answers: Callable[[Key], np.ndarray] | None = None,
    slowed: Iterable[Key] = (),
) -> PackedRun:
    """A run that nobody measured.

    Args:
        clocks: None: without times.
        answers: correctness of a cell, bool [SAMPLES]; None: without per-sample rows.
        slowed: cells that take :data:`SLOWDOWN` times as long.
    """
    slowed = set(slowed)
    shift = {}
    if clocks is not None:
        common = rng.normal(0, clocks.process)
        shift = {method: float(np.exp(common + rng.normal(0, clocks.method))) for method in POINTS}
    cells = []
    for key in keys():
        dataset, method, point = key
        facts: dict[str, Any] = {}
        if clocks is not None:
            seconds = 0.1 if method == "bert" else 0.04 * shift[method] * (SLOWDOWN if key in slowed else 1.0)
            facts |= {"round_seconds": clocks.passes(rng, seconds), "reference_seconds": clocks.passes(rng, 0.1)}
        if answers is not None:
            facts |= bits_of(answers(key))
        cell = Cell(
            method=method,
            dataset=dataset,
            source="embedded",
            backbone="fabricated",
            seed=0,
            point=point,
            protocol="modern",
            order="length",
            executor="own",
            batch_size=64,
            device="cpu",
            dtype="float32",
        )
        cells.append(
            PackedCell(
                cell=cell,
                kind="method",
                synthetic=True,
                n=SAMPLES,
                **{"accuracy": 0.9, **facts},
                flops_linear=1e6,
                flops_full=1e6,
                mean_layers=6.0,
                mean_heads=1.0,
                exits=[0, 0, 0, 0, 0, SAMPLES],
                reference="bert",
                machine=0,
            )
        )
    machine = Machine(cpu="fabricated", cores=2, torch_threads=2, torch="fabricated")
    return PackedRun(name="fabricated", commits=[], machines=[machine], cells=cells)


def bits_of(correct: np.ndarray) -> dict[str, Any]:
    """The fields of a packed cell that say which samples are right."""
    packed = base64.b64encode(np.packbits(correct).tobytes()).decode("ascii")
    return {"bits": packed, "accuracy": float(correct.mean()), "rows": "fabricated"}


def lose(rng: np.random.Generator, correct: np.ndarray, loss: float, discordant: float, exactly: bool) -> np.ndarray:
    """Answers that are ``loss`` less accurate, with a share of ``discordant`` samples that are right on one side only.

    Args:
        exactly: the loss is what it says; otherwise in expectation, each discordant sample drawn by itself.
    """
    n = len(correct)
    count = round(n * discordant) if exactly else int(rng.binomial(n, discordant))
    lost = (count + round(n * loss)) // 2 if exactly else int(rng.binomial(count, (1 + loss / discordant) / 2))
    right, wrong = np.flatnonzero(correct), np.flatnonzero(~correct)
    new = correct.copy()
    new[rng.choice(right, lost, replace=False)] = False
    new[rng.choice(wrong, min(count - lost, len(wrong)), replace=False)] = True
    return new


@dataclass(frozen=True)
class PowerRow:
    """One experiment: ``hits`` repetitions with an alarm about what was planted, ``wrong`` with one about anything else."""

    what: str
    hits: int
    wrong: int
    of: int


def repeat(
    what: str, repetitions: int, pair: Callable[[int], tuple[PackedRun, PackedRun]], planted: str = ""
) -> PowerRow:
    """Compare ``repetitions`` pairs; an alarm that names ``planted`` is a hit, any other one is wrong."""
    hits = wrong = 0
    for number in range(repetitions):
        alarms = alarms_of(compare(*pair(number)))
        about = [bool(planted) and planted in alarm for alarm in alarms]
        hits += any(about)
        wrong += not all(about)
    return PowerRow(what, hits, wrong, repetitions)


def alarms_of(comparison: Comparison) -> list[str]:
    return [alarm.partition(": ")[0] + " " for alarm in comparison.alarms]


def fabricated(repetitions: int, seed: int, clocks: Clocks) -> list[PowerRow]:
    """All experiments with fabricated runs."""

    def generator(number: int, *more: int) -> np.random.Generator:
        return np.random.default_rng([seed, number, *more])

    def answers(rng: np.random.Generator) -> dict[Key, np.ndarray]:
        return {key: rng.random(SAMPLES) < 0.9 for key in keys()}

    def itself(number: int) -> tuple[PackedRun, PackedRun]:
        rng = generator(number)
        right = answers(rng)
        return fabricate(rng, clocks, right.get), fabricate(rng, clocks, right.get)  # type: ignore[arg-type]

    rows = [repeat("nothing planted, 88 cells, accuracy and times", repetitions, itself)]

    def slow(rounds: int, which: Sequence[Key]) -> Callable[[int], tuple[PackedRun, PackedRun]]:
        def pair(number: int) -> tuple[PackedRun, PackedRun]:
            rng, with_rounds = generator(number, rounds), Clocks(**{**asdict(clocks), "rounds": rounds})
            return fabricate(rng, with_rounds), fabricate(rng, with_rounds, slowed=which)

        return pair

    for rounds in dict.fromkeys((clocks.rounds, 7, 15)):
        for method in ("m10", "m5", "m1"):
            which = [key for key in keys() if key[1] == method]
            what = f"10 % slower: the {len(which)} cells of a method, {rounds} rounds"
            rows.append(repeat(what, repetitions, slow(rounds, which), f"{method} "))
        what = f"10 % slower: one of 88 cells, {rounds} rounds"
        rows.append(repeat(what, repetitions, slow(rounds, [CELL]), f"{CELL[1]} "))

    def worse(discordant: float, exactly: bool, everywhere: bool) -> Callable[[int], tuple[PackedRun, PackedRun]]:
        def pair(number: int) -> tuple[PackedRun, PackedRun]:
            rng = generator(number, round(1000 * discordant), exactly, everywhere)
            right = answers(rng)
            now = {key: lose(rng, old, 0.0, discordant, exactly) if everywhere else old for key, old in right.items()}
            now[CELL] = lose(rng, right[CELL], LOSS, discordant, exactly)
            return fabricate(rng, None, right.get), fabricate(rng, None, now.get)  # type: ignore[arg-type]

        return pair

    for exactly, everywhere, shares in (
        (True, False, (0.015, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08)),
        (False, False, (0.015, 0.02, 0.03, 0.04, 0.06)),
        (True, True, (0.02, 0.03, 0.04, 0.05)),
    ):
        how = f"{'exactly' if exactly else 'in expectation'} 1.5 points lost in one cell, the others " + (
            "as discordant without loss" if everywhere else "as before"
        )
        for share in shares:
            what = f"{how}; discordant {100 * share:g} %"
            rows.append(repeat(what, repetitions, worse(share, exactly, everywhere), f"{CELL[1]} "))
    return rows


def measure(out: Path, rounds: int, dataset: str) -> None:
    """One real run, of profile ``quick`` cut down; finished cells are kept."""
    quick = profile.load("quick")
    cut = quick.model_copy(update={"methods": ["bert", "geep"], "datasets": [dataset], "rounds": rounds})
    Grid(Settings(cut, out=out)).execute()


def real(folder: Path, repetitions: int, dataset: str, rounds: int) -> list[PowerRow]:
    """A method against itself, from real passes of separate processes."""
    runs = []
    for number in range(repetitions + 1):
        out = folder / f"run-{number:02d}"
        command = ["-m", "suites.gate.power", "--measure", str(out), "--rounds", str(rounds), "--dataset", dataset]
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
        if done.returncode:
            raise ResultError(f"run {number} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
        runs.append(load(out))

    def changed(run: PackedRun, change: Callable[[PackedCell], dict[str, Any]]) -> PackedRun:
        cells = [cell.model_copy(update=change(cell)) if cell.cell.method == "geep" else cell for cell in run.cells]
        return PackedRun.model_validate(run.model_copy(update={"cells": cells}).model_dump(by_alias=True))

    def slower(cell: PackedCell) -> dict[str, Any]:
        return {"round_seconds": [SLOWDOWN * seconds for seconds in cell.round_seconds]}

    def first(run: PackedRun, n: int) -> PackedRun:
        cells = [
            cell.model_copy(
                update={"round_seconds": cell.round_seconds[:n], "reference_seconds": cell.reference_seconds[:n]}
            )
            for cell in run.cells
        ]
        return run.model_copy(update={"cells": cells})

    def plant(rng: np.random.Generator) -> Callable[[PackedCell], dict[str, Any]]:
        def worse(cell: PackedCell) -> dict[str, Any]:
            assert cell.correct is not None  # these runs have just been made
            return {**bits_of(lose(rng, cell.correct, LOSS, 0.02, True)), "rows": cell.rows}

        return worse

    rows = []
    for n in sorted({rounds, *(fewer for fewer in FEWER if fewer < rounds)}):
        short = [first(run, n) for run in runs]

        def itself(i: int, short: list[PackedRun] = short) -> tuple[PackedRun, PackedRun]:
            return short[i], short[i + 1]

        def slowed(i: int, short: list[PackedRun] = short) -> tuple[PackedRun, PackedRun]:
            return short[i], changed(short[i + 1], slower)

        what = f"real passes, {n} rounds"
        rows.append(repeat(f"{what}, nothing planted", repetitions, itself))
        cells = sum(cell.cell.method == "geep" for cell in runs[0].cells)
        rows.append(repeat(f"{what}, 10 % slower: {cells} cells", repetitions, slowed, "geep"))
    return [
        *rows,
        repeat(
            f"real answers of {runs[0].cells[0].n} samples, 1.5 points less accurate, discordant 2 %",
            repetitions,
            lambda i: (runs[i], changed(runs[i + 1], plant(np.random.default_rng(i)))),
            "geep",
        ),
    ]


@exit_codes("power")
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m suites.gate.power", description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--noise", type=float, default=Clocks.noise, help="deviation of the log of a fabricated pass")
    parser.add_argument(
        "--real", type=Path, metavar="DIR", help="real runs, kept in this folder, instead of fabricated"
    )
    parser.add_argument("--dataset", default="chnsenticorp", help="embedded dataset of the real runs")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of the real runs")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # one real run, in a process of its own
    parser.add_argument("--out", type=Path, help="also write JSON here")
    args = parser.parse_args(arguments)
    clocks = Clocks(noise=args.noise)
    if args.measure:
        measure(args.measure, args.rounds, args.dataset)
        return 0
    if args.real:
        print("real passes on embedded (synthetic) data; what is planted is planted into their results")
        rows = real(args.real, args.repetitions, args.dataset, args.rounds)
    else:
        print(f"FABRICATED clocks and answers, measured by nobody: {clocks}")
        rows = fabricated(args.repetitions, args.seed, clocks)
    if args.out:
        facts: dict[str, Any] = {"rows": [asdict(row) for row in rows], "fingerprint": environment_facts()}
        write_json(args.out, facts | ({} if args.real else {"fabricated": asdict(clocks)}))
    print(f"{'caught':>8} {'wrong alarms':>13}  planted")
    for row in rows:
        caught = "-" if row.what.endswith(("accuracy and times", "nothing planted")) else f"{row.hits}/{row.of}"
        print(f"{caught:>8} {row.wrong:>10}/{row.of}  {row.what}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
