"""Samples as packed token ids, and the splits and tasks made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenSet:
    """Samples as packed token ids on one device, without padding; executors pad if they need to.

    Attributes:
        ids: int32 [total], the samples one after another, special tokens included.
        offsets: int64 [N + 1]; sample ``i`` is ``ids[offsets[i]:offsets[i + 1]]``. No sample is empty.
        segments: int8 [total], 0 for the first text and 1 for the second of a pair.
        special: ids of [CLS], [SEP] and [PAD], which stand for no word; exit tables ignore them.
    """

    ids: Tensor
    offsets: Tensor
    segments: Tensor
    special: tuple[int, ...] = ()

    def __len__(self) -> int:
        return int(self.offsets.shape[0]) - 1

    @property
    def device(self) -> torch.device:
        return self.ids.device

    @property
    def lengths(self) -> Tensor:
        """Tokens per sample, int64 [N]."""
        return self.offsets[1:] - self.offsets[:-1]

    def to(self, device: torch.device | str) -> TokenSet:
        """Return the same samples on another device."""
        return replace(
            self, ids=self.ids.to(device), offsets=self.offsets.to(device), segments=self.segments.to(device)
        )

    def select(self, index: Tensor | np.ndarray | Sequence[int]) -> TokenSet:
        """Return the samples with the numbers ``index`` (int64 [M]), in that order."""
        index = torch.as_tensor(index, dtype=torch.int64, device=self.device)
        lengths = self.lengths[index]
        offsets = torch.zeros(len(index) + 1, dtype=torch.int64, device=self.device)
        torch.cumsum(lengths, 0, out=offsets[1:])
        # Row r of the result comes from (start of its sample) + (r - start of the sample in the result).
        shift = torch.repeat_interleave(self.offsets[index] - offsets[:-1], lengths)
        rows = torch.arange(int(offsets[-1]), device=self.device) + shift
        return replace(self, ids=self.ids[rows], offsets=offsets, segments=self.segments[rows])

    def sample(self, number: int) -> TokenSet:
        """Return a single sample, as views of its ids; much faster than :meth:`select`."""
        first, last = self.offsets[number : number + 2].tolist()
        offsets = torch.tensor([0, last - first], device=self.device)
        return replace(self, ids=self.ids[first:last], offsets=offsets, segments=self.segments[first:last])

    def joined(self, other: TokenSet) -> TokenSet:
        """Return these samples, then those of another set of the same tokenizer and device."""
        offsets = torch.cat([self.offsets, other.offsets[1:] + self.offsets[-1]])
        ids, segments = torch.cat([self.ids, other.ids]), torch.cat([self.segments, other.segments])
        return replace(self, ids=ids, offsets=offsets, segments=segments)

    @classmethod
    def from_lists(
        cls,
        ids: Sequence[Sequence[int]],
        segments: Sequence[Sequence[int]] | None = None,
        special: tuple[int, ...] = (),
    ) -> TokenSet:
        """Pack Python lists of ids (and of segments) on the CPU."""
        lengths = np.fromiter((len(row) for row in ids), dtype=np.int64, count=len(ids))
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        flat = np.fromiter((t for row in ids for t in row), dtype=np.int32, count=int(offsets[-1]))
        seg = np.zeros(int(offsets[-1]), dtype=np.int8)
        if segments is not None:
            seg = np.fromiter((t for row in segments for t in row), dtype=np.int8, count=int(offsets[-1]))
        return cls(torch.from_numpy(flat), torch.from_numpy(offsets), torch.from_numpy(seg), special)


@dataclass(frozen=True)
class Split:
    """Token ids and gold labels (int64 [N], on the CPU) of train or dev."""

    tokens: TokenSet
    labels: Tensor

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Task:
    """What a method may learn from: train and dev, never test.

    Attributes:
        name: dataset name.
        language: ``"en"`` or ``"zh"``.
        num_labels: number of classes; labels are 0 .. num_labels - 1.
        max_length: longest sample in tokens, special ones included; also the pad length of protocol ``paper``.
        train: samples to learn from.
        dev: samples to choose thresholds, quantiles and epochs on.
        fingerprint: content hash of both splits.
        read_unlabelled: gives :attr:`unlabelled`, for which it tokenises texts in its first call.
    """

    name: str
    language: str
    num_labels: int
    max_length: int
    train: Split
    dev: Split
    fingerprint: str = ""
    read_unlabelled: Callable[[], TokenSet | None] = field(default=lambda: None, repr=False, compare=False)

    @property
    def unlabelled(self) -> TokenSet | None:
        """Samples without labels to learn from, ``None`` if there are none; no row of train, dev or test.

        They are made when a method asks for them. It must declare :class:`harness.contracts.UsesUnlabelled`.
        """
        return self.read_unlabelled()
