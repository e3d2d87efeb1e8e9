"""The grid of cells of a run: finished cells are kept, missing ones are fitted, measured and stored.

``plan/<dataset>--<method>--seed<k>.json`` in the run folder lists the cells of a fitted method and the content key of the
settings and data that they came from. A run that finds its plans and all results does not even load the data.
"""

from __future__ import annotations

import itertools
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from harness.contracts import OperatingPoint
from harness.core import clock
from harness.core.errors import GeepBenchError, MethodError, SettingsError, format_error, is_fatal
from harness.core.files import write_json
from harness.core.names import clean
from harness.encoder.backbone import Backbone
from harness.measure.passes import Contender
from harness.measure.resources import advice, check_alive
from harness.results.run_folder import RunFolder
from harness.results.schema import Cell, Result
from harness.running.cell_plan import CellPlan
from harness.running.content_keys import ContentKeys
from harness.running.fits.fit_plan import FitJob
from harness.running.fits.fit_pool import FitPool
from harness.running.fits.fit_store import warn_of_old_fits
from harness.running.measuring.cell_groups import MethodCells, PlannedCell, measure_cells
from harness.running.measuring.timing import LEAST_TOGETHER
from harness.running.run_lock import run_lock
from harness.running.run_settings import Settings, validate_settings
from harness.running.session import NOT_LOADED, Session

Job = tuple[str, int, str]  # dataset, seed, method


@dataclass
class GridOutcome:
    """How a run went.

    Attributes:
        measured: cells measured now.
        kept: cells that were finished before.
        failed: cells, or fits, that failed.
        fitted: fits that are in the cache now; counted by :meth:`Grid.fit` only.
        seconds: wall time of the cells measured now, storing included, without fitting and loading.
        predicting: the part of it inside ``predict``; the rest is the harness's own cost.
    """

    measured: int = 0
    kept: int = 0
    failed: int = 0
    fitted: int = 0
    seconds: float = 0.0
    predicting: float = 0.0


def progress_line(result: Result) -> str:
    """Return a measured cell as one line for the terminal."""
    cell, speed = result.cell, result.speed
    time = "not timed"
    if speed is not None:
        ratio = "" if speed.speedup is None else f", {speed.speedup:.2f}x {speed.reference}"
        time = f"{speed.samples_per_s:,.0f} samples/s{ratio}"
    layers = f"{result.cost.mean_layers:.2f} layers, " if result.cost.depth else ""
    return (
        f"{cell.dataset} {cell.method} {cell.point} seed {cell.seed}: {result.quality.accuracy:.1%} accuracy, "
        f"{layers}{time}"
    )


class Grid:
    """All cells of a run.

    Args:
        elsewhere: nodes fit and measure them; this object only knows the run folder.
    """

    def __init__(self, settings: Settings, *, elsewhere: bool = False) -> None:
        validate_settings(settings, elsewhere=elsewhere)
        self.settings = settings
        self.run = RunFolder.create(settings.out)
        self.outcome = GridOutcome()
        self.keys = ContentKeys(settings)
        self._alone: set[str] = set()  # results that are stored at the start and were timed without a reference
        self._session: Session | None = None
        self._backbones: dict[tuple[str, str], Backbone] = {}  # of all sessions: each is loaded and hashed once
        self._checked: Session | None = None
        self._waiting: list[PlannedCell] = []
        self._after_cells: Callable[[], object] = lambda: None
        self._fitted_ahead = False  # all missing methods of the session are fitted

    def execute(self) -> GridOutcome:
        """Measure what is missing. A run that is killed loses at most the cell in progress; call this again to resume.

        All data and backbones are loaded once before the first training. What fails later fails its own cells.

        Raises:
            GeepBenchError: an input cannot be used, another run uses this folder, or nothing more can be written; finished
                cells stay.
        """
        with run_lock(self.run.path):
            return self.execute_part(write_facts=True)

    def execute_part(
        self, *, write_facts: bool = False, after_cells: Callable[[], object] = lambda: None
    ) -> GridOutcome:
        """Do the same for a caller that holds the lock of the run folder.

        Args:
            write_facts: write ``run.json``; not for one of several parts of a run.
            after_cells: called after cells were stored, when nothing is timed.
        """
        self._after_cells = after_cells
        # Sets broken files aside, and rejects another schema before any work.
        stored_results = {self.run.result_path(result.cell).stem: result for result in self.run.results()}
        if self.settings.profile.reference in self.settings.profile.methods:
            self._alone = {name for name, one in stored_results.items() if one.speed and one.speed.reference is None}
        for message in self.run.broken:
            print(message, file=sys.stderr)
        if write_facts:
            self.write_facts()
        stored = self.check()
        self._announce(stored)
        with FitPool(self.settings) as pool, tqdm(total=len(stored), desc="run", unit="method", disable=None) as bar:
            for number, ((dataset, seed, method), cells) in enumerate(stored.items(), start=1):
                bar.set_description(f"{dataset} {method} seed {seed}")
                if self._waiting and (dataset, seed) != (self._waiting[0].cell.dataset, self._waiting[0].cell.seed):
                    self._measure_waiting(bar)
                if cells is None:
                    progress = f"[{number}/{len(stored)}]"
                    self._measure(self._session_of(dataset, seed, method, pool), method, bar, progress)
                else:
                    self.outcome.kept += cells
                bar.update()
            self._measure_waiting(bar)
        return self.outcome

    def check(self) -> dict[Job, int | None]:
        """Load all data and backbones that are still needed, so that an unusable one ends the run before the first training.

        Returns:
            The number of finished cells of each job, ``None`` if it is not finished.

        Raises:
            GeepBenchError: an input cannot be used; with several of them, one line for each.
        """
        stored: dict[Job, int | None] = {}
        missing: dict[str, Session] = {}
        errors: dict[str, GeepBenchError] = {}
        for dataset, seed, method in self.jobs():
            try:
                stored[dataset, seed, method] = self._stored(dataset, method, seed)
            except GeepBenchError as error:
                errors.setdefault(format_error(error), error)
            if stored.get((dataset, seed, method)) is None and dataset not in missing:
                missing[dataset] = Session(self.settings, dataset, seed, backbones=self._backbones)
        for dataset in [*missing]:
            session = missing.pop(dataset)  # all together may not fit in memory
            try:
                session.check()
            except GeepBenchError as error:
                errors.setdefault(format_error(error), error)
            except Exception as error:  # noqa: BLE001 - its cells fail with the same error, and record it
                print(f"{dataset}: {format_error(error)}", file=sys.stderr)
            self._checked = self._checked or session  # needed next, so that its data need not be loaded again
        if len(errors) == 1:
            raise next(iter(errors.values()))
        if errors:
            raise SettingsError(*errors)
        return stored

    def fit(self) -> GridOutcome:
        """Fit all methods and those that they need into the cache, without measuring.

        Raises:
            GeepBenchError: the input cannot be used; finished fits stay.
        """
        with run_lock(self.run.path), FitPool(self.settings) as pool:
            jobs = list(self.check())
            warn_of_old_fits()
            failures = None
            if pool.is_used:
                places = dict.fromkeys(job[:2] for job in jobs)
                failures = pool.fit_all(itertools.starmap(self.open_session, places))
            for dataset, seed, method in tqdm(jobs, desc="fits", unit="method", disable=None):
                try:
                    if failures is None:
                        self.open_session(dataset, seed).fitted(method)
                    elif (error := failures.get(FitJob(dataset, seed, method))) is not None:
                        raise error
                    self.outcome.fitted += 1
                except Exception as error:
                    if is_fatal(error):
                        raise
                    self.record_failure(self.open_session(dataset, seed).cell(method, OperatingPoint("fit")), error)
        return self.outcome

    def jobs(self) -> Iterator[Job]:
        """Yield the dataset, seed and method of everything that is measured."""
        profile = self.settings.profile
        jobs = itertools.product(profile.datasets, profile.seeds, profile.methods)
        return (job for job in jobs if job[1] in profile.seeds_of(job[2]))

    def open_session(self, dataset: str, seed: int) -> Session:
        """Return the session of a dataset and seed; the last one is kept, and its data if only the seed changes."""
        last = self._session
        if last is None or (last.dataset, last.seed) != (dataset, seed):
            first, self._checked = self._checked, None
            if first is not None and (first.dataset, first.seed) == (dataset, seed):
                self._session = first
            elif last is not None and last.dataset == dataset:
                self._session = last.with_seed(seed)
            else:
                self._session = Session(self.settings, dataset, seed, backbones=self._backbones)
                self.keys.identity.cache_clear()  # the data may have changed since the check
            self._fitted_ahead = False
        assert self._session is not None
        return self._session

    def _session_of(self, dataset: str, seed: int, method: str, pool: FitPool) -> Session:
        """Return the session of a dataset and seed, with the methods fitted whose cells are missing.

        Until a first cell is measured, only ``method`` is fitted, so that a user soon sees a result.
        """
        if self._session is None:
            warn_of_old_fits()
        session = self.open_session(dataset, seed)
        if not self._fitted_ahead:
            self._fitted_ahead = self.outcome.measured > 0
            methods = [job[2] for job in self.jobs() if job[:2] == (dataset, seed)] if self._fitted_ahead else [method]
            try:
                pool.fit(session, [one for one in methods if self._stored(dataset, one, seed) is None])
            except Exception as error:
                if is_fatal(error):
                    raise
                print(f"{dataset}: nothing is fitted ahead: {format_error(error)}", file=sys.stderr)
        return session

    def write_facts(self) -> None:
        """Write the settings to ``run.json``, with folders reduced to their names."""
        settings = self.settings
        facts = settings.profile.model_dump(mode="json")
        tables = [facts["backbones"], *facts["method"].values()]
        tables += [value for table in tables for value in table.values() if isinstance(value, dict)]  # one per language
        for table in tables:
            folders = {
                key: Path(value).expanduser() for key, value in table.items() if value and isinstance(value, str)
            }
            table.update({key: folder.name for key, folder in folders.items() if folder.is_dir()})
        run = {"profile": facts, "source": settings.source, "device": settings.device, "dtype": settings.dtype}
        searches = [search.model_dump(mode="json") for search in settings.tuned]
        write_json(self.run.path / "run.json", {**run, "searches": searches} if searches else run)

    def _announce(self, jobs: Iterable[tuple[str, int, str]]) -> None:
        """Print how many stored cells do not belong to these settings, data and weights, and are therefore measured again."""
        outdated = 0
        for dataset, seed, method in jobs:
            plan = CellPlan.read(self.run, dataset, method, seed)
            with suppress(MethodError):  # reported when the method is fitted
                key = self.keys.of(dataset, method, seed)
                outdated += 0 if plan.key == "" else len(plan.others(key))
        if outdated and not self.settings.fresh:
            print(
                f"{self.run.path}: cells of other settings, data or weights, or of a version whose keys cannot be compared: "
                f"{outdated}, measured again",
                file=sys.stderr,
            )

    def _stored(self, dataset: str, method: str, seed: int) -> int | None:
        """Return the number of a method's cells if all are stored and match these settings, else ``None``."""
        plan = CellPlan.read(self.run, dataset, method, seed)
        try:
            if self.settings.fresh or plan.key != self.keys.of(dataset, method, seed):
                return None
        except MethodError:  # reported when the method is fitted
            return None
        lost = {*self._alone, *(self.run.result_path(cell).stem for cell in self.run.without_rows)}
        done = [plan.fits(name, plan.key) and name not in lost for name in plan.cells]
        return len(done) if all(done) else None

    def _measure(self, session: Session, name: str, bar: Any, progress: str) -> None:
        """Fit one method, then measure its missing cells; with a shared reference, they may wait for cells of other methods."""
        plan = CellPlan.read(self.run, session.dataset, name, session.seed)
        key = ""
        try:
            key = self.keys.of(session.dataset, name, session.seed)
            fitted = session.fitted(name)
            cells = {session.cell(name, point, fitted): point for point in session.points(name)}
        except Exception as error:
            if is_fatal(error):
                raise
            if key:
                self._forget(plan.others(key))
            self.record_failure(session.cell(name, OperatingPoint("fit")), error)
            return
        placeholder = session.cell(name, OperatingPoint("fit"))
        for backbone in (placeholder.backbone, NOT_LOADED):
            self.run.forget_failure(placeholder.model_copy(update={"backbone": backbone}))
        names = [self.run.result_path(cell).stem for cell in cells]
        # Results of other settings must not remain, not even if this run is killed now.
        self._forget(plan.others(key, names))
        write_json(plan.path, {"key": key, "cells": names})
        method = MethodCells(session, name, key, progress)
        todo = [(cell, point) for cell, point in cells.items() if not self._is_kept(cell)]
        planned = [PlannedCell(method, *one, check=number == 0) for number, one in enumerate(todo)]
        if method.timed and self.settings.profile.timing.share_reference:
            self._waiting += planned
            if len(self._waiting) >= LEAST_TOGETHER:
                self._measure_waiting(bar)
        else:
            for one in planned:
                self._measure_cells([one], bar)

    def _measure_waiting(self, bar: Any) -> None:
        """Measure the cells that wait for others to share the passes of the reference."""
        waiting, self._waiting = self._waiting, []
        if waiting:
            self._measure_cells(waiting, bar)

    def _measure_cells(self, planned: Sequence[PlannedCell], bar: Any) -> None:
        bar.set_postfix_str(", ".join(one.point.name for one in planned))
        start = clock.now()
        for one, found in measure_cells(planned, partial(self._reference, planned[0].method.session)):
            try:
                if isinstance(found, Exception):
                    raise found
                self.run.save(found.result, found.rows)
            except Exception as error:
                if is_fatal(error):
                    raise
                self.record_failure(one.cell, error)
                continue
            self.run.forget_failure(one.cell)
            self.outcome.measured += 1
            self.outcome.predicting += found.predicting
            bar.write(f"{one.method.progress} {progress_line(found.result)}", file=sys.stderr)
        self.outcome.seconds += clock.now() - start
        self._after_cells()

    def _is_kept(self, cell: Cell) -> bool:
        """Return whether a cell is finished, and count it then."""
        path = self.run.result_path(cell)
        if self.settings.fresh or path.stem in self._alone or not path.is_file():
            return False
        if cell in self.run.without_rows:
            print(f"{self.run.without_rows[cell]}: its cell is measured again", file=sys.stderr)
            return False
        self.outcome.kept += 1
        return True

    def _forget(self, names: Iterable[str]) -> None:
        for name in names:
            self.run.forget_result(name)

    def record_failure(self, cell: Cell, error: Exception) -> None:
        """Record and print an error of a method.

        Raises:
            DeviceError: the device no longer works, so the run cannot continue.
        """
        self.outcome.failed += 1
        reason = f"{format_error(error)}{advice(error)}"
        where = self.run.fail(cell, "".join(traceback.format_exception(error)), reason)
        print(clean(f"{cell.dataset} {cell.method} {cell.point}: {reason} (see {where}); continuing"), file=sys.stderr)
        check_alive(self.settings.device)

    def _reference(self, session: Session) -> Contender | None:
        """Return the method that speed-ups are measured against, if this run measures it."""
        profile = self.settings.profile
        if profile.reference not in profile.methods:
            return None
        try:
            return session.contender(profile.reference, session.points(profile.reference)[0])
        except Exception as error:
            if is_fatal(error):
                raise
            # Cells measured without it would never get a speed-up.
            raise MethodError(
                f"no speed-up without the reference '{profile.reference}': {format_error(error)}"
            ) from error
