"""How a student starts, from its teacher or from a backbone."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from harness.core.errors import ConfigError
from harness.encoder.model import Encoder
from harness.encoder.shape import EncoderShape
from harness.toolkit.student_start import leading_directions

# A whole number, or a share of the teacher's width.
Width = Annotated[int, Field(gt=0)] | Annotated[float, Field(gt=0, le=1)]


def width_of(method: str, width: float, teacher: EncoderShape, heads: int) -> int:
    """Return the width of a student that is given as a number or, if it is a float, as a share of the teacher's.

    Args:
        heads: of the student; a share is rounded to a multiple of them.

    Raises:
        ConfigError: its heads do not divide it, or it is above the teacher's.
    """
    if isinstance(width, float):
        width = heads * max(1, int(width * teacher.width / heads + 0.5))
    if width > teacher.width or width % heads:
        whose = "the teacher's heads" if heads == teacher.heads else "the student's heads"
        raise ConfigError(
            f"{method}: width {width} does not fit: choose a multiple of {heads} ({whose}) "
            f"of at most {teacher.width}, or a share of that from 0.0 to 1.0"
        )
    return width


def check_unpruned(method: str, teacher: EncoderShape) -> None:
    """Check that a teacher has heads and layers of one size, so that a student's can be like them, and compared with them.

    Raises:
        ConfigError: it is pruned.
    """
    if teacher.sizes:
        raise ConfigError(
            f"{method}: its teacher is pruned, with other heads in each layer, and attention is compared head by head: name "
            "an unpruned teacher"
        )


@torch.no_grad()
def projected_encoder(teacher: Encoder, shape: EncoderShape) -> tuple[Encoder, Tensor]:
    """Make a student whose embedding tables are the teacher's, projected on their leading right singular directions.

    Returns:
        The student, and the orthonormal directions [teacher width, student width] (the identity at equal width).
    """
    student = Encoder(shape).to(teacher.device)
    basis = leading_directions(teacher, shape.width)
    if shape.embedding:  # embeddings of their own width stay, and the matrix behind them is projected
        for part in (*teacher.tables(), "norm"):
            getattr(student, part).load_state_dict(getattr(teacher, part).state_dict())
        student.project.weight.copy_(basis.T @ teacher.project.weight)
        student.project.bias.copy_(basis.T @ teacher.project.bias)
        return student, basis
    for part, table in teacher.tables().items():
        getattr(student, part).weight.copy_(table.weight @ basis)
    return student, basis
