"""Timed passes that alternate with passes of a reference, with the samples in a new order each round."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch

from harness.contracts import Fitted, Foresees, HasCompute, OperatingPoint, Predictions
from harness.core import clock
from harness.core.tokens import TokenSet
from harness.measure.resources import host_peak, reset_host_peak
from harness.measure.speedup_factors import Side, speedup_factors
from harness.measure.validation import check_answers, check_work
from harness.results.schema import Speed, SpeedupFactors

_SHARES = (0.1, 0.5, 0.9)  # of the quantiles that are stored


@dataclass(frozen=True)
class Contender:
    """A fitted method at one operating point."""

    fitted: Fitted
    point: OperatingPoint


@dataclass(frozen=True)
class Measured:
    """The measurements of one cell.

    Attributes:
        predictions: of the first round, in file order.
        rounds_agree: share of samples with the same label in all rounds.
        foresees: the method looked exits up outside the timed region.
        peak_memory_bytes: on CUDA, the peak of the allocator over the rounds.
        predicting: seconds inside methods (``predict`` and ``foresee``), warm-up and reference included.
        host_peak_bytes: peak memory of the process over the rounds; ``None`` if unknown.
        speedup_factors: of the round with the middle speed-up; ``None`` without a reference.
    """

    predictions: Predictions
    speed: Speed
    rounds_agree: float
    foresees: bool
    peak_memory_bytes: int | None
    predicting: float
    speedup_factors: SpeedupFactors | None = None
    host_peak_bytes: int | None = None


def precision(device: torch.device, dtype: str) -> AbstractContextManager[object]:
    """Return the context in which every method predicts: autocast for ``"bfloat16"``, none for ``"float32"``.

    It is for methods with blocks of their own. Models of the harness convert their weights and switch it off.
    """
    return torch.autocast(device.type, torch.bfloat16) if dtype == "bfloat16" else nullcontext()


@dataclass(frozen=True)
class TimedPass:
    """One pass.

    Attributes:
        seconds: from ids on the device to logits on the host.
        foreseeing: seconds of a bound's ``foresee``, which are not part of ``seconds``.
    """

    seconds: float
    foreseeing: float
    predictions: Predictions


def timed_pass(contender: Contender, tokens: TokenSet) -> TimedPass:
    """Run and time ``predict`` once.

    Raises:
        MethodError: the predictions violate the contract.
    """
    point, fitted = contender.point, contender.fitted
    foreseeing = 0.0
    with torch.inference_mode(), precision(tokens.device, point.execution.dtype):
        if isinstance(fitted, Foresees):
            start = clock.now()
            point = replace(point, foresight=fitted.foresee(tokens, at=point))
            clock.synchronise(tokens.device)
            foreseeing = clock.now() - start
        clock.synchronise(tokens.device)
        start = clock.now()
        predictions = fitted.predict(tokens, at=point)
        clock.synchronise(tokens.device)
        seconds = clock.now() - start
    check_answers(predictions, len(tokens))
    return TimedPass(seconds, foreseeing, predictions)


def measure(
    contender: Contender,
    tokens: TokenSet,
    *,
    rounds: int,
    seed: int,
    reference: Contender | None = None,
    reference_name: str | None = None,
) -> Measured:
    """Warm up, then run ``rounds`` timed passes, each next to a pass of the reference (A B, B A, A B, ...).

    The first round runs the samples in file order, the others in random orders. Predictions must not depend on the order.

    Args:
        tokens: N test samples on the device.
        rounds: timed passes, at least 1.
        seed: of the orders.
        reference: method that speed-ups are relative to; ``None`` for no speed-ups.

    Raises:
        MethodError: the predictions violate the contract.
    """
    rng = np.random.default_rng(seed)
    # Compiled code and graphs are made when a shape first occurs, so that the warm-up needs all shapes.
    own_compute = contender.fitted.compute if isinstance(contender.fitted, HasCompute) else None
    compute = own_compute or contender.point.execution.compute
    batches = 1 if tokens.device.type == "cpu" else 4
    some = len(tokens) if compute != "eager" else batches * contender.point.execution.batch_size
    warm = tokens.select(np.arange(min(len(tokens), some)))
    warm_up = timed_pass(contender, warm)
    check_work(warm_up.predictions, contender.fitted.cost)
    predicting = warm_up.seconds + warm_up.foreseeing
    if reference is not None:
        predicting += timed_pass(reference, warm).seconds
    cuda = tokens.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(tokens.device)
    host_peak_known = reset_host_peak()
    own: list[float] = []
    theirs_all: list[float] = []
    pairs: list[tuple[Side, Side]] = []
    labels: list[np.ndarray] = []
    phases: list[dict[str, float]] = []
    first: Predictions | None = None
    for number in range(rounds):
        order = np.arange(len(tokens)) if number == 0 else rng.permutation(len(tokens))
        shuffled = tokens if number == 0 else tokens.select(order)
        other = timed_pass(reference, shuffled) if reference is not None and number % 2 == 0 else None
        done = timed_pass(contender, shuffled)
        seconds, predictions = done.seconds, done.predictions
        check_work(predictions, contender.fitted.cost)
        if reference is not None and number % 2 == 1:
            other = timed_pass(reference, shuffled)
        own.append(seconds)
        predicting += seconds + done.foreseeing + (other.seconds if other else 0.0)
        phases.append({name: part / seconds for name, part in predictions.phases.items()})
        if reference is not None and other is not None:
            theirs_all.append(other.seconds)
            pairs.append((_side(contender, done), _side(reference, other)))
        first = first or predictions
        label = np.empty(len(tokens), dtype=np.int64)
        label[order] = predictions.logits.argmax(1)
        labels.append(label)
    assert first is not None
    p10, p50, p90 = np.quantile(own, _SHARES).tolist()
    ratios = [theirs / seconds for theirs, seconds in zip(theirs_all, own, strict=False)]  # empty without a reference
    low, ratio, high = np.quantile(ratios, _SHARES).tolist() if ratios else (None, None, None)
    speed = Speed(
        samples_per_s=len(tokens) / p50,
        seconds=p50,
        seconds_p10=p10,
        seconds_p90=p90,
        rounds=rounds,
        reference=reference_name if reference is not None else None,
        speedup=ratio,
        speedup_p10=low,
        speedup_p90=high,
        phases={name: float(np.median([parts[name] for parts in phases])) for name in phases[0]},
        tokens_per_s=int(tokens.ids.shape[0]) / p50,
        round_seconds=own,
        reference_seconds=theirs_all,
    )
    return Measured(
        first,
        speed,
        float(np.all(np.stack(labels) == labels[0], axis=0).mean()),
        isinstance(contender.fitted, Foresees),
        torch.cuda.max_memory_allocated(tokens.device) if cuda else None,
        predicting,
        _middle(pairs, ratios, len(tokens)),
        host_peak() if host_peak_known else None,
    )


def _side(contender: Contender, done: TimedPass) -> Side:
    return Side(done.seconds, done.predictions.work, done.predictions.phases, contender.fitted.cost)


def _middle(pairs: Sequence[tuple[Side, Side]], ratios: Sequence[float], samples: int) -> SpeedupFactors | None:
    """Return the speed-up factors of the round whose speed-up is nearest to the median; ``None`` if FLOPs are not counted."""
    if not pairs or not all(side.seconds and side.cost.flops(side.work, "full") for pair in pairs for side in pair):
        return None
    at = int(np.abs(np.array(ratios) - np.median(ratios)).argmin())
    return speedup_factors(*pairs[at], samples)
