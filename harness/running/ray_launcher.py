"""A run on many machines with Ray (extra ``ray``): one task per dataset and seed, all into one shared run folder.

Every task reserves a whole GPU or, on the CPU, all cores of its machine, because cells that share a device disturb each
other's timing. The run folder and ``$GEEP_BENCH_CACHE`` must be on a file system that all machines share.
"""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, replace
from typing import Any

from tqdm import tqdm

from harness.core.errors import ConfigError, GeepBenchError, format_error
from harness.running.grid import Grid, GridOutcome
from harness.running.run_lock import run_lock
from harness.running.run_settings import Settings


def parts(settings: Settings) -> list[Settings]:
    """Return one run per dataset and seed."""
    profile = settings.profile
    return [
        replace(settings, profile=profile.model_copy(update={"datasets": [dataset], "seeds": [seed]}))
        for dataset in profile.datasets
        for seed in profile.seeds
    ]


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ConfigError("running on many machines needs Ray: pip install 'geep-bench[ray]'") from error
    return ray


def _execute(settings: Settings) -> GridOutcome:
    return Grid(settings).execute_unlocked()  # launch holds the lock for all parts


def launch(settings: Settings) -> GridOutcome:
    """Run all parts on the cluster that ``$RAY_ADDRESS`` names, or on this machine; return the summed outcome.

    All data and backbones are loaded here before the first part starts. A part that ends otherwise than by its own cells, e.g.
    because its machine was lost, counts as one failure; the others continue, and the same command again measures what is missing.

    Raises:
        GeepBenchError: an input cannot be used, another run uses the folder, nothing more can be written, or Ray is not installed.
    """
    ray = _ray()
    grid = Grid(settings)
    with run_lock(grid.run.path):
        grid.check()
        ray.init(ignore_reinit_error=True)
        needs = {"num_gpus": 1} if settings.device == "cuda" else {"num_cpus": os.cpu_count() or 1}
        remote = ray.remote(**needs)(_execute)
        waiting = [remote.remote(part) for part in parts(settings)]
        total = dict.fromkeys(asdict(GridOutcome()), 0)
        with tqdm(total=len(waiting), desc="datasets", disable=None) as bar:
            while waiting:
                done, waiting = ray.wait(waiting, num_returns=1)
                try:
                    (outcome,) = ray.get(done)
                except Exception as error:
                    if isinstance(error, GeepBenchError):
                        raise
                    print(f"one dataset and seed were not measured: {format_error(error)}", file=sys.stderr)
                    outcome = GridOutcome(failed=1)
                total = {name: value + getattr(outcome, name) for name, value in total.items()}
                bar.update(1)
    return GridOutcome(**total)
