"""Timed passes that alternate between methods, and the search for a method's best batch size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from harness.contracts import Execution
from harness.core.tokens import TokenSet
from harness.measure.passes import TimedPass
from suites.studies.shared.study_methods import StudyMethod

# A timed pass over tokens and the numbers of their samples.
Pass = Callable[[TokenSet, np.ndarray], TimedPass]

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
SLOWER = 1.05  # a size is slower if it takes more than this times the fastest pass
DOWN = 2  # this many slower sizes in a row end the search
NEAR = 1.10  # sizes within this factor of the fastest pass are measured again


def samples_of(number: int, count: int, seed: int) -> np.ndarray:
    """Return the order of samples in a round, int64 [count]: as stored in round 0, random in others."""
    return np.arange(count) if number == 0 else np.random.default_rng([seed, number]).permutation(count)


def take_turns(
    cells: Mapping[str, Pass], tokens: TokenSet, number: int, seed: int, tell: Callable[[str], None] | None = None
) -> dict[str, TimedPass]:
    """Run one round: every cell once on the same samples in the same order; odd rounds run the cells backwards."""
    order = samples_of(number, len(tokens), seed)
    shuffled = tokens if number == 0 else tokens.select(order)
    found = {}
    for name in list(cells) if number % 2 == 0 else reversed(list(cells)):
        if tell is not None:
            tell(name)
        found[name] = cells[name](shuffled, order)
    return {name: found[name] for name in cells}


def warm_up(run: Pass, tokens: TokenSet, execution: Execution) -> None:
    """Run four batches; if blocks are compiled or captured at a shape's first use, run all samples in two orders."""
    orders = [np.arange(min(len(tokens), 4 * execution.batch_size))]
    if execution.compute not in ("eager", "packed"):
        orders = [samples_of(number, len(tokens), seed=2**31) for number in (0, 1)]
    for order in orders:
        run(tokens.select(order), order)


def spread(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Return ``median``, ``p10`` and ``p90``."""
    low, middle, high = np.quantile(np.asarray(values, dtype=float), [0.1, 0.5, 0.9])
    return {"median": float(middle), "p10": float(low), "p90": float(high)}


def sweep(
    entry: StudyMethod,
    tokens: TokenSet,
    execution: Execution,
    sizes: Sequence[int],
    rounds: int,
    seed: int,
    tell: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Find the batch size at which a method is fastest, with samples sorted by length.

    Rising sizes get two passes each, of which the faster one counts. The search ends early when larger batches cannot help:
    at a size that holds all samples, after two sizes in a row that were more than 5 % slower than the fastest so far, or
    when memory is used up. Sizes within 10 % of the fastest then alternate for ``rounds`` more passes, and the smallest
    median wins.

    Returns:
        ``best``; ``tried``: size, seconds of its passes, and samples/s by their median; ``ended``: why the search ended.

    Raises:
        torch.OutOfMemoryError: even the smallest size does not fit into memory.
    """

    def at(size: int) -> Pass:
        way = replace(execution, batch_size=size, order="length", window=0)
        return lambda some, order: entry.run(some, order, way)

    seconds: dict[int, list[float]] = {}
    ended = "all sizes tried"
    down = 0
    everything = np.arange(len(tokens))
    for size in sorted(sizes):
        if tell is not None:
            tell(f"batch {size}")
        try:
            warm_up(at(size), tokens, replace(execution, batch_size=size))
            seconds[size] = [at(size)(tokens, everything).seconds for _ in range(2)]
        except torch.OutOfMemoryError:
            if not seconds:
                raise
            ended = f"batch {size} does not fit into memory"
            break
        fastest = min(min(passes) for passes in seconds.values())
        down = down + 1 if min(seconds[size]) > SLOWER * fastest else 0
        if size >= len(tokens):
            ended = f"batch {size} holds all {len(tokens)} samples"
            break
        if down == DOWN:
            ended = f"{DOWN} sizes in a row were more than {SLOWER - 1:.0%} slower than the fastest"
            break
    fastest = min(min(passes) for passes in seconds.values())
    near = {str(size): at(size) for size, passes in seconds.items() if min(passes) <= NEAR * fastest}
    if len(near) > 1:
        for number in range(1, rounds + 1):
            for name, done in take_turns(near, tokens, number, seed, tell).items():
                seconds[int(name)].append(done.seconds)
    medians = {size: float(np.median(passes)) for size, passes in seconds.items()}
    best = min((int(name) for name in near), key=lambda size: medians[size])
    return {
        "best": best,
        "tried": [
            {"batch_size": size, "seconds": passes, "samples_per_s": len(tokens) / medians[size]}
            for size, passes in seconds.items()
        ],
        "ended": ended,
    }
