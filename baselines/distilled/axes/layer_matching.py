"""Which layer of the teacher teaches which layer of the student."""

from __future__ import annotations

from typing import Literal

import torch

from harness.core.errors import ConfigError

Matching = Literal["uniform", "last", "top", "first", "random"]
Pairs = tuple[tuple[int, int], ...]  # (m, n): h^n of the teacher teaches h^m of the student, 1 .. M and 1 .. N


def matched_layers(matching: Matching, teacher: int, student: int, seed: int = 0) -> Pairs:
    """Return the pairs of layers, in order of depth.

    ``uniform``: m and m N / M, halves rounded up; TinyBERT's map where M divides N. ``last``: the last ones alone. ``top``,
    ``first``: all layers of the student and as many of the teacher's last or first ones. ``random``: as many of the teacher's,
    drawn once, in order.

    Args:
        teacher: its layers, N.
        student: its layers, M.
        seed: of the draw.

    Raises:
        ConfigError: the student has more layers, or none.
    """
    if not 1 <= student <= teacher:
        raise ConfigError(
            f'matching = "{matching}": {student} student layers cannot be matched with {teacher} of the teacher: choose 1 to '
            f"{teacher} layers"
        )
    own = range(1, student + 1)
    if matching == "last":
        return ((student, teacher),)
    if matching == "uniform":
        return tuple((m, (2 * m * teacher + student) // (2 * student)) for m in own)
    if matching == "random":
        drawn = torch.randperm(teacher, generator=torch.Generator().manual_seed(seed))[:student]
        return tuple(zip(own, (drawn.sort().values + 1).tolist(), strict=True))
    above = teacher - student if matching == "top" else 0
    return tuple((m, m + above) for m in own)
