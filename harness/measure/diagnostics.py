"""What is looked at beside the timed rounds of a cell: samples alone, waits, what the method takes and whether it changed."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import numpy as np
import torch

from harness.contracts import CountsKeyHits, Foresees
from harness.core import clock
from harness.core.tokens import TokenSet
from harness.measure.passes import Contender, precision, timed_pass
from harness.measure.resources import State, joules
from harness.results.schema import Latency, Resources

CALLS = 100  # samples that are run alone
BUDGET = 0.5  # seconds that this may take
_SYNC = "called a synchronizing CUDA operation"


@dataclass(frozen=True)
class Beside:
    """See :class:`harness.results.schema.Checks` and :class:`harness.results.schema.Result` for most fields.

    Attributes:
        predicting: seconds inside ``predict``, as far as they were taken.
    """

    latency: list[Latency]
    resources: Resources
    batches_agree: float | None = None
    state_unchanged: bool | None = None
    syncs: int | None = None
    unseen_tokens: float | None = None
    predicting: float = 0.0


def look_beside(
    contender: Contender,
    tokens: TokenSet,
    labels: np.ndarray,
    before: State,
    *,
    control: bool = False,
    borrowed: int = 0,
    host_peak: int | None = None,
    seed: int = 0,
) -> Beside:
    """Look at everything but the rounds.

    Args:
        contender: the method at its point; a bound never runs a sample alone.
        tokens: N test samples.
        labels: int64 [N], what it said in file order.
        before: what it had learnt before it was tested.
        control: it is one, and may deal out exits by what others get: no sample of it is run alone, either.
        borrowed: bytes of what others learnt and it needs.
        host_peak: peak bytes of the process during the rounds.
    """
    after = State.of(contender.fitted)
    resources = Resources(disk_bytes=after.size + borrowed, host_peak_bytes=host_peak)
    unchanged = after.digest == before.digest
    if control or isinstance(contender.fitted, Foresees):
        return Beside([], resources, state_unchanged=unchanged)
    latency, agree, predicting = alone(contender, tokens, labels, seed)
    energy = joules(lambda: timed_pass(contender, tokens), tokens.device)
    if energy is not None:
        resources = resources.model_copy(update={"joules_per_1000": 1000 * energy / len(tokens)})
    waits, unknown = syncs(contender, tokens), unseen(contender, tokens)
    return Beside([latency], resources, agree, unchanged, waits, unknown, predicting)


def alone(contender: Contender, tokens: TokenSet, labels: np.ndarray, seed: int) -> tuple[Latency, float, float]:
    """Latency of single samples, the share that is answered as in the batches of the rounds, and all their seconds.

    At most :data:`CALLS` samples, fewer if they take more than :data:`BUDGET` seconds; drawn at random.
    """
    point = contender.point
    single = replace(contender, point=replace(point, execution=replace(point.execution, batch_size=1)))
    drawn = np.random.default_rng(seed).permutation(len(tokens))[:CALLS]
    timed_pass(single, tokens.select(drawn[:1]))
    seconds: list[float] = []
    same: list[bool] = []
    start = clock.now()
    for sample in drawn:
        done = timed_pass(single, tokens.select([int(sample)]))
        seconds.append(done.seconds)
        same.append(bool(done.predictions.logits[0].argmax() == labels[sample]))
        if clock.now() - start > BUDGET:
            break
    p50, p90, p99 = (float(value) for value in np.quantile(seconds, [0.5, 0.9, 0.99]))
    return Latency(batch_size=1, n=len(seconds), p50=p50, p90=p90, p99=p99), float(np.mean(same)), sum(seconds)


def syncs(contender: Contender, tokens: TokenSet) -> int | None:
    """Synchronising calls that torch reports during one pass, waits for one's own copies aside; ``None`` but on CUDA."""
    if tokens.device.type != "cuda":
        return None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with (
            warnings.catch_warnings(record=True) as told,
            torch.inference_mode(),
            precision(tokens.device, contender.dtype),
        ):
            warnings.simplefilter("always")
            contender.fitted.predict(tokens, at=contender.point)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum(_SYNC in str(warning.message) for warning in told)


def unseen(contender: Contender, tokens: TokenSet) -> float | None:
    """Share of the samples' keys that the method's table has no row of their own for; ``None`` if it has no table."""
    if not isinstance(contender.fitted, CountsKeyHits):
        return None
    found, asked = contender.fitted.key_hits(tokens, at=contender.point)
    return 1 - found / asked if asked else None
