"""Work of a cluster node, on request: describe itself, plan a dataset and seed, fit a method, measure cells.

A message and its answer are JSON. Every message has ``work`` and ``run`` (:func:`run_message`); an answer with ``reason`` says that
the work failed, with ``refused`` that the input cannot be used.
"""

from __future__ import annotations

import io
import json
import os
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import harness
from harness.core.digest import content_digest
from harness.core.environment import COMMIT, ON_CLUSTER, environment_facts, node_name, torch_threads, usable_cores
from harness.core.errors import MethodError, format_error
from harness.core.files import cache_root, content_key
from harness.encoder.backbone import default_device
from harness.running.cluster.file_store import FileStore, RunMirror
from harness.running.fits.fit_maker import FitMaker, answer_of, settings_of_message
from harness.running.fits.fit_plan import missing_fits
from harness.running.fits.fit_times import FitTimes
from harness.running.grid import Grid
from harness.running.run_settings import Settings, validate_settings
from harness.running.session import Session

STORED = "store"  # folder of a node's cache, for data and backbones that came from the store


@cache
def code_digest() -> str:
    """Return 16 hex digits that change with the code of the harness."""
    return content_digest(Path(harness.__file__).parent)


def carry_out(text: str) -> str:
    """Do what a message says; return the answer. Nothing is printed here: the driver reports."""
    message = json.loads(text)
    os.environ[ON_CLUSTER] = "1"
    if message.get("commit"):
        os.environ[COMMIT] = message["commit"]
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        answer = answer_of(lambda: WORK[message["work"]](message))
    return json.dumps({**answer, "said": said.getvalue().splitlines()[-50:]})


def probe(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return facts about this node, and what it lacks for the run."""
    wanted, facts = message["check"], environment_facts()
    unseen = [place for place in wanted["folders"] if not os.path.exists(place)]
    lacks = [f"does not see {', '.join(unseen)}: use folders that all machines share, or --store URL"] if unseen else []
    if (url := message["run"]["store"]) is not None and FileStore(url).read(wanted["token"]) is None:
        lacks.append(f"cannot read the store {url}")
    # Checks names and settings with the plug-ins of this node, too.
    settings = None if lacks else run_of(message).settings
    return {
        "node": node_name(),
        "python": platform.python_version(),
        "versions": {name: found for name, found in facts["versions"].items() if name != "geep-bench"},
        "code": code_digest(),
        "cpu": facts["cpu"],
        "gpu": facts["gpu"] and facts["gpu"]["name"],
        "cores": usable_cores(),
        "device": default_device(),
        "precision": settings and settings.precision(settings.profile.reference),
        "compute": settings and settings.compute,
        "lacks": lacks,
    }


class NodeRun:
    """A run as this node knows it: settings, data, what has been loaded."""

    def __init__(self, message: Mapping[str, Any]) -> None:
        self.message = message
        if message["cache"] is not None:
            os.environ["GEEP_BENCH_CACHE"] = message["cache"]
        self.store = None if message["store"] is None else FileStore(message["store"])
        self.settings = settings_of_message(self._fetched(message), Path(message["out"] or "unused"))
        validate_settings(self.settings)
        self.maker = FitMaker(self.settings)

    def _fetched(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Return the message with the folders that lie in the store fetched, and named as they lie here."""
        for key in message["stored"]:
            assert self.store is not None
            self.store.get_folder(key, cache_root() / STORED / key)
        return {**message, "profile": _here(message["profile"]), "data": _here(message["data"])}

    def is_stored(self, session: Session, method: str) -> bool:
        """Return whether the store has a method's fit."""
        return self.store is not None and self.store.has_folder(_key(session.cache_folders(method)[-1]))

    def fetch(self, session: Session, method: str) -> None:
        """Fetch what the store has of a method's fit and of those that it needs.

        Trained weights are fetched where there is no fit yet. If that is the method's own, those of its teachers are, too: its
        training starts from them, and would train them again.
        """
        if self.store is None:
            return
        own = session.cache_folders(method)[-1]
        is_fitted = self.store.get_folder(_key(own), own)
        for name in session.settings.profile.fits([method]):
            weights, fit = session.cache_folders(name)
            if not self.store.get_folder(_key(fit), fit) or not is_fitted:
                self.store.get_folder(_key(weights), weights)

    def keep(self, session: Session, method: str) -> None:
        """Store a method's fit and those that it needs."""
        if self.store is not None:
            for name in session.settings.profile.fits([method]):
                for folder in session.cache_folders(name):
                    if folder.is_dir():
                        self.store.put_folder(folder, _key(folder))

    def part(self, dataset: str, seed: int) -> tuple[Settings, RunMirror | None]:
        """Return the settings of one dataset and seed, and the mirror of its run folder in the store."""
        profile = self.settings.profile.model_copy(update={"datasets": [dataset], "seeds": [seed]})
        if self.message["out"] is not None or self.store is None:
            return replace(self.settings, profile=profile), None
        key = self.message["key"]
        folder = cache_root() / "runs" / key / f"{dataset}-{seed}"
        start = re.sub(r"[^\w.=+-]+", "_", dataset) + "--"
        return replace(self.settings, profile=profile, out=folder), RunMirror(self.store, f"runs/{key}", folder, start)


def _here(value: Any) -> Any:
    """Return a value of a message with ``store:KEY`` replaced by the folder where its files lie here."""
    if isinstance(value, str) and value.startswith("store:"):
        return str(cache_root() / STORED / value.removeprefix("store:"))
    return {key: _here(part) for key, part in value.items()} if isinstance(value, dict) else value


def _key(folder: Path) -> str:
    return folder.relative_to(cache_root()).as_posix()


_runs: dict[str, NodeRun] = {}


def run_of(message: Mapping[str, Any]) -> NodeRun:
    """Return the run of a message; what it has loaded stays for the next one."""
    key = content_key(message["run"])
    if key not in _runs:
        _runs.clear()
        _runs[key] = NodeRun(message["run"])
    return _runs[key]


def plan(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is missing of a dataset and seed: cells and fits, with their expected seconds.

    Raises:
        GeepBenchError: the data or the backbone cannot be used.
    """
    run, dataset, seed = run_of(message), message["dataset"], message["seed"]
    settings, mirror = run.part(dataset, seed)
    methods = [name for name in settings.profile.methods if seed in settings.profile.seeds_of(name)]
    found: dict[str, Any] = {"kept": 0, "methods": methods, "keys": {}}
    if not message["fit_only"]:
        if mirror is not None:
            mirror.pull()
        grid = Grid(settings)
        stored = {job[2]: cells for job, cells in grid.check().items()}
        for name in stored:
            with suppress(MethodError):  # reported when the method is fitted
                found["keys"][name] = grid.keys.of(dataset, name, seed)
        if mirror is not None:
            mirror.forget()
        found["kept"] = sum(cells or 0 for cells in stored.values())
        methods = found["methods"] = [name for name, cells in stored.items() if cells is None]
    if not methods:
        return {**found, "needs": [], "choosing": [], "failed": {}, "seconds": [], "fits": 0, "rows": 0}
    with torch_threads(settings.fit_threads):
        session = run.maker.session(dataset, seed)
    missing = missing_fits(session, methods)
    for name in methods:  # what only this node's cache has is for all nodes
        if name not in missing.failed:
            run.keep(session, name)
    needs = {job: needed for job, needed in missing.needs.items() if not run.is_stored(session, job.method)}
    rows = len(session.prepared.task.train)
    times = FitTimes(settings.profile, {dataset: rows})
    seconds = {job: times.of_job(job, missing.choosing) for job in needs}
    return {
        **found,
        "needs": [[job.method, [need.method for need in needed if need in needs]] for job, needed in needs.items()],
        "choosing": [job.method for job in missing.choosing if job in needs],
        "failed": {name: format_error(error) for name, error in missing.failed.items()},
        "seconds": [[job.method, *time] for job, time in seconds.items()],
        "fits": len(settings.profile.fits([name for name in methods if name not in missing.failed])),
        "rows": rows,
    }


def fit(message: Mapping[str, Any]) -> dict[str, Any]:
    """Fit a method into the cache and the store."""
    run = run_of(message)
    session = run.maker.session(message["dataset"], message["seed"])
    run.fetch(session, message["method"])
    session.fit(message["method"])
    run.keep(session, message["method"])
    return {}


def _measured_with(settings: Settings, methods: Sequence[str]) -> list[str]:
    """Return the methods that passes of ``methods`` need: these, and the reference of their speed-ups."""
    reference = settings.profile.reference
    return list(dict.fromkeys([*methods, *([reference] if reference in settings.profile.methods else [])]))


def measure(message: Mapping[str, Any]) -> dict[str, Any]:
    """Measure the missing cells of a dataset and seed; return the counts of the outcome and the files that changed."""
    run, dataset, seed = run_of(message), message["dataset"], message["seed"]
    settings, mirror = run.part(dataset, seed)
    changed: set[str] = set()

    def keep() -> None:
        if mirror is not None:
            changed.update(mirror.push())

    if mirror is not None:
        mirror.pull()
    with torch_threads(int(message.get("cpus", 0))):
        grid = Grid(settings)
        session = grid.open_session(dataset, seed)
        session.failed.update(message["failed"])
        if run.store is not None:
            for name in _measured_with(settings, message["methods"]):
                with suppress(MethodError):  # the grid meets it again, and records it
                    run.fetch(session, name)
        outcome = grid.execute_part(after_cells=keep)
    keep()
    if mirror is not None:
        mirror.forget()
    return {"outcome": asdict(outcome), "changed": sorted(changed)}


WORK: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "probe": probe,
    "plan": plan,
    "fit": fit,
    "measure": measure,
}
