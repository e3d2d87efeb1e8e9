"""Exit rules: decide after each head which samples of a shrinking batch leave.

A rule works in two steps. :meth:`ExitRule.score` reads a number from an answer and needs no threshold; :meth:`ExitRule.judge`
decides from the scores so far. :func:`replay` can therefore try many thresholds on scores that were computed once, with the
code that the executor runs.

The released codes of these rules run at batch size 1. Here every sample has its own row in the rule's memory, and the row
leaves with the sample, so a batch of any size gives the exits of batch size 1.
"""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from harness.encoder.model import ExitGate, ExitPolicy, Gate, HaltingGate

# One row per sample in each, on the samples' device.
Memory = tuple[Tensor, ...]
# A rule's setting; in a replay a tensor [K, 1] of candidates.
Setting = float | Tensor


def normalised_entropy(logits: Tensor) -> Tensor:
    """Return the uncertainty in 0..1, ``-sum_c p_c ln p_c / ln C`` (FastBERT, section 3.3): [..., C] -> [...]."""
    log_p = logits.float().log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1) / math.log(logits.shape[-1])


def confidence(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the largest softmax probability: [..., C] -> float32 [...]."""
    return (logits.float() / temperature).softmax(-1).amax(-1)


class ExitRule(ABC):
    """Decides after every exit which samples leave.

    Places number the answering layers, 0 .. A-1. At the last place all samples leave.

    Attributes:
        gate: a gate that the executor runs beside every head; its output is the ``doubt`` of :meth:`score`.
    """

    gate: Gate | None = None

    def asks(self, place: int) -> bool:
        """Return whether the head at a place has to be run; the last one always is."""
        return True

    def begin(self, count: int, device: torch.device) -> Memory:
        """Return the memory of ``count`` samples before the first head."""
        return ()

    def score(self, place: int, logits: Tensor, doubt: Tensor | None) -> Tensor:
        """Return the score [B] of answers: logits [B, C], and doubt [B] or [B, D] if the rule has a gate.

        A rule whose score also depends on earlier answers has :meth:`look` and :meth:`scores` instead.
        """
        raise NotImplementedError

    @abstractmethod
    def judge(self, place: int, score: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """Return which samples leave, bool [B], and the new memory of all B. Nothing is changed in place."""

    def look(self, place: int, logits: Tensor, doubt: Tensor | None, memory: Memory) -> tuple[Tensor, Memory]:
        """Score an answer and judge it."""
        return self.judge(place, self.score(place, logits, doubt), memory)

    def scores(self, logits: Tensor, doubts: Tensor | None) -> Tensor:
        """Return what :meth:`judge` gets at every place: [A, N] from logits [A, N, C] and doubts [A, N] or [A, N, D]."""
        rows = [self.score(k, answer, None if doubts is None else doubts[k]) for k, answer in enumerate(logits)]
        return torch.stack(rows)


@dataclass(frozen=True)
class ThresholdRule(ExitRule):
    """A rule that compares the score of the current answer with a threshold and remembers nothing.

    It can be called as a function of the logits: [B, C] -> bool [B].

    Attributes:
        compare: true for a score and a threshold at which a sample leaves.
    """

    compare: ClassVar[Callable[[Any, Any], Any]]

    threshold: Setting

    def judge(self, place: int, score: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        return type(self).compare(score, self.threshold), memory

    def __call__(self, logits: Tensor) -> Tensor:
        return self.look(0, logits, None, ())[0]


class Entropy(ThresholdRule):
    """FastBERT (ACL 2020, section 3.3): normalised entropy of at most the threshold, the paper's *speed*."""

    compare = operator.le

    def score(self, place: int, logits: Tensor, doubt: Tensor | None) -> Tensor:
        return normalised_entropy(logits)


class RawEntropy(ThresholdRule):
    """DeeBERT (ACL 2020): entropy in nats below the threshold."""

    compare = operator.lt

    def score(self, place: int, logits: Tensor, doubt: Tensor | None) -> Tensor:
        return normalised_entropy(logits) * math.log(logits.shape[-1])


@dataclass(frozen=True)
class Confidence(ThresholdRule):
    """RightTool (Schwartz et al., ACL 2020): largest calibrated probability of at least the threshold.

    Logits are divided by the temperature of their exit before the softmax. The stored answer keeps its logits.

    Attributes:
        temperatures: one per place; empty means 1 everywhere.
    """

    compare = operator.ge

    temperatures: tuple[float, ...] = ()

    def score(self, place: int, logits: Tensor, doubt: Tensor | None) -> Tensor:
        return confidence(logits, self.temperatures[place] if self.temperatures else 1.0)


@dataclass(frozen=True)
class Learned(ThresholdRule):
    """BERxiT's learning to exit (EACL 2021): the gate's probability that the head is wrong is below the threshold."""

    compare = operator.lt

    gate: ExitGate

    def score(self, place: int, logits: Tensor, doubt: Tensor | None) -> Tensor:
        assert doubt is not None  # the executor runs the gate of a rule that has one
        return doubt


@dataclass(frozen=True)
class Policy(ThresholdRule):
    """ConsistentEE (AAAI 2024): the policy's log-odds of leaving are above the threshold; 0 (a probability of 1/2) is published.

    A trained policy is nearly certain. Log-odds keep the order of samples where probabilities are all 0 or 1 after rounding.
    """

    compare = operator.gt
    most: ClassVar[float] = 30.0  # log-odds

    gate: ExitPolicy

    def score(self, place: int, logits: Tensor, doubt: Tensor | None) -> Tensor:
        assert doubt is not None
        if place == len(self.gate.networks):  # all leave at the last head, which has no network
            return torch.full((len(doubt),), self.most, device=doubt.device)
        return self.gate.logit(place, doubt).clamp(-self.most, self.most)


@dataclass(frozen=True)
class QExit(ThresholdRule):
    """PALBERT (NeurIPS 2022): the probability of having halted by now is above the threshold.

    With a probability l_i of halting at exit i, it is ``1 - (1 - l_0) .. (1 - l_i)``.
    """

    compare = operator.gt

    gate: HaltingGate

    def _halted(self, state: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """Return the probability of having halted, [B], and the memory: the state, and the probability of not having halted."""
        before, going_on = memory or (torch.zeros_like(state), torch.ones(len(state), device=state.device))
        going_on = going_on * (-self.gate.logit(state, before)).sigmoid()
        return 1 - going_on, (state, going_on)

    def scores(self, logits: Tensor, doubts: Tensor | None) -> Tensor:
        assert doubts is not None
        memory: Memory = ()
        rows = []
        for state in doubts:
            halted, memory = self._halted(state, memory)
            rows.append(halted)
        return torch.stack(rows)

    def look(self, place: int, logits: Tensor, doubt: Tensor | None, memory: Memory) -> tuple[Tensor, Memory]:
        assert doubt is not None
        halted, memory = self._halted(doubt, memory)
        return self.judge(place, halted, ())[0], memory


@dataclass(frozen=True)
class Patience(ExitRule):
    """PABEE (NeurIPS 2020): ``patience`` heads in a row agreed with the head before them.

    The earliest exit is at place ``patience``, after ``patience + 1`` equal answers.
    """

    patience: Setting

    def begin(self, count: int, device: torch.device) -> Memory:
        answer = torch.full((count,), -1, dtype=torch.int64, device=device)
        return answer, torch.zeros(count, dtype=torch.int64, device=device)

    def score(self, place: int, logits: Tensor, doubt: Tensor | None) -> Tensor:
        return logits.argmax(-1)

    def judge(self, place: int, score: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        before, agreed = memory
        agreed = torch.where(score == before, agreed + 1, 0)
        return agreed >= self.patience, (score, agreed)


@dataclass(frozen=True)
class PatienceConfidence(ExitRule):
    """PCEE-BERT (Findings of NAACL 2022): ``patience`` heads in a row had a normalised entropy below the threshold.

    A head above it resets the count to 0. The last head answers; the release can also average the confident heads.
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


def difference(p: Tensor, q: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence in bits of two distributions, 0 (equal) to 1 (disjoint): [..., C] -> [...]."""
    of_mean, of_each = (torch.special.entr(part).sum(-1) for part in ((p + q) / 2, torch.stack([p, q])))
    return ((of_mean - of_each.mean(0)) / math.log(2)).clamp(0, 1)


@dataclass(frozen=True)
class PatienceSimilarity(ExitRule):
    """F-PABEE (Gao et al., ICASSP 2023): ``patience`` heads in a row said nearly the same as the head before them.

    Two heads say nearly the same if the Jensen-Shannon divergence of their distributions is below the threshold; a larger one
    resets the count to 0. The paper tries four measures, and this kind was best. The earliest exit is at place ``patience``.
    """

    threshold: Setting
    patience: Setting

    def begin(self, count: int, device: torch.device) -> Memory:
        return (torch.zeros(count, dtype=torch.int64, device=device),)

    def scores(self, logits: Tensor, doubts: Tensor | None) -> Tensor:
        said = logits.float().softmax(-1)
        first = torch.ones(logits.shape[1], device=logits.device)  # nothing to compare with
        return torch.cat([first[None], difference(said[1:], said[:-1])])

    def look(self, place: int, logits: Tensor, doubt: Tensor | None, memory: Memory) -> tuple[Tensor, Memory]:
        alike, *before = memory
        said = logits.float().softmax(-1)
        changed = difference(said, before[0]) if before else torch.ones(len(said), device=said.device)
        leaves, (alike,) = self.judge(place, changed, (alike,))
        return leaves, (alike, said)

    def judge(self, place: int, score: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        (alike,) = memory
        # The first head has no head before it, whatever the threshold.
        alike = torch.where(score < self.threshold, alike + 1, 0) if place else alike
        return alike >= self.patience, (alike,)


@dataclass(frozen=True)
class Static(ExitRule):
    """Constant depth: all samples leave at one place, and no other head is run.

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


@torch.no_grad()  # a gate has parameters
def scores_of(rule: ExitRule, logits: Tensor, doubts: Tensor | None = None) -> Tensor:
    """Return a rule's score of every answer to every sample: [A, N].

    Args:
        logits: [A, N, C], answers in order of depth.
        doubts: [A, N] or [A, N, D], if the rule has a gate.
    """
    return rule.scores(logits, doubts)


def replay(rule: ExitRule, scores: Tensor) -> Tensor:
    """Return the place where every sample leaves, int64 [N]; [K, N] for a rule whose settings are tensors [K, 1].

    Args:
        scores: [A, N], from :func:`scores_of`.
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


def candidate_thresholds(scores: np.ndarray, ends: Sequence[float], *, most: int, apart: float = 0.0) -> np.ndarray:
    """Return thresholds to try on dev, float32 and rising: ``ends``, and at most ``most`` midpoints between occurring scores.

    Rounding differs from batch to batch. A threshold at a midpoint between scores at least ``apart`` from each other keeps
    it from changing the decision on a dev sample.
    """
    values = np.unique(scores)
    between = ((values[1:] + values[:-1]) / 2)[np.diff(values) > apart]
    if len(between) > most:
        between = between[np.linspace(0, len(between) - 1, most).round().astype(int)]
    return np.unique(np.append(between, ends).astype(np.float32))


def first_exit(logits: Tensor, speed: float) -> Tensor:
    """Return the place where FastBERT's sequential exit leaves, int64 [N]; the last one if no head is sure enough.

    Args:
        logits: [A, N, C], answers in order of depth.
        speed: threshold of the normalised entropy.
    """
    rule = Entropy(speed)
    return replay(rule, scores_of(rule, logits))
