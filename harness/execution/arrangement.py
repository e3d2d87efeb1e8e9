"""Samples in running order, packed on their device, and what the host needs to know about them.

Sorting and gathering happen on the device. The host receives one small copy: the execution order, the sequence lengths and
the exit layers. From then on it knows the shape of all work, and batches are slices.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from harness.contracts import Execution
from harness.core.errors import ConfigError
from harness.core.tokens import TokenSet
from harness.core.work import Tally, record
from harness.encoder import transfer
from harness.encoder.layout import running_sums
from harness.execution.schedule import schedule, schedule_on_device

# Devices whose values the host reads without waiting, so sorting needs no bounds.
HOST_DEVICES = ("cpu",)


class Readable(Protocol):
    """What a model can read; an :class:`~harness.encoder.shape.EncoderShape`, or that of a model without layers."""

    @property
    def layers(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def type_vocab(self) -> int: ...
    @property
    def max_positions(self) -> int: ...


@dataclass(frozen=True)
class Arranged:
    """N samples in running order. Samples that are answered already come last in each window.

    Attributes:
        order: int64 [N] on the host; the i-th to run is sample ``order[i]``.
        lengths: int64 [N] on the host, tokens of the i-th to run.
        columns: int64 [N, S] on the host, its exit or its looks; S is 0 if none were given.
        answered: bool [N] on the host, whether it is answered already and does not run.
        starts: int64 [N + 1] on the host, where its tokens begin.
        tokens: the samples in this order, on their device.
        positions: int32 [total] on the device, place of every token in its sample.
    """

    order: np.ndarray
    lengths: np.ndarray
    columns: np.ndarray
    answered: np.ndarray
    starts: np.ndarray
    tokens: TokenSet
    positions: Tensor

    def batch(self, begin: int, end: int) -> tuple[TokenSet, Tensor]:
        """Return tokens and positions (views) of the samples that run as ``begin`` .. ``end - 1``."""
        whole, rows = self.tokens, slice(int(self.starts[begin]), int(self.starts[end]))
        offsets = whole.offsets[begin : end + 1] - whole.offsets[begin]
        return TokenSet(whole.ids[rows], offsets, whole.segments[rows], whole.special), self.positions[rows]

    def windows(self, window: int) -> Iterator[tuple[int, int]]:
        """Yield the samples of each window that run (first, one past the last); 0 is one window of all samples."""
        for begin, end in windows(len(self.order), window):
            yield begin, end - int(self.answered[begin:end].sum())

    def select(self, samples: np.ndarray) -> Arranged:
        """Gather some samples (int64 [M] on the host, places in running order) on the device without synchronising."""
        lengths, whole = self.lengths[samples], self.tokens
        starts = running_sums(lengths)
        total = int(starts[-1])
        chosen, offsets = (transfer.upload(part, whole.device) for part in (samples.astype(np.int64), starts))
        shift = torch.repeat_interleave(
            whole.offsets[chosen] - offsets[:-1], offsets[1:] - offsets[:-1], output_size=total
        )
        index = shift + torch.arange(total, device=whole.device)
        tokens = TokenSet(whole.ids[index], offsets, whole.segments[index], whole.special)
        columns, answered = self.columns[samples], self.answered[samples]
        return Arranged(self.order[samples], lengths, columns, answered, starts, tokens, self.positions[index])


def arrange(
    tokens: TokenSet,
    execution: Execution,
    shape: Readable,
    columns: Tensor | None = None,
    answered: Tensor | None = None,
) -> Arranged:
    """Order samples by their first column, deepest first, then by length if ``execution.order`` says so, per window.

    Args:
        columns: int16 [N, S]; with ``None`` or S = 0 all samples have the same exit.
        answered: bool [N], samples that do not run and come last; ``None``: all run.

    Raises:
        ConfigError: a sample has no token, more tokens than the encoder has positions or, in protocol ``paper``, more
            than it is padded to; or an id or a segment has no embedding.
    """
    count, device = len(tokens), tokens.device
    record("arrange", Tally(count, len(tokens.ids)))
    if columns is None:
        columns = torch.empty(count, 0, dtype=torch.int16, device=device)
    columns = columns.to(device)
    first = columns[:, 0].contiguous() if columns.shape[1] else columns.new_zeros(count)
    depth, lengths = shape.layers, tokens.lengths
    if answered is not None:
        first, depth = torch.where(answered, 0, first.clamp(min=0) + 1), depth + 1
    order = sort_by_exit(first, lengths, execution, depth)
    known = columns if answered is None else torch.cat([columns, answered[:, None]], dim=1)
    facts = torch.cat([order[:, None], lengths[order][:, None], known[order].long()], dim=1)  # [N, 2 + S (+ 1)]
    copy = transfer.download(torch.cat([facts.reshape(-1).int(), _extremes(tokens)]))
    ordered, positions = _gathered(tokens, order)  # queued while the copy is under way
    host = copy.wait().astype(np.int64)
    table = host[:-4].reshape(count, 2 + known.shape[1])
    _check(table[:, 1], table[:, 0], host[-4:], execution, shape)
    starts = running_sums(table[:, 1])
    done = np.zeros(count, dtype=bool) if answered is None else table[:, -1] == 1
    looks = table[:, 2 : 2 + columns.shape[1]].copy()
    return Arranged(table[:, 0].copy(), table[:, 1].copy(), looks, done, starts, ordered, positions)


def sort_by_exit(exits: Tensor, lengths: Tensor, execution: Execution, depth: int) -> Tensor:
    """Return the running order by exit, deepest first, then by length if ``execution.order`` says so, per window: int64 [N].

    Args:
        exits: int16 [N], below ``depth``.
        lengths: int64 [N], tokens per sample.
    """
    record("sort", Tally(len(exits)))
    by_length = lengths if execution.order == "length" else torch.zeros_like(lengths)
    if exits.device.type in HOST_DEVICES:
        return schedule(exits.clamp(min=0), by_length, window=execution.window)
    # Bounds replace reading the values; samples outside them still run, only out of order.
    longest = execution.max_length if execution.order == "length" else 0
    return schedule_on_device(exits, by_length, depth=depth, max_length=longest, window=execution.window)


def _gathered(tokens: TokenSet, order: Tensor) -> tuple[TokenSet, Tensor]:
    """Reorder samples and compute the place of every token in its sample, without reading values on the host."""
    total, device = len(tokens.ids), tokens.device
    lengths = tokens.lengths[order]
    offsets = torch.zeros(len(order) + 1, dtype=torch.int64, device=device)
    torch.cumsum(lengths, 0, out=offsets[1:])
    owner = torch.repeat_interleave(torch.arange(len(order), device=device), lengths, output_size=total)
    positions = torch.arange(total, device=device) - offsets[owner]
    rows = tokens.offsets[order][owner] + positions
    return TokenSet(tokens.ids[rows], offsets, tokens.segments[rows], tokens.special), positions.int()


def _extremes(tokens: TokenSet) -> Tensor:
    """Return the smallest and largest id and segment, int32 [4]."""
    if not len(tokens.ids):
        return torch.zeros(4, dtype=torch.int32, device=tokens.device)
    return torch.stack([end.int() for part in (tokens.ids, tokens.segments) for end in torch.aminmax(part)])


def _check(lengths: np.ndarray, order: np.ndarray, extremes: np.ndarray, execution: Execution, shape: Readable) -> None:
    """Validate lengths, ids and segments: on CUDA an index out of range ends the whole process."""
    if not len(lengths):
        return
    empty, longest = int(lengths.argmin()), int(lengths.argmax())
    if lengths[empty] < 1:
        raise ConfigError(f"sample {order[empty]} has no token: give every sample at least [CLS]")
    if lengths[longest] > shape.max_positions:
        raise ConfigError(
            f"sample {order[longest]} has {lengths[longest]} tokens, the encoder {shape.max_positions} positions: "
            "cut the texts (max_length)"
        )
    if execution.protocol == "paper" and lengths[longest] > execution.max_length:
        raise ConfigError(
            f"sample {order[longest]} of {lengths[longest]} tokens does not fit {execution.max_length}: "
            "raise max_length or cut the texts"
        )
    # An encoder with one segment uses it for all tokens and looks none up.
    for what, known, low, high in (
        ("token id", shape.vocab_size, *extremes[:2]),
        *([("segment", shape.type_vocab, *extremes[2:])] if shape.type_vocab > 1 else []),
    ):
        if low < 0 or high >= known:
            raise ConfigError(
                f"{what} {low if low < 0 else high} has no embedding, there are {known}: "
                "use the tokenizer of this backbone"
            )


def cut(lengths: np.ndarray, begin: int, end: int, execution: Execution) -> Iterator[tuple[int, int]]:
    """Cut positions ``begin`` .. ``end - 1`` into batches (first, one past the last).

    A batch holds at most ``batch_size`` samples and, if ``batch_tokens`` is set, at most that many tokens, padding
    included. A longer sample runs alone.
    """
    if not execution.batch_tokens:
        for first in range(begin, end, execution.batch_size):
            yield first, min(first + execution.batch_size, end)
        return
    sizes = lengths[begin:end] if execution.protocol == "modern" else np.full(end - begin, execution.max_length)
    ends = np.cumsum(sizes)
    first = 0
    while first < len(sizes):
        before = ends[first - 1] if first else 0
        fits = int(np.searchsorted(ends, before + execution.batch_tokens, side="right"))
        last = min(max(fits, first + 1), first + execution.batch_size, len(sizes))
        yield begin + first, begin + last
        first = last


def windows(count: int, window: int) -> Iterator[tuple[int, int]]:
    """Yield positions of each window (first, one past the last); 0 is one window of all samples."""
    for begin in range(0, count, window or max(1, count)):
        yield begin, min(begin + (window or count), count)
