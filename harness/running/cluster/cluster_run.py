"""A run whose fits and measurements are made on the nodes of a cluster; this process schedules, reports and stores."""

from __future__ import annotations

import secrets
import shutil
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from harness.contracts import OperatingPoint
from harness.core.environment import commit
from harness.core.errors import ConfigError, MethodError, SettingsError, WriteError
from harness.core.files import write_text
from harness.results.run_folder import RunFolder
from harness.running.cell_plan import CellPlan
from harness.running.cluster.checked_nodes import CheckedNodes
from harness.running.cluster.cluster_plan import ClusterPlan, RunPart, shown_forecast
from harness.running.cluster.file_store import FileStore, RunMirror
from harness.running.cluster.preflight import CheckedCluster, ClusterOptions, check_cluster, seen_files
from harness.running.fit_resources import reserved
from harness.running.fits.fit_plan import FitJob, TimeLeft, shown_time
from harness.running.fits.fit_times import FitTimes
from harness.running.grid import Grid, GridOutcome
from harness.running.run_lock import run_lock
from harness.running.run_settings import Settings
from harness.running.scheduling.scheduler import Event, Scheduler
from harness.running.scheduling.work_items import BackEnd, WorkItem
from harness.running.session import Session

_KEY = "cluster-key"  # file of the run folder: its name in the store
_MEASURING = 60.0  # seconds to measure the cells of a method, of which nothing is known before


class ClusterRun:
    """A run on a cluster.

    Args:
        settings: as for one machine; device and threads are chosen by what the nodes have.
        options: what the command line says about the cluster.
        back_end: the cluster.

    Raises:
        ConfigError: everything is to be made again, which only one machine does.
    """

    def __init__(self, settings: Settings, options: ClusterOptions, back_end: BackEnd) -> None:
        if settings.fresh:
            raise ConfigError(
                "--fresh is for one machine: on a cluster, choose another --out, and another cache or --store to fit again"
            )
        self._given, self._options, self._inner = settings, options, back_end
        self.outcome = GridOutcome()
        self._commit = commit()

    def execute(self, *, fit_only: bool = False) -> GridOutcome:
        """Fit and measure what is missing.

        Raises:
            GeepBenchError: an input or a node cannot be used, another run uses the folder, or nothing more can be written.
        """
        run = RunFolder.create(self._given.out)
        with run_lock(run.path), seen_files(self._given, self._options) as check:
            self._prepare(check)
            self._synchronise(run.path)
            grid = self._grid = Grid(self._settings, elsewhere=True)
            run.results()  # rejects another schema before any work, and sets broken files aside
            for message in run.broken:
                print(message, file=sys.stderr)
            if self._mirror is not None:
                self._mirror.push()  # else nodes would take a file that was set aside for a finished cell
            grid.write_facts()
            plan = self._plan(fit_only)
            self.outcome.kept = plan.kept
            self._carry_out(plan, fit_only)
            if self._mirror is not None:
                self._mirror.pull()
        return self.outcome

    def forecast(self) -> str:
        """Return what a run would do, and for how long; nothing is fitted or measured.

        Raises:
            GeepBenchError: whatever a run refuses.
        """
        new = not self._given.out.exists()
        run = RunFolder.create(self._given.out)
        try:
            return self._forecast(run.path)
        finally:
            if new:
                shutil.rmtree(run.path, ignore_errors=True)

    def _forecast(self, folder: Path) -> str:
        with run_lock(folder), seen_files(self._given, self._options) as check:
            self._prepare(check)
            self._synchronise(folder)
            self._grid = Grid(self._settings, elsewhere=True)
            plan = self._plan(fit_only=False)
            items = self._items(plan, fit_only=False)
            nodes = [node for node in self._inner.nodes() if node.name in self._cluster.facts]
            return shown_forecast(plan, items, nodes, self._cluster.facts)

    def _prepare(self, check: Mapping[str, Any]) -> None:
        cluster: CheckedCluster = check_cluster(self._given, self._options, self._inner, self._run_key(), check)
        self._cluster, self._settings = cluster, cluster.settings
        self._nodes = CheckedNodes(self._inner, set(cluster.facts), cluster.probe, cluster.problem)
        for name, facts in sorted(cluster.facts.items()):
            gpu = f", {facts['gpu']}" if facts["gpu"] else ""
            print(f"node {name}: {facts['cpu']}, {facts['cores']} cores{gpu}", file=sys.stderr)

    def _run_key(self) -> str:
        """Return the name of this run in the store, which stays the same when it is resumed."""
        if self._options.store is None:
            return ""
        path = Path(self._given.out) / _KEY
        if not path.is_file():
            write_text(path, secrets.token_hex(8) + "\n")
        return path.read_text(encoding="utf-8").strip()

    def _synchronise(self, folder: Path) -> None:
        self._mirror: RunMirror | None = None
        if self._options.store is not None:
            self._mirror = RunMirror(FileStore(self._options.store), f"runs/{self._run_key()}", folder)
            self._mirror.begin()

    def _message(self, work: str, part: RunPart, **more: Any) -> dict[str, Any]:
        return {
            "work": work,
            "run": self._cluster.message,
            "dataset": part.dataset,
            "seed": part.seed,
            "commit": self._commit,
            **more,
        }

    def _plan(self, fit_only: bool) -> ClusterPlan:
        """Ask nodes what is missing, one task per dataset and seed.

        Raises:
            GeepBenchError: data or backbones cannot be used; one line for each.
        """
        plan, refused, rows = ClusterPlan(), dict[str, None](), dict[str, int]()
        choosing: set[FitJob] = set()
        guesses: dict[FitJob, tuple[float, bool]] = {}

        def tell(event: Event) -> None:
            part, found = event.item.key, event.answer
            if event.kind == "failed":
                if found.get("refused"):
                    refused.update(dict.fromkeys(event.reason.splitlines()))
                elif found.get("fatal"):
                    raise WriteError(event.reason)
                else:
                    plan.broken[part] = event.reason
                    print(f"{part.dataset}: {event.reason}", file=sys.stderr)
            if event.kind != "done":
                return
            job = partial(FitJob, part.dataset, part.seed)
            plan.kept += found["kept"]
            plan.fits += found["fits"]
            plan.methods[part], plan.keys[part] = found["methods"], found["keys"]
            if found["methods"]:
                rows[part.dataset] = found["rows"]
            plan.needs |= {job(one): [job(need) for need in needs] for one, needs in found["needs"]}
            choosing.update(job(name) for name in found["choosing"])
            guesses.update({job(name): (time, known) for name, time, known in found["seconds"]})
            plan.failed |= {job(name): reason for name, reason in found["failed"].items()}

        parts = list(dict.fromkeys(RunPart(dataset, seed) for dataset, seed, _ in self._grid.jobs()))
        need = reserved(self._settings.profile.resources, "", self._settings.device, self._settings.fit_threads)
        items = [
            WorkItem(
                part,
                cpus=need.cpus,
                gpus=need.gpus,
                place=part.dataset,
                message=self._message("plan", part, fit_only=fit_only),
            )
            for part in parts
        ]
        Scheduler(self._nodes, tell).run(items)
        if refused:
            raise SettingsError(*refused) if len(refused) > 1 else ConfigError(*refused)
        # With fits of all sets to compare with, where this machine sees the cache of the nodes.
        times = FitTimes(self._settings.profile, rows) if self._options.store is None else None
        for job, (seconds, known) in guesses.items():
            plan.seconds[job], recorded = times.of_job(job, choosing) if times is not None else (seconds, known)
            plan.recorded |= {job} if recorded else set()
        return plan

    def _items(self, plan: ClusterPlan, fit_only: bool) -> list[WorkItem]:
        """Return fits, then measurements, each of which comes after the fits of its dataset and seed."""
        settings, items, fits = self._settings, list[WorkItem](), dict[RunPart, list[FitJob]]()
        self._failures: dict[RunPart, dict[str, str]] = {}
        for job, needs in plan.needs.items():
            part = RunPart(*job[:2])
            fits.setdefault(part, []).append(job)
            need = reserved(settings.profile.resources, job.method, settings.device, settings.fit_threads)
            items.append(
                WorkItem(
                    job,
                    needs=tuple(needs),
                    seconds=plan.seconds[job],
                    cpus=need.cpus,
                    gpus=need.gpus,
                    memory=need.memory,
                    place=job.dataset,
                    message=self._message("fit", part, method=job.method),
                )
            )
        if fit_only:
            return items
        for part, methods in plan.methods.items():
            if methods:
                failures = self._failures.setdefault(part, {})  # filled when fits fail, before this is sent
                items.append(
                    WorkItem(
                        part,
                        after=tuple(fits.get(part, ())),
                        seconds=_MEASURING * len(methods),
                        cpus=1.0,
                        gpus=1.0 if settings.device == "cuda" else 0.0,
                        alone=True,
                        kind=self._options.measure_on,
                        place=part.dataset,
                        message=self._message("measure", part, methods=methods, failed=failures),
                    )
                )
        return items

    def _carry_out(self, plan: ClusterPlan, fit_only: bool) -> None:
        items = self._items(plan, fit_only)
        left = TimeLeft({item.key: item.seconds for item in items}, max(1, len(self._cluster.facts)))
        before = {part: self._finished(plan, part) for part in plan.methods}
        ended = 0

        def tell(event: Event) -> None:
            nonlocal ended
            key, where = event.item.key, f" on {event.node}" if event.node else ""
            if event.answer.get("fatal"):
                raise WriteError(event.reason)
            if event.kind == "lost":
                print(f"{key}: {event.reason}{where}; trying again", file=sys.stderr)
            if event.kind == "failed" and isinstance(key, FitJob):
                self._failures.setdefault(RunPart(*key[:2]), {})[key.method] = event.reason
            if event.kind in ("done", "failed"):
                ended += 1
                if isinstance(key, RunPart):
                    self._measured(plan, key, event, before[key])
                did = "measured" if isinstance(key, RunPart) else "fitted"
                how = f"{did} in" if event.kind == "done" else f"failed ({event.reason}) after"
                rest = shown_time(left.after(key, event.seconds))
                running = self._running(scheduler)
                print(
                    f"[{ended}/{len(items)}] {key}: {how} {shown_time(event.seconds)}{where}; about {rest} left{running}",
                    file=sys.stderr,
                )

        scheduler = Scheduler(self._nodes, tell)
        failed = scheduler.run(items)
        for part, reason in plan.broken.items():
            for name in self._methods(part):
                self._record(part, name, reason)
        if fit_only:
            self._count_fits(plan, failed)

    @staticmethod
    def _running(scheduler: Scheduler) -> str:
        now = [f"{key} ({run.node.name})" for key, run in scheduler.running.items()]
        more = f" and {len(now) - 4} more" if len(now) > 4 else ""
        return f"; running: {', '.join(now[:4])}{more}" if now else ""

    def _methods(self, part: RunPart) -> list[str]:
        return [job[2] for job in self._grid.jobs() if job[:2] == part]

    def _cells(self, part: RunPart, method: str) -> CellPlan:
        return CellPlan.read(self._grid.run, part.dataset, method, part.seed)

    def _finished(self, plan: ClusterPlan, part: RunPart) -> set[str]:
        """Return the cells of the wanted methods that are finished with these settings, data and weights."""
        keys, found = plan.keys[part], set[str]()
        for name in plan.methods[part]:
            cells = self._cells(part, name)
            found |= {cell for cell in cells.cells if name in keys and cells.fits(cell, keys[name])}
        return found

    def _measured(self, plan: ClusterPlan, part: RunPart, event: Event, before: set[str]) -> None:
        """Count what a measurement did; if it was lost, record a failure for each method without all of its cells.

        Args:
            before: cells that were finished when the run began.
        """
        if event.kind == "done":
            for name, value in event.answer["outcome"].items():
                if name != "kept":  # those of other methods were counted by the plan
                    setattr(self.outcome, name, getattr(self.outcome, name) + value)
            for line in event.answer["said"]:
                print(line, file=sys.stderr)
            if self._mirror is not None:
                self._mirror.pull_files(event.answer["changed"])
            return
        if self._mirror is not None:
            self._mirror.pull()
        finished = self._finished(plan, part)
        self.outcome.measured += len(finished - before)
        for name in plan.methods[part]:
            cells = self._cells(part, name).cells
            if not cells or not finished.issuperset(cells):
                self._record(part, name, event.reason)

    def _record(self, part: RunPart, method: str, reason: str) -> None:
        """Record that a method has no cells."""
        session = Session(self._settings, *part)
        session.unusable = reason  # so that its backbone need not be loaded for its name
        self.outcome.failed += 1
        self._grid.record_failure(session.cell(method, OperatingPoint("fit")), MethodError(reason))
        if self._mirror is not None:
            self._mirror.push()  # else the next pull would delete the record

    def _count_fits(self, plan: ClusterPlan, failed: Mapping[Any, str]) -> None:
        """Count fits as :meth:`Grid.fit` does: of every method, by the fit that it runs."""
        for part in plan.methods:
            job = partial(FitJob, part.dataset, part.seed)
            for name in self._methods(part):
                reason = plan.failed.get(job(name)) or failed.get(job(self._settings.profile.fit_of(name)))
                if reason is None:
                    self.outcome.fitted += 1
                else:
                    self._record(part, name, reason)
