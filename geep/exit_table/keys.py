"""Keys: an exact, injective 62-bit number for every n-gram of 1 to 3 tokens.

``key = n << 60 | t0 << 40 | t1 << 20 | t2`` with ids below 2^20; unused places are 0. Keys are positive int64, ordered by n
first. No two n-grams share a key, so a hit in a table is always a true hit.

Special ids ([CLS], [SEP], [PAD]) are part of no key, and no n-gram spans one: the last word of a first text and the first of
its second are not neighbours. No n-gram spans two samples either.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from harness.core.errors import ConfigError
from harness.core.tokens import TokenSet

ID_BITS = 20
MAX_ID = (1 << ID_BITS) - 1
MAX_NGRAM = 3
N_SHIFT = 3 * ID_BITS

Tokens = TokenSet | Sequence[Tensor]
T = TypeVar("T", int, np.ndarray, Tensor)


@dataclass(frozen=True)
class PackedKeys:
    """Checked samples, as backends receive them.

    Attributes:
        ids: int32 [M], each 0 .. 2^20 - 1.
        offsets: int64 [N + 1], from 0 to M, never falling; a sample may be empty.
        special: ids that are part of no key and break n-grams.
    """

    ids: Tensor
    offsets: Tensor
    special: tuple[int, ...]

    def __len__(self) -> int:
        return int(self.offsets.shape[0]) - 1

    @property
    def lengths(self) -> Tensor:
        """Tokens per sample, int64 [N]."""
        return self.offsets[1:] - self.offsets[:-1]

    @property
    def longest(self) -> int:
        """Tokens of the longest sample, 0 if there is none."""
        return int(self.lengths.max()) if len(self) else 0

    def to(self, device: torch.device) -> PackedKeys:
        """Return the same samples on another device."""
        return PackedKeys(self.ids.to(device), self.offsets.to(device), self.special)

    def pieces(self, tokens: int) -> Iterator[tuple[slice, PackedKeys]]:
        """Cut into runs of neighbouring samples, to bound temporary memory.

        Args:
            tokens: maximum per piece; a longer sample is a piece of its own.

        Yields:
            the slice of samples, and the samples.
        """
        begin = 0
        while begin < len(self):
            low = self.offsets[begin]
            end = max(int(torch.searchsorted(self.offsets, low + tokens, right=True)) - 1, begin + 1)
            ids = self.ids[int(low) : int(self.offsets[end])]
            yield slice(begin, end), PackedKeys(ids, self.offsets[begin : end + 1] - low, self.special)
            begin = end

    def words(self) -> Tensor:
        """Return which tokens are not special, bool [M]."""
        keep = torch.ones_like(self.ids, dtype=torch.bool)
        for token in self.special:
            keep &= self.ids != token
        return keep

    def windows(self, n: int, words: Tensor) -> Tensor:
        """Return where an n-gram starts, inside one sample and without special ids: bool [M].

        Args:
            n: 1, 2 or 3.
            words: from :meth:`words`.
        """
        if n == 1:
            return words
        last = torch.zeros_like(words)
        last[self.offsets[1:][self.lengths > 0] - 1] = True
        start = words & ~last  # a bigram starts here if the next token, too, is a word
        start[:-1] &= words[1:]
        if n == 3:
            start[:-1] &= start[1:].clone()  # the last position never starts a bigram
        return start

    def keys(self, n: int, at: Tensor) -> Tensor:
        """Return keys of the n-grams that start at positions ``at`` (int64 [K]), int64 [K]."""
        key = self.ids[at].to(torch.int64) << 2 * ID_BITS
        for place in range(1, n):
            key |= self.ids[at + place].to(torch.int64) << (2 - place) * ID_BITS
        return key | (n << N_SHIFT)


def token_key(ids: T) -> T:
    """Return the keys of single tokens."""
    return (1 << N_SHIFT) + (ids << 2 * ID_BITS)


def bad_id(token: int) -> ConfigError:
    """Return the error for an id that keys cannot hold."""
    return ConfigError(f"exit table: token id {token} is outside 0..{MAX_ID}: keys hold ids of {ID_BITS} bits")


def pack(tokens: Tokens, special: tuple[int, ...], *, unread: bool = False) -> PackedKeys:
    """Check samples and bring them into one form, on their device.

    Args:
        tokens: a :class:`~harness.core.tokens.TokenSet`, whose own ``special`` is used, or a list of 1-D integer tensors.
        special: special ids for a list.
        unread: leave checking an int32 ``TokenSet`` to the backend, so that the host need not wait for the device.

    Raises:
        ConfigError: an id is negative or not below 2^20, or a shape or dtype is wrong.
    """
    if isinstance(tokens, TokenSet):
        ids, offsets, special = tokens.ids, tokens.offsets.to(torch.int64), tokens.special
    else:
        rows = list(tokens)
        for row, tensor in enumerate(rows):
            if not isinstance(tensor, Tensor) or tensor.ndim != 1:
                raise ConfigError(
                    f"exit table: sample {row} is not a 1-D tensor of ids: give a TokenSet or a list of tensors"
                )
        device = rows[0].device if rows else torch.device("cpu")
        # Empty tensors are float32 by default, which is no error worth reporting: skip them.
        filled = [row for row in rows if len(row)]
        ids = torch.cat(filled) if filled else torch.zeros(0, dtype=torch.int32, device=device)
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(device)
    if ids.dtype is torch.bool or ids.is_floating_point() or ids.is_complex():
        raise ConfigError(f"exit table: token ids are {ids.dtype}: give integers")
    unread = unread and isinstance(tokens, TokenSet) and ids.dtype is torch.int32 and len(offsets) > 0
    if not unread:
        _check_offsets(offsets, len(ids))
    if len(ids) and not unread:
        low, high = (int(value) for value in torch.aminmax(ids))
        if low < 0 or high > MAX_ID:
            raise bad_id(low if low < 0 else high)
    return PackedKeys(ids.to(torch.int32), offsets, tuple(sorted(set(special))))


def _check_offsets(offsets: Tensor, total: int) -> None:
    lengths = offsets[1:] - offsets[:-1]
    low = int(lengths.min()) if len(lengths) else 0
    if len(offsets) == 0 or int(offsets[0]) != 0 or int(offsets[-1]) != total or low < 0:
        raise ConfigError(f"exit table: offsets must rise from 0 to {total}, the number of tokens")
