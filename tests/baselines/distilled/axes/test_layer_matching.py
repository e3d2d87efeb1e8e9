"""Which layers teach which."""

from __future__ import annotations

import pytest

from baselines.distilled.axes.layer_matching import Matching, matched_layers
from harness.core.errors import ConfigError
from harness.toolkit.distillation import uniform_map


@pytest.mark.parametrize(
    ("matching", "teacher", "student", "layers"),
    [
        ("uniform", 12, 4, [3, 6, 9, 12]),
        ("uniform", 6, 4, [2, 3, 5, 6]),  # 1.5, 3, 4.5, 6: halves rounded up
        ("uniform", 5, 5, [1, 2, 3, 4, 5]),
        ("top", 12, 4, [9, 10, 11, 12]),
        ("first", 12, 4, [1, 2, 3, 4]),
        ("random", 3, 3, [1, 2, 3]),
    ],
)
def test_every_layer_of_the_student_has_a_teacher(
    matching: Matching, teacher: int, student: int, layers: list[int]
) -> None:
    """Layers of the student are matched in order, from 1."""
    assert matched_layers(matching, teacher, student) == tuple(enumerate(layers, 1))


def test_the_last_layers_alone() -> None:
    """``last`` is one pair, whatever the depths are."""
    assert matched_layers("last", 12, 4) == ((4, 12),)


def test_uniform_is_tinyberts_map_where_that_exists() -> None:
    """m N / M for every divisor M of N."""
    for teacher in (6, 12):
        for student in (m for m in range(1, teacher + 1) if teacher % m == 0):
            assert [n for _, n in matched_layers("uniform", teacher, student)] == uniform_map(teacher, student)[1:]


def test_random_layers_follow_from_the_seed() -> None:
    """They rise, a seed gives the same ones, and seeds differ."""
    drawn = [matched_layers("random", 12, 4, seed) for seed in (0, 0, 1, 2, 3)]
    assert drawn[0] == drawn[1] and len(set(drawn)) > 2
    for pairs in drawn:
        layers = [n for _, n in pairs]
        assert layers == sorted(set(layers)) and [m for m, _ in pairs] == [1, 2, 3, 4]
        assert layers[0] >= 1 and layers[-1] <= 12


@pytest.mark.parametrize("matching", ["uniform", "last", "top", "first", "random"])
def test_more_layers_than_the_teacher_are_refused(matching: Matching) -> None:
    """One line says how many the student may have."""
    with pytest.raises(ConfigError, match=r"7 student layers cannot be matched with 6 .* choose 1 to 6 layers"):
        matched_layers(matching, 6, 7)
