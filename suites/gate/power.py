"""Measure what the gate of ``geep-bench compare`` detects, and how often it raises false alarms.

::

    python -m suites.gate.power                fabricated times and answers, in a minute
    python -m suites.gate.power --real DIR     a method compared with itself: real passes on embedded data

Fabricated: two runs of 88 cells (11 methods, 4 datasets) of 2,000 samples. Every pass has log-normal noise, some passes stall, and
every process shifts the ratios of all methods, and of each method, by some percent; the defaults are near those of profile
``quick`` on two shared cores. Changes are planted: none; 10 % more time; 1.5 points less accuracy, at several shares of discordant
samples, which decide whether such a loss can be detected.

Real: ``--repetitions`` + 1 runs of ``bert`` and ``geep`` on one embedded dataset, each in its own process and stored in DIR, so
that a stopped command resumes; neighbours are compared. Measured passes are scaled and answers changed to plant a change. The
first rounds of the same passes show what fewer rounds would have detected.
"""

from __future__ import annotations

import argparse
import base64
import subprocess
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from harness.core.command_line import exit_codes
from harness.core.environment import environment_facts
from harness.core.errors import ResultError
from harness.core.files import write_json
from harness.core.terminal_table import terminal_table
from harness.regression.compare import compare
from harness.results.packed_run import Machine, PackedCell, PackedRun, load
from harness.results.schema import Cell
from harness.running import profile
from harness.running.grid import Grid
from harness.running.run_settings import Settings

SAMPLES = 2000
LOSS = 0.015
SLOWDOWN = 1.1
FEWER = (3, 5, 7)  # rounds, of real passes that were measured in more
DATASETS = ("one", "two", "three", "four")
# Method -> operating points, as profile quick has them: 22 cells a dataset.
POINTS = {"bert": 1, **{f"m{n}": 1 for n in (1, 2, 3)}, **{f"m{n}": 2 for n in (4, 5, 6, 7, 8)}, "m9": 4, "m10": 4}

Key = tuple[str, str, str]  # dataset, method, point
Pair = tuple[PackedRun, PackedRun]
KEYS: list[Key] = [(d, method, "abcd"[i]) for d in DATASETS for method, n in POINTS.items() for i in range(n)]
CELL: Key = ("two", "m10", "c")  # the cell for changes of one cell


@dataclass(frozen=True)
class Clocks:
    """Errors of fabricated times.

    Attributes:
        noise: standard deviation of the log of one pass.
        stalls: share of passes that take 1.2 to 1.6 times as long.
        process: standard deviation of the shift of all ratios of a run, in logs.
        method: standard deviation of the shift of each method of a run, in logs.
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


def fabricate(
    rng: np.random.Generator,
    clocks: Clocks | None,
    answers: dict[Key, np.ndarray] | None = None,
    slowed: Collection[Key] = (),
) -> PackedRun:
    """Return a run without any measurement.

    Args:
        clocks: None: without times.
        answers: correctness by cell, bool [SAMPLES]; None: without per-sample rows.
        slowed: cells that take :data:`SLOWDOWN` times as long.
    """
    shift = {}
    if clocks is not None:
        common = rng.normal(0, clocks.process)
        shift = {method: float(np.exp(common + rng.normal(0, clocks.method))) for method in POINTS}
    fixed = {"source": "embedded", "backbone": "fabricated", "seed": 0, "protocol": "modern", "order": "length"}
    fixed |= {"executor": "own", "batch_size": 64, "device": "cpu", "dtype": "float32"}
    cost = {"flops_linear": 1e6, "flops_full": 1e6, "mean_layers": 6.0, "mean_heads": 1.0, "accuracy": 0.9}
    cells = []
    for key in KEYS:
        dataset, method, point = key
        facts: dict[str, Any] = {"exits": [0, 0, 0, 0, 0, SAMPLES], "reference": "bert", "machine": 0, **cost}
        if clocks is not None:
            seconds = 0.1 if method == "bert" else 0.04 * shift[method] * (SLOWDOWN if key in slowed else 1.0)
            facts |= {"round_seconds": clocks.passes(rng, seconds), "reference_seconds": clocks.passes(rng, 0.1)}
        if answers is not None:
            facts |= bits_of(answers[key])
        cell = Cell.model_validate({"method": method, "dataset": dataset, "point": point, **fixed})
        cells.append(PackedCell(cell=cell, kind="method", synthetic=True, n=SAMPLES, **facts))
    machine = Machine(cpu="fabricated", cores=2, torch_threads=2, torch="fabricated")
    return PackedRun(name="fabricated", commits=[], machines=[machine], cells=cells)


def bits_of(correct: np.ndarray) -> dict[str, Any]:
    """Return the fields of a packed cell that store which samples are correct."""
    packed = base64.b64encode(np.packbits(correct).tobytes()).decode("ascii")
    return {"bits": packed, "accuracy": float(correct.mean()), "rows": "fabricated"}


def lose(rng: np.random.Generator, correct: np.ndarray, loss: float, discordant: float, exactly: bool) -> np.ndarray:
    """Return answers that are ``loss`` less accurate; a share of ``discordant`` samples is correct on one side only.

    Args:
        exactly: the loss is exact; otherwise in expectation, with each discordant sample drawn by itself.
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
    """One experiment: repetitions with an alarm about the planted change (``hits``) and with any other (``wrong``)."""

    what: str
    hits: int
    wrong: int
    of: int


def repeat(what: str, repetitions: int, pair: Callable[[int], Pair], planted: str = "") -> PowerRow:
    """Compare ``repetitions`` pairs; an alarm that names the method ``planted`` is a hit, any other one is wrong."""
    hits = wrong = 0
    for number in range(repetitions):
        names = [alarm.partition(": ")[0] + " " for alarm in compare(*pair(number)).alarms]
        about = [bool(planted) and f"{planted} " in name for name in names]
        hits += any(about)
        wrong += not all(about)
    return PowerRow(what, hits, wrong, repetitions)


def fabricated(repetitions: int, seed: int, clocks: Clocks) -> list[PowerRow]:
    """Run all experiments with fabricated runs."""

    def generator(*more: int) -> np.random.Generator:
        return np.random.default_rng([seed, *more])

    def answers(rng: np.random.Generator) -> dict[Key, np.ndarray]:
        return {key: rng.random(SAMPLES) < 0.9 for key in KEYS}

    def itself(number: int) -> Pair:
        rng = generator(number)
        right = answers(rng)
        return fabricate(rng, clocks, right), fabricate(rng, clocks, right)

    def slow(rounds: int, which: Collection[Key]) -> Callable[[int], Pair]:
        def pair(number: int) -> Pair:
            rng, with_rounds = generator(number, rounds), replace(clocks, rounds=rounds)
            return fabricate(rng, with_rounds), fabricate(rng, with_rounds, slowed=which)

        return pair

    def worse(discordant: float, exactly: bool, everywhere: bool) -> Callable[[int], Pair]:
        def pair(number: int) -> Pair:
            rng = generator(number, round(1000 * discordant), exactly, everywhere)
            right = answers(rng)
            now = {key: lose(rng, old, 0.0, discordant, exactly) if everywhere else old for key, old in right.items()}
            now[CELL] = lose(rng, right[CELL], LOSS, discordant, exactly)
            return fabricate(rng, None, right), fabricate(rng, None, now)

        return pair

    rows = [repeat("nothing planted, 88 cells, accuracy and times", repetitions, itself)]
    for rounds in dict.fromkeys((clocks.rounds, 7, 15)):
        for method in ("m10", "m5", "m1"):
            which = [key for key in KEYS if key[1] == method]
            what = f"10 % slower: the {len(which)} cells of a method, {rounds} rounds"
            rows.append(repeat(what, repetitions, slow(rounds, which), method))
        rows.append(
            repeat(f"10 % slower: one of 88 cells, {rounds} rounds", repetitions, slow(rounds, [CELL]), CELL[1])
        )
    for exactly, everywhere, shares in (
        (True, False, (0.015, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08)),
        (False, False, (0.015, 0.02, 0.03, 0.04, 0.06)),
        (True, True, (0.02, 0.03, 0.04, 0.05)),
    ):
        others = "the others as discordant without loss" if everywhere else "the others unchanged"
        how = f"{'exactly' if exactly else 'in expectation'} 1.5 points lost in one cell, {others}"
        for share in shares:
            what = f"{how}; discordant {100 * share:g} %"
            rows.append(repeat(what, repetitions, worse(share, exactly, everywhere), CELL[1]))
    return rows


def measure(out: Path, rounds: int, dataset: str) -> None:
    """Make one real run, of a part of profile ``quick``; finished cells are not measured again."""
    changes = {"methods": ["bert", "geep"], "datasets": [dataset], "rounds": rounds}
    Grid(Settings(profile.load("quick").model_copy(update=changes), out=out)).execute()


def real(folder: Path, repetitions: int, dataset: str, rounds: int) -> list[PowerRow]:
    """Compare a method with itself, from real passes in separate processes."""
    runs = []
    for number in range(repetitions + 1):
        out = folder / f"run-{number:02d}"
        command = ["-m", "suites.gate.power", "--measure", str(out), "--rounds", str(rounds), "--dataset", dataset]
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
        if done.returncode:
            raise ResultError(f"run {number} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
        runs.append(load(out))

    def changed(run: PackedRun, change: Callable[[PackedCell], dict[str, Any]]) -> PackedRun:
        cells = [cell.model_copy(update=change(cell)) for cell in run.cells]
        return PackedRun.model_validate(run.model_copy(update={"cells": cells}).model_dump(by_alias=True))

    def slower(cell: PackedCell) -> dict[str, Any]:
        factor = SLOWDOWN if cell.cell.method == "geep" else 1.0
        return {"round_seconds": [factor * seconds for seconds in cell.round_seconds]}

    def worse(number: int) -> Pair:
        rng = np.random.default_rng(number)

        def plant(cell: PackedCell) -> dict[str, Any]:
            if cell.cell.method != "geep":
                return {}
            assert cell.correct is not None  # these runs have just been made
            return {**bits_of(lose(rng, cell.correct, LOSS, 0.02, True)), "rows": cell.rows}

        return runs[number], changed(runs[number + 1], plant)

    rows = []
    cells = sum(cell.cell.method == "geep" for cell in runs[0].cells)
    for n in sorted({rounds, *(fewer for fewer in FEWER if fewer < rounds)}):

        def first(cell: PackedCell, n: int = n) -> dict[str, Any]:
            return {key: getattr(cell, key)[:n] for key in ("round_seconds", "reference_seconds")}

        short = [changed(run, first) for run in runs]
        slow = [changed(run, slower) for run in short]
        what = f"real passes, {n} rounds"
        rows.append(
            repeat(f"{what}, nothing planted", repetitions, list(zip(short, short[1:], strict=False)).__getitem__)
        )
        pairs = list(zip(short, slow[1:], strict=False))
        rows.append(repeat(f"{what}, 10 % slower: {cells} cells", repetitions, pairs.__getitem__, "geep"))
    what = f"real answers of {runs[0].cells[0].n} samples, 1.5 points less accurate, discordant 2 %"
    return [*rows, repeat(what, repetitions, worse, "geep")]


@exit_codes("power")
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m suites.gate.power", description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=20, help="compared pairs per experiment; default 20")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--noise", type=float, default=Clocks.noise, help="deviation of the log of a fabricated pass")
    parser.add_argument(
        "--real", type=Path, metavar="DIR", help="make real runs in this folder instead of fabricated ones"
    )
    parser.add_argument("--dataset", default="chnsenticorp", help="embedded dataset of the real runs")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of the real runs")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # one real run, in a process of its own
    parser.add_argument("--out", type=Path, metavar="JSON", help="also write JSON here")
    args = parser.parse_args(arguments)
    clocks = Clocks(noise=args.noise)
    if args.measure:
        measure(args.measure, args.rounds, args.dataset)
        return 0
    if args.real:
        print("real passes on embedded (synthetic) data; changes are planted into their results")
        rows = real(args.real, args.repetitions, args.dataset, args.rounds)
    else:
        print(f"FABRICATED times and answers, not measured: {clocks}")
        rows = fabricated(args.repetitions, args.seed, clocks)
    if args.out:
        facts: dict[str, Any] = {"rows": [asdict(row) for row in rows], "fingerprint": environment_facts()}
        write_json(args.out, facts | ({} if args.real else {"fabricated": asdict(clocks)}))
    body = [
        [
            row.what,
            f"{row.hits}/{row.of}" if "% slower" in row.what or "1.5 points" in row.what else "-",
            f"{row.wrong}/{row.of}",
        ]
        for row in rows
    ]
    print(terminal_table(["planted", "detected", "false alarms"], body), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
