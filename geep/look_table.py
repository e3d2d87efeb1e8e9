"""The table behind one look: what a head's answer says about every later exit.

A sample has three keys after the look: the bin of the head's entropy; this bin and the predicted class; and both with a bucket of
the sample's length. The exit table counts, per key and exit, the samples whose answer there is that of full depth. Its rows,
summed over the keys, thus estimate P(the answer at exit k is that of full depth), up to a factor that the last exit shows, where
every sample agrees with itself. A key without samples adds the row of all samples and is counted as missing.

The exit is ``argmin over k of 1 - P_k + price * (k - look)``, the shallower one on ties, in integers, so that every backend of the
exit table gives the same exits. EdgeBERT (Tambe et al., MICRO 2021) also predicts the exit from one ramp's entropy, but by fixed
entropy bins alone.
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
from geep.exit_table.keys import MAX_ID
from geep.exit_table.rows import SCALE
from harness.core.errors import ConfigError
from harness.core.text_formats import read_json
from harness.core.tokens import TokenSet
from harness.encoder.transfer import upload
from harness.execution.exit_rules import normalised_entropy

KEYS = 3  # of a sample
APART = 1e-5  # entropies nearer than this differ by rounding only
FORBIDDEN = 1 << 40  # price of an exit without a head: more than all others can cost
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


def cheapest(sums: Tensor, prices: Tensor) -> Tensor:
    """Return the exit of each sample at which lost agreement plus price is smallest, the shallowest on ties: int16 [N].

    Args:
        sums: int64 [N, L], summed rows of the table; the last column is what full agreement would be.
        prices: int64 [L], in 1 / :data:`SCALE` of an agreement.
    """
    whole = sums[:, -1:]
    return ((whole - sums) * SCALE + prices * whole).argmin(1).to(torch.int16)


class LookTable:
    """Estimates of agreement by exit after one look.

    Args:
        look: layer index of the head.
        answers: layer indices that have a head, rising.
        bins: how answers become keys.
        table: frozen; see the module.
    """

    def __init__(self, look: int, answers: tuple[int, ...], bins: Bins, table: ExitTable) -> None:
        self.look, self.answers, self.bins, self.table = look, answers, bins, table
        self._here: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._prices: dict[tuple[torch.device, int], Tensor] = {}

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
        """Count agreement with full depth on rows that training has not seen.

        Args:
            logits: [A, N, C] of every answering layer.
            lengths: int64 [N].
            answers: the A layer indices.
            look: one of them, before the last.
            bins: of the entropy at the look.
            buckets: of the length.
            smoothing: samples of the average row that are added to every key.

        Raises:
            ConfigError: see :meth:`Bins.of`.
        """
        seen = logits[answers.index(look)]
        cut = Bins.of(normalised_entropy(seen).numpy(), lengths.cpu().numpy(), logits.shape[-1], bins, buckets)
        said = logits.argmax(-1)
        agrees = said == said[-1]  # [A, N]
        agrees[: answers.index(look)] = False
        places, samples = agrees.nonzero(as_tuple=True)
        keys = cut.keys(seen, lengths.cpu(), cut.to(seen.device))
        table = ExitTable(answers[-1] + 1, backend=backend)
        table.insert(keys.select(samples), torch.tensor(answers)[places])
        # The table smooths by what it counts, agreements; a sample has several.
        table.freeze(min_count=1, smoothing=round(smoothing * len(samples) / logits.shape[1]))
        return cls(look, answers, cut, table)

    def prices(self, price: int) -> Tensor:
        """Return what each exit costs, int64 [L] on the CPU: ``price`` a layer from the look on."""
        found = torch.full((self.answers[-1] + 1,), FORBIDDEN)
        for answer in self.answers:
            if answer >= self.look:
                found[answer] = price * (answer - self.look)
        return found

    def sums(self, logits: Tensor, lengths: Tensor) -> Tensor:
        """Return the summed rows of samples, int64 [B, L]; arguments as :meth:`exits` has them."""
        device = logits.device
        if device not in self._here:
            self._here[device] = self.bins.to(device)
        return self.table.distribution(self.bins.keys(logits, lengths, self._here[device]))

    def exits(self, logits: Tensor, lengths: Tensor, *, price: int) -> Tensor:
        """Return the exits of samples after the look, int16 [B]; the host does not wait.

        Args:
            logits: [B, C] of the head at the look.
            lengths: int64 [B].
            price: of a layer, in 1 / :data:`SCALE` of an agreement.
        """
        device = logits.device
        if (device, price) not in self._prices:
            self._prices[device, price] = upload(self.prices(price).numpy(), device)
        return cheapest(self.sums(logits, lengths), self._prices[device, price])

    def save(self, folder: Path) -> None:
        """Write the exit table and ``look.json`` into a folder."""
        self.table.save(folder)
        facts = {"look": self.look, "bins": asdict(self.bins)}
        (folder / FACTS).write_text(json.dumps(facts, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, answers: tuple[int, ...], backend: str = "auto") -> Self:
        """Read what :meth:`save` wrote; raises what reading raises, or KeyError or TypeError if the file is another."""
        facts = read_json(folder / FACTS)
        given = facts["bins"]
        bins = Bins(tuple(given["entropies"]), tuple(given["lengths"]), given["classes"])
        return cls(facts["look"], answers, bins, ExitTable.load(folder, backend, num_layers=answers[-1] + 1))
