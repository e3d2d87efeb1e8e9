"""When a sample is sure enough to leave."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.execution.entropy_exit import entropy_rule, first_exit, normalised_entropy

LOGITS = st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=9)


@pytest.mark.parametrize("classes", [2, 3, 14])
def test_ends_of_the_scale(classes: int) -> None:
    """Uniform answers have entropy 1 for any number of classes, certain ones 0."""
    assert normalised_entropy(torch.full((1, classes), 3.7)).item() == pytest.approx(1.0, abs=1e-6)
    assert normalised_entropy(200 * torch.eye(classes)).abs().max().item() < 1e-6


def test_two_classes_by_hand() -> None:
    """Probabilities 1/4 and 3/4 have 0.811 bits."""
    logits = torch.tensor([[1.0, 3.0]]).log()
    assert normalised_entropy(logits).item() == pytest.approx(0.8112781, abs=1e-6)


@settings(max_examples=80, deadline=None)
@given(LOGITS, st.floats(-5, 5, width=32))
def test_entropy_stays_in_its_scale_and_ignores_shifts(logits: list[float], shift: float) -> None:
    """Always in 0..1, and the same when all logits move together."""
    row = torch.tensor(logits, dtype=torch.float64)
    entropy = normalised_entropy(row).item()
    assert -1e-6 <= entropy <= 1 + 1e-6
    assert normalised_entropy(row + shift).item() == pytest.approx(entropy, abs=1e-4)


def test_first_sure_answer_is_taken() -> None:
    """Three samples: sure at once, sure at the second answer (although not at the third), never sure."""
    sure, unsure = [9.0, 0.0], [0.1, 0.0]
    logits = torch.tensor([[sure, unsure, unsure], [unsure, sure, unsure], [unsure, unsure, unsure]])
    assert first_exit(logits, 0.5).tolist() == [0, 1, 2]
    assert first_exit(logits, 1.1).tolist() == [0, 0, 0]
    assert first_exit(logits, -0.1).tolist() == [2, 2, 2]


def test_rule_leaves_at_most_at_the_threshold() -> None:
    """Speed 1 lets everybody leave, the undecided too; speed 0 lets nobody leave who is in any doubt."""
    logits = torch.tensor([[0.0, 0.0], [4.0, 0.0]])
    assert entropy_rule(1.0 + 1e-6)(logits).tolist() == [True, True]
    assert entropy_rule(0.5)(logits).tolist() == [False, True]
    assert entropy_rule(0.0)(logits).tolist() == [False, False]
