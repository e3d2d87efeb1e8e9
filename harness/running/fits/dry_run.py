"""What a run would do, and for how long, before anything starts (``geep-bench run --dry-run``)."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from harness.contracts import Execution, NamesPoints
from harness.core import clock
from harness.core.environment import torch_threads
from harness.core.errors import is_fatal
from harness.core.terminal_table import terminal_table
from harness.core.tokens import TokenSet
from harness.encoder.multi_exit import MultiExitModel
from harness.execution.executors import run_full
from harness.measure.passes import precision
from harness.running.fits.fit_plan import FitJob, missing_fits, shown_time
from harness.running.fits.fit_times import FitTimes, RowTimes, longest_chain
from harness.running.grid import Grid
from harness.running.measuring.pass_counts import passes_of
from harness.running.run_settings import Settings
from harness.running.session import Session
from harness.toolkit.training import training_layout

PROBE = 60.0  # seconds for all datasets together
_ROWS = 32


def probe(session: Session, seconds: float) -> RowTimes:
    """Time training and prediction of one row at full depth, on batches of this dataset, for about this many seconds."""
    settings, task, backbone = session.settings, session.prepared.task, session.backbone
    model = MultiExitModel(backbone.encoder(), task.num_labels).to(backbone.device)
    lengths = task.train.tokens.lengths.cpu()
    chosen = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(0))[: 16 * _ROWS]
    # Of similar length, as in training; in random order, as there may be time for some of them only.
    batches = [task.train.tokens.select(rows) for rows in chosen[lengths[chosen].argsort(stable=True)].split(_ROWS)]
    order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(0)).tolist()
    execution = Execution(batch_size=_ROWS, max_length=settings.profile.max_length)

    def rate(run: Callable[[TokenSet], object], end: float) -> float:
        spent = []
        for number in [order[0], *order]:  # the first one warms up
            start = clock.now()
            run(batches[number])
            clock.synchronise(backbone.device)
            spent.append((clock.now() - start) / len(batches[number]))
            if len(spent) > 1 and clock.now() > end:
                break
        return sum(spent[1:]) / len(spent[1:])

    def train(batch: TokenSet) -> None:
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=kind == "bfloat16"):
            *_, hidden = model.encoder.states(batch, layout := training_layout(batch))
            loss = model.teacher(hidden, layout).float().square().mean()
        loss.backward()
        model.zero_grad(set_to_none=True)

    kind, start = settings.precision(settings.profile.reference), clock.now()
    with torch_threads(settings.fit_threads):
        trained = rate(train, start + 0.7 * seconds)
    model.eval()
    with torch.inference_mode(), precision(batches[0].device, settings.dtype):
        predicted = rate(lambda batch: run_full(model, batch, execution), start + seconds)
    return RowTimes(trained, predicted)


@dataclass
class Forecast:
    """What a run would do.

    Attributes:
        fits, cells: dataset -> number in all.
        missing_cells: dataset, seed and method -> number of cells to measure.
        needs: missing fit -> missing fits that it needs.
        fit_seconds: of missing fits; ``recorded``: the jobs whose time comes from fits in the cache.
        measuring: dataset, seed and method -> seconds of all missing cells, at most: as if each sample ran all layers.
        choosing: missing fits that train nothing, as their weights are there, or another one trains them.
    """

    workers: int
    fits: Counter[str] = field(default_factory=Counter)
    cells: Counter[str] = field(default_factory=Counter)
    missing_cells: dict[FitJob, int] = field(default_factory=dict)
    measuring: dict[FitJob, float] = field(default_factory=dict)
    needs: dict[FitJob, list[FitJob]] = field(default_factory=dict)
    fit_seconds: dict[FitJob, float] = field(default_factory=dict)
    recorded: set[FitJob] = field(default_factory=set)
    choosing: set[FitJob] = field(default_factory=set)
    unusable: list[str] = field(default_factory=list)
    tokens: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return the tables and totals for the terminal."""
        rows = []
        for name, fits in self.fits.items():
            jobs = [job for job in self.needs if job.dataset == name]
            left = sum(count for job, count in self.missing_cells.items() if job.dataset == name)
            rows.append(
                [
                    name,
                    f"{self.tokens[name]:.0f}",
                    f"{fits - len(jobs)} of {fits}",
                    str(sum(job not in self.choosing for job in jobs)),
                    shown_time(sum(self.fit_seconds[job] for job in jobs)),
                    f"{self.cells[name] - left} of {self.cells[name]}",
                    shown_time(sum(seconds for job, seconds in self.measuring.items() if job.dataset == name)),
                ]
            )
        heads = ["dataset", "tokens a row", "fits cached", "to train", "left to fit", "cells stored", "left to measure"]
        parts = [terminal_table(heads, rows)] if rows else []
        lines = []
        for name in dict.fromkeys(job.method for job in (*self.needs, *self.missing_cells)):
            jobs = [job for job in self.needs if job.method == name]
            basis = {job in self.recorded for job in jobs}
            measured = [job for job in self.missing_cells if job.method == name]
            cells = sum(self.missing_cells[job] for job in measured)
            lines.append(
                [
                    name,
                    str(len(jobs)),
                    shown_time(sum(self.fit_seconds[job] for job in jobs) / len(jobs)) if jobs else "",
                    {(): "", (True,): "earlier fits", (False,): "shapes, at most"}.get(tuple(basis), "both"),
                    str(cells),
                    shown_time(sum(self.measuring[job] for job in measured) / cells) if cells else "",
                ]
            )
        if lines:
            heads = ["method", "missing fits", "one fit", "from", "missing cells", "one cell"]
            parts.append(terminal_table(heads, lines))
        total, chain = sum(self.fit_seconds.values()), longest_chain(self.needs, self.fit_seconds)
        longest = max(total / self.workers, chain)
        parts.append(
            f"fits: {len(self.needs)} missing, of which {len(self.needs) - len(self.choosing)} train; {shown_time(total)} in one "
            f"process, about {shown_time(longest)} in {self.workers} (--workers); the longest chain {shown_time(chain)}\n"
            f"cells: {sum(self.missing_cells.values())} missing, at most {shown_time(sum(self.measuring.values()))}\n"
        )
        return "\n".join([*parts, *(f"{line}\n" for line in self.unusable)])


def forecast(settings: Settings, *, seconds: float = PROBE) -> Forecast:
    """Return what a run with these settings would do; it loads data and backbones, and computes for a minute at most.

    Raises:
        GeepBenchError: whatever a run refuses.
    """
    new = not settings.out.exists()
    grid = Grid(settings)
    try:
        return _forecast(grid, seconds)
    finally:
        if new:
            shutil.rmtree(settings.out, ignore_errors=True)


def _forecast(grid: Grid, seconds: float) -> Forecast:
    profile = grid.settings.profile
    found = Forecast(profile.workers)
    stored = grid.check()
    times: dict[str, RowTimes] = {}
    rows: dict[str, int] = {}
    depth = 0
    for dataset, seed in dict.fromkeys(job[:2] for job in stored):
        methods = [job[2] for job in stored if job[:2] == (dataset, seed)]
        session = grid.open_session(dataset, seed)
        try:
            missing = missing_fits(session, methods)
            if dataset not in times:
                tokens = session.prepared.task.train.tokens
                rows[dataset], depth = len(tokens), session.backbone.shape.layers
                found.tokens[dataset] = float(tokens.lengths.double().mean())
                times[dataset] = probe(session, seconds / len(profile.datasets))
        except Exception as error:
            if is_fatal(error):
                raise
            found.unusable.append(f"{dataset}: cannot be used: {error}")
            continue
        found.unusable += [f"{dataset} {name} seed {seed}: fails: {error}" for name, error in missing.failed.items()]
        found.needs |= missing.needs
        found.choosing |= missing.choosing
        usable = [name for name in methods if name not in missing.failed]
        found.fits[dataset] += len(profile.fits(usable))
        full_pass = times[dataset].predict * len(session.prepared.test)
        for name in usable:
            done, job = stored[dataset, seed, name], FitJob(dataset, seed, name)
            count = _points(profile.method_of(name), profile.config(name))
            found.cells[dataset] += count if done is None else done
            if done is None:
                found.missing_cells[job] = count
                found.measuring[job] = passes_of(profile, name, seed).seconds(full_pass, share=1.0)
    estimates = FitTimes(profile, rows, times, depth)
    for job in found.needs:
        found.fit_seconds[job], recorded = estimates.of_job(job, found.choosing)
        found.recorded |= {job} if recorded else set()
    return found


def _points(method: Any, config: dict[str, Any]) -> int:
    return len(method.point_names(config)) if isinstance(method, NamesPoints) else 1
