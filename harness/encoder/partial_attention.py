"""Attention of some rows of a batch over all rows of their samples, for layers after tokens have left."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from harness.core.work import SHARE, Tally
from harness.encoder import transfer
from harness.encoder.device_kernels import varlen
from harness.encoder.layout import Layout, attend_grid, rotated, running_sums
from harness.encoder.local_attention import in_window
from harness.encoder.shape import Reach


class SomeQueries:
    """Some rows of a layout, at least one of every sample, as queries; all rows are keys and values.

    The host knows their number, the device knows which they are, so there is no synchronisation.

    Args:
        layout: of the whole batch.
        active: bool [rows] on the device, true for the queries.
        counts: int64 [B] on the host, queries per sample.
        valid: int64 [B] on the host, those of them that are not padding.

    Attributes:
        index: int64 [A] on the device, the rows, rising.
        rows: A.
        longest: most queries of any sample.
    """

    def __init__(self, layout: Layout, active: Tensor, counts: np.ndarray, valid: np.ndarray) -> None:
        self.layout, self.counts, self.valid = layout, counts, valid
        self.longest, self.rows = int(counts.max(initial=1)), int(counts.sum())
        # Compaction to a known size: all inactive rows write to one extra slot at the end.
        place = torch.where(active, active.cumsum(0) - 1, self.rows)
        every = torch.arange(layout.rows, device=layout.device)
        index = torch.zeros(self.rows + 1, dtype=torch.int64, device=layout.device)
        self.index = index.scatter_(0, place, every)[: self.rows]

    @cached_property
    def bounds(self) -> Tensor:
        """Where the queries of each sample begin, and their number: int32 [B + 1], on the device."""
        return transfer.upload(self._starts.astype(np.int32), self.layout.device)

    @cached_property
    def _starts(self) -> np.ndarray:
        return running_sums(self.counts)

    @cached_property
    def _to_grid(self) -> Tensor | None:
        """Query of every cell of the [B, longest] grid; ``None`` if the queries are that grid already."""
        if (self.counts == self.longest).all():
            return None
        cell = np.minimum(np.arange(self.longest)[None, :], self.counts[:, None] - 1)
        return transfer.upload((self._starts[:-1, None] + cell).reshape(-1), self.layout.device)

    @cached_property
    def _from_grid(self) -> Tensor:
        valid = np.arange(self.longest)[None, :] < self.counts[:, None]
        return transfer.upload(np.flatnonzero(valid.reshape(-1)), self.layout.device)

    def attend(self, query: Tensor, kv: Tensor, heads: int, reach: Reach | None = None) -> Tensor:
        """Attend from every query to all tokens of its sample, or to those near it: query [A, D], kv [rows, 2 D] -> [A, D]."""
        layout, width = self.layout, query.shape[1]
        if reach is not None:
            angles = layout.rotary_angles(reach.base, width // heads)
            query = rotated(query, (angles[0][self.index], angles[1][self.index]), width)
            kv = rotated(kv, angles, width)
        if self.is_ragged(reach) and varlen.fits(kv.device, kv.dtype, width // heads):
            return varlen.attend_some(query, kv, heads, self.bounds, layout.bounds, self.longest, layout.longest)
        k, v = layout.grid(kv, 2, heads)
        if self._to_grid is not None:
            query = query.index_select(0, self._to_grid)
        q = query.view(layout.count, self.longest, heads, -1).transpose(1, 2)
        out = attend_grid((q, k, v), self._seen(reach))
        return out if self._to_grid is None else out.index_select(0, self._from_grid)

    def is_ragged(self, reach: Reach | None) -> bool:
        """Return whether attention may run without a grid: the kernel has no windows around chosen queries."""
        return not self.layout.pad_to and (reach is None or reach.within(self.layout.longest))

    def _seen(self, reach: Reach | None) -> Tensor | None:
        """Return the keys that queries may attend to, bool [B, 1, longest or 1, T]; ``None`` for all."""
        layout = self.layout
        if reach is None or reach.within(layout.longest):
            return layout.mask
        places = layout.places[self.index]
        if self._to_grid is not None:
            places = places[self._to_grid]
        return in_window(places.view(layout.count, 1, self.longest), layout.longest, reach.window, layout.mask)

    def tally(self, *, ragged: bool) -> Tally:
        """Return what a layer executes for the queries; every sample counts by its share of tokens.

        Args:
            ragged: attention runs over each sample's own rows, not on a grid.
        """
        layout = self.layout
        shares = np.round(self.valid / layout.lengths / SHARE) * SHARE
        if ragged:
            pairs = int((self.counts * layout.lengths).sum())
        else:
            pairs = layout.count * self.longest * layout.longest
        return Tally(float(shares.sum()), self.rows, int(self.valid.sum()), pairs)

    def left(self) -> Tally:
        """Return the rows that are keys and values only."""
        return Tally(0, self.layout.rows - self.rows, self.layout.valid - int(self.valid.sum()))
