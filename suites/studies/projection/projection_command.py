"""The three commands of the study: calibrate a card, check it against measured times, project to a card."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from tqdm import tqdm

from harness.cli.argument_types import OneLineParser, comma_separated, one_of, positive_number, whole_number
from harness.cli.argument_types import path as path_type
from harness.contracts import Compute, DType, Execution
from harness.core import clock
from harness.core.command_line import exit_codes
from harness.core.environment import environment_facts, torch_threads
from harness.core.errors import ConfigError
from harness.core.files import write_json, write_text
from harness.core.terminal_table import terminal_table
from harness.core.work import Step
from harness.encoder.backbone import default_device, shape_of
from suites.studies.projection.calibration import Calibration, Reference, card_table, stopwatch
from suites.studies.projection.counting import (
    block_costs,
    from_json,
    in_flight_as_on,
    launches,
    narrow,
    steps_of,
    to_json,
)
from suites.studies.projection.device_card import DeviceCard, card_text, parse_device_card, read_device_card
from suites.studies.projection.timeline import project
from suites.studies.shared.resume_file import ResumeFile
from suites.workloads.random_model import EXECUTORS, ExecutorWorkload

GOAL = 0.15  # relative error of a projection on the machine that its card was calibrated on
PROJECTED = "projected, not measured"
NAME = "projection"
SPEED_CHECKS = 10  # reference products before and after each timed pass


class Slice:
    """The time that one call may use; ``None`` is all."""

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None else clock.now() + seconds

    @property
    def over(self) -> bool:
        return self._end is not None and clock.now() > self._end


def calibrate(args: argparse.Namespace) -> int:
    """Measure a card, sweep by sweep, and write it."""
    asked = {"device": args.device, "dtypes": args.dtype, "threads": torch.get_num_threads()}
    stored = ResumeFile(args.calibrate.with_suffix(".parts.json"), f"{NAME}-calibration", asked, fresh=args.fresh)
    dtypes: list[DType] = args.dtype
    calibrations = {dtype: Calibration(args.device, dtype) for dtype in dtypes}
    slice_ = Slice(args.seconds)
    plan = [(number, dtype) for number in range(args.rounds) for dtype in dtypes]
    for number, dtype in tqdm(plan, desc="sweeps", disable=None):
        part = f"{dtype} {number}"
        if part not in stored:
            if slice_.over:
                print(f"{NAME}: time is over; run the same command again to resume")
                return 0
            stored.store(part, calibrations[dtype].sweep())
    table = card_table(args.device, {d: [stored[f"{d} {n}"] for n in range(args.rounds)] for d in dtypes}, calibrations)
    parse_device_card(table, str(args.calibrate))
    write_text(args.calibrate, f"# Measured on the machine in [fingerprint].\n{card_text(table)}")
    stored.finish()
    print(f"{NAME}: wrote {args.calibrate}")
    return 0


def refuse_other_machine(card: DeviceCard, device: str) -> None:
    """Check that a card was calibrated on this machine with as many threads.

    Raises:
        ConfigError: it was not.
    """
    facts = environment_facts()
    if card.kind != device or not card.fingerprint:
        raise ConfigError(
            f"card '{card.title}' was not calibrated on this device ({device}): make one with --calibrate"
        )
    for key in ("cpu", "torch_threads", "gpu"):
        if card.fingerprint.get(key) != facts[key]:
            here = f"{card.fingerprint.get(key)} there, {facts[key]} here"
            raise ConfigError(
                f"card '{card.title}' was calibrated elsewhere ({key}: {here}): give --threads, or calibrate again"
            )


def executions(
    args: argparse.Namespace, workload: ExecutorWorkload, compute: Compute
) -> Iterator[tuple[int, Execution]]:
    """Yield every batch size and its execution."""
    for size in args.batch_size:
        yield size, replace(workload.execution(size, compute), protocol=args.protocol)


def check(args: argparse.Namespace) -> int:
    """Measure every executor, compare with the projection, and return 1 if one is further off than the goal."""
    card = read_device_card(args.card)
    refuse_other_machine(card, args.device)
    dtype: DType = args.dtype[0]
    asked = {
        "samples": args.samples,
        "device": args.device,
        "dtype": dtype,
        "protocol": args.protocol,
        "threads": torch.get_num_threads(),
    }
    stored = ResumeFile(args.out or Path("projection-check.json"), f"{NAME}-check", asked, fresh=args.fresh)
    slice_, compute, reference = Slice(args.seconds), args.compute[0], Reference(args.device)
    usual = card.reference.low if card.reference else None
    rows = []
    for backbone in args.backbone:
        workload = ExecutorWorkload(backbone, args.samples, args.device, dtype)
        costs, depth = block_costs(shape_of(backbone)), shape_of(backbone).layers
        for size, execution in executions(args, workload, compute):
            names = [name for name in EXECUTORS if name != "faithful" or compute == "eager"]
            where = f"{backbone} {size} {compute}"
            for number in range(args.rounds):
                for name in names if number % 2 == 0 else names[::-1]:
                    part = f"{where} {name} {number}"
                    if part in stored:
                        continue
                    if slice_.over:
                        print(f"{NAME}: time is over; run the same command again to resume")
                        return 0
                    seen, spent = _timed(workload, name, execution, reference)
                    if f"{where} {name} steps" not in stored:
                        stored.store(f"{where} {name} steps", to_json(seen))
                    stored.store(part, spent)
            for name in names:
                steps = from_json(stored[f"{where} {name} steps"])
                projected = project(steps, costs, depth, card, dtype, compute, own_pairs=args.device == "cuda")
                times = np.array([stored[f"{where} {name} {number}"] for number in range(args.rounds)])  # [rounds, 2]
                measured = float(np.median(times[:, 0]))
                steady = float(np.median(times[:, 0] / times[:, 1]) * usual) if usual else measured
                rows.append(
                    {
                        "backbone": backbone,
                        "batch_size": size,
                        "compute": compute,
                        "executor": name,
                        "projected_seconds": projected.seconds,
                        "measured_seconds": measured,
                        "measured_at_calibrated_speed": steady,
                        "error": projected.seconds / steady - 1,
                        "raw_error": projected.seconds / measured - 1,
                        "parts": projected.parts,
                        **launches(steps),
                    }
                )
    worst = max(rows, key=lambda row: abs(row["error"]))
    stored.finish(rows=rows, card=card.title, largest_error=abs(worst["error"]), goal=GOAL)
    heads = [
        "backbone",
        "executor",
        "batch",
        "layer runs",
        "rows each",
        "waits",
        "projected",
        "measured",
        "at card's speed",
        "raw error",
        "error",
    ]
    body = [
        [
            row["backbone"].split("/")[-1],
            row["executor"],
            str(row["batch_size"]),
            f"{row['layers']:.0f}",
            f"{row['rows_per_layer']:.0f}",
            f"{row['waits']:.0f}",
            f"{1e3 * row['projected_seconds']:.1f} ms",
            f"{1e3 * row['measured_seconds']:.1f} ms",
            f"{1e3 * row['measured_at_calibrated_speed']:.1f} ms",
            f"{row['raw_error']:+.1%}",
            f"{row['error']:+.1%}" + (" !" if abs(row["error"]) > GOAL else ""),
        ]
        for row in rows
    ]
    print(terminal_table(heads, body, left=2), end="")
    missed = sum(abs(row["error"]) > GOAL for row in rows)
    where = f"{worst['executor']}, batch {worst['batch_size']}"
    print(f"largest error {abs(worst['error']):.1%} ({where}); {missed} of {len(rows)} beyond {GOAL:.0%}")
    return 1 if missed else 0


def _timed(
    workload: ExecutorWorkload, name: str, execution: Execution, reference: Reference
) -> tuple[list[Step], list[float]]:
    """Return the steps of one pass, and its seconds and those of the reference around it."""
    _ = workload.exits, workload.table  # made beforehand; also warms up
    if workload.device == "cuda":
        workload.run(name, execution)  # captures graphs
    now = stopwatch(workload.device)
    before = reference.seconds(SPEED_CHECKS)
    clock.synchronise(workload.device)
    start = now()
    steps = steps_of(workload, name, execution)
    clock.synchronise(workload.device)
    spent = now() - start
    return steps, [spent, (before + reference.seconds(SPEED_CHECKS)) / 2]


def projection(args: argparse.Namespace) -> int:
    """Count every executor on a narrow model of the same depth, and project to a card."""
    card = read_device_card(args.card)
    dtype: DType = args.dtype[0]
    rows: list[dict[str, Any]] = []
    for backbone in args.backbone:
        shape = shape_of(backbone)
        workload, costs = ExecutorWorkload(narrow(shape), args.samples, "cpu", "float32"), block_costs(shape)
        with in_flight_as_on(card.kind):
            for size, execution in executions(args, workload, "eager"):
                counted = {name: steps_of(workload, name, execution) for name in EXECUTORS}
                for compute in args.compute:
                    for name, steps in counted.items():
                        if name == "faithful" and compute != "eager":
                            continue
                        best, worst = (
                            project(steps, costs, shape.layers, card, dtype, compute, fast=fast)
                            for fast in (True, False)
                        )
                        rows.append(
                            {
                                "projected": True,
                                "backbone": backbone,
                                "executor": name,
                                "batch_size": size,
                                "compute": compute,
                                "seconds": [best.seconds, worst.seconds],
                                "launches": best.counts,
                                "blocks": [best.blocks, worst.blocks],
                                **launches(steps),
                            }
                        )
    note = f"{PROJECTED}: {card.title}, {dtype}, {args.samples} samples"
    if args.out:
        facts = {"projected": True, "card": card.model_dump(mode="json"), "dtype": dtype, "samples": args.samples}
        write_json(args.out, {**facts, "rows": rows, "fingerprint": environment_facts()})
    heads = ["executor", "batch", "compute", "layer runs", "rows each", "waits", "projected", "bert / this"]
    body = []
    for row in rows:
        same = ("backbone", "batch_size", "compute")
        bert = next(one for one in rows if one["executor"] == "bert" and all(one[key] == row[key] for key in same))
        ratios = sorted(one / two for one, two in zip(bert["seconds"], row["seconds"], strict=True))
        body.append(
            [
                row["executor"],
                str(row["batch_size"]),
                row["compute"],
                f"{row['layers']:.0f}",
                f"{row['rows_per_layer']:.0f}",
                f"{row['waits']:.0f}",
                ranged([1e3 * one for one in row["seconds"]], " ms"),
                ranged(ratios, "x"),
            ]
        )
    print(note)
    print(terminal_table(heads, body, left=3), end="")
    return 0


def ranged(ends: Sequence[float], unit: str) -> str:
    """Return a range in three digits, or one number if the ends agree."""
    low, high = (f"{end:.3g}" for end in sorted(ends))
    return f"{low}{unit}" if low == high else f"{low} to {high}{unit}"


@exit_codes(NAME, resumes=True)
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = OneLineParser(prog="python -m suites.studies.projection", description=__doc__.splitlines()[0])
    count = whole_number(1)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--calibrate", type=path_type, metavar="TOML", help="measure this machine and write a card")
    what.add_argument("--check", action="store_true", help="compare projected with measured times on this machine")
    parser.add_argument("--card", default="h200", metavar="NAME|TOML", help="a card's name or file; default h200")
    parser.add_argument(
        "--backbone",
        type=comma_separated(str),
        default=["bert-base-uncased"],
        metavar="a,b",
        help="shapes of the model",
    )
    parser.add_argument("--samples", type=count, metavar="N", help="samples; default 10000, with --check 48")
    parser.add_argument(
        "--batch-size",
        type=comma_separated(count),
        metavar="32,128",
        help="batch sizes; default 32,128,512, with --check 4,16,48",
    )
    parser.add_argument(
        "--rounds", type=count, default=3, metavar="N", help="sweeps or passes, of which the median counts; default 3"
    )
    parser.add_argument("--protocol", choices=("modern", "paper"), default="modern")
    kinds = comma_separated(one_of("eager", "graphs"))
    parser.add_argument("--compute", type=kinds, metavar="eager,graphs", help="default: eager; for cuda cards both")
    types = comma_separated(one_of(*get_args(DType)))
    parser.add_argument(
        "--dtype", type=types, metavar="float32,bfloat16", help="default: bfloat16 on CUDA, else float32"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default_device(), help="to calibrate or to check")
    parser.add_argument("--threads", type=count, metavar="N", help="threads of torch; default: torch's")
    parser.add_argument(
        "--seconds",
        type=positive_number,
        metavar="S",
        help="stop after this time; run the same command again to resume",
    )
    parser.add_argument("--fresh", action="store_true", help="measure everything again")
    parser.add_argument("--out", type=path_type, metavar="JSON", help="results; with --check, also what to resume from")
    args = parser.parse_args(arguments)
    measuring = args.calibrate or args.check
    cuda = args.device == "cuda" if measuring else read_device_card(args.card).kind == "cuda"
    args.dtype = args.dtype or ["bfloat16" if cuda else "float32"]
    args.compute = args.compute or (["eager", "graphs"] if cuda and not measuring else ["eager"])
    args.samples = args.samples or (48 if args.check else 10_000)
    args.batch_size = args.batch_size or ([4, 16, 48] if args.check else [32, 128, 512])
    with torch_threads(args.threads or 0):
        if args.calibrate:
            return calibrate(args)
        return check(args) if args.check else projection(args)
