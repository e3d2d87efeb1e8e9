"""How close the answers of an engine are to those of the same fit without it: in float32, block by block in torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from harness.contracts import Fitted, OperatingPoint, Predictions
from harness.core.tokens import TokenSet
from harness.measure.passes import Contender, timed_pass


@dataclass(frozen=True)
class Likeness:
    """For the first three see :class:`harness.results.schema.Checks`.

    Attributes:
        seconds: of the pass without the engine.
    """

    agree: float
    same_exits: float
    difference: float | None
    seconds: float


def likeness(found: Predictions, fit: Fitted, point: OperatingPoint, tokens: TokenSet) -> Likeness:
    """Compare predictions with those of ``fit`` in float32.

    Args:
        found: on the engine, in the order of ``tokens``.
        fit: the fit that the engine runs.
        point: where it runs, with the execution of the engine.
        tokens: N samples.
    """
    execution = replace(point.execution, dtype="float32", compute="eager")
    done = timed_pass(Contender(fit, replace(point, execution=execution)), tokens)
    plain = done.predictions
    agree = float((found.logits.argmax(1) == plain.logits.argmax(1)).mean())
    ours, theirs = (torch.from_numpy(one.logits).softmax(-1).numpy() for one in (found, plain))
    same = found.exit_layer == plain.exit_layer
    difference = float(np.abs(ours[same] - theirs[same]).max()) if same.any() else None
    return Likeness(agree, float(same.mean()), difference, done.seconds + done.foreseeing)
