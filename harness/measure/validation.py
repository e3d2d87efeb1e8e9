"""Validation of what a method returns, before anything is computed from it."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from harness.contracts import Fitted, OperatingPoint, Predictions
from harness.core.errors import MethodError
from harness.core.names import check_label
from harness.core.work import BEFORE, ModelCost

_LOGITS = "return float32 [N, C] on the host, in input order"
FITTED_PARTS = ("operating_points", "predict", "save", "cost")
_EXITS = "return int16 [N] on the host, layers counted from 0, or -1 for before layer 1"


def check_answers(predictions: Predictions, samples: int) -> None:
    """Validate types, shapes and values of predictions.

    Raises:
        MethodError: a type, shape or dtype differs from :class:`~harness.contracts.Predictions`, or logits are not finite.
    """
    if not isinstance(predictions, Predictions):
        raise MethodError(
            f"predict returned {type(predictions).__name__}: return Predictions(logits, exit_layer, work)"
        )
    logits, exits, predicted = predictions.logits, predictions.exit_layer, predictions.predicted_exit
    shape = np.shape(logits)
    if len(shape) != 2 or shape[0] != samples:
        raise MethodError(f"predict returned logits {shape} for {samples} samples: {_LOGITS}")
    if not isinstance(logits, np.ndarray) or logits.dtype != np.float32:
        raise MethodError(f"predict returned logits as {_kind(logits)}: {_LOGITS}")
    for name, layers in (("exit_layer", exits), *([] if predicted is None else [("predicted_exit", predicted)])):
        if np.shape(layers) != (samples,):
            raise MethodError(f"predict returned {name} {np.shape(layers)} for {samples} samples: {_EXITS}")
        if not isinstance(layers, np.ndarray) or layers.dtype != np.int16:
            raise MethodError(f"predict returned {name} as {_kind(layers)}: {_EXITS}")
    wrong = int((~np.isfinite(logits).all(1)).sum())
    if wrong:
        raise MethodError(
            f"predict returned logits that are not finite for {wrong} of {samples} samples: "
            "check for overflow in the number type of the run, and for a division by zero"
        )


def check_work(predictions: Predictions, cost: ModelCost) -> None:
    """Validate exits and work, from which FLOPs and mean layers are computed.

    Raises:
        MethodError: a layer is outside the model, no layer is counted, or a kind of block has no cost.
    """
    exits, work = predictions.exit_layer, predictions.work
    unknown = sorted({block.split(".")[0] for block in work.blocks if not cost.knows(block)})
    if unknown:
        raise MethodError(
            f"predict counted blocks of kind {', '.join(unknown)}, but cost.blocks has only {', '.join(cost.blocks)}: "
            "add a cost for every kind"
        )
    if not cost.depth:
        _check_without_layers(predictions)
        return
    for name, layers in (("exit_layer", exits), ("predicted_exit", predictions.predicted_exit)):
        if layers is not None and len(layers) and not BEFORE <= layers.min() <= layers.max() < cost.depth:
            raise MethodError(
                f"predict returned {name} from {layers.min()} to {layers.max()} for a model of {cost.depth} layers: "
                f"return indices in 0..{cost.depth - 1}, or {BEFORE} for before layer 1, and the number of layers as cost.depth"
            )
    ran = int((exits != BEFORE).sum())
    if ran and not work.rows("layer"):
        raise MethodError('predict counted no layer: add each executed one, as in work.add("layer.0", layout.tally())')
    if len(exits) and not ran and work.blocks:
        raise MethodError(
            f"predict says that all {len(exits)} samples were answered before layer 1, but counted {', '.join(work.blocks)}: "
            "give samples that run the index of their last layer"
        )


def _check_without_layers(predictions: Predictions) -> None:
    """Validate exits and work of a model without Transformer layers (``cost.depth`` is 0)."""
    exits, work = predictions.exit_layer, predictions.work
    if (exits != BEFORE).any() or predictions.predicted_exit is not None:
        raise MethodError(
            f"predict returned layers for a model without layers: return exit_layer = {BEFORE} for every sample and no "
            "predicted_exit, or the number of layers as cost.depth"
        )
    if work.rows("layer"):
        raise MethodError(
            'predict counted blocks of kind "layer" for a model without layers: give its blocks other names, or return the '
            "number of layers as cost.depth"
        )
    if len(exits) and not work.blocks:
        raise MethodError(
            'predict counted no block: add each executed one, as in work.add("bag.0", Tally(samples, tokens, tokens))'
        )


def _kind(values: object) -> str:
    """Return the class of a value, and its dtype if it has one."""
    return " of ".join(str(part) for part in (type(values).__name__, getattr(values, "dtype", None)) if part)


def checked_fit(fitted: Fitted, name: str) -> Fitted:
    """Return ``fitted`` if it has all parts of the contract.

    Raises:
        MethodError: it lacks one.
    """
    missing = [part for part in FITTED_PARTS if not hasattr(fitted, part)]
    if missing:
        raise MethodError(
            f"method '{name}' gives a fitted {type(fitted).__name__} that lacks {', '.join(missing)}: see harness/contracts.py"
        )
    return fitted


def checked_points(points: Sequence[OperatingPoint]) -> list[OperatingPoint]:
    """Return ``points`` if cells can be made of them.

    Raises:
        MethodError: there are none, they have another type, share a name, or have settings that JSON cannot hold.
    """
    if not points or not all(isinstance(point, OperatingPoint) for point in points):
        raise MethodError(f"operating_points returned {points!r}: return at least one OperatingPoint(name, params)")
    names = [point.name for point in points]
    if not all(isinstance(name, str) and name for name in names):
        raise MethodError(f'operating points are named {names}: give each a name, e.g. "speed=0.5"')
    for name in names:
        try:
            check_label(name)
        except ValueError as error:
            raise MethodError(f"operating point {name!a:.60}: {error}") from error
    if len(set(names)) < len(names):
        raise MethodError(f"operating points share a name: {names}: name each after its settings")
    for point in points:
        try:
            json.dumps(dict(point.params), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise MethodError(f"operating point '{point.name}': params {error}: use plain numbers and text") from error
    return list(points)
