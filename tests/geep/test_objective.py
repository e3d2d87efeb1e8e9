"""The shared exit loss: its value, its gradients and its cost."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.full_depth.bert import Bert
from geep.method import Geep
from geep.objective import Objective, shared_exit_loss, weights_of_paths
from harness.core.tokens import Split, Task, TokenSet
from harness.encoder.backbone import Backbone
from harness.encoder.layout import Layout
from harness.encoder.model import Encoder
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.shape import EncoderShape
from harness.toolkit.training import LayerPasses


def make(depth: int, exits: int, head: str = "fastbert") -> MultiExitModel:
    """Return a random model without dropout and with informative heads."""
    torch.manual_seed(depth * 31 + exits)
    shape = EncoderShape(layers=depth, width=8, heads=2, intermediate=12, vocab_size=40, max_positions=16, dropout=0.0)
    model = MultiExitModel(Encoder(shape), 3, range(exits), head)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.5)
    return model.eval()


@pytest.fixture
def batch(signal_task: Task) -> Split:
    """Return seven samples of several lengths."""
    return Split(signal_task.train.tokens.select(range(7)), signal_task.train.labels[:7])


def packed(tokens: TokenSet) -> Layout:
    return Layout(tokens.lengths.numpy(), None, "cpu")


def through(model: MultiExitModel, tokens: TokenSet, layers: int) -> Tensor:
    """Return h^layers, computed from the embeddings, as the released code runs every path."""
    layout = packed(tokens)
    hidden = model.encoder.embed(tokens, layout)
    for layer in model.encoder.layers[:layers]:
        hidden = layer(hidden, layout)
    return hidden


def path_terms(model: MultiExitModel, batch: Split) -> Iterator[Tensor]:
    """Return CE(C_T(F_L(h^s)), label) for s = 1 .. E and L - 1, with each path run from the embeddings."""
    layout = packed(batch.tokens)
    for s in [*range(1, len(model.exits) + 1), model.depth - 1]:
        last = model.encoder.layers[-1](through(model, batch.tokens, s), layout)
        yield F.cross_entropy(model.teacher(last, layout), batch.labels)


def distillation_terms(model: MultiExitModel, batch: Split) -> Iterator[Tensor]:
    """Return KL(p_T || C_i(h^i)) for i = 1 .. E by its formula; p_T is a constant."""
    layout = packed(batch.tokens)
    with torch.no_grad():
        p = model.teacher(through(model, batch.tokens, model.depth), layout).softmax(-1)
    for i in range(1, len(model.exits) + 1):
        log_q = model.students[str(i - 1)](through(model, batch.tokens, i), layout).log_softmax(-1)
        yield (p * (p.log() - log_q)).sum(-1).mean()


def gradients(model: MultiExitModel, loss: Tensor) -> dict[str, Tensor]:
    """Return the gradient of every parameter, zeros where there is none."""
    parameters = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for (name, parameter), gradient in zip(parameters.items(), found, strict=True)
    }


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], prefix: str = "") -> None:
    for name in found:
        if name.startswith(prefix):
            torch.testing.assert_close(
                found[name], expected[name], atol=2e-5, rtol=2e-4, msg=lambda m, n=name: f"{n}: {m}"
            )


SIZES = [(3, 1), (4, 1), (4, 2), (6, 2), (6, 4)]


@pytest.mark.parametrize("head", ["fastbert", "linear"])
@pytest.mark.parametrize(("depth", "exits"), SIZES)
def test_loss_and_gradients_equal_those_of_separate_paths(depth: int, exits: int, head: str, batch: Split) -> None:
    """Sharing the prefix changes neither the loss nor any gradient of the paths run one by one from the embeddings."""
    model = make(depth, exits, head)
    loss = shared_exit_loss(model, batch.tokens, packed(batch.tokens), batch.labels)
    apart = sum(path_terms(model, batch)) + sum(distillation_terms(model, batch))
    assert loss.item() == pytest.approx(apart.item(), rel=1e-5)
    assert_equal(gradients(model, loss), gradients(model, apart))


def test_padding_does_not_change_the_loss(batch: Split) -> None:
    """The loss of a padded batch is that of the packed one, because masks reach every layer and head."""
    model = make(5, 3)
    losses = [
        shared_exit_loss(model, batch.tokens, Layout(batch.tokens.lengths.numpy(), pad_to, "cpu"), batch.labels).item()
        for pad_to in (None, 12, 16)
    ]
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-5)


def test_last_layer_and_teacher_learn_from_every_path_only(batch: Split) -> None:
    """F_L and C_T get the sum of E + 1 non-zero cross-entropy gradients and none from distillation."""
    model = make(5, 3)
    loss = gradients(model, shared_exit_loss(model, batch.tokens, packed(batch.tokens), batch.labels))
    paths = [gradients(model, term) for term in path_terms(model, batch)]
    assert len(paths) == 4
    ours = [name for name in loss if name.startswith(("teacher.", "encoder.layers.4."))]
    for name in ours:
        torch.testing.assert_close(loss[name], sum(path[name] for path in paths), atol=2e-5, rtol=2e-4)
    for part in ("teacher.", "encoder.layers.4."):
        for path in paths:
            assert sum(path[name].abs().sum() for name in ours if name.startswith(part)) > 0


def test_distillation_reaches_the_embeddings(batch: Split) -> None:
    """h^i is not detached: the students' loss moves the embeddings and the layers below, not those above."""
    model = make(5, 2)
    loss = gradients(model, shared_exit_loss(model, batch.tokens, packed(batch.tokens), batch.labels))
    hard = gradients(model, sum(path_terms(model, batch)))
    soft = {name: loss[name] - hard[name] for name in loss}
    assert_equal(soft, gradients(model, sum(distillation_terms(model, batch))))
    for name in ("encoder.word.weight", "encoder.layers.0.qkv.weight", "encoder.layers.1.down.weight"):
        assert soft[name].abs().max() > 1e-3
    for name in ("encoder.layers.2.up.weight", "encoder.layers.3.up.weight"):
        assert soft[name].abs().max() < 1e-5 < hard[name].abs().max()


def test_students_do_not_use_gold_labels(batch: Split) -> None:
    """Other labels change no gradient of a student head, and every student head has a gradient."""
    model = make(4, 2)
    given, other = (
        gradients(model, shared_exit_loss(model, batch.tokens, packed(batch.tokens), labels))
        for labels in (batch.labels, (batch.labels + 1) % 3)
    )
    assert_equal(given, other, "students.")
    assert all(given[name].abs().max() > 0 for name in given if name.startswith("students.") and "weight" in name)
    assert not torch.allclose(given["teacher.dense.weight"], other["teacher.dense.weight"])


def found_and_expected(objective: Objective, batch: Split, model: MultiExitModel, expected: Tensor) -> None:
    """Compare a variant's loss and gradients with those of a formula."""
    loss = shared_exit_loss(model, batch.tokens, packed(batch.tokens), batch.labels, objective)
    torch.testing.assert_close(loss, expected)
    assert_equal(gradients(model, loss), gradients(model, expected))


def test_students_with_labels_learn_them_too(batch: Split) -> None:
    """The cross-entropy of every student is added to the published loss."""
    model = make(5, 3)
    layout = packed(batch.tokens)
    labels = sum(
        F.cross_entropy(model.students[str(i)](through(model, batch.tokens, i + 1), layout), batch.labels)
        for i in range(3)
    )
    expected = sum(path_terms(model, batch)) + sum(distillation_terms(model, batch)) + labels
    found_and_expected(Objective(student_labels=True), batch, model, expected)


def test_rising_weights_follow_the_layers_of_a_path(batch: Split) -> None:
    """With four layers and students after layers 1 and 2, the paths run 2, 3 and 4 layers; the weights' sum stays 3."""
    model = make(4, 2)
    assert weights_of_paths("rising", [0, 1, 2], 4) == pytest.approx([6 / 9, 9 / 9, 12 / 9])
    terms = zip((6 / 9, 9 / 9, 12 / 9), path_terms(model, batch), strict=True)
    expected = sum(weight * term for weight, term in terms) + sum(distillation_terms(model, batch))
    found_and_expected(Objective(path_weights="rising"), batch, model, expected)


def test_detached_students_do_not_move_the_encoder(batch: Split) -> None:
    """Without the students' gradient the encoder learns from the paths alone, and the students learn as before."""
    model = make(5, 2)
    layout = packed(batch.tokens)
    published = gradients(model, shared_exit_loss(model, batch.tokens, layout, batch.labels))
    variant = Objective(student_gradient=False)
    found = gradients(model, shared_exit_loss(model, batch.tokens, layout, batch.labels, variant))
    assert_equal(found, gradients(model, sum(path_terms(model, batch))), "encoder.")
    assert_equal(found, published, "students.")


def test_equilibrium_changes_gradients_of_the_encoder_only(batch: Split) -> None:
    """Balanced gradients keep the value of the loss and the gradients of all heads."""
    model = make(5, 2)
    layout = packed(batch.tokens)
    losses = [
        shared_exit_loss(model, batch.tokens, layout, batch.labels, Objective(equilibrium=on)) for on in (False, True)
    ]
    torch.testing.assert_close(*losses)
    plain, balanced = (gradients(model, loss) for loss in losses)
    for heads in ("students.", "teacher."):
        assert_equal(plain, balanced, heads)
    assert not torch.allclose(plain["encoder.layers.0.up.weight"], balanced["encoder.layers.0.up.weight"], rtol=0.1)


@pytest.mark.parametrize(("depth", "exits"), SIZES)
def test_layer_passes_of_a_step(depth: int, exits: int, batch: Split) -> None:
    """One step runs every sample through exactly L + E layers, fewer than twice those of fine-tuning."""
    model = make(depth, exits)
    with LayerPasses([model]) as passes:
        shared_exit_loss(model, batch.tokens, packed(batch.tokens), batch.labels)
    assert passes.count == (depth + exits) * len(batch) < 2 * depth * len(batch)


def test_measured_cost_of_training(signal_task: Task, small_backbone: Backbone) -> None:
    """Counted layer by layer, a training costs (L + E) / L of plain fine-tuning."""
    config = {"epochs": 1, "batch_size": 20}
    bert = Bert().fit(signal_task, small_backbone, {}, config=config, seed=0).training
    one_step = Geep().fit(signal_task, small_backbone, {}, config=config, seed=0).training
    fewer = Geep().fit(signal_task, small_backbone, {}, config={**config, "exits": 1}, seed=0).training
    assert bert is not None
    assert one_step is not None
    assert fewer is not None
    assert bert.layer_passes == 5 * 96
    assert one_step.layer_passes / bert.layer_passes == (5 + 3) / 5 <= 2.0
    assert fewer.layer_passes / bert.layer_passes == (5 + 1) / 5


def test_the_loss_is_a_mean_over_samples(batch: Split) -> None:
    """A batch with two copies of each sample has the same loss."""
    model = make(4, 2)
    once = shared_exit_loss(model, batch.tokens, packed(batch.tokens), batch.labels)
    twice = np.tile(np.arange(len(batch)), 2)
    tokens = batch.tokens.select(twice)
    again = shared_exit_loss(model, tokens, packed(tokens), batch.labels[torch.from_numpy(twice)])
    assert again.item() == pytest.approx(once.item(), rel=1e-5)
