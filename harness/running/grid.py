"""From a profile to cells: what is finished stays, what is missing is fitted, measured and stored, one cell at a time.

Kept in the run folder, ``plan/<dataset>--<method>--seed<k>.json`` says which cells a fitted method has and which settings
and data they came from. A run that finds its plan and all results does not even load the data.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from harness.contracts import Fitted, HasRole, OperatingPoint
from harness.core import clock
from harness.core.errors import MethodError, format_error, is_fatal
from harness.core.files import content_key, write_json
from harness.measure.diagnostics import Diagnostics, diagnose
from harness.measure.passes import Contender, Measured, measure
from harness.measure.resources import SavedState, advice, check_alive
from harness.results.run_folder import RunFolder
from harness.results.schema import Cell, Result
from harness.running.fit_pool import FitPool
from harness.running.record import build_result, sample_rows
from harness.running.session import CHASSIS_VERSION, Session
from harness.running.settings import Settings, validate_settings
from harness.running.task import source_identity


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


def _is_folder(value: Any) -> bool:
    return isinstance(value, str) and value != "" and Path(value).expanduser().is_dir()


def plan_path(run: RunFolder, dataset: str, method: str, seed: int) -> Path:
    return run.path / "plan" / f"{dataset}--{method}--seed{seed}.json"


def checked_points(points: Sequence[OperatingPoint]) -> list[OperatingPoint]:
    """Operating points as cells can be made of.

    Raises:
        MethodError: there is none, one is something else, two share a name, or a setting is nothing that JSON can hold.
    """
    if not points or not all(isinstance(point, OperatingPoint) for point in points):
        raise MethodError(f"operating_points returned {points!r}: return at least one OperatingPoint(name, params)")
    names = [point.name for point in points]
    if not all(isinstance(name, str) and name for name in names):
        raise MethodError(f'operating points are named {names}: give each a name, e.g. "speed=0.5"')
    if len(set(names)) < len(names):
        raise MethodError(f"operating points share a name: {names}: name each after its settings")
    for point in points:
        try:
            json.dumps(dict(point.params), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise MethodError(f"operating point '{point.name}': params {error}: use plain numbers and text") from error
    return list(points)


def one_line(result: Result) -> str:
    """A result as a line for the terminal while the run goes on."""
    cell, speed = result.cell, result.speed
    ratio = "" if speed.speedup is None else f", {speed.speedup:.2f}x {speed.reference}"
    return (
        f"{cell.dataset} {cell.method} {cell.point} seed {cell.seed}: {result.quality.accuracy:.1%} accuracy, "
        f"{result.cost.mean_layers:.2f} layers, {speed.samples_per_s:,.0f} samples/s{ratio}"
    )


class Grid:
    """All cells of a run."""

    def __init__(self, settings: Settings) -> None:
        validate_settings(settings)
        self.settings = settings
        self.run = RunFolder.create(settings.out)
        self.outcome = GridOutcome()
        self._identities: dict[str, str] = {}

    def execute(self) -> GridOutcome:
        """Measure what is missing. Killed at any moment and called again, it loses at most the cell in hand.

        Raises:
            GeepBenchError: the input cannot be used; finished cells stay.
        """
        profile = self.settings.profile
        self.run.results()  # sets broken files aside first, and refuses another schema before any work
        for message in self.run.broken:
            print(message, file=sys.stderr)
        write_json(self.run.path / "run.json", self._facts())
        jobs = [(d, s, m) for d in profile.datasets for s in profile.seeds for m in profile.methods]
        session: Session | None = None
        with FitPool(self.settings) as pool, tqdm(total=len(jobs), desc="run", unit="method", disable=None) as bar:
            for number, (dataset, seed, method) in enumerate(jobs, start=1):
                bar.set_description(f"{dataset} {method} seed {seed}")
                stored = self._stored(dataset, method, seed)
                if stored is not None:
                    self.outcome.kept += stored
                    bar.update()
                    continue
                if session is None or (session.dataset, session.seed) != (dataset, seed):
                    session = Session(self.settings, dataset, seed)
                    pool.fit(session, [name for name in profile.methods if self._stored(dataset, name, seed) is None])
                self._measure(session, method, bar, f"[{number}/{len(jobs)}]")
                bar.update()
        return self.outcome

    def fit(self) -> GridOutcome:
        """Fit all methods and the methods they need into the cache; measure nothing.

        Raises:
            GeepBenchError: the input cannot be used; finished fits stay.
        """
        profile = self.settings.profile
        jobs = [(d, s, m) for d in profile.datasets for s in profile.seeds for m in profile.methods]
        session: Session | None = None
        with FitPool(self.settings) as pool:
            for dataset, seed, method in tqdm(jobs, desc="fits", unit="method", disable=None):
                if session is None or (session.dataset, session.seed) != (dataset, seed):
                    session = Session(self.settings, dataset, seed)
                    pool.fit(session, profile.methods)
                try:
                    session.fitted(method)
                    self.outcome.fitted += 1
                except Exception as error:
                    if is_fatal(error):
                        raise
                    self._failed(session.cell(method, OperatingPoint("fit")), error)
        return self.outcome

    def _facts(self) -> dict[str, Any]:
        """What was asked, without any path of this machine."""
        settings = self.settings
        facts = settings.profile.model_dump(mode="json")
        tables = [facts["backbones"], *facts["method"].values()]
        tables += [value for table in tables for value in table.values() if isinstance(value, dict)]  # one per language
        for table in tables:
            table.update({key: Path(value).expanduser().name for key, value in table.items() if _is_folder(value)})
        return {"profile": facts, "source": settings.source, "device": settings.device, "dtype": settings.dtype}

    def _key(self, dataset: str, method: str) -> str:
        """Content key of a method's cells: settings and data that results follow from."""
        profile = self.settings.profile
        if dataset not in self._identities:
            self._identities[dataset] = source_identity(dataset, self.settings.source, self.settings.data)
        names = profile.in_order([method, profile.reference])
        named = {name: content for name in names if (content := profile.named_content(name)) is not None}
        return content_key(
            CHASSIS_VERSION,
            [(profile.identity(name), profile.method_of(name).version, profile.config(name)) for name in names],
            self._identities[dataset],
            profile.model_dump(include={"reference", "rounds", "max_length", "max_train", "max_test", "backbones"}),
            asdict(self.settings.execution),
            self.settings.device,
            *([named] if named else []),
        )

    def _stored(self, dataset: str, method: str, seed: int) -> int | None:
        """Number of this method's cells, if all of them are stored and were made with these settings; else ``None``."""
        path = plan_path(self.run, dataset, method, seed)
        plan = self._plan(path)
        try:
            if self.settings.fresh or plan is None or plan["key"] != self._key(dataset, method):
                return None
        except MethodError:  # reported when its turn comes
            return None
        done = [(self.run.path / "results" / f"{name}.json").is_file() for name in plan["cells"]]
        return len(done) if all(done) else None

    def _plan(self, path: Path) -> dict[str, Any] | None:
        """A stored plan; ``None`` where there is none. A broken one only costs asking the fitted method again."""
        try:
            plan = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(plan["key"], str) and all(isinstance(name, str) for name in plan["cells"]):
                return dict(plan)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return None

    def _measure(self, session: Session, name: str, bar: Any, place: str) -> None:
        """Fit one method and measure its cells, those that are missing; ``place`` says how far the run is."""
        path = plan_path(self.run, session.dataset, name, session.seed)
        plan = self._plan(path)
        placeholder = session.cell(name, OperatingPoint("fit"))
        key = ""
        try:
            key = self._key(session.dataset, name)
            fitted = session.fitted(name)
            with session.naming(name):
                points = checked_points(fitted.operating_points(session.prepared.task.dev))
            cells = {session.cell(name, point, fitted): point for point in points}
        except Exception as error:
            if is_fatal(error):
                raise
            if plan and key and plan["key"] != key:  # results of other settings are no results of these
                for outdated in plan["cells"]:
                    self.run.forget_result(outdated)
            self._failed(placeholder, error)
            return
        self.run.forget_failure(placeholder)
        if plan is None or plan["key"] != key:
            # Results of other settings must neither pass for these when this run is killed, nor stand beside them.
            for outdated in {*(plan["cells"] if plan else ()), *(self.run.result_path(cell).stem for cell in cells)}:
                self.run.forget_result(outdated)
        write_json(path, {"key": key, "cells": [self.run.result_path(cell).stem for cell in cells]})
        before: SavedState | None = None
        for cell, point in cells.items():
            if not self.settings.fresh and self.run.result_path(cell).is_file():
                self.outcome.kept += 1
                continue
            bar.set_postfix_str(point.name)
            try:
                reference = self._reference(session)
                with session.naming(name):
                    before = before or SavedState.of(fitted)
                    start = clock.now()
                    measured = self.measure_cell(session, fitted, point, reference)
                    beside = self._beside(session, name, Contender(fitted, self._executed(point)), measured, before)
                method = self.settings.profile.method_of(name)
                role = method.role if isinstance(method, HasRole) else None
                result = build_result(
                    cell, fitted, point, measured, session.prepared, beside, kind=method.kind, role=role
                )
                self.run.save(result, sample_rows(measured, session.prepared))
            except Exception as error:
                if is_fatal(error):
                    raise
                self._failed(cell, error)
                continue
            self.run.forget_failure(cell)
            self.outcome.measured += 1
            self.outcome.seconds += clock.now() - start
            self.outcome.predicting += measured.predicting + beside.predicting
            bar.write(f"{place} {one_line(result)}", file=sys.stderr)

    def _failed(self, cell: Cell, error: Exception) -> None:
        """Record and tell what a method raised.

        Raises:
            DeviceError: the device is gone, so that nothing else would work.
        """
        self.outcome.failed += 1
        reason = f"{format_error(error)}{advice(error)}"
        where = self.run.fail(cell, "".join(traceback.format_exception(error)), reason)
        print(f"{cell.dataset} {cell.method} {cell.point}: {reason} (see {where}); going on", file=sys.stderr)
        check_alive(self.settings.device)

    def _reference(self, session: Session) -> Contender | None:
        """What speed-ups are measured against, if it is among the methods of this run."""
        profile = self.settings.profile
        if profile.reference not in profile.methods:
            return None
        try:
            rival = session.fitted(profile.reference)
            points = checked_points(rival.operating_points(session.prepared.task.dev))
        except Exception as error:
            if is_fatal(error):
                raise
            # Measured without it, cells would lack their speed-ups for good.
            raise MethodError(
                f"no speed-up without the reference '{profile.reference}': {format_error(error)}"
            ) from error
        return Contender(rival, self._executed(points[0]))

    def _executed(self, point: OperatingPoint) -> OperatingPoint:
        return replace(point, execution=self.settings.execution)

    def _beside(
        self, session: Session, name: str, contender: Contender, measured: Measured, before: SavedState
    ) -> Diagnostics:
        """What is looked at beside the rounds of a cell."""
        method, borrowed = self.settings.profile.method_of(name), 0
        if not before.weights:  # then another's are needed at inference
            borrowed = sum(SavedState.of(session.fitted(need)).size for need in method.needs)
        return diagnose(
            contender,
            session.prepared.test.tokens,
            measured.predictions.logits.argmax(1),
            before,
            control=method.kind == "control",
            borrowed=borrowed,
            host_peak=measured.host_peak_bytes,
            seed=session.seed,
        )

    def measure_cell(
        self, session: Session, fitted: Fitted, point: OperatingPoint, reference: Contender | None
    ) -> Measured:
        """Time one cell next to the reference."""
        return measure(
            Contender(fitted, self._executed(point)),
            session.prepared.test.tokens,
            rounds=self.settings.profile.rounds,
            seed=session.seed,
            reference=reference,
            reference_name=self.settings.profile.reference,
        )
