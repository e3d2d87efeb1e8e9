"""Measures cells, one by one or in groups that share the passes of the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import pandas as pd
import torch

from harness.contracts import OperatingPoint
from harness.core import clock
from harness.core.environment import usable_cores
from harness.core.errors import is_fatal
from harness.engines.likeness import likeness
from harness.measure.diagnostics import DepthAnswers, depth_answers, diagnose
from harness.measure.passes import Contender, Measured, measure_together, measure_untimed, timed_pass
from harness.measure.resources import SavedState, lost_cores
from harness.results.schema import Cell, Result
from harness.running.binding import binding_of
from harness.running.measuring.disk_use import borrowed_bytes
from harness.running.measuring.raw_text import tokenising_of
from harness.running.record import build_result, sample_rows
from harness.running.session import Session


@dataclass(frozen=True)
class MeasuredCell:
    """One cell, ready to be stored.

    Attributes:
        rows: per test sample.
        predicting: seconds inside the method and the reference.
    """

    result: Result
    rows: pd.DataFrame
    predicting: float


class MethodCells:
    """What the cells of one fitted method share.

    Args:
        session: where it was fitted.
        name: of the method.
        key: content key of its cells.
        progress: what is printed before each of its cells.
    """

    def __init__(self, session: Session, name: str, key: str, progress: str = "") -> None:
        self.session, self.name, self.key, self.progress = session, name, key, progress
        self.timed = session.settings.profile.timing.times(name, session.seed)
        self._before: SavedState | None = None
        self._depths: DepthAnswers | None = None  # the same for all points

    def saved_state(self) -> SavedState:
        """Return the state of the method now."""
        return SavedState.of(self.session.fitted(self.name))

    def start(self, point: OperatingPoint) -> Contender:
        """Return the method at a point; note its state before its first pass."""
        with self.session.naming_errors(self.name):
            self._before = self._before or self.saved_state()
            return self.session.contender(self.name, point)

    def finish(
        self, cell: Cell, contender: Contender, measured: Measured, after: SavedState | None, notes: Sequence[str]
    ) -> MeasuredCell:
        """Run the diagnostics of a cell and, if it is timed and so can be chosen later, a pass over dev; return its result.

        Args:
            after: state of the method after its passes; ``None`` if the cell is not checked.
            notes: on the passes, in addition to those on the data.
        """
        assert self._before is not None
        session, name, before = self.session, self.name, self._before
        method, tokens = session.settings.profile.method_of(name), session.prepared.test.tokens
        with session.naming_errors(name):
            found = diagnose(
                contender,
                tokens,
                measured.predictions.logits.argmax(1),
                before,
                after,
                timed=self.timed,
                control=method.kind == "control",
                borrowed=borrowed_bytes(session, name, before, name),
                host_peak=measured.host_peak_bytes,
                seed=session.seed,
            )
            if after is not None and session.settings.profile.engine(name) is not None:
                like = likeness(measured.predictions, session.fit(name), contender.point, tokens)
                seconds = found.predicting + like.seconds
                found = replace(
                    found,
                    engine_agrees=like.agree,
                    engine_exits=like.same_exits,
                    engine_difference=like.difference,
                    predicting=seconds,
                )
            start = clock.now()
            self._depths = self._depths or depth_answers(contender, tokens)
            dev = None
            if self.timed and method.kind == "method" and not measured.foresees:
                dev = timed_pass(contender, session.prepared.task.dev.tokens).predictions
            asked = clock.now() - start
        binding = binding_of(session, name, measured.speed.reference if measured.speed else None)
        notes = [*session.notes(name), *notes]
        result = build_result(cell, method, contender, measured, session.prepared, found, notes, binding, self.key, dev)
        result = result.model_copy(update={"tokenising": tokenising_of(session) if self.timed else None})
        rows = sample_rows(measured, session.prepared, self._depths)
        return MeasuredCell(result, rows, measured.predicting + found.predicting + asked)


@dataclass(frozen=True)
class PlannedCell:
    """One cell to be measured.

    Attributes:
        check: of a cell that is not timed: check order, batch size and state. Those that are timed are always checked.
    """

    method: MethodCells
    cell: Cell
    point: OperatingPoint
    check: bool


def measure_cells(
    planned: Sequence[PlannedCell], reference: Callable[[], Contender | None]
) -> Iterator[tuple[PlannedCell, MeasuredCell | Exception]]:
    """Measure a cell, or several timed ones of one session in the same rounds.

    A cell that fails gives its error. If there are others, they are measured again without it, in halves.

    Args:
        reference: returns the method that speed-ups are measured against; called for timed cells only.

    Raises:
        Exception: nothing more can be stored (:func:`harness.core.errors.is_fatal`).
    """
    try:
        yield from zip(planned, _measure(planned, reference), strict=True)
    except Exception as error:
        if is_fatal(error):
            raise
        if len(planned) == 1:
            yield planned[0], error
            return
        middle = len(planned) // 2
        for half in (planned[:middle], planned[middle:]):
            yield from measure_cells(half, reference)


def _measure(planned: Sequence[PlannedCell], reference: Callable[[], Contender | None]) -> list[MeasuredCell]:
    first = planned[0].method
    session, profile = first.session, first.session.settings.profile
    tokens = session.prepared.test.tokens
    checked = [profile.timing.checks(session.seed) and (one.method.timed or one.check) for one in planned]
    beside = reference() if first.timed else None
    contenders = [one.method.start(one.point) for one in planned]
    cores = usable_cores()
    with session.naming_errors(first.name) if len(planned) == 1 else nullcontext():
        if first.timed:
            found = measure_together(
                contenders,
                tokens,
                rounds=profile.rounds,
                seed=session.seed,
                reference=beside,
                reference_name=profile.reference,
                tolerance=profile.timing.tolerance,
            )
        else:
            found = [measure_untimed(contenders[0], tokens, rounds=1 + checked[0], seed=session.seed)]
    on_cpu = first.timed and session.settings.device == "cpu"
    notes = lost_cores(cores, usable_cores(), torch.get_num_threads()) if on_cpu else []
    methods = dict.fromkeys(one.method for one, check in zip(planned, checked, strict=True) if check)
    after = {method: method.saved_state() for method in methods}
    return [
        one.method.finish(one.cell, contender, measured, after.get(one.method), notes)
        for one, contender, measured in zip(planned, contenders, found, strict=True)
    ]
