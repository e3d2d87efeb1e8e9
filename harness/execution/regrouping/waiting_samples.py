"""Samples that wait behind a head until there are enough of them for a batch."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from harness.contracts import Execution
from harness.core.work import Tally, record
from harness.encoder.layout import Layout
from harness.execution.arrangement import cut
from harness.execution.exit_rules import Memory


@dataclass
class WaitingGroup:
    """Samples that stay after the same head, and all that is needed to continue them.

    Attributes:
        samples: int64 [B] on the host, places in running order.
        hidden: hidden states [rows, width] on the device.
        layout: of the hidden states.
        memory: of the exit rule, a row per sample in each tensor.
    """

    samples: np.ndarray
    hidden: Tensor
    layout: Layout
    memory: Memory

    def part(self, start: int, stop: int) -> WaitingGroup:
        """Return samples ``start`` .. ``stop - 1``, as views."""
        hidden, layout = self.layout.slice(self.hidden, start, stop)
        return WaitingGroup(self.samples[start:stop], hidden, layout, tuple(part[start:stop] for part in self.memory))

    @classmethod
    def joined(cls, groups: list[WaitingGroup]) -> WaitingGroup:
        """Join groups in their order: one copy of the hidden states and of every tensor in the memory."""
        if len(groups) == 1:
            return groups[0]
        first = groups[0].layout
        lengths = np.concatenate([group.layout.lengths for group in groups])
        record("join", Tally(len(lengths), sum(group.layout.rows for group in groups)))
        return cls(
            np.concatenate([group.samples for group in groups]),
            torch.cat([group.hidden for group in groups]),
            Layout(lengths, first.pad_to, first.device),
            tuple(torch.cat(parts) for parts in zip(*(group.memory for group in groups), strict=True)),
        )


class WaitingQueue:
    """Samples that wait for the same layers; first come, first served.

    As groups arrive in running order, neighbours have similar lengths if the execution sorts by length.
    """

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self._groups: deque[WaitingGroup] = deque()
        self.count = 0

    def add(self, group: WaitingGroup) -> None:
        """Let a group wait behind the others."""
        self._groups.append(group)
        self.count += len(group.samples)

    def full(self) -> bool:
        """Return whether a batch of the execution's size waits: no sample more would fit into it."""
        size = self._first()
        return size == self._execution.batch_size or size < self.count

    def take(self) -> WaitingGroup:
        """Remove and return the first batch, as large as the execution allows."""
        missing, taken = self._first(), []
        self.count -= missing
        while missing:
            group = self._groups.popleft()
            if len(group.samples) > missing:
                self._groups.appendleft(group.part(missing, len(group.samples)))
                group = group.part(0, missing)
            taken.append(group)
            missing -= len(group.samples)
        return WaitingGroup.joined(taken)

    def _first(self) -> int:
        """Return the number of samples in the first batch."""
        if not self._execution.batch_tokens or not self.count:
            return min(self.count, self._execution.batch_size)
        lengths = np.concatenate([group.layout.lengths for group in self._groups])
        return next(cut(lengths, 0, self.count, self._execution))[1]
