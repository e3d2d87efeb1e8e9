"""Compare early exits with full depth on low-precision engines: samples/s of every executor on every engine.

::

    python -m suites.studies.encoders.low_bits --out low-bits.json
    python -m suites.studies.encoders.low_bits --shapes 12x384 --engines packed,int8 --samples 64 --rounds 2

Weights and ids are random, lengths realistic, and heads set so that samples exit at every layer, as in ``executor_speed``. Engines
run the same weights and samples. ``ladder``, ``exact-k``, ``verified`` and ``look1`` run to the exits found in float32; ``shrink``
and ``rebatch`` find their own, and ``same exits`` is the share that agrees. Rounds alternate all engines and executors (A B C,
C B A, ...) after one for warm-up. ``of full depth`` compares with full depth on the same engine, ``of packed`` with the same
executor on the first engine, both round by round.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from tqdm import tqdm

from harness.cli.argument_types import OneLineParser, comma_separated, one_of, whole_number
from harness.contracts import Predictions, TorchEngine
from harness.core.command_line import exit_codes
from harness.core.environment import environment_facts
from harness.core.errors import MethodError
from harness.core.files import write_json
from harness.core.terminal_table import terminal_table
from harness.encoder.shape import EncoderShape
from harness.engines.choice import check_engine
from suites.studies.executor_speed import timed
from suites.workloads.random_model import EXECUTORS, ExecutorWorkload

NAME = "low_bits"
SHAPES = {f"12x{width}": EncoderShape(12, width, 12, 4 * width, 30522) for width in (384, 768)}
ENGINES: tuple[TorchEngine, ...] = ("packed", "bfloat16", "int8")
RUN = ("bert", "ladder", "look1", "shrink", "rebatch")


def measure(
    workload: ExecutorWorkload, engines: Sequence[TorchEngine], executors: Sequence[str], batch_size: int, rounds: int
) -> list[dict[str, Any]]:
    """Return one row per engine and executor; see the module's docstring."""
    on = {engine: workload.on(engine) for engine in engines}
    plans = [(engine, executor) for engine in engines for executor in executors]
    seconds: dict[tuple[str, str], list[float]] = {plan: [] for plan in plans}
    found: dict[tuple[str, str], Predictions] = {}
    for number in tqdm(range(-1, rounds), desc="rounds", disable=None):  # the first round warms up
        for plan in plans if number % 2 == 0 else plans[::-1]:
            engine, executor = plan
            taken, found[plan] = timed(on[engine], executor, on[engine].execution(batch_size, "packed"))
            seconds[plan] += [taken] if number >= 0 else []
    exits = workload.exits.cpu().numpy()
    rows = []
    for engine, executor in plans:
        mine, predictions = np.array(seconds[engine, executor]), found[engine, executor]
        rows.append(
            {
                "engine": engine,
                "executor": executor,
                "samples_per_s": workload.samples / float(np.median(mine)),
                "slowest": workload.samples / float(mine.max()),
                "fastest": workload.samples / float(mine.min()),
                "mean_layers": predictions.work.rows("layer") / workload.samples,
                "same_exits": float((predictions.exit_layer == exits).mean()) if executor != "bert" else 1.0,
                "of_full_depth": float(np.median(np.array(seconds[engine, executors[0]]) / mine)),
                "of_first_engine": float(np.median(np.array(seconds[engines[0], executor]) / mine)),
            }
        )
    return rows


def _checked(asked: Sequence[TorchEngine] | None) -> list[TorchEngine]:
    """Return the engines that were asked for, or those of :data:`ENGINES` that run here; the others are named.

    Raises:
        MethodError: an engine that was asked for does not run here.
    """
    able: list[TorchEngine] = []
    for engine in ENGINES if asked is None else asked:
        try:
            check_engine(engine, NAME, "cpu", None)
            able.append(engine)
        except MethodError as error:
            if asked is not None:
                raise
            print(f"{error}: not measured", file=sys.stderr)
    return able


@exit_codes(NAME)
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = OneLineParser(prog=f"python -m suites.studies.{NAME}", description=__doc__.splitlines()[0])
    count, shapes = whole_number(1), comma_separated(one_of(*SHAPES))
    engines = comma_separated(one_of(*get_args(TorchEngine)))
    others = comma_separated(one_of(*(name for name in EXECUTORS if name != "bert")))
    parser.add_argument("--shapes", type=shapes, default=list(SHAPES), metavar="A,B", help=", ".join(SHAPES))
    parser.add_argument(
        "--engines", type=engines, metavar="A,B", help=f"default: those of {', '.join(ENGINES)} that this CPU can run"
    )
    parser.add_argument(
        "--executors", type=others, default=list(RUN[1:]), metavar="A,B", help="executors to run besides full depth"
    )
    parser.add_argument("--samples", type=count, default=128, metavar="N", help="samples; default 128")
    parser.add_argument("--batch-size", type=count, default=32, metavar="N", help="samples per batch; default 32")
    parser.add_argument("--rounds", type=count, default=5, metavar="N", help="timed rounds; default 5")
    parser.add_argument("--out", type=Path, metavar="JSON", help="also write JSON here")
    args = parser.parse_args(arguments)
    args.engines = _checked(args.engines)
    rows = []
    for shape in args.shapes:
        workload = ExecutorWorkload(SHAPES[shape], args.samples, "cpu", "float32")
        found = measure(workload, args.engines, ["bert", *args.executors], args.batch_size, args.rounds)
        rows += [{"shape": shape, **row} for row in found]
    if args.out:
        facts = {"samples": args.samples, "batch_size": args.batch_size, "rounds": args.rounds}
        write_json(args.out, {**facts, "rows": rows, "fingerprint": environment_facts()})
    heads = [
        "shape",
        "engine",
        "executor",
        "samples/s",
        "layers",
        "same exits",
        "of full depth",
        f"of {args.engines[0]}",
    ]
    body = [
        [
            *(row["shape"], row["engine"], row["executor"]),
            f"{row['samples_per_s']:.1f} ({row['slowest']:.1f}–{row['fastest']:.1f})",
            *(f"{row['mean_layers']:.2f}", f"{row['same_exits']:.1%}"),
            *(f"{row['of_full_depth']:.2f}x", f"{row['of_first_engine']:.2f}x"),
        ]
        for row in rows
    ]
    print(terminal_table(heads, body, left=3), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
