"""ConsistentEE (Zeng et al., AAAI 2024): a policy decides where to exit, and only the exit that it takes has to be right."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from harness.core.errors import ConfigError
from harness.core.tokens import Split, Task, TokenSet
from harness.encoder.backbone import Backbone
from harness.encoder.layout import Layout
from harness.encoder.model import ExitPolicy
from harness.encoder.multi_exit import MultiExitModel
from harness.execution.executors import exit_logits
from harness.toolkit.base_method import StagedMethod, Teachers
from harness.toolkit.dev_scores import exits_score
from harness.toolkit.distillation import fitted_teacher, take_layers
from harness.toolkit.fitted import FittedModel
from harness.toolkit.joint_training import exit_answers, log_leaving, sample_losses
from harness.toolkit.method_settings import BudgetSettings, Recipe
from harness.toolkit.rule_exits import TUNING, RuleExits, RuleName, new_gate, under_rule
from harness.toolkit.training import LossFn, TrainingReport, total_cost, train

RULE: RuleName = "policy"


class ConsistentEESettings(BudgetSettings):
    """Settings of ConsistentEE. ``epochs`` and ``learning_rate`` are those of the last stage."""

    policy_epochs: int | None = Field(None, ge=1, description="epochs of the policy alone; by default as epochs")
    policy_learning_rate: float | None = Field(
        None, gt=0, description="learning rate of the policy alone; by default 10 x learning_rate"
    )
    price: float = Field(
        0.24, ge=0, description="price of running all layers for an easy sample, in nats of cross-entropy"
    )
    rollouts: int = Field(8, ge=2, description="exits that are sampled per training sample and step")


def memorised_place(correct: Tensor) -> Tensor:
    """Return the first place from which on all heads are right, and the last one where that is wrong: bool [A, N] -> int64 [N]."""
    right_to_the_end = correct.flip(0).long().cumprod(0).sum(0)
    return (len(correct) - right_to_the_end).clamp(max=len(correct) - 1)


def policy_losses(
    losses: Tensor, log_p: Tensor, memorised: Tensor, layers: Tensor, price: float, rollouts: int
) -> tuple[Tensor, Tensor]:
    """Return the loss of the policy (REINFORCE) and the cross-entropy at the exits that were drawn, means over samples.

    The reward of an exit is ``-CE - price (1 - m / L) l / L``, with its layers l of L and the sample's memorised layer m: easy
    samples pay for layers, samples that only the last head gets right do not. The baseline is the mean over a sample's exits.

    Args:
        losses: [A, B], cross-entropies.
        log_p: [A, B], log-probabilities of leaving.
        memorised: int64 [B], places.
        layers: [A], layers that each exit runs, counted from 1.
    """
    drawn = torch.multinomial(log_p.detach().exp().T, rollouts, replacement=True).T  # [K, B]
    share = layers / layers[-1]
    reward = -losses.detach() - price * (1 - share[memorised]) * share[:, None]
    gain = reward.gather(0, drawn)
    gain = gain - gain.mean(0)
    return -(gain * log_p.gather(0, drawn)).mean(), losses.gather(0, drawn).mean()


class ConsistentEE(StagedMethod[ConsistentEESettings]):
    """PABEE's weights; then a policy beside every early exit; then both together; rule ``policy``.

    Stage 1 is the method ``pabee``, whose loss it shares. Its memorised layer, from which on all heads are right, says how hard a
    train sample is. Stage 2 trains the policy alone, stage 3 everything: a sample's cross-entropy counts only at exits that the
    policy draws. The last epoch is kept. A probability of 0.5 is published as the threshold; here it is chosen on dev at
    budgets, as for all rules. The published speeds come from prices, each with a training of its own.

    Not as published: the policy reads the state of [CLS], not its pooled state. Exits are drawn, as the paper describes; the
    released code leaves where the probability is above 0.5, so that a sample's rollouts differ by dropout only. Its scripts try
    several rewards and prices; the price here is one that they name with the memorised layer, 0.02 for each of 12 layers.
    """

    name = "consistentee"
    needs: tuple[str, ...] = ("pabee",)
    settings = ConsistentEESettings
    fitted = RuleExits

    def learn(
        self, own: ConsistentEESettings, task: Task, backbone: Backbone, teachers: Teachers, seed: int
    ) -> RuleExits:
        source = fitted_teacher(teachers, "pabee")
        old = source.model
        if not old.exits:
            raise ConfigError(
                f"{self.name} needs weights with early exits, and these have none: name others in its needs"
            )
        if own.head not in (None, old.head_kind):
            raise ConfigError(f"{self.name}: head '{own.head}' is not 'pabee's '{old.head_kind}': set both alike")
        torch.manual_seed(seed)
        model = MultiExitModel(take_layers(old.encoder, range(old.depth)), old.labels, old.exits, old.head_kind)
        model.load_state_dict(old.state_dict())
        gate = new_gate(RULE, model)
        assert isinstance(gate, ExitPolicy)
        correct = exit_logits(model, task.train.tokens, TUNING).argmax(-1) == task.train.labels.cpu()
        # The loss of a batch gets labels only, so these also say how hard a sample is.
        marked = task.train.labels + task.num_labels * memorised_place(correct).to(task.train.labels.device)

        def stage(number: int, recipe: Recipe, *, together: bool) -> TrainingReport:
            model.requires_grad_(together)
            return train(
                nn.ModuleList([model, gate]),
                self._objective(model, gate, own, together=together),
                Split(task.train.tokens, marked),
                recipe,
                seed=seed,
                name=f"{self.name} {number} {task.name}",
                # The policy alone changes no score.
                evaluate=(lambda: exits_score(model, task.dev)) if together else None,
                keep="last",
            )

        rate = own.policy_learning_rate or 10 * own.learning_rate
        alone = own.changed(epochs=own.policy_epochs, learning_rate=rate, head_rate=1.0)
        reports = stage(2, alone, together=False), stage(3, own, together=True)
        return RuleExits(model, total_cost(source.training, *reports), rule=RULE, gate=gate)

    def decide(self, own: ConsistentEESettings, weights: FittedModel, task: Task, seed: int) -> RuleExits:
        assert isinstance(weights, RuleExits)
        return under_rule(
            RuleExits,
            weights.model,
            weights.training,
            method=self.name,
            rule=RULE,
            budgets=own.budgets,
            dev=task.dev,
            gate=weights.gate,
        )

    def _objective(
        self, model: MultiExitModel, gate: ExitPolicy, own: ConsistentEESettings, *, together: bool
    ) -> LossFn:
        layers = torch.tensor(model.answers, device=model.encoder.device) + 1.0

        def loss(tokens: TokenSet, layout: Layout, marked: Tensor) -> Tensor:
            labels, memorised = marked % model.labels, marked // model.labels
            states, logits = exit_answers(model, tokens, layout)
            leaving = [gate.logit(place, gate(hidden, layout)) for place, hidden in enumerate(states[:-1])]
            losses, log_p = sample_losses(logits, labels), log_leaving(leaving)
            policy, taken = policy_losses(losses, log_p, memorised, layers, own.price, own.rollouts)
            return policy + taken if together else policy

        return loss
