"""Passes of methods: timed ones, which alternate with passes of a reference, and untimed ones; each in a new order of samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
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
        speed: ``None`` if the cell was not timed.
        rounds_agree: share of samples with the same label in all rounds; ``None`` after a single one.
        foresees: the method looked exits up outside the timed region.
        peak_memory_bytes: on CUDA, the peak of the allocator over its own passes.
        predicting: seconds inside methods (``predict`` and ``foresee``), warm-up and reference included.
        host_peak_bytes: peak memory of the process over its own passes; ``None`` if unknown.
        reference_logits: of the reference in the first round, float32 [N, C] in file order; ``None`` without one.
        speedup_factors: of the round with the middle speed-up; ``None`` without a reference.
    """

    predictions: Predictions
    speed: Speed | None
    rounds_agree: float | None
    foresees: bool
    peak_memory_bytes: int | None
    predicting: float
    speedup_factors: SpeedupFactors | None = None
    host_peak_bytes: int | None = None
    reference_logits: np.ndarray | None = None


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
    """Measure one contender; see :func:`measure_together`."""
    (found,) = measure_together(
        [contender], tokens, rounds=rounds, seed=seed, reference=reference, reference_name=reference_name
    )
    return found


def measure_together(
    contenders: Sequence[Contender],
    tokens: TokenSet,
    *,
    rounds: int,
    seed: int,
    reference: Contender | None = None,
    reference_name: str | None = None,
    tolerance: float = 0.0,
) -> list[Measured]:
    """Warm up, then run ``rounds`` rounds: one pass of the reference and one of each contender.

    Every second round runs backwards (A B C, C B A, ...): over two rounds all have the same mean position, so that a machine
    that slowly changes its speed favours none of them. The first round runs the samples in file order, the others in random
    orders. Predictions must not depend on the order.

    Args:
        contenders: at least one.
        tokens: N test samples on the device.
        rounds: most rounds, at least 1.
        seed: of the orders.
        reference: method that speed-ups are relative to; ``None`` for no speed-ups.
        tolerance: stop after an even number of rounds when the standard error of a speed-up, or of a time without a reference,
            pooled over the contenders, is at most this share; 0 for all rounds. It looks at spreads only, never at values.

    Raises:
        MethodError: the predictions of a contender violate the contract.
    """
    rng = np.random.default_rng(seed)
    all_series = [_Series(contender) for contender in contenders]
    warm = [tokens.select(np.arange(_warm_up_rows(one, tokens))) for one in contenders]
    for series, some in zip(all_series, warm, strict=True):
        done = timed_pass(series.contender, some)
        check_work(done.predictions, series.contender.fitted.cost)
        series.predicting += done.seconds + done.foreseeing
    if reference is not None:
        some = tokens.select(np.arange(_warm_up_rows(reference, tokens)))
        all_series[0].predicting += timed_pass(reference, some).seconds
    for number in range(rounds):
        order = _order(len(tokens), number, rng)
        shuffled = tokens if number == 0 else tokens.select(order)
        if number == 0:
            reset_host_peak()  # for the reference as for the others
        other = timed_pass(reference, shuffled) if reference is not None and number % 2 == 0 else None
        passes = {one: one.run(shuffled, watch=number == 0) for one in all_series[:: -1 if number % 2 else 1]}
        if reference is not None and number % 2 == 1:
            other = timed_pass(reference, shuffled)
        for series, done in passes.items():
            series.add(done, order, reference, other)
        all_series[0].predicting += other.seconds if other else 0.0
        if tolerance and number % 2 == 1 and _standard_error(all_series) <= tolerance:
            break
    name = reference_name if reference is not None else None
    return [series.measured(tokens, name, len(contenders)) for series in all_series]


def measure_untimed(contender: Contender, tokens: TokenSet, *, rounds: int, seed: int) -> Measured:
    """Run ``rounds`` passes for answers and work only, without warm-up and reference: :attr:`Measured.speed` is ``None``.

    One pass suffices for the answers; a second one, in another order of samples, checks that they do not depend on it.

    Raises:
        MethodError: the predictions violate the contract.
    """
    rng, series = np.random.default_rng(seed), _Series(contender)
    for number in range(rounds):
        order = _order(len(tokens), number, rng)
        series.add(series.run(tokens if number == 0 else tokens.select(order), watch=number == 0), order)
    return replace(series.measured(tokens, None), speed=None)


def _order(samples: int, number: int, rng: np.random.Generator) -> np.ndarray:
    """Return the order of the samples in a round: file order in the first."""
    return np.arange(samples) if number == 0 else rng.permutation(samples)


def makes_code_by_shape(contender: Contender) -> bool:
    """Return whether code or graphs are made when a shape first occurs, so that a warm-up needs all shapes."""
    own_compute = contender.fitted.compute if isinstance(contender.fitted, HasCompute) else None
    return (own_compute or contender.point.execution.compute) not in ("eager", "packed")


def _warm_up_rows(contender: Contender, tokens: TokenSet) -> int:
    if makes_code_by_shape(contender):
        return len(tokens)
    batches = 1 if tokens.device.type == "cpu" else 4
    return min(len(tokens), batches * contender.point.execution.batch_size)


class _Peaks:
    """Peak memory inside some blocks, the largest of them.

    Attributes:
        device: on CUDA, bytes of the allocator.
        host: bytes of the process; ``None`` if unknown.
    """

    device: int | None = None
    host: int | None = None

    @contextmanager
    def __call__(self, device: torch.device) -> Iterator[None]:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        known = reset_host_peak()
        yield
        if device.type == "cuda":
            self.device = max(self.device or 0, torch.cuda.max_memory_allocated(device))
        if known and (peak := host_peak()) is not None:
            self.host = max(self.host or 0, peak)


class _Series:
    """The passes of one contender, and those of the reference in the same rounds."""

    def __init__(self, contender: Contender) -> None:
        self.contender = contender
        self.predicting = 0.0
        self._own: list[float] = []
        self._theirs: list[float] = []
        self._pairs: list[tuple[Side, Side]] = []
        self._labels: list[np.ndarray] = []
        self._phases: list[dict[str, float]] = []
        self._first: Predictions | None = None
        self._reference_logits: np.ndarray | None = None
        self._peaks = _Peaks()

    def run(self, tokens: TokenSet, *, watch: bool) -> TimedPass:
        """Run one pass.

        Args:
            watch: note the memory that it takes beside what is there already. Freed memory is given back before, so that the
                pass has to get it from the system, which takes time: in the first round only, and there for the reference, too.
        """
        with self._peaks(tokens.device) if watch else nullcontext():
            return timed_pass(self.contender, tokens)

    def add(
        self, done: TimedPass, order: np.ndarray, reference: Contender | None = None, other: TimedPass | None = None
    ) -> None:
        """Add one round: a pass over the samples in ``order``, and one of the reference."""
        check_work(done.predictions, self.contender.fitted.cost)
        self._own.append(done.seconds)
        self.predicting += done.seconds + done.foreseeing
        self._phases.append({name: part / done.seconds for name, part in done.predictions.phases.items()})
        if reference is not None and other is not None:
            self._theirs.append(other.seconds)
            if self._first is None:
                self._reference_logits = other.predictions.logits
            self._pairs.append((_side(self.contender, done), _side(reference, other)))
        self._first = self._first or done.predictions
        label = np.empty(len(order), dtype=np.int64)
        label[order] = done.predictions.logits.argmax(1)
        self._labels.append(label)

    def logs(self) -> np.ndarray:
        """Return the logarithms of the speed-ups, or of the times without a reference, float64 [rounds], up to their signs."""
        return np.log(self._own) - (np.log(self._theirs) if self._theirs else 0.0)

    def measured(self, tokens: TokenSet, reference: str | None, together: int = 1) -> Measured:
        assert self._first is not None
        p10, p50, p90 = np.quantile(self._own, _SHARES).tolist()
        ratios = [
            theirs / own for theirs, own in zip(self._theirs, self._own, strict=False)
        ]  # empty without a reference
        low, ratio, high = np.quantile(ratios, _SHARES).tolist() if ratios else (None, None, None)
        speed = Speed(
            samples_per_s=len(tokens) / p50,
            seconds=p50,
            seconds_p10=p10,
            seconds_p90=p90,
            rounds=len(self._own),
            reference=reference,
            speedup=ratio,
            speedup_p10=low,
            speedup_p90=high,
            phases=_medians(self._phases),
            tokens_per_s=int(tokens.ids.shape[0]) / p50,
            round_seconds=self._own,
            reference_seconds=self._theirs,
            together=together,
        )
        same = np.all(np.stack(self._labels) == self._labels[0], axis=0)
        return Measured(
            self._first,
            speed,
            float(same.mean()) if len(self._labels) > 1 else None,
            isinstance(self.contender.fitted, Foresees),
            self._peaks.device,
            self.predicting,
            _middle(self._pairs, ratios, len(tokens)),
            self._peaks.host,
            self._reference_logits,
        )


def _medians(phases: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the median over rounds of every phase's share; one that a round does not have took no time there."""
    names = dict.fromkeys(name for shares in phases for name in shares)
    return {name: float(np.median([shares.get(name, 0.0) for shares in phases])) for name in names}


def _standard_error(all_series: Sequence[_Series]) -> float:
    """Return the standard error of the mean log speed-up over rounds, pooled over the contenders; a share, for small ones."""
    logs = np.stack([series.logs() for series in all_series])  # [contenders, rounds]
    return float(np.sqrt(logs.var(axis=1, ddof=1).mean() / logs.shape[1]))


def _side(contender: Contender, done: TimedPass) -> Side:
    return Side(done.seconds, done.predictions.work, done.predictions.phases, contender.fitted.cost)


def _middle(pairs: Sequence[tuple[Side, Side]], ratios: Sequence[float], samples: int) -> SpeedupFactors | None:
    """Return the speed-up factors of the round whose speed-up is nearest to the median; ``None`` if FLOPs are not counted."""
    if not pairs or not all(side.seconds and side.cost.flops(side.work, "full") for pair in pairs for side in pair):
        return None
    at = int(np.abs(np.array(ratios) - np.median(ratios)).argmin())
    return speedup_factors(*pairs[at], samples)
