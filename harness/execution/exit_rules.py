"""Exit rules that run in a shrinking batch, also those that remember what a sample's earlier heads said.

A rule looks at an answer in two steps. :meth:`ExitRule.score` reads from the answer whatever the rule cares for, and
knows no threshold; :meth:`ExitRule.judge` decides from the scores so far. So :func:`replay` can try many thresholds on
scores that were read once, with the code that the executor runs.

Released codes of these rules run at batch size 1. Here every sample has its own row in the rule's memory, and rows leave
with their samples: a batch of any size gives the exits of batch size 1.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.encoder.model import ExitGate
from harness.execution.entropy_exit import normalised_entropy

# One row per sample in each, on the samples' device.
Memory = tuple[Tensor, ...]
# A rule's setting; in a replay a tensor [K, 1] of candidates.
Setting = float | Tensor


class ExitRule(ABC):
    """Decides after every exit who leaves. Places count answering layers, 0 .. A-1; at the last, everybody leaves.

    Attributes:
        gate: what the executor runs beside every head that it asks; its verdicts are the ``doubt`` of :meth:`score`.
    """

    gate: ExitGate | None = None

    def asks(self, place: int) -> bool:
        """Whether the head at a place has to be run at all; the last one always is."""
        return True

    def begin(self, count: int, device: torch.device) -> Memory:
        """Memory of ``count`` samples that no head has answered yet."""
        return ()

    @abstractmethod
    def score(self, place: int, logits: Tensor, doubt: Tensor | None) -> Tensor:
        """What the rule reads from an answer: logits [B, C], doubt [B] where there is a gate -> [B]."""

    @abstractmethod
    def judge(self, place: int, score: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """Who leaves, bool [B], and what is remembered of everybody. Nothing is changed in place."""

    def look(self, place: int, logits: Tensor, doubt: Tensor | None, memory: Memory) -> tuple[Tensor, Memory]:
        """Read an answer and decide; see :meth:`score` and :meth:`judge`."""
        return self.judge(place, self.score(place, logits, doubt), memory)


@dataclass(frozen=True)
class Stateless(ExitRule):
    """A function of the logits alone: [B, C] -> bool [B]."""

    leaves: Callable[[Tensor], Tensor]

    def score(self, place: int, logits: Tensor, doubt: Tensor | None) -> Tensor:
        return self.leaves(logits)

    def judge(self, place: int, score: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        return score, memory


@dataclass(frozen=True)
class Entropy(ExitRule):
    """FastBERT (ACL 2020, section 3.3): normalised entropy of at most the threshold."""

    threshold: Setting

    def score(self, place: int, logits: Tensor, doubt: Tensor | None) -> Tensor:
        return normalised_entropy(logits)

    def judge(self, place: int, score: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        return score <= self.threshold, memory


@dataclass(frozen=True)
class RawEntropy(ExitRule):
    """DeeBERT (ACL 2020): entropy in nats below the threshold."""

    threshold: Setting

    def score(self, place: int, logits: Tensor, doubt: Tensor | None) -> Tensor:
        return normalised_entropy(logits) * math.log(logits.shape[-1])

    def judge(self, place: int, score: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        return score < self.threshold, memory


@dataclass(frozen=True)
class Confidence(ExitRule):
    """RightTool (Schwartz et al., ACL 2020): largest calibrated probability of at least the threshold.

    Logits are divided by the temperature of their exit before the softmax, for this decision only: the answer keeps
    its logits.

    Attributes:
        temperatures: one per place; none: all 1.
    """

    threshold: Setting
    temperatures: tuple[float, ...] = ()

    def score(self, place: int, logits: Tensor, doubt: Tensor | None) -> Tensor:
        temperature = self.temperatures[place] if self.temperatures else 1.0
        return (logits.float() / temperature).softmax(-1).amax(-1)

    def judge(self, place: int, score: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        return score >= self.threshold, memory


@dataclass(frozen=True)
class Patience(ExitRule):
    """PABEE (NeurIPS 2020): ``patience`` heads in a row have said the same as the one before them.

    The earliest exit is at place ``patience``, after ``patience + 1`` equal answers.
    """

    patience: Setting

    def begin(self, count: int, device: torch.device) -> Memory:
        said = torch.full((count,), -1, dtype=torch.int64, device=device)
        return said, torch.zeros(count, dtype=torch.int64, device=device)

    def score(self, place: int, logits: Tensor, doubt: Tensor | None) -> Tensor:
        return logits.argmax(-1)

    def judge(self, place: int, score: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        said, agreed = memory
        agreed = torch.where(score == said, agreed + 1, 0)
        return agreed >= self.patience, (score, agreed)


@dataclass(frozen=True)
class PatienceConfidence(ExitRule):
    """PCEE-BERT (Findings of NAACL 2022): ``patience`` heads in a row had a normalised entropy below the threshold.

    One that had not sets the count back to 0. The last head answers; the release can also average those that were sure.
    """

    threshold: Setting
    patience: Setting

    def begin(self, count: int, device: torch.device) -> Memory:
        return (torch.zeros(count, dtype=torch.int64, device=device),)

    def score(self, place: int, logits: Tensor, doubt: Tensor | None) -> Tensor:
        return normalised_entropy(logits)

    def judge(self, place: int, score: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        (sure,) = memory
        sure = torch.where(score < self.threshold, sure + 1, 0)
        return sure >= self.patience, (sure,)


@dataclass(frozen=True)
class Learned(ExitRule):
    """BERxiT's learning to exit (EACL 2021): the gate holds the head for wrong with less than the threshold."""

    threshold: Setting
    gate: ExitGate

    def score(self, place: int, logits: Tensor, doubt: Tensor | None) -> Tensor:
        assert doubt is not None  # the executor runs the gate of a rule that has one
        return doubt

    def judge(self, place: int, score: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        return score < self.threshold, memory


@dataclass(frozen=True)
class Static(ExitRule):
    """Constant depth: everybody leaves at one place, and no other head is asked.

    Attributes:
        place: in a replay, a tensor [K, 1].
    """

    place: Setting

    def asks(self, place: int) -> bool:
        return place == self.place

    def score(self, place: int, logits: Tensor, doubt: Tensor | None) -> Tensor:
        return torch.full(logits.shape[:-1], place, dtype=torch.int64, device=logits.device)

    def judge(self, place: int, score: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        return score == self.place, memory


def scores_of(rule: ExitRule, logits: Tensor, doubts: Tensor | None = None) -> Tensor:
    """What a rule reads from every answer to every sample: [A, N].

    Args:
        logits: [A, N, C], answers in order of depth.
        doubts: [A, N], where the rule has a gate.
    """
    rows = [rule.score(k, answer, None if doubts is None else doubts[k]) for k, answer in enumerate(logits)]
    return torch.stack(rows)


def replay(rule: ExitRule, scores: Tensor) -> Tensor:
    """Where every sample leaves: places, int64 [N]; or [K, N] for a rule whose settings are tensors [K, 1].

    Args:
        scores: [A, N], as from :func:`scores_of`.
    """
    places, count = scores.shape
    memory = rule.begin(count, scores.device)
    exits = torch.full((count,), places - 1, device=scores.device)
    gone = torch.zeros(count, dtype=torch.bool, device=scores.device)
    for place in range(places - 1):
        leaves, memory = rule.judge(place, scores[place], memory)
        exits = torch.where(leaves & ~gone, place, exits)
        gone = gone | leaves
    return exits
