"""The training loop of all methods."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from harness.core.errors import ConfigError
from harness.core.tokens import Split, TokenSet
from harness.encoder.layout import Layout
from harness.encoder.model import Encoder
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.shape import EncoderShape
from harness.toolkit.dev_scores import full_depth_score
from harness.toolkit.fitted import read_training, save_training
from harness.toolkit.method_settings import Recipe
from harness.toolkit.training import (
    DevScore,
    LayerPasses,
    LossFn,
    TrainingReport,
    parameter_groups,
    total_cost,
    train,
)

RECIPE = Recipe(epochs=4, learning_rate=5e-3, batch_size=8, head_rate=2.0)


@pytest.fixture(scope="module")
def toy(make_tokens: Callable[..., TokenSet]) -> Split:
    """Thirty samples whose label is the parity of their first word."""
    tokens = make_tokens([2 + i % 5 for i in range(30)], seed=1)
    return Split(tokens, tokens.ids[tokens.offsets[:-1] + 1].long() % 2)


@pytest.fixture
def model(make_model: Callable[..., MultiExitModel]) -> MultiExitModel:
    return make_model(labels=2, exits=())


def loss_of(model: MultiExitModel, seen: list | None = None) -> LossFn:
    def loss(tokens: TokenSet, layout: Layout, labels: Tensor) -> Tensor:
        *_, hidden = model.encoder.states(tokens, layout)
        value = F.cross_entropy(model.teacher(hidden, layout), labels)
        if seen is not None:
            seen.append(value.item())
        return value

    return loss


class Spy(torch.optim.AdamW):
    """AdamW that records the learning rates of every step."""

    rates: list[list[float]] = []

    def step(self, closure=None):  # type: ignore[no-untyped-def, override]
        Spy.rates.append([group["lr"] for group in self.param_groups])
        return super().step(closure)


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> list[list[float]]:
    monkeypatch.setattr(Spy, "rates", [])
    monkeypatch.setattr(torch.optim, "AdamW", Spy)
    return Spy.rates


def test_the_loss_falls_on_a_learnable_task(tiny_shape: EncoderShape, toy: Split) -> None:
    """After some epochs on a toy task most answers are right, and the model is in eval mode."""
    seen: list[float] = []
    torch.manual_seed(0)
    model = MultiExitModel(Encoder(replace(tiny_shape, dropout=0.0)), 2)
    recipe = RECIPE.changed(epochs=15, learning_rate=3e-3)
    report = train(model, loss_of(model, seen), toy, recipe, seed=0, name="toy")
    assert sum(seen[-4:]) < 0.5 * sum(seen[:4])
    assert full_depth_score(model, toy).score > 0.8
    assert not model.training
    assert (report.steps, report.sample_passes) == (15 * 4, 15 * 30)


def test_the_same_seed_gives_the_same_weights(make_model: Callable[..., MultiExitModel], toy: Split) -> None:
    """Dropout and order depend on the seed only, not on the state of the global generator."""
    states = []
    for seed in (5, 5, 6):
        model = make_model(labels=2, exits=())
        torch.rand(3)
        train(model, loss_of(model), toy, RECIPE.changed(epochs=1), seed=seed, name="toy")
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


@pytest.mark.parametrize(("scores", "best"), [([0.1, 0.9, 0.3, 0.9], 2), ([0.5, 0.5, 0.4, 0.1], 1), ([0, 1, 2, 3], 4)])
def test_the_best_dev_epoch_is_kept(model: MultiExitModel, toy: Split, scores: list[float], best: int) -> None:
    """The weights of the epoch with the best score are kept; on a tie, the earlier ones."""
    snapshots = []

    def evaluate() -> DevScore:
        assert not model.training
        snapshots.append(copy.deepcopy(model.state_dict()))
        score = scores[len(snapshots) - 1]
        return DevScore(score, (score / 2, score))

    report = train(model, loss_of(model), toy, RECIPE, seed=0, name="toy", evaluate=evaluate)
    assert (report.best_epoch, report.dev_scores, report.epochs) == (best, tuple(scores), 4)
    assert report.exit_scores == (scores[best - 1] / 2, scores[best - 1])
    assert all(torch.equal(tensor, snapshots[best - 1][name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("scores", "patience", "ran", "best"),
    [([0.1, 0.9, 0.3, 0.9], 1, 3, 2), ([0.5, 0.4, 0.3, 0.6], 2, 3, 1), ([0.1, 0.2, 0.3, 0.2], 2, 4, 3)],
)
@pytest.mark.parametrize("keep", ["best", "last"])
def test_training_stops_when_dev_does_not_improve(
    model: MultiExitModel, toy: Split, scores: list[float], patience: int, ran: int, best: int, keep: str
) -> None:
    """After ``patience`` epochs without a better score training ends, and the best weights are kept, also by methods that
    keep the last ones otherwise; only the epochs that ran are counted."""
    snapshots = []

    def evaluate() -> DevScore:
        snapshots.append(copy.deepcopy(model.state_dict()))
        return DevScore(scores[len(snapshots) - 1], (scores[len(snapshots) - 1],))

    recipe = RECIPE.changed(patience=patience)
    report = train(model, loss_of(model), toy, recipe, seed=0, name="toy", evaluate=evaluate, keep=keep)  # type: ignore[arg-type]
    assert (report.best_epoch, report.dev_scores, report.epochs) == (best, tuple(scores[:ran]), 4)
    assert (report.steps, report.sample_passes) == (ran * 4, ran * 30)
    assert all(torch.equal(tensor, snapshots[best - 1][name]) for name, tensor in model.state_dict().items())


def test_a_patience_longer_than_the_epochs_is_refused(model: MultiExitModel, toy: Split) -> None:
    """Such a patience would never stop anything; the message names both numbers."""
    with pytest.raises(ConfigError, match="patience = 5 is longer than its 4 epochs"):
        train(
            model,
            loss_of(model),
            toy,
            RECIPE.changed(patience=5),
            seed=0,
            name="toy",
            evaluate=lambda: full_depth_score(model, toy),
        )


def test_the_last_epoch_is_scored_once_if_it_is_kept(model: MultiExitModel, toy: Split) -> None:
    """With ``keep="last"`` dev is asked once, after the last epoch, and no epoch counts as chosen."""
    asked = []

    def evaluate() -> DevScore:
        asked.append(1)
        return DevScore(0.5, (0.25, 0.5))

    report = train(model, loss_of(model), toy, RECIPE, seed=0, name="toy", evaluate=evaluate, keep="last")
    assert (len(asked), report.best_epoch, report.dev_scores, report.exit_scores) == (1, None, (0.5,), (0.25, 0.5))


def test_without_a_score_the_last_weights_are_kept(model: MultiExitModel, toy: Split) -> None:
    """Without evaluation the last weights are kept."""
    report = train(model, loss_of(model), toy, RECIPE, seed=0, name="toy")
    assert (report.best_epoch, report.dev_scores) == (None, ())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("epochs", [1, 20])
def test_an_infinite_loss_stops_the_training(model: MultiExitModel, toy: Split, bad: float, epochs: int) -> None:
    """A loss that is not finite is an error within 50 steps and within an epoch; it names task, step and what to change."""
    plain = loss_of(model)
    recipe = RECIPE.changed(epochs=epochs)
    with pytest.raises(ConfigError, match=r"toy: the loss is not finite at step 4 of (4|80).*learning_rate"):
        train(model, lambda *batch: plain(*batch) * bad, toy, recipe, seed=0, name="toy")
    with pytest.raises(ConfigError, match=r"step 30 of (30|600):"):  # as many steps as rows in an epoch
        train(model, lambda *batch: plain(*batch) * bad, toy, recipe.changed(batch_size=1), seed=0, name="toy")


def test_layer_passes_are_counted(model: MultiExitModel, make_model: Callable[..., MultiExitModel], toy: Split) -> None:
    """Layer passes count every sample and layer, teachers included, evaluation excluded."""
    teacher, plain = make_model(labels=2, exits=()), loss_of(model)

    def loss(tokens: TokenSet, layout: Layout, labels: Tensor) -> Tensor:
        with torch.no_grad():
            list(teacher.encoder.states(tokens, layout, 3))
        return plain(tokens, layout, labels)

    def evaluate() -> DevScore:
        return full_depth_score(model, toy)

    report = train(model, loss, toy, RECIPE, seed=0, name="toy", evaluate=evaluate, teachers=[teacher])
    assert report.layer_passes == 4 * 30 * (4 + 3)
    assert not model.encoder.layers[0]._forward_hooks  # no counter is left behind


def test_the_rate_warms_up_and_decays(model: MultiExitModel, toy: Split, rates: list[list[float]]) -> None:
    """The rate rises linearly over the first fifth of the steps and falls linearly after it, up to the given rate."""
    train(model, loss_of(model), toy, RECIPE.changed(epochs=5, warmup=0.2), seed=0, name="toy")
    layers = [step[0] / RECIPE.learning_rate for step in rates]
    assert len(layers) == 20
    assert layers[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert layers[4:] == pytest.approx([(20 - step) / 16 for step in range(4, 20)])
    heads = [step[2] / RECIPE.learning_rate for step in rates]
    assert heads == pytest.approx([2 * rate for rate in layers])


def test_the_rate_stays_at_zero_beyond_its_horizon(model: MultiExitModel, toy: Split, rates: list[list[float]]) -> None:
    """With a horizon of 3 of 5 epochs the rate is 0 from epoch 4 on."""
    recipe = RECIPE.changed(epochs=5, warmup=0.25)
    train(model, loss_of(model), toy, recipe, seed=0, name="toy", horizon=12)  # 4 steps an epoch
    layers = [step[0] / RECIPE.learning_rate for step in rates]
    assert layers[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert layers[3:12] == pytest.approx([(12 - step) / 9 for step in range(3, 12)])
    assert layers[12:] == [0.0] * 8


def test_a_single_step_is_enough(model: MultiExitModel, toy: Split, rates: list[list[float]]) -> None:
    """With a single step the full rate is used."""
    train(model, loss_of(model), toy, RECIPE.changed(epochs=1, batch_size=64), seed=0, name="toy")
    assert [step[0] for step in rates] == [RECIPE.learning_rate]


def test_groups_by_rate_and_decay(make_model: Callable[..., MultiExitModel]) -> None:
    """Every trainable parameter is in one group; heads have their rate; norms and biases have no decay."""
    model = make_model(exits=(0, 1))
    model.encoder.word.weight.requires_grad_(False)
    groups = parameter_groups(model, RECIPE)
    found = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(found)
    for name, parameter in model.named_parameters():
        if name == "encoder.word.weight":
            assert id(parameter) not in found
            continue
        rate = RECIPE.learning_rate * (1 if name.startswith("encoder.") else RECIPE.head_rate)
        assert found[id(parameter)] == (rate, RECIPE.weight_decay if parameter.dim() > 1 else 0.0)


def test_gradients_are_clipped(model: MultiExitModel, toy: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    """The norm of the gradient that the optimiser gets is at most ``clip``."""
    norms = []

    class Scale(torch.optim.AdamW):
        def step(self, closure=None):  # type: ignore[no-untyped-def, override]
            gradients = [p.grad.flatten() for group in self.param_groups for p in group["params"] if p.grad is not None]
            norms.append(torch.cat(gradients).norm().item())

    monkeypatch.setattr(torch.optim, "AdamW", Scale)
    plain = loss_of(model)
    recipe = RECIPE.changed(epochs=1, clip=0.5)
    train(model, lambda *batch: 1000 * plain(*batch), toy, recipe, seed=0, name="toy")
    assert norms == pytest.approx([0.5] * 4, rel=1e-3)


def test_a_fit_says_which_torch_trained_it(model: MultiExitModel, toy: Split, tmp_path: Path) -> None:
    """In what is stored of it, also of a sum of stages; fits of older versions have none and can be read."""
    report = train(model, loss_of(model), toy, RECIPE.changed(epochs=1), seed=0, name="toy")
    first = TrainingReport(1.0, 2, 3, 4, torch="2.11.0")
    assert report.torch == (first + report).torch == total_cost(first, report).torch == torch.__version__
    save_training(tmp_path, report)
    assert read_training(tmp_path) == report
    (tmp_path / "training.json").write_text('{"seconds": 1.0, "steps": 2, "layer_passes": 3, "sample_passes": 4}')
    older = read_training(tmp_path)
    assert older is not None and older.torch == ""


def test_reports_of_two_stages_add_up() -> None:
    """Costs are summed; epoch and scores are the later stage's."""
    first, second = TrainingReport(1.0, 2, 3, 4, 1, (0.5,)), TrainingReport(10.0, 20, 30, 40, None, ())
    assert first + second == TrainingReport(11.0, 22, 33, 44, None, ())
    assert (first + TrainingReport(1.0, 1, 1, 1, 2, (0.5,), 0.0, 7, (0.1, 0.5), "float32", 3)).exit_scores == (0.1, 0.5)
    # FLOPs: a stage without a count leaves the sum unknown; a stage without passes has none to count.
    counted, nothing = TrainingReport(1.0, 2, 3, 4, flops=5.0), TrainingReport(1.0, 0, 0, 0)
    assert [(a + b).flops for a, b in ((counted, counted), (counted, nothing), (nothing, counted))] == [10.0, 5.0, 5.0]
    assert (counted + second).flops == (first + counted).flops == 0.0


def test_flops_include_forward_and_backward(model: MultiExitModel, toy: Split) -> None:
    """A backward pass costs twice the forward pass; once with frozen weights, nothing without gradients."""
    layout = Layout(toy.tokens.lengths.numpy(), 8, "cpu")
    shape = model.encoder.shape
    once = 2 * 30 * 8 * (4 * shape.width**2 + 2 * shape.width * shape.intermediate)

    def flops(upto: int) -> float:
        with LayerPasses([model]) as passes:
            list(model.encoder.states(toy.tokens, layout, upto))
        return passes.flops

    assert flops(4) == 3 * 4 * once
    model.encoder.layers.requires_grad_(False)
    assert flops(4) == 2 * 4 * once
    with torch.no_grad():
        assert flops(3) == 3 * once


def test_a_module_with_its_own_rate_has_it_in_every_step(
    model: MultiExitModel, toy: Split, rates: list[list[float]]
) -> None:
    """Its rate is constant, others rise and fall; its gradients are not clipped, and those of others are as without it."""

    class Apart(torch.nn.Module):
        own_rate = 0.5

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(2, 2))

    plain = copy.deepcopy(model)
    train(plain, loss_of(plain), toy, RECIPE.changed(epochs=2), seed=0, name="toy")
    groups = len(rates[0])
    rates.clear()
    apart, own = Apart(), loss_of(model)
    both = torch.nn.ModuleList([model, apart])
    train(
        both, lambda *batch: own(*batch) + 1e6 * apart.weight.sum(), toy, RECIPE.changed(epochs=2), seed=0, name="toy"
    )
    assert {step[-1] for step in rates} == {0.5} and len(rates[0]) == groups + 1
    assert len({step[0] for step in rates}) > 5
    torch.testing.assert_close(apart.weight.detach(), torch.full((2, 2), -0.5 * 8))
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in model.state_dict().items())


def test_early_epochs_may_be_left_out(model: MultiExitModel, toy: Split) -> None:
    """From ``first_kept`` on, epochs are scored, patience counts, and the best of these is kept, numbered from the first."""
    scores = iter([0.9, 0.5, 0.6])
    recipe = RECIPE.changed(epochs=9, patience=2)
    report = train(
        model,
        loss_of(model),
        toy,
        recipe,
        seed=0,
        name="toy",
        evaluate=lambda: DevScore(score := next(scores), (score,)),
        first_kept=4,
    )
    assert (report.best_epoch, report.dev_scores, report.exit_scores) == (4, (0.9, 0.5, 0.6), (0.9,))
    assert report.steps == 6 * 4
