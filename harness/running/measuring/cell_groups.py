"""Measures the cells of one fitted method, in groups that share the passes of the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import pandas as pd

from harness.contracts import OperatingPoint
from harness.core import clock
from harness.core.errors import is_fatal
from harness.measure.diagnostics import DepthAnswers, depth_answers, diagnose
from harness.measure.passes import Contender, Measured, measure_together, measure_untimed
from harness.measure.resources import SavedState
from harness.results.schema import Cell, Result
from harness.running.record import build_result, sample_rows
from harness.running.session import Session

Cells = dict[Cell, OperatingPoint]


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


class CellGroups:
    """The cells of one fitted method.

    Args:
        session: where it was fitted.
        name: of the method.
        key: content key of its cells.
        reference: returns the method that speed-ups are measured against; called when a timed group is measured.
    """

    def __init__(self, session: Session, name: str, key: str, reference: Callable[[], Contender | None]) -> None:
        self.session, self.name, self.key = session, name, key
        self._profile = session.settings.profile
        self._timing = self._profile.timing
        self._timed = self._timing.times(name, session.seed)
        self._reference = reference
        self._before: SavedState | None = None
        self._depths: DepthAnswers | None = None  # the same for all points

    def split(self, cells: Mapping[Cell, OperatingPoint]) -> list[Cells]:
        """Return the cells in the groups in which they are measured."""
        if self._timed and self._timing.share_reference and cells:
            return [dict(cells)]
        return [{cell: point} for cell, point in cells.items()]

    def measure(self, group: Cells, *, check: bool) -> Iterator[tuple[Cell, MeasuredCell | Exception]]:
        """Measure one group. A cell that fails gives its error; the others of its group are then measured one by one.

        Args:
            check: of cells that are not timed: check order, batch size and state.

        Raises:
            Exception: nothing more can be stored (:func:`harness.core.errors.is_fatal`).
        """
        try:
            yield from zip(group, self._measure(group, check), strict=True)
        except Exception as error:
            if is_fatal(error):
                raise
            if len(group) == 1:
                yield next(iter(group)), error
                return
            for cell, point in group.items():
                yield from self.measure({cell: point}, check=check)

    def _measure(self, group: Cells, check: bool) -> list[MeasuredCell]:
        session, name = self.session, self.name
        check = self._timing.checks(session.seed) and (self._timed or check)
        reference = self._reference() if self._timed else None
        with session.naming(name):
            fitted = session.fitted(name)
            self._before = self._before or SavedState.of(fitted)
            contenders = [session.contender(name, point) for point in group.values()]
            found = self._passes(contenders, reference, check)
            after = SavedState.of(fitted) if check else None
            return [
                self._finish(cell, contender, one, self._before, after)
                for cell, contender, one in zip(group, contenders, found, strict=True)
            ]

    def _passes(self, contenders: Iterable[Contender], reference: Contender | None, check: bool) -> list[Measured]:
        tokens, seed = self.session.prepared.test.tokens, self.session.seed
        if not self._timed:
            return [measure_untimed(one, tokens, rounds=1 + check, seed=seed) for one in contenders]
        return measure_together(
            list(contenders),
            tokens,
            rounds=self._profile.rounds,
            seed=seed,
            reference=reference,
            reference_name=self._profile.reference,
            tolerance=self._timing.tolerance,
        )

    def _finish(
        self, cell: Cell, contender: Contender, measured: Measured, before: SavedState, after: SavedState | None
    ) -> MeasuredCell:
        session, name = self.session, self.name
        method = self._profile.method_of(name)
        found = diagnose(
            contender,
            session.prepared.test.tokens,
            measured.predictions.logits.argmax(1),
            before,
            after,
            timed=self._timed,
            control=method.kind == "control",
            borrowed=0 if before.weights else sum(session.saved_size(need, name) for need in method.needs),
            host_peak=measured.host_peak_bytes,
            seed=session.seed,
        )
        start = clock.now()
        self._depths = self._depths or depth_answers(contender, session.prepared.test.tokens)
        asked = clock.now() - start
        binding = session.binding(name, measured.speed.reference if measured.speed else None)
        result = build_result(
            cell, method, contender, measured, session.prepared, found, session.notes(name), binding, self.key
        )
        rows = sample_rows(measured, session.prepared, self._depths)
        return MeasuredCell(result, rows, measured.predicting + found.predicting + asked)
