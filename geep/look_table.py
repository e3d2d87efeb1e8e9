"""The table behind one look: what a head's answer says about every later exit.

A sample has three keys after the look: the bin of the head's entropy; this bin and the predicted class; and both with a bucket of
the sample's length. An exit table of agreement counts, per key and exit from the look on, the samples whose answer there is that
of full depth. The mean of the three rows estimates P(the answer at exit k is that of full depth); a key without samples adds the
row of all samples and is counted as missing. The exit is that of rule :class:`~geep.exit_table.rules.Expected`, in integers, so
that every backend gives the same exits: ``argmin over k of 1 - P_k + price * layers``, the shallower one on ties.

EdgeBERT (Tambe et al., MICRO 2021) also predicts the exit from one ramp's entropy, but by bins of the entropy alone.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from geep.exit_table import ExitTable
from geep.exit_table.columns import TableColumns
from geep.exit_table.keys import MAX_ID
from geep.exit_table.rules import Expected
from harness.core.errors import ConfigError
from harness.core.text_formats import read_json
from harness.core.tokens import TokenSet
from harness.encoder.transfer import upload
from harness.execution.exit_rules import normalised_entropy

KEYS = 3  # of a sample
APART = 1e-5  # entropies nearer than this differ by rounding only
FACTS = "look.json"


@dataclass(frozen=True)
class Bins:
    """How answers become keys.

    Attributes:
        entropies: rising thresholds between the bins of the normalised entropy.
        lengths: rising lengths, in tokens; the last of each bucket but the last bucket.
        classes: C.
    """

    entropies: tuple[float, ...]
    lengths: tuple[int, ...]
    classes: int

    @classmethod
    def of(cls, entropies: np.ndarray, lengths: np.ndarray, classes: int, bins: int, buckets: int) -> Self:
        """Cut so that bins and buckets hold about equally many of the given samples.

        Thresholds lie between entropies that differ by more than rounding, so equal entropies stay in one bin, and there may be
        fewer bins than asked for.

        Args:
            entropies, lengths: [N], N >= 1.

        Raises:
            ConfigError: there are more keys than the exit table can have.
        """
        ordered = np.sort(entropies)
        steps = np.flatnonzero(np.diff(ordered) > APART) + 1  # where a larger entropy begins
        at = np.searchsorted(steps, np.arange(1, bins) * len(ordered) // bins)
        at = steps[np.unique(at[at < len(steps)])]
        cuts = ((ordered[at - 1] + ordered[at]) / 2).astype(np.float32)
        ends = np.unique(np.sort(lengths)[np.arange(1, buckets) * len(lengths) // buckets])
        made = cls(tuple(cuts.tolist()), tuple(ends.tolist()), classes)
        if made.size > MAX_ID:
            raise ConfigError(
                f"one look: {classes} classes with {bins} bins and {buckets} buckets are {made.size} keys, more than {MAX_ID}: "
                "set fewer bins or buckets"
            )
        return made

    @property
    def size(self) -> int:
        """Number of different keys."""
        bins = len(self.entropies) + 1
        return bins * (1 + self.classes * (len(self.lengths) + 2))

    def to(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return both thresholds on a device, without waiting for it."""
        entropies, lengths = np.array(self.entropies, dtype=np.float32), np.array(self.lengths, dtype=np.int64)
        return upload(entropies, device), upload(lengths, device)

    def keys(self, logits: Tensor, lengths: Tensor, cuts: tuple[Tensor, Tensor]) -> TokenSet:
        """Return the keys of samples as token ids, three a sample, without waiting for the device.

        Args:
            logits: [B, C] of the head at the look.
            lengths: int64 [B].
            cuts: from :meth:`to`.
        """
        bins, buckets = len(self.entropies) + 1, len(self.lengths) + 1
        entropy = torch.bucketize(normalised_entropy(logits), cuts[0])
        answer = entropy * self.classes + logits.argmax(-1)
        length = answer * buckets + torch.bucketize(lengths, cuts[1])
        ids = torch.stack([entropy, answer + bins, length + bins * (1 + self.classes)], 1).int().view(-1)
        offsets = torch.arange(0, len(ids) + 1, KEYS, device=ids.device)
        return TokenSet(ids, offsets, torch.zeros_like(ids, dtype=torch.int8))


class LookTable:
    """Estimates of agreement by exit after one look.

    Args:
        look: layer index of the head, whose exit has the first column.
        bins: how answers become keys.
        table: frozen, of agreement.
    """

    def __init__(self, look: int, bins: Bins, table: ExitTable) -> None:
        self.look, self.bins, self.table = look, bins, table
        self._cuts: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @classmethod
    def fill(
        cls,
        logits: Tensor,
        lengths: Tensor,
        answers: tuple[int, ...],
        look: int,
        *,
        bins: int,
        buckets: int,
        smoothing: int,
        backend: str = "auto",
    ) -> Self:
        """Count agreement with full depth.

        Args:
            logits: [A, N, C] of every answering layer.
            lengths: int64 [N].
            answers: the A layer indices.
            look: one of them, before the last.
            bins: of the entropy at the look.
            buckets: of the length.
            smoothing: average samples that are added to every key.

        Raises:
            ConfigError: see :meth:`Bins.of`.
        """
        seen, lengths = logits[answers.index(look)], lengths.cpu()
        cut = Bins.of(normalised_entropy(seen).numpy(), lengths.numpy(), logits.shape[-1], bins, buckets)
        predicted = logits.argmax(-1)
        # A layer without a head never agrees. It loses against the look, which is shallower, so no sample gets it.
        agrees = torch.zeros(logits.shape[1], answers[-1] + 1 - look, dtype=torch.bool)
        for answer, labels in zip(answers, predicted, strict=True):
            if answer >= look:
                agrees[:, answer - look] = labels == predicted[-1]
        table = ExitTable(TableColumns(agreement=agrees.shape[1]), backend=backend)
        table.insert(cut.keys(seen, lengths, cut.to(seen.device)), agrees)
        table.freeze(min_count=1, smoothing=smoothing)
        return cls(look, cut, table)

    def keys(self, logits: Tensor, lengths: Tensor) -> TokenSet:
        """Return the keys of samples; arguments as :meth:`exits` has them."""
        device = logits.device
        if device not in self._cuts:
            self._cuts[device] = self.bins.to(device)
        return self.bins.keys(logits, lengths, self._cuts[device])

    def exits(self, logits: Tensor, lengths: Tensor, prices: tuple[int, ...]) -> Tensor:
        """Return the exits of samples after the look at Q prices of a layer, int16 [B, Q]; the host does not wait.

        Args:
            logits: [B, C] of the head at the look.
            lengths: int64 [B].
            prices: see :class:`~geep.exit_table.rules.Expected`.
        """
        return self.table.assign(self.keys(logits, lengths), Expected(prices)) + self.look

    def save(self, folder: Path) -> None:
        """Write the exit table and ``look.json`` into a folder."""
        self.table.save(folder)
        facts = {"look": self.look, "bins": asdict(self.bins)}
        (folder / FACTS).write_text(json.dumps(facts, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, depth: int, backend: str = "auto") -> Self:
        """Read what :meth:`save` wrote for an encoder of ``depth`` layers; raises what reading raises."""
        facts = read_json(folder / FACTS)
        given, look = facts["bins"], facts["look"]
        bins = Bins(tuple(given["entropies"]), tuple(given["lengths"]), given["classes"])
        return cls(look, bins, ExitTable.load(folder, backend, num_layers=depth - look))
