"""Alternatives to the exit table, written with torch alone: what its benchmarks compare it with.

All except the hashing trick return the exit table's answers bit for bit, because float32 sums of small integers are exact. All
samples have the same number of tokens, which favours the alternatives: a gathered [N, T, L] needs no mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from geep.exit_table import ExitTable
from geep.exit_table.keys import ID_BITS, N_SHIFT, pack
from geep.exit_table.rows import prior_row, smoothed_rows
from geep.exit_table.rules import PER_MILLE
from harness.core.tokens import TokenSet

LENGTH = 64  # tokens per sample
TRICK_ROWS = 1 << 22
_PIECE = 1 << 20  # rows
_PRIME = 0x9E3779B97F4A7C15 - (1 << 64)  # 2^64 / golden ratio, as int64 (Knuth, multiplicative hashing)


def text(tokens: int, vocab: int, skew: str, seed: int, device: torch.device | str = "cpu") -> TokenSet:
    """Draw random samples of :data:`LENGTH` tokens on the device.

    Args:
        skew: ``"uniform"``, or ``"zipf"``: the k-th id is drawn in proportion to k^-1.2.
    """
    draw = torch.Generator(device).manual_seed(seed)
    samples = max(1, tokens // LENGTH)
    ids = torch.empty(samples * LENGTH, dtype=torch.int32, device=device)
    shares = torch.arange(1, vocab + 1, dtype=torch.float64, device=device).pow(-1.2).cumsum(0)
    for part in ids.split(1 << 24):
        if skew == "uniform":
            part.random_(0, vocab, generator=draw)
        else:
            level = torch.rand(len(part), dtype=torch.float64, device=device, generator=draw) * shares[-1]
            part.copy_(torch.searchsorted(shares, level).clamp_(max=vocab - 1))
    offsets = torch.arange(samples + 1, dtype=torch.int64, device=device) * LENGTH
    return TokenSet(ids, offsets, torch.zeros(len(ids), dtype=torch.int8, device=device))


@dataclass(frozen=True)
class FrozenRows:
    """The rows of a frozen table as plain tensors on one device.

    Attributes:
        keys: int64 [K], rising; unigrams first.
        rows: float32 [K + 1, L]; the last one is the back-off row.
        dense: float32 [V, L], rows by token id.
        trick: float32 [2^22, L], rows by hashed key; keys that collide share a row.
    """

    keys: Tensor
    rows: Tensor
    dense: Tensor
    trick: Tensor

    @classmethod
    def of(cls, table: ExitTable, exits: Tensor, vocab: int, smoothing: int, device: torch.device | str) -> FrozenRows:
        """Return the rows of a table that was frozen with ``min_count=1``.

        Args:
            exits: int64 [N], of all inserted samples.
        """
        found, counts = table.counts()
        prior = prior_row(np.bincount(exits.cpu().numpy(), minlength=table.num_layers), table.columns)
        rows = np.empty((len(found) + 1, table.num_layers), dtype=np.float32)
        rows[-1] = prior
        for begin in range(0, len(found), _PIECE):  # in pieces, because int64 takes eight times the memory
            part = smoothed_rows(counts[begin : begin + _PIECE], prior, smoothing, table.columns)
            rows[begin : begin + len(part)] = part
        keys = torch.from_numpy(found)
        single = np.searchsorted(found, 2 << N_SHIFT)  # unigrams come first
        dense = torch.from_numpy(prior).float().repeat(vocab, 1)
        dense[keys[:single] >> 2 * ID_BITS & (1 << ID_BITS) - 1] = torch.from_numpy(rows[:single])
        shared = torch.zeros(TRICK_ROWS, table.num_layers, dtype=torch.int64)
        for begin in range(0, len(found), _PIECE):
            part = counts[begin : begin + _PIECE].astype(np.int64)
            shared.index_add_(0, hashed(keys[begin : begin + _PIECE]), torch.from_numpy(part))
        seen = shared.sum(1) > 0
        trick = torch.from_numpy(prior).float().repeat(TRICK_ROWS, 1)
        trick[seen] = torch.from_numpy(smoothed_rows(shared[seen].numpy(), prior, smoothing, table.columns)).float()
        return cls(keys.to(device), torch.from_numpy(rows).to(device), dense.to(device), trick.to(device))


def hashed(keys: Tensor) -> Tensor:
    """Return each key's row in the hashing trick, int64."""
    return (keys * _PRIME >> 40) & (TRICK_ROWS - 1)


def exits_of(sums: Tensor, per_mille: int) -> Tensor:
    """Return the smallest exit with ``1000 * cumulative >= q * total``: float32 [N, L] -> int16 [N]."""
    cumulative = sums.to(torch.int64).cumsum(1)
    return (cumulative * PER_MILLE >= per_mille * cumulative[:, -1:]).int().argmax(1).to(torch.int16)


def gather_and_sum(tokens: TokenSet, held: FrozenRows, per_mille: int) -> Tensor:
    """Predict with ``table[ids].sum(1)``, the obvious way; unigrams only."""
    return exits_of(held.dense[tokens.ids.view(-1, LENGTH)].sum(1), per_mille)


def bag_of_rows(tokens: TokenSet, held: FrozenRows, per_mille: int) -> Tensor:
    """Predict with torch's fused gather and sum; unigrams only."""
    return exits_of(embedding_bag(tokens.ids.view(-1, LENGTH), held.dense, mode="sum"), per_mille)


def keys_of(tokens: TokenSet, ngram: int) -> tuple[Tensor, Tensor]:
    """Return the keys of all n-grams, int64 [G], and the sample of each."""
    packed = pack(tokens, ())
    words = packed.words()
    starts = [torch.nonzero(packed.windows(n, words)).squeeze(1) for n in range(1, ngram + 1)]
    keys = torch.cat([packed.keys(n, at) for n, at in enumerate(starts, 1)])
    return keys, torch.cat(starts) // LENGTH


def search_sorted(tokens: TokenSet, held: FrozenRows, per_mille: int, ngram: int) -> Tensor:
    """Predict by binary search over sorted keys, gather and scatter-add."""
    keys, sample = keys_of(tokens, ngram)
    at = torch.searchsorted(held.keys, keys).clamp_(max=len(held.keys) - 1)
    at = torch.where(held.keys[at] == keys, at, len(held.keys))
    sums = torch.zeros(len(tokens), held.rows.shape[1], device=keys.device).index_add_(0, sample, held.rows[at])
    return exits_of(sums, per_mille)


def hashing_trick(tokens: TokenSet, held: FrozenRows, per_mille: int, ngram: int) -> Tensor:
    """Predict with rows by hash modulo 2^22, without keys; collisions and unseen keys change answers."""
    keys, sample = keys_of(tokens, ngram)
    order = torch.argsort(sample, stable=True)
    each = torch.bincount(sample, minlength=len(tokens))
    bags = torch.nn.functional.pad(each.cumsum(0)[:-1], (1, 0))
    return exits_of(embedding_bag(hashed(keys[order]), held.trick, bags, mode="sum"), per_mille)


def count_by_sorting(tokens: TokenSet, exits: Tensor, layers: int, ngram: int) -> tuple[Tensor, Tensor]:
    """Count with ``torch.unique`` and ``bincount``; returns rising keys and counts [K, L]."""
    keys, sample = keys_of(tokens, ngram)
    unique, inverse = torch.unique(keys, return_inverse=True)
    counts = torch.bincount(inverse * layers + exits[sample], minlength=len(unique) * layers)
    return unique, counts.view(-1, layers)
