"""Compare executors with full depth and with each other at BERT-base's shape: how much of the layer ratio becomes wall time?

Weights and ids are random, lengths realistic, and heads set so that samples exit at every layer::

    python -m suites.studies.executor_speed --samples 192 --rounds 3 --out executors.json
    python -m suites.studies.executor_speed --device cuda --samples 10000 --batch-size 32,128,512,2048 --compute eager,graphs --roof

``bert`` runs all layers. ``ladder``, ``exact-k`` and ``verified`` know exits beforehand, as GEEP predicts them; ``look1`` knows
them after one head. ``shrink`` finds the same exits by a head after every layer, as FastBERT does; ``rebatch`` refills its batches
with the samples that other batches left; ``faithful`` is the released loop, which is always eager. Every row has its launches,
rows per launch, synchronisations (``waits``) and copies. Rounds alternate all of them (A B C, C B A, ...). ``reached`` is the
ratio of wall times to ``bert`` over the ratio of layers.
``paired_seconds`` follow from the seconds of ``bert`` and the ratios round by round, which cancels
changes of the machine's speed.
Goals compare every executor at its best batch size and way to run blocks, unless they name a batch size.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler
from tqdm import tqdm

from harness.cli.argument_types import OneLineParser, comma_separated, one_of, whole_number
from harness.contracts import Compute, DType, Execution, Predictions
from harness.core import clock
from harness.core.command_line import exit_codes
from harness.core.environment import environment_facts
from harness.core.files import write_json, write_text
from harness.core.terminal_table import terminal_table
from harness.core.work import recorded
from harness.encoder.backbone import default_device
from harness.execution.engine import DTYPES
from harness.measure.resources import matrix_rate
from suites.workloads.launch_counts import launch_counts
from suites.workloads.random_model import EXECUTORS, ExecutorWorkload

COMPUTE: tuple[Compute, ...] = get_args(Compute)
ROOF_BATCH, ROOF_TOKENS = 256, 128
ROOF_LEAST = 0.45  # of the matrix rate: what a tuned full-depth BERT reaches on a GPU
MOST = 4096  # samples in a batch that is bounded by its tokens


def timed(workload: ExecutorWorkload, executor: str, execution: Execution) -> tuple[float, Predictions]:
    """Return the seconds and the predictions of one pass."""
    clock.synchronise(workload.device)
    start = clock.now()
    found = workload.run(executor, execution)
    clock.synchronise(workload.device)
    return clock.now() - start, found


def measure(
    workload: ExecutorWorkload,
    rounds: int,
    batch_sizes: Sequence[int],
    computes: Sequence[Compute],
    budgets: Sequence[int] = (),
) -> list[dict[str, Any]]:
    """Return one row per executor, batch size or token budget, and way to run blocks; see the module's docstring."""
    rows = []
    batches = [(size, 0) for size in batch_sizes] + [(MOST, tokens) for tokens in budgets]
    plans = [(*batch, compute) for batch in batches for compute in computes]
    with tqdm(total=len(plans) * (rounds + 1), desc="rounds", disable=None) as bar:
        for batch_size, batch_tokens, compute in plans:
            execution = workload.execution(batch_size, compute, batch_tokens=batch_tokens)
            names = [name for name in EXECUTORS if name != "faithful" or compute == "eager"]
            passes: dict[str, list[float]] = {name: [] for name in names}
            found, steps = {}, {}
            for number in range(-1, rounds):  # the first round warms up
                for name in names if number % 2 == 0 else names[::-1]:
                    with recorded() as steps[name]:
                        seconds, found[name] = timed(workload, name, execution)
                    passes[name] += [seconds] if number >= 0 else []
                bar.update()
            for name, predictions in found.items():
                layers, depth = predictions.work.rows("layer") / workload.samples, workload.model.depth
                wall = float(np.median(np.array(passes["bert"]) / np.array(passes[name])))
                median, phases = float(np.median(passes[name])), predictions.phases
                rows.append(
                    {
                        "executor": name,
                        "batch_size": batch_size,
                        "batch_tokens": batch_tokens,
                        "compute": compute,
                        "seconds": median,
                        "paired_seconds": float(np.median(passes["bert"])) / wall,
                        "mean_layers": layers,
                        "mean_heads": predictions.work.rows("head") / workload.samples,
                        **launch_counts(steps[name]),
                        "wall_ratio": wall,
                        "layer_ratio": depth / layers,
                        "reached": wall * layers / depth,
                        "flops_per_s": workload.model.cost().flops(predictions.work, "full") / median,
                        "predict_and_sort_share": (phases.get("predict", 0.0) + phases["schedule"]) / passes[name][-1],
                    }
                )
    return rows


def batch_of(row: dict[str, Any]) -> str:
    """Return the limit of a row's batches."""
    return f"{row['batch_tokens']} tokens" if row["batch_tokens"] else f"batch {row['batch_size']}"


def best(rows: Sequence[dict[str, Any]], executor: str, batch_size: int | None = None) -> dict[str, Any]:
    """Return the fastest row of an executor, at any batch size or at ``batch_size``."""
    mine = [row for row in rows if row["executor"] == executor and batch_size in (None, row["batch_size"])]
    return min(mine, key=lambda row: row["paired_seconds"])


def goals(rows: Sequence[dict[str, Any]], share: float = 1.0) -> dict[str, float]:
    """Return ratios between executors, each at its best.

    Args:
        share: of the matrix rate that ``bert`` reaches; below :data:`ROOF_LEAST`, ratios against it are left out.
    """
    bert, tuned, refilled = (best(rows, name) for name in ("bert", "shrink", "rebatch"))
    found = {}
    for name in ("ladder", "exact-k", "verified", "look1"):
        mine = best(rows, name)
        if share >= ROOF_LEAST:
            found[f"{name} over bert / layer ratio"] = (
                bert["paired_seconds"] / mine["paired_seconds"] / mine["layer_ratio"]
            )
        found[f"{name} over shrink"] = tuned["paired_seconds"] / mine["paired_seconds"]
        found[f"{name} over rebatch"] = refilled["paired_seconds"] / mine["paired_seconds"]
    found["rebatch over shrink"] = tuned["paired_seconds"] / refilled["paired_seconds"]
    small = min(row["batch_size"] for row in rows)
    if any(row["executor"] == "faithful" for row in rows):
        released = best(rows, "faithful", small)["paired_seconds"]
        found[f"ladder over faithful at batch {small}"] = released / best(rows, "ladder", small)["paired_seconds"]
        found[f"shrink over faithful at batch {small}"] = released / best(rows, "shrink", small)["paired_seconds"]
    return found


def roof(workload: ExecutorWorkload, rounds: int, computes: Sequence[Compute]) -> list[dict[str, Any]]:
    """Measure ``bert`` at 128 tokens and batch 256 against the rate of a large matrix product."""
    even = replace(workload, samples=10 * ROOF_BATCH, length=ROOF_TOKENS)
    found = []
    for compute in computes:
        rate = matrix_rate(workload.device, DTYPES[workload.dtype])
        execution = even.execution(ROOF_BATCH, compute)
        work = even.run("bert", execution).work  # warms up
        median = float(np.median([timed(even, "bert", execution)[0] for _ in range(rounds)]))
        done = even.model.cost().flops(work, "full") / median
        found.append(
            {
                "compute": compute,
                "batch_size": ROOF_BATCH,
                "tokens": ROOF_TOKENS,
                "samples_per_s": even.samples / median,
                "flops_per_s": done,
                "matrix_flops_per_s": rate,
                "share": done / rate,
            }
        )
    return found


def profile(workload: ExecutorWorkload, rows: Sequence[dict[str, Any]]) -> str:
    """Return a text with the time of every kernel in one pass, for every executor at its best."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if workload.device == "cuda" else [])]
    parts = []
    for name in dict.fromkeys(row["executor"] for row in rows):
        row = best(rows, name)
        execution = workload.execution(row["batch_size"], row["compute"], batch_tokens=row["batch_tokens"])
        workload.run(name, execution)
        clock.synchronise(workload.device)
        with profiler(activities=activities) as seen:
            workload.run(name, execution)
            clock.synchronise(workload.device)
        order = "cuda_time_total" if workload.device == "cuda" else "cpu_time_total"
        table = seen.key_averages().table(sort_by=order, row_limit=25)
        parts.append(f"{name}, {batch_of(row)}, {row['compute']}\n{table}")
    return "\n\n".join(parts) + "\n"


@exit_codes("executor_speed")
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = OneLineParser(prog="python -m suites.studies.executor_speed", description=__doc__.splitlines()[0])
    count = whole_number(1)
    counts, computes = comma_separated(count), comma_separated(one_of(*COMPUTE))
    parser.add_argument("--backbone", default="bert-base-uncased", help="shape of the model (known names work offline)")
    parser.add_argument("--samples", type=count, default=192, metavar="N", help="samples; default 192")
    parser.add_argument("--rounds", type=count, default=3, metavar="N", help="timed rounds; default 3")
    parser.add_argument("--batch-size", type=counts, default=[32], metavar="32,128", help="batch sizes; default 32")
    parser.add_argument(
        "--batch-tokens", type=counts, default=[], metavar="16384", help="also batches of this many tokens"
    )
    parser.add_argument("--compute", type=computes, default=["eager"], metavar="eager,graphs", help=", ".join(COMPUTE))
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="default: bfloat16 on CUDA, else float32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default_device())
    parser.add_argument(
        "--roof", action="store_true", help="also compare bert (128 tokens, batch 256) with the peak matrix rate"
    )
    parser.add_argument("--profile", type=Path, metavar="TXT", help="also write the time of every kernel")
    parser.add_argument("--out", type=Path, metavar="JSON", help="also write JSON here")
    args = parser.parse_args(arguments)
    dtype: DType = args.dtype or ("bfloat16" if args.device == "cuda" else "float32")
    workload = ExecutorWorkload(args.backbone, args.samples, args.device, dtype)
    rows = measure(workload, args.rounds, args.batch_size, args.compute, args.batch_tokens)
    ceiling = roof(workload, args.rounds, args.compute) if args.roof else []
    share = max((row["share"] for row in ceiling), default=1.0) if args.device == "cuda" else 1.0
    facts: dict[str, Any] = {
        "backbone": args.backbone,
        "samples": args.samples,
        "mean_tokens": float(workload.tokens.lengths.float().mean()),
        "rounds": args.rounds,
        "device": args.device,
        "dtype": dtype,
        "executors": rows,
        "goals": goals(rows, share),
        "roof": ceiling,
        "fingerprint": environment_facts(),
    }
    if args.out:
        write_json(args.out, facts)
    if args.profile:
        write_text(args.profile, profile(workload, rows))
    heads = [
        "executor",
        "batch",
        "compute",
        "seconds",
        "layers",
        "wall ratio",
        "layer ratio",
        "reached",
        "launches",
        "rows",
        "waits",
        "predict and sort",
    ]
    body = [
        [
            *(row["executor"], batch_of(row), row["compute"], f"{row['seconds']:.3f}", f"{row['mean_layers']:.2f}"),
            *(f"{row['wall_ratio']:.2f}x", f"{row['layer_ratio']:.2f}x", f"{row['reached']:.1%}"),
            *(f"{row['launches']:,}", f"{row['rows_per_launch']:.1f}", f"{row['waits']:,}"),
            f"{row['predict_and_sort_share']:.3%}",
        ]
        for row in rows
    ]
    print(terminal_table(heads, body, left=3), end="")
    if share < ROOF_LEAST:
        print(f"bert reaches {share:.1%} of the matrix rate, less than {ROOF_LEAST:.0%}: no ratios against it")
    for name, value in facts["goals"].items():
        print(f"{name}: {value:.3f}")
    for row in ceiling:
        rate = f"{row['share']:.1%} of {row['matrix_flops_per_s']:.3g} FLOP/s"
        print(f"bert, {ROOF_TOKENS} tokens, batch {ROOF_BATCH}, {row['compute']}: {rate}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
