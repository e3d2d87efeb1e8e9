"""What the rows of a table hold: one group of columns, or two, each about one thing that was observed of samples.

* ``exits``: the layer at which a sample left. Every sample marks one of L columns, and a row is a distribution.
* ``agreement``: after which layers a sample has the answer of the last layer. A sample marks any of L columns, and always the
  last one; an entry of a row is the share of samples that marked this column. A layer without a head is never marked.
* ``labels``: a class of each sample. As exits, with C columns; beside one of the others, or alone.

Exits or agreement come first, because rules (:mod:`geep.exit_table.rules`) read the first L columns. A sample's marks are one
int64, bit c for column c.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from harness.core.errors import ConfigError, first_line

MAX_LAYERS = 24
MAX_COLUMNS = 60  # a row and its key fill at most 128 bytes
GroupName = Literal["exits", "agreement", "labels"]


class ColumnGroup(NamedTuple):
    """Neighbouring columns. ``exclusive``: a sample marks exactly one of them, so their entries add up to one."""

    name: GroupName
    columns: slice
    exclusive: bool


@dataclass(frozen=True)
class TableColumns:
    """The number of columns per group; 0: no such group.

    Raises:
        ConfigError: there are no columns, too many, or groups that do not go together.
    """

    exits: int = 0
    agreement: int = 0
    labels: int = 0

    def __post_init__(self) -> None:
        for name, size in (("exits", self.exits), ("agreement", self.agreement)):
            if not 0 <= size <= MAX_LAYERS or self.width == 0:
                raise ConfigError(f"exit table: num_layers={size} is outside 1..{MAX_LAYERS} ({name})")
        if self.labels < 0 or self.width > MAX_COLUMNS:
            most = MAX_COLUMNS - self.num_layers
            raise ConfigError(f"exit table: {self.labels} label columns do not fit into a row: it has room for {most}")
        if self.exits and self.agreement:
            raise ConfigError("exit table: columns of exits and of agreement in one table: make two tables")

    @property
    def num_layers(self) -> int:
        """L of exits or agreement; 0 if there are labels only."""
        return self.exits + self.agreement

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.exits + self.agreement + self.labels

    @property
    def groups(self) -> list[ColumnGroup]:
        """All groups, in the order of their columns."""
        first: GroupName = "exits" if self.exits else "agreement"
        both = (
            ColumnGroup(first, slice(0, self.num_layers), first == "exits"),
            ColumnGroup("labels", slice(self.num_layers, self.width), True),
        )
        return [group for group in both if group.columns.stop > group.columns.start]

    @property
    def once(self) -> slice:
        """Columns of which every sample marks exactly one, so that their counts add up to all samples."""
        columns, exclusive = self.groups[0][1:]
        return columns if exclusive else slice(columns.stop - 1, columns.stop)

    @property
    def starts(self) -> int:
        """A bit for every column at which cumulative counts restart: the first of exclusive ones, and all others."""
        return sum(
            1 << column
            for _, columns, exclusive in self.groups
            for column in range(columns.start, columns.start + 1 if exclusive else columns.stop)
        )

    def cumulate(self, counts: np.ndarray) -> np.ndarray:
        """Add up [.., W] over exclusive columns, from the first to each: int64; other columns stay."""
        sums = counts.astype(np.int64)
        for _, columns, exclusive in self.groups:
            if exclusive:
                sums[..., columns] = sums[..., columns].cumsum(axis=-1)
        return sums

    def difference(self, sums: np.ndarray) -> np.ndarray:
        """Undo :meth:`cumulate`."""
        counts = sums.copy()
        for _, columns, exclusive in self.groups:
            if exclusive:
                counts[..., columns] = np.diff(sums[..., columns], axis=-1, prepend=0)
        return counts

    def marks(self, count: int, observed: Sequence[object]) -> Tensor:
        """Return the marks of ``count`` samples, int64 [N].

        Args:
            observed: per group, integers [N] (exclusive) or bools [N, size].

        Raises:
            ConfigError: numbers, shapes or values are wrong.
        """
        if len(observed) != len(self.groups):
            names = " and ".join(group.name for group in self.groups)
            raise ConfigError(f"exit table: {len(observed)} observations of each sample: this table counts {names}")
        marks = torch.zeros(count, dtype=torch.int64)
        for group, values in zip(self.groups, observed, strict=True):
            marks |= (_chosen if group.exclusive else _flagged)(group, count, values)
        return marks

    def columns_of(self, marks: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield samples and the columns that they marked, int64 [K] each, until all marks were named once."""
        for _, columns, exclusive in self.groups:
            own = marks >> columns.start & (1 << columns.stop - columns.start) - 1
            if exclusive:  # one bit, so that its logarithm is exact
                yield torch.arange(len(marks)), torch.log2(own.double()).long() + columns.start
                continue
            for column in range(columns.stop - columns.start):
                some = torch.nonzero(own >> column & 1).squeeze(1)
                yield some, torch.full_like(some, columns.start + column)

    def histogram(self, marks: Tensor) -> np.ndarray:
        """Return samples per column, int64 [W]."""
        found = [np.bincount(columns.numpy(), minlength=self.width) for _, columns in self.columns_of(marks.cpu())]
        return np.stack(found).sum(axis=0)


def _read(name: str, count: int, values: object) -> Tensor:
    try:
        read = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:  # not numbers, ragged, or beyond 64 bits
        raise ConfigError(f"exit table: {name} cannot be read ({first_line(error)}): give integers [N]") from error
    if read.ndim and len(read) != count:
        raise ConfigError(f"exit table: {count} samples but {len(read)} {name}: give one per sample")
    return read.cpu()


def _chosen(group: ColumnGroup, count: int, values: object) -> Tensor:
    size = group.columns.stop - group.columns.start
    read = _read(group.name, count, values)
    if read.numel() == 0:
        read = read.to(torch.int64)
    if read.ndim != 1 or read.is_floating_point() or read.dtype is torch.bool:
        raise ConfigError(f"exit table: {group.name} are {read.dtype} of shape {tuple(read.shape)}: give integers [N]")
    read = read.to(torch.int64)
    wrong = read[(read < 0) | (read >= size)]
    if len(wrong):
        raise ConfigError(f"exit table: {group.name[:-1]} {int(wrong[0])} is not in 0..{size - 1}: give their indices")
    return 1 << read + group.columns.start


def _flagged(group: ColumnGroup, count: int, values: object) -> Tensor:
    size = group.columns.stop - group.columns.start
    read = _read(group.name, count, values)
    if read.dtype is not torch.bool or read.shape != (count, size):
        raise ConfigError(
            f"exit table: {group.name} is {read.dtype} of shape {tuple(read.shape)}: give bools [N, {size}]"
        )
    if not bool(read[:, -1].all()):
        raise ConfigError("exit table: the last layer does not agree with itself: mark its column for all samples")
    return (read.to(torch.int64) << torch.arange(size) + group.columns.start).sum(1)
