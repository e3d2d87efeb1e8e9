"""One pass of a model over a token set: what all executors are built from.

:class:`Pass` holds the samples in running order, the engine and the results. :func:`interleave` overlaps batches that wait for
the host.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from harness.contracts import Execution, Predictions
from harness.core.clock import Phases
from harness.core.errors import ConfigError
from harness.core.tokens import TokenSet
from harness.core.work import BEFORE, Tally, Work, record
from harness.encoder import transfer
from harness.encoder.layout import Layout
from harness.encoder.model import PROJECTION, Gate
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.transfer import HostCopy
from harness.execution.arrangement import Arranged, arrange, cut
from harness.execution.engine import SIDE
from harness.execution.engine_cache import engine_for

LeaveRule = Callable[[Tensor], Tensor]
Answer = Literal["student", "shared"]
# Runs one batch; yields each copy to the host that it has to wait for, and receives the values.
BatchRun = Generator[HostCopy, np.ndarray, None]
# Starts a batch in the lane with this number.
StartBatch = Callable[[int], BatchRun]
# Batches in flight at a time, per device type; one where there is nothing to wait for.
IN_FLIGHT = {"cuda": 2}


@dataclass(frozen=True)
class Answered:
    """What answers samples before layer 1, for all N samples in input order, on their device.

    Attributes:
        sure: bool [N], samples that are answered and do not run.
        logits: float32 [N, C], their answers; other rows are ignored.
    """

    sure: Tensor
    logits: Tensor


@contextmanager
def inference(model: MultiExitModel) -> Iterator[None]:
    """Disable gradients, dropout and autocast: the engine has weights of the right type already."""
    if model.training:  # visits all heads, which costs noticeable time per single sample
        model.eval()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        if torch.amp.is_autocast_available(model.encoder.device.type):
            stack.enter_context(torch.autocast(model.encoder.device.type, enabled=False))
        yield


class Pass:
    """One pass over a token set: samples in running order, the engine, and the results so far.

    Samples are numbered by their place in running order, 0 .. N-1. Samples answered before layer 1 stand at the end of each
    window, outside of :meth:`windows` and :meth:`batches`, so that every executor runs the others alone; their number comes with
    the one copy of the schedule.

    Attributes:
        lengths: int64 [N] on the host.
        columns: int64 [N, S] on the host: exits or looks, as given.
        logits: float32 [N, C] on the device, filled as samples are answered.
        exits: int16 [N] on the host.
        arranged: the samples in running order.
        engine: runs the blocks.
    """

    def __init__(
        self,
        model: MultiExitModel,
        tokens: TokenSet,
        execution: Execution,
        columns: Tensor | None = None,
        phases: Phases | None = None,
        answered: Answered | None = None,
    ) -> None:
        phases = phases or Phases(tokens.device)
        with phases("schedule"):
            sure = None if answered is None else answered.sure
            arranged = arrange(tokens, execution, model.encoder.shape, columns, sure)
        self._prepare(model, arranged, execution, phases, int(arranged.lengths.max(initial=1)))
        if answered is not None:
            torch.index_select(answered.logits, 0, transfer.upload(arranged.order, self.device), out=self.logits)
            self.exits[arranged.answered] = BEFORE
            self.columns[arranged.answered] = BEFORE

    @classmethod
    def over(cls, model: MultiExitModel, samples: np.ndarray, other: Pass) -> Pass:
        """Start a pass of another model over some samples (int64 [M], rising) of another pass, in its order."""
        new = cls.__new__(cls)
        longest = int(other.lengths.max(initial=1))  # so that all parts of a set share an engine
        new._prepare(model, other.arranged.select(samples), other.execution, other.phases, longest)
        return new

    def _prepare(
        self, model: MultiExitModel, arranged: Arranged, execution: Execution, phases: Phases, longest: int
    ) -> None:
        self.model, self.execution, self.device = model, execution, arranged.tokens.device
        self.arranged, self.phases = arranged, phases
        self.lengths, self.columns = arranged.lengths, arranged.columns
        self.engine = engine_for(model, execution, longest)
        count = len(self.lengths)
        self.logits = torch.zeros(count, model.labels, dtype=torch.float32, device=self.device)
        self.exits = np.zeros(count, dtype=np.int16)
        self.work = Work()

    def windows(self) -> Iterator[tuple[int, int]]:
        """Yield the samples of each window that run (first, one past the last)."""
        return self.arranged.windows(self.execution.window)

    def batches(self) -> Iterator[tuple[int, int]]:
        """Yield batches (first, one past the last); none spans two windows."""
        for begin, end in self.windows():
            yield from cut(self.lengths, begin, end, self.execution)

    def begin(self, first: int, last: int, lane: int = 0) -> tuple[Tensor, Layout]:
        """Return embeddings h^0 and layout of samples ``first`` .. ``last - 1``."""
        tokens, positions = self.arranged.batch(first, last)
        pad_to = self.execution.max_length if self.execution.protocol == "paper" else None
        layout = Layout(self.lengths[first:last], pad_to, self.device, tokens.offsets)
        size = Tally(layout.count, layout.rows, layout.valid)
        record("embed", size)
        if self.model.encoder.shape.embedding:
            self.work.add(f"{PROJECTION}.0", size)
        return self.engine.embed(tokens, layout, positions, lane), layout

    def layer(self, index: int, hidden: Tensor, layout: Layout, lane: int = 0) -> Tensor:
        """Run and count layer ``index``."""
        self.work.add(f"layer.{index}", self.engine.layer_tally(index, layout))
        return self.engine.layer(index, hidden, layout, lane)

    def head(self, exit_layer: int, hidden: Tensor, layout: Layout, lane: int = 0) -> Tensor:
        """Run and count the head after layer ``exit_layer``: float32 [B, C]."""
        self.work.add(f"head.{exit_layer}", self.engine.head_tally(layout))
        return self.engine.head(exit_layer, hidden, layout, lane)

    def gate(self, exit_layer: int, gate: Gate, hidden: Tensor, layout: Layout) -> Tensor:
        """Run and count a gate after layer ``exit_layer``: float32 [B] or [B, D]. Gates always run eagerly."""
        self.work.add(f"gate.{exit_layer}", Tally(layout.count, layout.count, layout.count))
        found: Tensor = gate(hidden, layout)
        return found

    def shared(self, hidden: Tensor, layout: Layout) -> Tensor:
        """Return ``C_T(F_L(h))`` for samples that leave: float32 [B, C]."""
        last = self.model.depth - 1
        return self.head(last, self.layer(last, hidden, layout, SIDE), layout, SIDE)

    def run_to_the_end(self, first: int, last: int) -> None:
        """Run one batch at full depth and answer it."""
        final = self.model.depth - 1
        hidden, layout = self.begin(first, last)
        for index in range(final + 1):
            hidden = self.layer(index, hidden, layout)
        self.answer(slice(first, last), self.head(final, hidden, layout), final)

    def ladder(
        self, hidden: Tensor, layout: Layout, ends: np.ndarray, start: int = 0
    ) -> Iterator[tuple[int, slice, Tensor, Layout]]:
        """Run each sample of a batch from layer ``start`` to its end.

        Args:
            ends: layer indices [B] that never rise, so that the samples active at a layer are a prefix: a view whose size the
                host knows, without a gather or a synchronisation.

        Yields:
            For every layer where samples end: the layer, their places in the batch, their hidden states and layout.
        """
        for index in range(start, int(ends[0]) + 1):
            active, staying = int((ends >= index).sum()), int((ends > index).sum())
            hidden, layout = layout.slice(hidden, 0, active)
            hidden = self.layer(index, hidden, layout)
            if staying < active:
                yield index, slice(staying, active), *layout.slice(hidden, staying, active)

    def keep(self, tensor: Tensor) -> Tensor:
        """Return hidden states or logits that stay valid after the next block."""
        return self.engine.keep(tensor)

    def answer(self, samples: slice | np.ndarray, logits: Tensor, exit_layer: int) -> None:
        """Store the logits of samples that leave after ``exit_layer``; a later answer replaces an earlier one."""
        record("answer", Tally(len(logits)))
        if isinstance(samples, slice):
            self.logits[samples] = logits
        else:
            self.logits.index_copy_(0, transfer.upload(samples, self.device), logits)
        self.exits[samples] = exit_layer

    def in_input_order(self, values: np.ndarray) -> np.ndarray:
        """Undo the sorting of values [N, ...]."""
        out = np.empty_like(values)
        out[self.arranged.order] = values
        return out

    def predictions(self) -> Predictions:
        """Copy the results to the host, in input order."""
        with self.phases("copy"):
            logits = transfer.download(self.logits).wait()
        return Predictions(
            self.in_input_order(logits),
            self.in_input_order(self.exits),
            self.work,
            self.in_input_order(self.columns[:, 0].astype(np.int16)) if self.columns.shape[1] else None,
            self.phases.seconds(),
        )

    def check_heads(self, allowed: Iterable[int], *more: int) -> None:
        """Check that every exit or look is at a layer with a head.

        Raises:
            ConfigError: one is not.
        """
        known = sorted(allowed)
        unknown = {*np.unique(self.columns[~self.arranged.answered]).tolist(), *more} - set(known)
        if unknown:
            raise ConfigError(f"no trained head after layer index {sorted(unknown)}: heads are at {known}")


def interleave(batches: Iterable[StartBatch | None], device: torch.device) -> None:
    """Run batches that need decisions of the host; while one waits for its copy, work of another is queued.

    Args:
        batches: asked for the next batch whenever a lane is free; ``None`` if only a running batch can produce one.
    """
    todo, free = iter(batches), list(range(IN_FLIGHT.get(device.type, 1)))
    in_flight: deque[tuple[BatchRun, int, HostCopy]] = deque()

    def advance(run: BatchRun, lane: int, arrived: np.ndarray | None) -> None:
        try:
            copy = next(run) if arrived is None else run.send(arrived)
        except StopIteration:
            free.append(lane)
        else:
            in_flight.append((run, lane, copy))

    while True:
        while free and (make := next(todo, None)) is not None:
            lane = free.pop()
            advance(make(lane), lane, None)
        if not in_flight:
            return
        run, lane, copy = in_flight.popleft()
        advance(run, lane, copy.wait())
