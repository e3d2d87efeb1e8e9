"""Memory layout of a batch: tokens packed one after another, or padded to a common length.

Hidden states are always ``[rows, width]``. Linear layers, norms and activations are independent of the layout; attention uses
it. A prefix of the samples is a prefix of the rows in both layouts, which the ladder executor relies on.

Packed rows use a variable-length attention kernel where device and dtype have one, else a grid padded to the longest sample.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Protocol
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from harness.core.errors import ConfigError
from harness.core.work import Tally, record
from harness.encoder import transfer
from harness.encoder.device_kernels import varlen
from harness.encoder.local_attention import attend_in_window, computed_pairs, in_window
from harness.encoder.shape import Reach


class SelfAttention(Protocol):
    """What layers need from a batch's layout."""

    def attend(self, qkv: Tensor, heads: int, dropout: float = 0.0, reach: Reach | None = None) -> Tensor:
        """Self-attention within every sample: [rows, 3 D] -> [rows, D].

        Args:
            reach: what a token attends to, and rotary positions; ``None`` for all tokens, without.
        """


class Attention(SelfAttention, Protocol):
    """What layers and heads need from a batch's layout."""

    @property
    def first(self) -> Tensor:
        """Rows of the first tokens ([CLS]), int64 [B]."""

    def attend_first(self, query: Tensor, kv: Tensor, heads: int, dropout: float = 0.0) -> Tensor:
        """Attention of one query per sample over its tokens: query [B, D], kv [rows, 2 D] -> [B, D]."""


class Scored(Protocol):
    """What attention distillation needs from a batch's layout."""

    @property
    def pairs(self) -> Tensor:
        """True if query and key are both tokens of one text, bool [B, 1, T, T]."""

    def scores(self, query_key: Tensor, heads: int, reach: Reach | None = None) -> Tensor:
        """Return scaled attention scores before softmax, unmasked: [rows, 2 D] -> [B, heads, T, T]."""


def running_sums(lengths: np.ndarray) -> np.ndarray:
    """Return 0 and the running sums of lengths [N]: int64 [N + 1]."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])


def split_heads(x: Tensor, count: int, length: int, parts: int, heads: int) -> tuple[Tensor, ...]:
    """Split the rows of a [B, T] grid: [B * T, parts * D] -> ``parts`` tensors [B, heads, T, D / heads]."""
    return x.view(count, length, parts, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)


def attend_grid(qkv: tuple[Tensor, ...], mask: Tensor | None, dropout: float = 0.0) -> Tensor:
    """Attention on a grid: q [B, H, Q, d], k and v [B, H, T, d] -> [B * Q, H * d]."""
    q, k, v = qkv
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)  # [B, H, Q, d]
    return out.transpose(1, 2).flatten(2).flatten(0, 1)


def window_of(reach: Reach | None) -> int:
    """Return the window of the variable-length kernel, 0 for none."""
    return 0 if reach is None else reach.window


def attention_scores(query_key: tuple[Tensor, ...]) -> Tensor:
    """Return scaled attention scores before softmax, unmasked: two of [B, H, T, d] -> [B, H, T, T]."""
    q, k = query_key
    return q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])


RotaryAngles = tuple[Tensor, Tensor]  # cosines and sines of rotary position embeddings, float32 [rows, d]


def rotary_angles(positions: Tensor, base: float, width: int) -> RotaryAngles:
    """Return the rotary angles at ``positions`` (integers [rows]) for heads of this width, as in transformers."""
    rates = 1.0 / base ** (torch.arange(0, width, 2, dtype=torch.float32, device=positions.device) / width)
    angles = (positions[:, None].float() * rates).repeat(1, 2)
    return angles.cos(), angles.sin()


def rotated(x: Tensor, angles: RotaryAngles, columns: int) -> Tensor:
    """Rotate the first ``columns`` columns (queries, keys) of every row by its angles: [rows, n D] -> [rows, n D]."""
    cos, sin = (part[:, None] for part in angles)
    heads = x[:, :columns].unflatten(1, (-1, cos.shape[-1]))
    one, other = heads.chunk(2, -1)
    new = (heads * cos + torch.cat([-other, one], -1) * sin).to(x.dtype).flatten(1)
    return torch.cat([new, x[:, columns:]], 1)


class Layout:
    """Layout of B samples.

    Args:
        lengths: int64 [B], tokens per sample, at least 1 each, on the host.
        pad_to: ``None`` for packed; otherwise every sample takes this many rows.
        device: of the hidden states.
        offsets: int64 [B + 1] on that device, running sums of the lengths from 0, if available already.

    Raises:
        ConfigError: a sample is longer than ``pad_to``.
    """

    def __init__(
        self, lengths: np.ndarray, pad_to: int | None, device: torch.device | str, offsets: Tensor | None = None
    ) -> None:
        if pad_to and lengths.max(initial=1) > pad_to:
            raise ConfigError(
                f"a sample of {lengths.max()} tokens does not fit {pad_to}: raise max_length or cut the texts"
            )
        self.lengths = lengths
        self.pad_to = pad_to
        self.device = torch.device(device)
        self.count = len(lengths)
        self.longest = pad_to or int(lengths.max(initial=1))
        self.valid = int(lengths.sum())
        self.rows = self.count * pad_to if pad_to else self.valid
        self.even = bool((lengths == self.longest).all())
        self._given = offsets
        # No reference cycles (no own root, weak prefixes), so that device memory is freed at once.
        self._root: Layout | None = None
        self._angles: dict[tuple[float, int], RotaryAngles] = {}
        self._in_window: dict[int, Tensor] = {}
        self._tallies: dict[tuple[str, bool, Reach | None, int], Tally] = {}
        self._prefixes: WeakValueDictionary[int, Layout] = WeakValueDictionary()

    @property
    def root(self) -> Layout:
        """The batch that this one is a prefix of; itself if it is not a prefix."""
        return self._root or self

    def _tensor(self, values: np.ndarray) -> Tensor:
        return transfer.upload(values, self.device)

    @cached_property
    def starts(self) -> np.ndarray:
        """First row of every sample, and the number of rows: int64 [B + 1], on the host."""
        if self.pad_to:
            return np.arange(self.count + 1, dtype=np.int64) * self.pad_to
        return running_sums(self.lengths)

    @cached_property
    def first_rows(self) -> list[int]:
        """:attr:`starts` as plain numbers."""
        found: list[int] = self.starts.tolist()
        return found

    @cached_property
    def offsets(self) -> Tensor:
        """Running sums of the lengths from 0, int64 [B + 1], on the device."""
        if self._given is not None:
            return self._given
        return self._tensor(running_sums(self.lengths))

    @cached_property
    def bounds(self) -> Tensor:
        """Rows at which samples begin, and the number of rows: int32 [B + 1], on the device."""
        if self.pad_to:
            return torch.arange(0, self.rows + 1, self.pad_to, dtype=torch.int32, device=self.device)
        return self.offsets.int()

    @cached_property
    def first(self) -> Tensor:
        """Rows of the first tokens ([CLS]), int64 [B]."""
        return self.bounds[:-1].long()

    @cached_property
    def _valid_grid(self) -> np.ndarray:
        return np.arange(self.longest)[None, :] < self.lengths[:, None]  # [B, T]

    @cached_property
    def mask(self) -> Tensor | None:
        """True where a key may be attended, bool [B, 1, 1, T]; ``None`` if all may."""
        if self.even:
            return None
        lengths = self.offsets[1:] - self.offsets[:-1]
        return (torch.arange(self.longest, device=self.device) < lengths[:, None])[:, None, None, :]

    @cached_property
    def places(self) -> Tensor:
        """Place of every row in its sample, integers [rows], on the device."""
        rows = torch.arange(self.rows, device=self.device)
        if self.pad_to:
            return rows % self.pad_to
        sizes = self.offsets[1:] - self.offsets[:-1]
        return rows - torch.repeat_interleave(self.offsets[:-1], sizes, output_size=self.rows)

    def rotary_angles(self, base: float, width: int) -> RotaryAngles:
        """Return the rotary angles of all rows, for heads of this width."""
        key = (base, width)
        if key not in self._angles:
            whole = self._root
            self._angles[key] = (
                rotary_angles(self.places, base, width)
                if whole is None
                else tuple(part[: self.rows] for part in whole.rotary_angles(*key))  # type: ignore[assignment]
            )
        return self._angles[key]

    def seen(self, reach: Reach | None) -> Tensor | None:
        """Return :attr:`mask`, limited to the window: bool [B or 1, 1, T or 1, T]; ``None`` if all keys may be attended."""
        if reach is None or reach.within(self.longest):
            return self.mask
        if reach.window not in self._in_window:
            places = torch.arange(self.longest, device=self.device)[None, None]
            self._in_window[reach.window] = in_window(places, self.longest, reach.window, self.mask)
        return self._in_window[reach.window]

    @cached_property
    def pairs(self) -> Tensor:
        """True if query and key are both tokens of their sample, bool [B, 1, T, T]."""
        return self._tensor(self._valid_grid[:, None, :, None] & self._valid_grid[:, None, None, :])

    @cached_property
    def _to_grid(self) -> Tensor | None:
        """Row of every cell of the [B, T] attention grid; ``None`` if the rows are that grid already."""
        if self.pad_to or self.even:
            return None
        cell = np.minimum(np.arange(self.longest)[None, :], self.lengths[:, None] - 1)
        return self._tensor((self.starts[:-1, None] + cell).reshape(-1))

    @cached_property
    def _from_grid(self) -> Tensor:
        return self._tensor(np.flatnonzero(self._valid_grid.reshape(-1)))

    def tokens(self, hidden: Tensor) -> Tensor:
        """Drop the padding rows: [rows, D] -> [valid, D]."""
        return hidden if not self.pad_to or self.even else hidden.index_select(0, self._from_grid)

    def grid(self, x: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
        """Bring rows onto the attention grid: [rows, parts * D] -> ``parts`` tensors [B, heads, T, D / heads]."""
        if self._to_grid is not None:
            x = x.index_select(0, self._to_grid)
        return split_heads(x, self.count, self.longest, parts, heads)

    def attend(self, qkv: Tensor, heads: int, dropout: float = 0.0, reach: Reach | None = None) -> Tensor:
        """Self-attention within every sample: [rows, 3 D] -> [rows, D]; see :class:`SelfAttention`."""
        width = qkv.shape[1] // 3
        if reach is not None:
            qkv = rotated(qkv, self.rotary_angles(reach.base, width // heads), 2 * width)
        if not self.pad_to and varlen.fits(qkv.device, qkv.dtype, width // heads, dropout):
            return varlen.attend(qkv, heads, self.bounds, self.longest, window_of(reach))
        parts, seen = self.grid(qkv, 3, heads), self.seen(reach)
        if reach is None or reach.within(self.longest) or seen is None:
            out = attend_grid(parts, seen, dropout)
        else:
            out = attend_in_window(parts, reach.window, seen, dropout)
        return out if self._to_grid is None else out.index_select(0, self._from_grid)

    def scores(self, query_key: Tensor, heads: int, reach: Reach | None = None) -> Tensor:
        """Return scaled attention scores before softmax, unmasked: [rows, 2 D] -> [B, heads, T, T]; see :attr:`pairs`."""
        if reach is not None:
            width = query_key.shape[1]
            query_key = rotated(query_key, self.rotary_angles(reach.base, width // (2 * heads)), width)
        return attention_scores(self.grid(query_key, 2, heads))

    def attend_first(self, query: Tensor, kv: Tensor, heads: int, dropout: float = 0.0) -> Tensor:
        """Attention of one query per sample over its tokens: query [B, D], kv [rows, 2 D] -> [B, D]."""
        if not self.pad_to and varlen.fits(kv.device, kv.dtype, kv.shape[1] // (2 * heads), dropout):
            return varlen.attend_first(query, kv, heads, self.bounds, self.longest)
        keys_values = self.grid(kv, 2, heads)
        return attend_grid((query.view(self.count, heads, 1, -1), *keys_values), self.mask, dropout)

    def tally(
        self, queries: str = "all", *, ragged: bool = False, reach: Reach | None = None, rows: int | None = None
    ) -> Tally:
        """Return what one block over this batch executes; the same object whenever it is the same.

        Args:
            queries: ``"first"`` for a head that queries from [CLS] only.
            ragged: attention runs over each sample's own tokens, not on a grid.
            reach: what a token attends to. Of what is outside, the ragged kernel computes nothing, a grid the rest of its blocks.
            rows: on which linear layers run; by default those of the batch.
        """
        key = (queries, ragged, reach, self.rows if rows is None else rows)
        if key not in self._tallies:
            self._tallies[key] = Tally(self.count, key[-1], self.valid, self._pairs(queries, ragged, reach))
        return self._tallies[key]

    def _pairs(self, queries: str, ragged: bool, reach: Reach | None) -> int:
        """Return the query-key pairs of :meth:`tally`."""
        if ragged and reach is not None and reach.window:
            return sum(reach.pairs(int(length)) for length in self.lengths)
        if ragged:
            return int((self.lengths**2).sum()) if queries == "all" else self.valid
        if reach is not None and not reach.within(self.longest):
            return self.count * computed_pairs(self.longest, reach.window)
        return self.count * self.longest * (self.longest if queries == "all" else 1)

    def prefix(self, count: int) -> Layout:
        """Return the layout of the first ``count`` samples; their hidden states are ``h[: layout.rows]``."""
        if count == self.count:
            return self
        part = self._prefixes.get(count)
        if part is None:
            part = Layout(self.lengths[:count], self.pad_to, self.device, self._offsets_of(0, count))
            part._root = self.root
            self._prefixes[count] = part
        return part

    def _offsets_of(self, start: int, stop: int) -> Tensor | None:
        if self.device.type == "cpu" and self._given is None:
            return None  # computed from the lengths, if needed
        part = self.offsets[start : stop + 1]
        return part if start == 0 else part - part[0]

    def slice(self, hidden: Tensor, start: int, stop: int) -> tuple[Tensor, Layout]:
        """Return hidden states (a view) and layout of samples ``start`` .. ``stop - 1``."""
        if start == 0:
            layout = self.prefix(stop)
            return hidden[: layout.rows], layout
        return hidden[self.starts[start] : self.starts[stop]], Layout(
            self.lengths[start:stop], self.pad_to, self.device, self._offsets_of(start, stop)
        )

    def select(self, hidden: Tensor, samples: np.ndarray) -> tuple[Tensor, Layout]:
        """Return hidden states (one gather) and layout of the given samples (int64 [M], on the host), in that order.

        Only the sample numbers are uploaded; their rows are computed on the device.
        """
        lengths = self.lengths[samples]
        rows = len(samples) * self.pad_to if self.pad_to else int(lengths.sum())
        chosen = transfer.upload(samples.astype(np.int64), self.device)
        offsets = torch.zeros(len(samples) + 1, dtype=torch.int64, device=self.device)
        torch.cumsum((self.offsets[1:] - self.offsets[:-1])[chosen], 0, out=offsets[1:])
        if self.pad_to:
            row = torch.arange(rows, device=self.device)
            index = chosen[row // self.pad_to] * self.pad_to + row % self.pad_to
        else:
            shift = self.offsets[chosen] - offsets[:-1]
            index = torch.repeat_interleave(shift, offsets[1:] - offsets[:-1], output_size=rows)
            index += torch.arange(rows, device=self.device)
        record("gather", Tally(len(samples), rows))
        return hidden.index_select(0, index), Layout(lengths, self.pad_to, self.device, offsets)
