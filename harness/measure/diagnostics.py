"""Diagnostics of a cell outside its timed rounds: latency of single samples, synchronisation, resources, unchanged state."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import numpy as np
import torch

from harness.contracts import AnswersAtDepths, CountsKeyHits, Foresees
from harness.core import clock
from harness.core.errors import MethodError
from harness.core.tokens import TokenSet
from harness.core.work import BEFORE
from harness.measure.passes import Contender, makes_code_by_shape, precision, timed_pass
from harness.measure.resources import SavedState, joules
from harness.results.rows.sample_columns import MOST_LAYERS
from harness.results.schema import Latency, Resources

CALLS = 100  # single samples that are timed
BUDGET = 0.5  # seconds for all of them
_SYNC = "called a synchronizing CUDA operation"


@dataclass(frozen=True)
class DepthAnswers:
    """What every exit of a model would answer.

    Attributes:
        layers: A layer indices, rising; the last one is the last layer of the model. The first may be ``BEFORE``.
        labels: int64 [A, N].
    """

    layers: tuple[int, ...]
    labels: np.ndarray


@dataclass(frozen=True)
class Diagnostics:
    """For most fields see :class:`harness.results.schema.Checks` and :class:`harness.results.schema.Result`.

    Attributes:
        predicting: seconds inside the method, for single samples and its own look-ups.
    """

    latency: list[Latency]
    resources: Resources
    batches_agree: float | None = None
    state_unchanged: bool | None = None
    syncs: int | None = None
    unseen_tokens: float | None = None
    predicting: float = 0.0
    engine_agrees: float | None = None
    engine_exits: float | None = None
    engine_difference: float | None = None


def diagnose(
    contender: Contender,
    tokens: TokenSet,
    labels: np.ndarray,
    before: SavedState,
    after: SavedState | None,
    *,
    timed: bool = True,
    control: bool = False,
    borrowed: int = 0,
    host_peak: int | None = None,
    seed: int = 0,
) -> Diagnostics:
    """Run the diagnostics of one cell.

    Args:
        tokens: N test samples.
        labels: int64 [N], predicted in the first round, in file order.
        before: state of the method before it was tested.
        after: the same after its passes; ``None``: this cell is not checked, so that no sample runs alone either.
        timed: also measure latency, energy and synchronisation.
        control: the method is a control. Controls and bounds may depend on other samples, so they never run a single one.
        borrowed: bytes on disk of other methods whose weights it uses.
        host_peak: peak bytes of the process during the rounds.
    """
    resources = Resources(disk_bytes=(after or before).size + borrowed, host_peak_bytes=host_peak)
    start = clock.now()
    found = Diagnostics(
        [],
        resources,
        state_unchanged=None if after is None else after.digest == before.digest,
        unseen_tokens=unseen_keys(contender, tokens),
    )
    found = replace(found, predicting=clock.now() - start)
    if control or after is None or isinstance(contender.fitted, Foresees):
        return found
    latency, agree, seconds = single_samples(contender, tokens, labels, seed)
    found = replace(found, batches_agree=agree, predicting=found.predicting + seconds)
    if not timed:
        return found
    energy = joules(lambda: timed_pass(contender, tokens), tokens.device)
    if energy is not None:
        resources = resources.model_copy(update={"joules_per_1000": 1000 * energy / len(tokens)})
    return replace(found, latency=[latency], resources=resources, syncs=count_syncs(contender, tokens))


def depth_answers(contender: Contender, tokens: TokenSet) -> DepthAnswers | None:
    """Return what every exit would answer; ``None`` for methods without this capability.

    Raises:
        MethodError: the answers violate the contract, or belong to a model of more layers than can be stored.
    """
    fitted, point = contender.fitted, contender.point
    if not isinstance(fitted, AnswersAtDepths):
        return None
    with torch.inference_mode(), precision(tokens.device, point.execution.dtype):
        layers, labels = fitted.depth_answers(tokens, at=point)
    depth = fitted.cost.depth
    if depth > MOST_LAYERS:
        raise MethodError(
            f"depth_answers: results hold the answers of up to {MOST_LAYERS} layers, the model has {depth}"
        )
    if list(layers) != sorted({*layers} & {*range(BEFORE, depth)}) or [*layers][-1:] != [depth - 1]:
        raise MethodError(
            f"depth_answers returned layers {list(layers)}: return rising layer indices up to {depth - 1}"
        )
    if labels.shape != (len(layers), len(tokens)):
        raise MethodError(
            f"depth_answers returned labels {list(labels.shape)}: return one per layer and sample, "
            f"{[len(layers), len(tokens)]}"
        )
    return DepthAnswers(tuple(layers), labels)


def single_samples(
    contender: Contender, tokens: TokenSet, labels: np.ndarray, seed: int
) -> tuple[Latency, float, float]:
    """Time samples one by one: at most :data:`CALLS` random ones, and no further one after :data:`BUDGET` seconds.

    Where code or graphs are made for every shape, each sample also runs once before it is timed, as passes do.

    Returns:
        Their latency, the share with the same label as in the batches of the first round, and the sum of all seconds.
    """
    point = contender.point
    single = replace(contender, point=replace(point, execution=replace(point.execution, batch_size=1)))
    drawn = np.random.default_rng(seed).permutation(len(tokens))[:CALLS]
    warm_all = makes_code_by_shape(single)
    seconds: list[float] = []
    same: list[bool] = []
    warming = spent = 0.0
    for sample in drawn:
        one = tokens.sample(int(sample))
        if warm_all or not seconds:
            warming += timed_pass(single, one).seconds
        start = clock.now()
        done = timed_pass(single, one)
        seconds.append(done.seconds)
        same.append(bool(done.predictions.logits[0].argmax() == labels[sample]))
        spent += clock.now() - start
        if spent > BUDGET:
            break
    p50, p90, p99 = np.quantile(seconds, [0.5, 0.9, 0.99]).tolist()
    return (
        Latency(batch_size=1, n=len(seconds), p50=p50, p90=p90, p99=p99),
        float(np.mean(same)),
        sum(seconds, warming),
    )


def count_syncs(contender: Contender, tokens: TokenSet) -> int | None:
    """Count the synchronising calls that torch reports in one pass, without waits for the method's own copies.

    Returns ``None`` except on CUDA.
    """
    if tokens.device.type != "cuda":
        return None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with (
            warnings.catch_warnings(record=True) as caught,
            torch.inference_mode(),
            precision(tokens.device, contender.point.execution.dtype),
        ):
            warnings.simplefilter("always")
            contender.fitted.predict(tokens, at=contender.point)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum(_SYNC in str(warning.message) for warning in caught)


def unseen_keys(contender: Contender, tokens: TokenSet) -> float | None:
    """Return the share of the samples' keys without a row in the method's table; ``None`` if it has no table."""
    if not isinstance(contender.fitted, CountsKeyHits):
        return None
    found, asked = contender.fitted.key_hits(tokens, at=contender.point)
    return 1 - found / asked if asked else None
