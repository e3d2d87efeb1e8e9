"""CoFi: L0 masks, their constraint, layer matching, the small model, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.pruned.cofi import Cofi, layer_loss, taught_layers
from baselines.pruned.l0_masks import L0Masks, keep_probability, sampled, settled
from harness import registry
from harness.contracts import OperatingPoint
from harness.core.errors import ConfigError
from harness.core.tokens import Split, Task
from harness.encoder.backbone import Backbone
from harness.encoder.model import Encoder
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.shape import EncoderShape
from harness.toolkit.fitted import FullDepth
from harness.toolkit.training import Recipe, parameter_groups

Prune = Callable[..., FullDepth]
FULL = OperatingPoint("full")
SHAPE = EncoderShape(layers=3, width=16, heads=4, intermediate=20, vocab_size=40, max_positions=16)


def random_masks(seed: int) -> L0Masks:
    torch.manual_seed(seed)
    masks = L0Masks(SHAPE, 0.1)
    for logits in masks.logits.values():
        logits.data.normal_(1.0, 2.0)
    return masks


def test_the_probability_is_that_of_samples() -> None:
    """A sampled mask is above 0 as often as its probability says, and its gradient reaches the logit."""
    logits = torch.tensor([-2.0, 0.0, 2.0], requires_grad=True)
    torch.manual_seed(0)
    draws = sampled(logits.expand(4000, 3))
    torch.testing.assert_close((draws > 0).float().mean(0), keep_probability(logits.detach()), atol=0.03, rtol=0)
    assert bool(((draws >= 0) & (draws <= 1)).all())
    (gradient,) = torch.autograd.grad(draws.sum(), logits)
    assert (gradient > 0).all()


def test_final_masks_are_the_expected_number() -> None:
    """Of each group, as many units are left as expected, those with the largest logits; they stay soft."""
    logits = torch.tensor([[4.0, -4.0, 4.0, -4.0], [4.0, 3.0, 4.5, 4.0]])
    found = settled(logits)
    assert (found != 0).tolist() == [[True, False, True, False], [True] * 4]
    torch.testing.assert_close(found[0, 0], torch.sigmoid(torch.tensor(4.0 * 1.5 * 0.8)))


@given(seed=st.integers(0, 999), target=st.floats(0.02, 1.0))
@settings(max_examples=8)
def test_final_masks_meet_the_density(seed: int, target: float) -> None:
    """Whatever the logits, at most the target is left, and nearly all of it; the expected density counts the same weights."""
    masks = random_masks(seed)
    final = masks.final(target)
    assert final.hidden is not None
    sizes = [layer.size() for layer in final.layers]
    left = sum(4 * size.attention + 2 * size.intermediate for size in sizes) * int((final.hidden != 0).sum())
    density = left / (3 * 16 * (4 * 16 + 2 * 20))
    assert density <= target + 1e-6
    assert density >= target - 0.25 or density == 0
    for logits in masks.logits.values():
        logits.data.fill_(4.6)
    assert masks.expected_density().item() > 0.95


def test_the_constraint_pulls_the_density_to_its_target() -> None:
    """Minimised in the logits and maximised in the multipliers, the constraint alone brings the density to the target."""
    masks = L0Masks(SHAPE, 0.1)
    optimizer = torch.optim.AdamW(parameter_groups(masks, Recipe()), lr=1.0)
    for _ in range(300):
        masks.limit()
        optimizer.zero_grad()
        masks.constraint(0.3).backward()
        optimizer.step()
    assert masks.expected_density().item() == pytest.approx(0.3, abs=0.08)
    assert float(masks.multipliers[1]) > 0


def test_layers_teach_the_nearest_free_layer_from_the_top() -> None:
    """Each taught layer takes the nearest student layer below the one taken before, and skips those without attention."""
    distances = torch.tensor([[1.0, 2.0, 3.0, 0.0], [9.0, 5.0, 4.0, 7.0]])
    assert float(layer_loss(distances, [True] * 4)) == 4 + 1
    assert float(layer_loss(distances, [True, True, False, True])) == 5 + 1
    assert float(layer_loss(distances, [True, False, False, False])) == 9
    assert float(layer_loss(distances, [False] * 4)) == 0
    assert [taught_layers(depth) for depth in (12, 6, 2)] == [[3, 6, 9, 12], [2, 3, 5, 6], [1, 2]]


COARSE: dict[str, Any] = {"prune_epochs": 4, "epochs": 3}


def test_it_is_registered_and_prunes(
    prune: Prune, trained_bert: FullDepth, signal_task: Task, small_backbone: Backbone, unseen: Split, tmp_path: Path
) -> None:
    """The small model is narrower, costs less than its teacher, beats guessing by far, and loads as it was stored."""
    assert isinstance(registry.get("cofi"), Cofi)
    fitted = prune(Cofi, **COARSE)
    shape = fitted.model.encoder.shape
    assert shape.width <= shape.unpruned_width == 16
    weights = sum(shape.width * (4 * size.attention + 2 * size.intermediate) for size in shape.sizes)
    assert 0.25 < weights / (5 * 16 * (4 * 16 + 2 * 24)) <= 0.4
    dev = signal_task.dev
    small, whole = (one.predict(dev.tokens, at=FULL) for one in (fitted, trained_bert))
    assert fitted.cost.flops(small.work, "full") < 0.6 * trained_bert.cost.flops(whole.work, "full")
    assert (small.logits.argmax(1) == dev.labels.numpy()).mean() > 0.5
    report, before = fitted.training, trained_bert.training
    assert report is not None and before is not None and len(report.dev_scores) == 3
    # Train has 96 rows; the teacher's states are computed once.
    assert report.layer_passes == before.layer_passes + 96 * 5 * (1 + 4 + 3)
    fitted.save(tmp_path)
    loaded = Cofi().load(tmp_path, signal_task, small_backbone, {})
    answers = [one.predict(unseen.tokens, at=FULL).logits for one in (fitted, loaded)]
    np.testing.assert_array_equal(*answers)
    again = prune(Cofi, **COARSE)
    ours = fitted.model.state_dict()
    assert all(torch.equal(value, ours[key]) for key, value in again.model.state_dict().items())


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"density": 0}, "density"),
        ({"density": 1.5}, "density"),
        ({"prune_until": 1.5}, "prune_until"),
        ({"prune_from": 0.9}, "is not before prune_until"),
        ({"alpha_soft": 0, "alpha_layers": 0}, "are all 0"),
        ({"start": "nowhere"}, "start"),
    ],
)
def test_wrong_settings_are_refused(config: dict[str, Any], told: str, prune: Prune) -> None:
    """A density of 0 or above 1, a schedule longer than its stage and others are refused in one line."""
    with pytest.raises(ConfigError, match=told) as caught:
        prune(Cofi, **config)
    assert "\n" not in str(caught.value)


def test_narrow_embeddings_are_refused(prune: Prune, small_backbone: Backbone) -> None:
    """Where a matrix projects embeddings, states cannot be narrowed with them; GRAIN can prune such a model."""
    teacher = FullDepth(MultiExitModel(Encoder(replace(small_backbone.shape, embedding=8)), 3, (), "linear").eval())
    with pytest.raises(ConfigError, match="have widths of their own"):
        prune(Cofi, teacher)
