"""Compare the chassis with engines that people deploy: samples/s at full depth, at every shape and batch size.

::

    python -m suites.studies.chassis --out chassis.json
    python -m suites.studies.chassis --shapes minilm --batch-size 32 --samples 64 --rounds 3 --out trial.json

Weights are random, texts have 8 to 128 tokens with a median of 49, and all engines get them sorted by length, in batches cut the
same way; those of other libraries are padded to the longest sample of the batch. A pass goes from ids to logits. Rounds alternate
all engines (A B C, C B A, ...) after one for warm-up. The table has the median of the rounds and, in brackets, the slowest and
the fastest. ``of the fastest`` compares the way of ours in a row with the fastest float32 engine of another library, round by
round. Answers are compared with ours in eager float32. An engine that cannot be used here is a row with the reason.
A stopped study resumes from its file.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from harness.cli.argument_types import OneLineParser, comma_separated, one_of, whole_number
from harness.core.command_line import exit_codes
from harness.core.environment import environment_facts
from harness.core.errors import MethodError
from harness.core.files import write_text
from harness.core.terminal_table import terminal_table
from harness.results.engine_tolerance import too_different
from suites.studies.shared.resume_file import ResumeFile
from suites.studies.shared.study_page import markdown, number
from suites.workloads.full_depth_engines import ENGINES, FLOAT32, INT8, OURS, SHAPES, EngineWorkload, interleaved

NAME = "chassis"
GOAL = 0.95  # of the fastest float32 engine
REFERENCE = OURS[0]  # whose answers all are compared with


def measure(workload: EngineWorkload, batch_size: int, rounds: int, usable: Sequence[str], bar: Any) -> dict[str, Any]:
    """Return by engine: ``seconds`` of every round, and how close its answers are."""
    answers: dict[str, np.ndarray] = {}

    def run(name: str) -> float:
        bar.set_postfix_str(name)
        done = workload.run(name, batch_size)
        answers[name] = torch.from_numpy(done.predictions.logits).softmax(-1).numpy()
        return done.seconds

    seconds = interleaved(run, usable, rounds, bar.update)
    plain = answers[REFERENCE]
    return {
        name: {
            "seconds": seconds[name],
            "agree": float((answers[name].argmax(1) == plain.argmax(1)).mean()),
            "difference": float(np.abs(answers[name] - plain).max()),
        }
        for name in usable
    }


def rows_of(shape: str, batch_size: int, samples: int, part: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one row per engine of a stored part, with its speed and its ratio to the fastest float32 engine of others."""
    measured = part["engines"]
    others = [name for name in measured if name in FLOAT32 and name not in OURS]
    fastest = min(others, key=lambda name: float(np.median(measured[name]["seconds"])), default=None)
    rows = []
    for name in ENGINES:
        row: dict[str, Any] = {"shape": shape, "batch_size": batch_size, "engine": name, "int8": name in INT8}
        if name in part["missing"]:
            rows.append({**row, "reason": part["missing"][name]})
        if name not in measured:
            continue
        found = measured[name]
        seconds = np.array(found["seconds"])
        ratio = None if fastest is None else float(np.median(np.array(measured[fastest]["seconds"]) / seconds))
        rows.append(
            {
                **row,
                **found,
                "samples_per_s": samples / float(np.median(seconds)),
                "slowest": samples / float(seconds.max()),
                "fastest": samples / float(seconds.min()),
                "of_fastest": ratio,
                "compared_with": fastest,
                "prepared_in": part["prepared_in"].get(name),
            }
        )
    return rows


def reached(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return for each shape and batch size the best way of ours, and its ratio to the fastest float32 engine of others."""
    found = []
    for shape, size in dict.fromkeys((row["shape"], row["batch_size"]) for row in rows):
        mine = [
            row
            for row in rows
            if (row["shape"], row["batch_size"]) == (shape, size)
            and row["engine"] in OURS
            and row.get("of_fastest") is not None
        ]
        if mine:
            best = max(mine, key=lambda row: row["of_fastest"])
            names = ("shape", "batch_size", "engine", "of_fastest", "compared_with")
            found.append({**{name: best[name] for name in names}, "holds": best["of_fastest"] >= GOAL})
    return found


def _table(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    heads = ["shape", "batch", "engine", "samples/s", "of the fastest", "same label", "difference"]
    body = []
    for row in rows:
        where = [row["shape"], str(row["batch_size"]), row["engine"] + (" (int8)" if row["int8"] else "")]
        if "reason" in row:
            body.append([*where, f"not run: {row['reason']}", "", "", ""])
            continue
        mark = " ¤" if too_different(_kind(row["engine"]), row["agree"], row["difference"]) else ""
        span = f"{number(row['samples_per_s'])} ({number(row['slowest'])}–{number(row['fastest'])})"
        ratio = "—" if row["of_fastest"] is None else f"{row['of_fastest']:.2f}"
        body.append([*where, span, ratio, f"{row['agree']:.1%}{mark}", f"{row['difference']:.1e}"])
    return heads, body


def _kind(engine: str) -> str:
    return engine if engine in INT8 else "eager"


def _lines(goals: Sequence[dict[str, Any]]) -> list[str]:
    return [
        f"{one['shape']}, batch {one['batch_size']}: {one['engine']} reaches {one['of_fastest']:.3f} of {one['compared_with']}, "
        f"the fastest float32 engine of others; goal {GOAL}: {'reached' if one['holds'] else 'missed'}"
        for one in goals
    ]


def _part(workload: EngineWorkload, batch_size: int, rounds: int, engines: Sequence[str], bar: Any) -> dict[str, Any]:
    """Prepare engines that are not yet, and measure those that can be used here."""
    missing = {}
    for name in engines:
        if name not in workload.seconds:
            bar.set_postfix_str(f"preparing {name}")
            try:
                workload.prepare(name)
            except MethodError as error:
                missing[name] = str(error)
    usable = [name for name in engines if name not in missing]
    found = measure(workload, batch_size, rounds, usable, bar)
    return {"engines": found, "missing": missing, "prepared_in": dict(workload.seconds)}


@exit_codes(NAME, resumes=True)
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = OneLineParser(prog=f"python -m suites.studies.{NAME}", description=__doc__.splitlines()[0])
    count = whole_number(1)
    shapes, engines = comma_separated(one_of(*SHAPES)), comma_separated(one_of(*ENGINES))
    parser.add_argument("--shapes", type=shapes, default=list(SHAPES), metavar="A,B", help=", ".join(SHAPES))
    parser.add_argument(
        "--batch-size", type=comma_separated(count), default=[1, 8, 32], help="batch sizes; default 1,8,32"
    )
    parser.add_argument("--samples", type=count, default=128, metavar="N", help="samples; default 128")
    parser.add_argument("--rounds", type=count, default=7, metavar="N", help="timed rounds; default 7")
    parser.add_argument("--without", type=engines, default=[], metavar="A,B", help="engines to leave out")
    parser.add_argument("--out", type=Path, default=Path("runs/chassis.json"), metavar="JSON", help="results, with .md")
    parser.add_argument("--fresh", action="store_true", help="measure everything again")
    args = parser.parse_args(arguments)
    chosen = [name for name in ENGINES if name == REFERENCE or name not in args.without]
    facts = environment_facts()
    asked = {"samples": args.samples, "rounds": args.rounds, "engines": chosen, "versions": facts["versions"]}
    asked |= {"cpu": facts["cpu"], "threads": facts["torch_threads"]}
    stored = ResumeFile(args.out, NAME, asked, fresh=args.fresh)
    rows: list[dict[str, Any]] = []
    with tqdm(total=len(args.shapes) * len(args.batch_size) * (args.rounds + 1), desc=NAME, disable=None) as bar:
        for shape in args.shapes:
            workload = EngineWorkload(SHAPES[shape], args.samples)
            for size in args.batch_size:
                part = f"{shape}/{size}"
                bar.set_description(part)
                if part not in stored:
                    stored.store(part, _part(workload, size, args.rounds, chosen, bar))
                rows += rows_of(shape, size, args.samples, stored[part])
    goals = reached(rows)
    stored.finish(rows=rows, goals=goals)
    heads, body = _table(rows)
    title = f"Engines at full depth: {args.samples} samples of 8 to 128 tokens, {facts['torch_threads']} threads, {facts['cpu']}"
    page = [f"# {title}", "", *markdown(heads, body), "", *(f"* {line}" for line in _lines(goals))]
    write_text(args.out.with_suffix(".md"), "\n".join(page) + "\n")
    print(terminal_table(heads, body, left=3), end="")
    print("\n".join([*_lines(goals), f"rows: {args.out}, table: {args.out.with_suffix('.md')}"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
