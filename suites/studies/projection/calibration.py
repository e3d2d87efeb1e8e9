"""Micro-benchmarks that measure a device card on this machine: single operations, never an executor or a model.

Each sweep measures all operations once, and a constant is the median over sweeps. The speed of a CPU changes by tens of percent
from second to second where others use the machine, so each measurement is taken relative to a fixed product timed around it
(:class:`Reference`), and the card states the median time of that product. With one thread, CPU time is measured, which leaves
out time that other processes had the core. On CUDA, work is timed by events, and launches by the host's clock.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from harness.contracts import DType
from harness.core import clock
from harness.core.environment import environment_facts
from harness.encoder.device_kernels import varlen
from harness.encoder.layout import attend_grid, split_heads
from harness.execution.engine import DTYPES
from harness.execution.graphs import CudaRecorder

ROWS = (1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096)
WIDTHS = (128, 256, 512, 768, 1536)
TOKENS = (8, 16, 32, 64, 128)
MOVED = tuple(1 << power for power in (12, 16, 19, 21, 23, 25, 27))  # bytes
COPIED = tuple(1 << power for power in (10, 16, 20, 24, 27))
LEAST = 0.02  # seconds that a measurement repeats an operation
REPEATS = 3
DRAWS = 16  # different rows of a table
MOST_COPIES = 256  # of the inputs of an operation
AROUND = 4  # reference products between measurements
HEAD_WIDTH = 64
ROW = 768  # elements of a row that is picked or normed
SOURCE = "measured by python -m suites.studies.projection --calibrate"


def stopwatch(device: str) -> Callable[[], float]:
    """Return the clock for work on a device: CPU time on a CPU with one thread, else the time of day."""
    return clock.busy if torch.device(device).type == "cpu" and torch.get_num_threads() == 1 else clock.now


class Reference:
    """A fixed product that tells how fast the machine is at the moment: [256, 768] x [768, 768], float32."""

    def __init__(self, device: str) -> None:
        self._device, self._now = torch.device(device), stopwatch(device)
        generator = torch.Generator().manual_seed(0)
        self._x, self._w = (torch.randn(rows, ROW, generator=generator).to(device) for rows in (256, ROW))

    def seconds(self, count: int) -> float:
        """Return the mean seconds of ``count`` products."""
        with torch.inference_mode():
            F.linear(self._x, self._w)
            clock.synchronise(self._device)
            start = self._now()
            for _ in range(count):
                F.linear(self._x, self._w)
            clock.synchronise(self._device)
            return (self._now() - start) / count


class Calibration:
    """Measures the operations of one number type on one device.

    Args:
        rows, widths, tokens, moved: sizes to measure; the last three as in the card.
    """

    def __init__(
        self,
        device: str,
        dtype: DType,
        *,
        rows: Sequence[int] = ROWS,
        widths: Sequence[int] = WIDTHS,
        tokens: Sequence[int] = TOKENS,
        moved: Sequence[int] = MOVED,
    ) -> None:
        self.device, self.dtype = torch.device(device), DTYPES[dtype]
        self.rows, self.widths, self.tokens, self.moved = rows, widths, tokens, moved
        self.cuda = self.device.type == "cuda"
        self.size = torch.empty(0, dtype=self.dtype).element_size()

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self.device).to(self.dtype)

    def _seconds(self, run: Callable[[], object]) -> float:
        """Return the seconds of one ``run``, the median of :data:`REPEATS` stretches of at least :data:`LEAST`."""
        run()
        count, found = 1, list[float]()
        while len(found) < REPEATS:
            spent = self._stretch(run, count)
            if spent < LEAST and not found and count < 1 << 16:
                count = max(count + 1, min(8 * count, round(1.3 * count * LEAST / max(spent, 1e-9))))
            else:
                found.append(spent / count)
        return float(np.median(found))

    def _stretch(self, run: Callable[[], object], count: int) -> float:
        phases, now = clock.Phases(self.device), stopwatch(str(self.device))
        start = now()
        with phases("all"):
            for _ in range(count):
                run()
        return phases.seconds()["all"] if self.cuda else now() - start

    def sweep(self) -> dict[str, list[float]]:
        """Measure everything once; return seconds, and those of the :class:`Reference` around it, by name."""
        reference, found = Reference(str(self.device)), dict[str, list[float]]()
        before = reference.seconds(AROUND)
        for name, seconds in self._measurements():
            after = reference.seconds(AROUND)
            found[name] = [seconds, (before + after) / 2]
            before = after
        return found

    def _measurements(self) -> Iterator[tuple[str, float]]:
        with torch.inference_mode():
            yield from self._latencies()
            for cached in (False,) if self.cuda else (False, True):
                yield from self._products(cached)
            yield from self._attention()
            yield from self._moves()

    def _latencies(self) -> Iterator[tuple[str, float]]:
        x, weight, index = self._random(1, 8), self._random(8, 8), torch.zeros(1, dtype=torch.int64, device=self.device)
        calls: list[Callable[[], object]] = [
            lambda: F.linear(x, weight),
            lambda: x + x,
            lambda: F.gelu(x),
            lambda: F.layer_norm(x, (8,)),
            lambda: x.index_select(0, index),
        ]

        def hosts(run: Callable[[], object], count: int = 500) -> float:
            run()
            clock.synchronise(self.device)
            now = stopwatch(str(self.device))
            start = now()
            for _ in range(count):
                run()
            spent = (now() - start) / count
            clock.synchronise(self.device)
            return spent

        yield "launch", float(np.mean([hosts(call) for call in calls]))
        flag = torch.ones(2, dtype=torch.bool, device=self.device)
        yield "synchronise", max(1e-7, hosts(lambda: bool(flag[0]), 200))
        if not self.cuda:
            return
        y = x.clone()

        def copies(count: int) -> None:
            for _ in range(count):
                y.copy_(x)

        recorder = CudaRecorder(self.device)
        yield "graph_launch", hosts(recorder.record(partial(copies, 1)), 200)
        yield "kernel", self._seconds(recorder.record(partial(copies, 500))) / 500
        for size in COPIED:
            there = torch.empty(size, dtype=torch.uint8, device=self.device)
            here = torch.empty(size, dtype=torch.uint8, pin_memory=True)
            yield f"host_copy {size}", self._seconds(partial(here.copy_, there, non_blocking=True))

    def _cold(self, run: Callable[..., Tensor], *shapes: tuple[int, ...]) -> Callable[[], None]:
        """Return ``run`` on random inputs of these shapes that were not used recently, with results in other memory each time.

        Inside a model, a block touches about as much memory as the last cache holds before it returns to the same tensor.
        """
        size = self.size * 2 * sum(math.prod(shape) for shape in shapes)
        count = max(1, min(cache_bytes() // size, MOST_COPIES))
        first = [self._random(*shape) for shape in shapes]
        inputs = cycle([[part.clone() for part in first] for _ in range(count)])
        kept: deque[Tensor] = deque(maxlen=count)
        return lambda: kept.append(run(*next(inputs)))

    def _products(self, cached: bool) -> Iterator[tuple[str, float]]:
        for width in self.widths:
            each = width * width * self.size
            # As many weights as a large model has, or as fit into the last cache; each is used once per turn.
            room = cache_bytes() // 3 if cached else 4 * max(cache_bytes(), 1 << 25)
            weights = cycle([self._random(width, width) for _ in range(max(1, min(room // each, 512)))])
            product = partial(self._product, weights, self._random(width))
            for rows in self.rows:
                name = f"{'cached' if cached else 'matrix'} {rows} {width}"
                yield name, self._seconds(self._cold(product, (rows, width)))

    def _product(self, weights: Iterator[Tensor], bias: Tensor, x: Tensor) -> Tensor:
        return F.linear(x, next(weights), bias)

    def _attention(self) -> Iterator[tuple[str, float]]:
        for tokens in self.tokens:
            count = max(1, 2048 // tokens)
            yield (
                f"attention {tokens}",
                self._seconds(self._cold(self._attend(count, tokens), (count * tokens, 3 * ROW))),
            )
            yield (
                f"first_attention {tokens}",
                self._seconds(self._cold(self._attend_first(count, tokens), (count, 128), (count * tokens, 256))),
            )

    def _attend(self, count: int, tokens: int) -> Callable[[Tensor], Tensor]:
        heads = ROW // HEAD_WIDTH
        if self.cuda and varlen.fits(self.device, self.dtype, HEAD_WIDTH):
            bounds = self._bounds(count, tokens)
            return lambda qkv: varlen.attend(qkv, heads, bounds, tokens)
        mask = self._mask(count, tokens)
        return lambda qkv: attend_grid(split_heads(qkv, count, tokens, 3, heads), mask)

    def _attend_first(self, count: int, tokens: int) -> Callable[[Tensor, Tensor], Tensor]:
        if self.cuda and varlen.fits(self.device, self.dtype, HEAD_WIDTH):
            bounds = self._bounds(count, tokens)
            return lambda query, kv: varlen.attend_first(query, kv, 2, bounds, tokens)
        mask = self._mask(count, tokens)

        def run(query: Tensor, kv: Tensor) -> Tensor:
            return attend_grid((query.view(count, 2, 1, -1), *split_heads(kv, count, tokens, 2, 2)), mask)

        return run

    def _bounds(self, count: int, tokens: int) -> Tensor:
        return torch.arange(0, count * tokens + 1, tokens, dtype=torch.int32, device=self.device)

    def _mask(self, count: int, tokens: int) -> Tensor:
        """Hide the last token, as in a batch of uneven samples."""
        mask = torch.ones(count, 1, 1, tokens, dtype=torch.bool, device=self.device)
        mask[:, :, :, tokens - 1 :] = False
        return mask

    def _moves(self) -> Iterator[tuple[str, float]]:
        weight = self._random(ROW)
        table = self._random(max(1, 4 * cache_bytes() // self.size // ROW), ROW)  # as word embeddings
        for moved in self.moved:
            rows = self._rows_of(moved)
            index, shape = torch.arange(rows, device=self.device), (rows, ROW)
            pick = partial(torch.index_select, dim=0, index=index)
            yield f"stream {moved}", self._seconds(self._cold(torch.add, shape, shape))
            yield f"gather {moved}", self._seconds(self._cold(pick, shape))
            norm = partial(F.layer_norm, normalized_shape=(ROW,), weight=weight, bias=weight)
            yield f"norm {moved}", self._seconds(self._cold(norm, shape))
            yield f"activation {moved}", self._seconds(self._cold(F.gelu, shape))
            yield f"tanh {moved}", self._seconds(self._cold(torch.tanh, shape))
            draws = torch.randint(0, len(table), (DRAWS, rows), device=self.device)
            yield f"lookup {moved}", self._seconds(partial(self._lookup, table, cycle(draws)))

    def _lookup(self, table: Tensor, draws: Iterator[Tensor]) -> Tensor:
        return table.index_select(0, next(draws))

    def _rows_of(self, moved: int) -> int:
        """Return the rows whose reading and writing moves that many bytes."""
        return max(1, moved // self.size // ROW // 2)

    def rates(self, seconds: dict[str, float], launch: float) -> dict[str, Any]:
        """Return the card's table of this number type from the median seconds of every measurement.

        The time of a launch is taken off, as the projection adds it.
        """

        def net(name: str) -> float:
            return max(seconds[name] - launch * (not self.cuda), 0.1 * seconds[name])

        def curve(kind: str, unit: str, amounts: dict[int, float]) -> dict[str, Any]:
            times = [net(f"{kind} {size}") for size in amounts]
            rates = [amount / spent for amount, spent in zip(amounts.values(), times, strict=True)]
            # Operations are looked up by the bytes that they move, which are whole rows and so not those asked for.
            flops = unit == "FLOP/s"
            at = [float(size) for size in (amounts if flops else amounts.values())]
            work = [float(size) ** 2 for size in amounts] if flops else at
            return {"unit": unit, "source": SOURCE, "at": at, "value": _slowed(work, rates)}

        def surface(kind: str) -> dict[str, Any]:
            table = [[2 * r * w * w / net(f"{kind} {r} {w}") for w in self.widths] for r in self.rows]
            columns = [_slowed(self.rows, [line[place] for line in table]) for place in range(len(self.widths))]
            value = [list(line) for line in zip(*columns, strict=True)]
            sizes = {"rows": [float(r) for r in self.rows], "width": [float(w) for w in self.widths]}
            return {"unit": "FLOP/s", "source": SOURCE, **sizes, "value": value}

        cells = {t: 4.0 * max(1, 2048 // t) * t for t in self.tokens}
        moved = {m: 2.0 * self._rows_of(m) * ROW * self.size for m in self.moved}
        found = {
            "matrix": surface("matrix"),
            "attention": curve("attention", "FLOP/s", {t: ROW * t * count for t, count in cells.items()}),
            "first_attention": curve("first_attention", "FLOP/s", {t: 128 * count for t, count in cells.items()}),
            "stream": curve("stream", "B/s", {m: 1.5 * size for m, size in moved.items()}),
        }
        for kind in ("gather", "lookup", "norm", "activation", "tanh"):
            found[kind] = curve(kind, "B/s", moved)
        if not self.cuda:
            found["cached"] = surface("cached")
        return found


def _slowed(sizes: Sequence[float], rates: Sequence[float]) -> list[float]:
    """Lower rates where a larger size would take less time than a smaller one, which noise can cause."""
    times = np.maximum.accumulate([size / rate for size, rate in zip(sizes, rates, strict=True)])
    return [float(f"{size / spent:.6g}") for size, spent in zip(sizes, times, strict=True)]


def cache_bytes() -> int:
    """Return the size of the last cache of the first core; 32 MiB if the system does not say."""
    sizes = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    try:
        texts = [
            path.read_text(encoding="ascii").strip()
            for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("*/size")
        ]
    except OSError:
        texts = []
    return max((int(text[:-1]) * sizes[text[-1]] for text in texts if text[-1:] in sizes), default=1 << 25)


def card_table(
    device: str, sweeps: dict[DType, list[dict[str, list[float]]]], calibrations: dict[DType, Calibration]
) -> dict[str, Any]:
    """Return a card from all sweeps of :meth:`Calibration.sweep`, by number type."""
    usual = float(np.median([around for some in sweeps.values() for sweep in some for _, around in sweep.values()]))
    median = {
        dtype: {name: usual * float(np.median([sweep[name][0] / sweep[name][1] for sweep in some])) for name in some[0]}
        for dtype, some in sweeps.items()
    }
    first = next(iter(median.values()))
    cuda = torch.device(device).type == "cuda"

    def latency(name: str) -> dict[str, Any]:
        return {"unit": "s", "source": SOURCE, "value": float(f"{first[name]:.6g}")}

    facts = environment_facts()
    name = (
        (facts["gpu"] or {}).get("name", "CUDA device") if cuda else f"{facts['cpu']}, {facts['torch_threads']} threads"
    )
    table: dict[str, Any] = {
        "title": f"{name} (calibrated)",
        "kind": "cuda" if cuda else "cpu",
        "attention": "ragged" if cuda else "grid",
        "cache_bytes": 0.0 if cuda else float(cache_bytes()),
        "reference": {"unit": "s", "source": SOURCE, "value": float(f"{usual:.6g}")},
        "launch": latency("launch"),
        "synchronise": latency("synchronise"),
        "rates": {dtype: calibrations[dtype].rates(found, first["launch"]) for dtype, found in median.items()},
        "fingerprint": {**facts, "calibrated": time.strftime("%Y-%m-%d", time.gmtime())},
    }
    if cuda:
        table |= {"graph_launch": latency("graph_launch"), "kernel": latency("kernel")}
        rates = _slowed(COPIED, [size / first[f"host_copy {size}"] for size in COPIED])
        table["host_copy"] = {"unit": "B/s", "source": SOURCE, "at": [float(size) for size in COPIED], "value": rates}
    return table
