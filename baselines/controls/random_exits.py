"""Control: random exits with GEEP's histogram; and the base of controls that permute GEEP's exits."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from baselines.controls.borrowed_geep import BorrowedGeep, GeepControl
from harness.contracts import OperatingPoint, Role
from harness.core.tokens import TokenSet
from harness.toolkit.fitted import AssignedExits


def content_hash(tokens: TokenSet) -> Tensor:
    """Return a pseudo-random number per sample from its ids alone, int64 [N]: the same in any order of samples."""
    total = len(tokens.ids)  # given explicitly, so that the host need not wait for the device
    starts = torch.repeat_interleave(tokens.offsets[:-1], tokens.lengths, output_size=total)
    place = torch.arange(total, device=tokens.device) - starts
    # The position is part of the hash, so that permuted words differ. Shifts between the products, as a polynomial of
    # both would not distinguish all permutations. All numbers stay below 2^62.
    mixed = (tokens.ids.long() * 2654435761 + place * 40503 + 12345) % 2147483647
    for shift, factor in ((16, 2146121005), (15, 1252097743)):
        mixed = (mixed ^ (mixed >> shift)) * factor % 2147483647
    sums = torch.zeros(len(tokens), dtype=torch.int64, device=tokens.device)
    samples = torch.arange(len(tokens), device=tokens.device)
    owner = torch.repeat_interleave(samples, tokens.lengths, output_size=total)
    return sums.index_add_(0, owner, mixed) * 48271 % 2147483647


def exits_by_rank(exits: Tensor, rank: Tensor) -> Tensor:
    """Return exits [N], given in rising order, by sample: the k-th sample by ``rank`` (int64 [N]) has the k-th exit."""
    return torch.empty_like(exits).index_copy_(0, rank.argsort(stable=True), exits)


class RankedExits(BorrowedGeep, AssignedExits):
    """GEEP's own exits in another order: the k-th sample by ``rank`` gets the k-th lowest exit."""

    @abstractmethod
    def rank(self, tokens: TokenSet) -> Tensor:
        """Return a sort key per sample, int64 [N]."""

    def assign(self, tokens: TokenSet, *, at: OperatingPoint) -> Tensor:
        return exits_by_rank(self.geep.assign(tokens, at=at).sort().values, self.rank(tokens))


class RandomExits(RankedExits):
    """Exits by chance. The order is a hash of the content, so that a sample has the same exit in any order."""

    def rank(self, tokens: TokenSet) -> Tensor:
        return content_hash(tokens)


class RandomControl(GeepControl):
    """Random exits with GEEP's histogram of exits."""

    name = "control-random"
    version = 2
    role: Role = "random-exits"
    borrowed = RandomExits
