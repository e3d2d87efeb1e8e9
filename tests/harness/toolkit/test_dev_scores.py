"""The area under accuracy over layers: the criterion by which early exits are chosen on dev."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from harness.toolkit.dev_scores import area_by_sample, area_over_layers


def answers(right: list[list[int]], sure: list[list[float]]) -> tuple[Tensor, Tensor]:
    """Return logits [A, N, 2] that are right where ``right`` is 1, and labels; ``sure`` is the distance of the two logits."""
    sign = 2.0 * torch.tensor(right) - 1
    margin = sign * torch.tensor(sure)
    return torch.stack([margin, torch.zeros_like(margin)], -1), torch.zeros(len(right[0]), dtype=torch.long)


def test_the_area_of_a_known_curve() -> None:
    """Two samples, two layers: the sure one leaves first. Its curve is 1/2 at layer 1, 1 at 1.5 and 1 at 2 mean layers."""
    logits, labels = answers([[1, 0], [1, 1]], [[9.0, 1.0], [9.0, 9.0]])
    assert area_over_layers(logits, labels, (0, 1)) == pytest.approx(0.5 * 0.75 + 0.5 * 1.0)
    # Layers 1 and 5 of a deeper model: the same shares of the distance.
    assert area_over_layers(logits, labels, (0, 4)) == pytest.approx(0.875)


def test_it_pays_to_be_sure_of_the_right_samples() -> None:
    """With equal accuracy per layer, the area is larger if wrong early answers are the unsure ones."""
    calibrated, labels = answers([[1, 0], [1, 1]], [[9.0, 1.0], [9.0, 9.0]])
    misled, _ = answers([[1, 0], [1, 1]], [[1.0, 9.0], [9.0, 9.0]])
    assert area_over_layers(calibrated, labels, (0, 1)) > area_over_layers(misled, labels, (0, 1))


def test_a_single_answer_is_its_accuracy() -> None:
    """A model that answers at one layer is scored by accuracy."""
    logits, labels = answers([[1, 0, 1, 1]], [[1.0] * 4])
    assert area_over_layers(logits, labels, (11,)) == 0.75
    assert area_by_sample(logits, labels, (11,)).tolist() == [1, 0, 1, 1]


@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(2, 30))
def test_the_area_lies_between_the_extremes(seed: int, places: int, count: int) -> None:
    """It is within 0..1, equals the common accuracy of layers that answer alike, and does not depend on the order of samples."""
    drawn = torch.Generator().manual_seed(seed)
    logits = torch.randn(places, count, 3, generator=drawn)
    labels = torch.randint(3, (count,), generator=drawn)
    layers = tuple(range(places))
    area = area_over_layers(logits, labels, layers)
    assert -1e-9 <= area <= 1 + 1e-9
    order = torch.randperm(count, generator=drawn)
    assert area_over_layers(logits[:, order], labels[order], layers) == pytest.approx(area)
    same = logits[:1].expand(places, -1, -1)
    assert area_over_layers(same, labels, layers) == pytest.approx(
        float((logits[0].argmax(-1) == labels).double().mean())
    )


def test_contributions_have_the_spread_of_a_bootstrap() -> None:
    """The standard error from the contributions of samples is that of areas of resampled samples."""
    drawn = torch.Generator().manual_seed(3)
    labels = torch.randint(2, (400,), generator=drawn)
    truth = torch.nn.functional.one_hot(labels, 2)
    logits = torch.stack([(1.0 + place) * truth + torch.randn(400, 2, generator=drawn) for place in range(4)])
    shares = area_by_sample(logits, labels, (0, 1, 2, 3))
    rng = np.random.default_rng(0)
    areas = []
    for _ in range(200):
        rows = torch.from_numpy(rng.integers(0, 400, 400))
        areas.append(area_over_layers(logits[:, rows], labels[rows], (0, 1, 2, 3)))
    assert shares.std() / 20 == pytest.approx(float(np.std(areas)), rel=0.15)
