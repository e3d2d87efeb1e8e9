"""Whether what ``predict`` returned is what the contract says, before anything is computed from it."""

from __future__ import annotations

import numpy as np

from harness.contracts import Predictions
from harness.core.errors import MethodError
from harness.core.work import ModelCost

_LOGITS = "return float32 [N, C] on the host, in input order"
_EXITS = "return int16 [N] on the host, indices of layers from 0"


def check_answers(predictions: Predictions, samples: int) -> None:
    """Complain about answers that are not one per sample.

    Raises:
        MethodError: another type, shape or dtype than :class:`~harness.contracts.Predictions` says, or logits that are not
            finite.
    """
    if not isinstance(predictions, Predictions):
        raise MethodError(
            f"predict returned {type(predictions).__name__}: return Predictions(logits, exit_layer, work)"
        )
    logits, exits, said = predictions.logits, predictions.exit_layer, predictions.predicted_exit
    shape = np.shape(logits)
    if len(shape) != 2 or shape[0] != samples:
        raise MethodError(f"predict returned logits {shape} for {samples} samples: {_LOGITS}")
    if not isinstance(logits, np.ndarray) or logits.dtype != np.float32:
        raise MethodError(f"predict returned logits as {_kind(logits)}: {_LOGITS}")
    for name, layers in (("exit_layer", exits), *([] if said is None else [("predicted_exit", said)])):
        if np.shape(layers) != (samples,):
            raise MethodError(f"predict returned {name} {np.shape(layers)} for {samples} samples: {_EXITS}")
        if not isinstance(layers, np.ndarray) or layers.dtype != np.int16:
            raise MethodError(f"predict returned {name} as {_kind(layers)}: {_EXITS}")
    wrong = int((~np.isfinite(logits).all(1)).sum())
    if wrong:
        raise MethodError(
            f"predict returned logits that are not finite for {wrong} of {samples} samples: "
            "look for overflow in the run's dtype, or for a division by zero"
        )


def check_work(predictions: Predictions, cost: ModelCost) -> None:
    """Complain about exits and work that FLOPs and mean layers cannot come from.

    Raises:
        MethodError: a layer outside the model, no layer counted, or a kind of block that has no cost.
    """
    exits, work = predictions.exit_layer, predictions.work
    for name, layers in (("exit_layer", exits), ("predicted_exit", predictions.predicted_exit)):
        if layers is not None and len(layers) and not 0 <= layers.min() <= layers.max() < cost.depth:
            raise MethodError(
                f"predict returned {name} from {layers.min()} to {layers.max()} for a model of {cost.depth} layers: "
                f"give indices in 0..{cost.depth - 1}, and cost.depth the number of layers"
            )
    unknown = sorted({block.split(".")[0] for block in work.blocks} - set(cost.blocks))
    if unknown:
        raise MethodError(
            f"predict counted blocks of kind {', '.join(unknown)}, and cost.blocks knows {', '.join(cost.blocks)}: "
            "give every kind its cost"
        )
    if len(exits) and not work.rows("layer"):
        raise MethodError(
            'predict counted no layer: add every layer that runs to work, as in work.add("layer.0", layout.tally())'
        )


def _kind(values: object) -> str:
    """Class, and dtype where there is one."""
    return " of ".join(str(part) for part in (type(values).__name__, getattr(values, "dtype", None)) if part)
