"""A run on many machines with Ray (extra ``ray``): one task per dataset and seed, all into one shared run folder.

Every task reserves a whole GPU or, on the CPU, all cores of its machine, because cells that share a device disturb each
other's timing. The run folder and ``$GEEP_BENCH_CACHE`` must be on a file system that all machines share.
"""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from typing import Any

from tqdm import tqdm

from harness.core.errors import ConfigError
from harness.running.grid import Grid, GridOutcome
from harness.running.run_settings import Settings, validate_settings


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

    Unusable input ends all parts; finished cells stay, as in a plain run.

    Raises:
        GeepBenchError: an input cannot be used, or Ray is not installed.
    """
    ray = _ray()
    validate_settings(settings)
    ray.init(ignore_reinit_error=True)
    needs = {"num_gpus": 1} if settings.device == "cuda" else {"num_cpus": os.cpu_count() or 1}
    remote = ray.remote(**needs)(_execute)
    waiting = [remote.remote(part) for part in parts(settings)]
    total = dict.fromkeys(asdict(GridOutcome()), 0)
    with tqdm(total=len(waiting), desc="datasets", disable=None) as bar:
        while waiting:
            done, waiting = ray.wait(waiting, num_returns=1)
            for outcome in ray.get(done):
                total = {name: value + getattr(outcome, name) for name, value in total.items()}
            bar.update(len(done))
    return GridOutcome(**total)
