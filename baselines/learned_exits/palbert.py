"""PALBERT (Balagansky & Gavrilov, NeurIPS 2022): exits are weighted by a learned probability of halting."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from harness.core.tokens import TokenSet
from harness.encoder.layout import Layout
from harness.encoder.model import Gate, HaltingGate
from harness.encoder.multi_exit import MultiExitModel
from harness.toolkit.joint_training import JointMethod, JointSettings, exit_answers, log_leaving, sample_losses
from harness.toolkit.training import LossFn


class PalbertSettings(JointSettings):
    """Settings of PALBERT."""

    beta: float = Field(0.5, ge=0, description="weight of the divergence from the prior")
    prior: float = Field(0.1, gt=0, lt=1, description="probability of halting at an exit in the geometric prior")


def geometric(prior: float, exits: int) -> Tensor:
    """Return the prior of A exits, float32 [A]: ``prior (1 - prior)^i``, and the rest at the last one."""
    early = prior * (1 - prior) ** torch.arange(exits - 1, dtype=torch.float64)
    return torch.cat([early, 1 - early.sum(0, keepdim=True)]).float()


def halting(gate: HaltingGate, states: Sequence[Tensor], layout: Layout) -> Tensor:
    """Return the log-probability of halting at every exit, float32 [A, B], from the states after it, [rows, width] each."""
    firsts = [gate(hidden, layout) for hidden in states[:-1]]
    before = [torch.zeros_like(firsts[0]), *firsts[:-1]]
    return log_leaving([gate.logit(*pair) for pair in zip(firsts, before, strict=True)])


def ponder_loss(losses: Tensor, log_p: Tensor, prior: Tensor, beta: float) -> Tensor:
    """Return ``sum_i p_i CE_i + beta KL(prior || p)``, mean over samples.

    Args:
        losses: [A, B], cross-entropies.
        log_p: [A, B], log-probabilities of halting.
        prior: [A].
    """
    prior = prior.to(log_p.device)[:, None]
    divergence = (prior * (prior.log() - log_p)).sum(0)
    return ((log_p.exp() * losses).sum(0) + beta * divergence).mean()


class Palbert(JointMethod[PalbertSettings]):
    """Exits trained together, each weighted by the probability of halting there; rule ``q-exit``.

    A gate (the Lambda layers) gives that probability, from the states of [CLS] at this exit and the one before. The loss adds
    the divergence of the halting distribution from a geometric prior, in the direction of the released code, KL(prior || p).
    A threshold of 0.5 is published; here it is chosen on dev at budgets, as for all rules.

    Not as published: heads are one per exit, and layers do not share weights, as ALBERT's do; the gate reads the state of [CLS],
    not its pooled state; what is left of the probability belongs to the last exit, as in PonderNet. The released code gives
    the exits of a sample that has halted with 0.95 a fixed small probability instead, a numerical guard that is not needed here.
    """

    name = "palbert"
    rule = "q-exit"
    version = 1
    settings = PalbertSettings

    def objective(self, model: MultiExitModel, gate: Gate | None, own: PalbertSettings) -> LossFn:
        assert isinstance(gate, HaltingGate)
        prior = geometric(own.prior, len(model.answers))

        def loss(tokens: TokenSet, layout: Layout, labels: Tensor) -> Tensor:
            states, logits = exit_answers(model, tokens, layout)
            return ponder_loss(sample_losses(logits, labels), halting(gate, states, layout), prior, own.beta)

        return loss
