"""The grid on many machines with Ray (extra ``ray``): one task per dataset and seed, all into one shared run folder.

::

    python -m harness.cli.distributed run --profile paper --out /shared/runs/paper

takes the options of ``geep-bench run``. Every task reserves a whole GPU (or, on the CPU, all cores of its machine),
because cells that share a device do not time each other fairly. The run folder and ``$GEEP_BENCH_CACHE`` must be on a
file system that all machines see. The report is made once, at the end, by ``geep-bench report``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from harness.cli.main import parser, settings_of
from harness.core.command_line import exit_codes
from harness.core.errors import ConfigError
from harness.running.grid import Grid, GridOutcome
from harness.running.settings import Settings, validate_settings


def parts(settings: Settings) -> list[Settings]:
    """One piece of work per dataset and seed."""
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
    return Grid(settings).execute()


def execute(settings: Settings) -> GridOutcome:
    """Run all parts on the cluster that ``$RAY_ADDRESS`` names, or on this machine; returns the summed outcome.

    A part that fails for a reason of its input ends the whole; finished cells stay, as in a plain run.

    Raises:
        GeepBenchError: an input cannot be used, or Ray is not installed.
    """
    ray = _ray()
    validate_settings(settings)
    ray.init(ignore_reinit_error=True)
    needs = {"num_gpus": 1} if settings.device == "cuda" else {"num_cpus": os.cpu_count() or 1}
    remote = ray.remote(**needs)(_execute)
    waiting = [remote.remote(part) for part in parts(settings)]
    total = GridOutcome()
    with tqdm(total=len(waiting), desc="datasets", disable=None) as bar:
        while waiting:
            done, waiting = ray.wait(waiting, num_returns=1)
            for outcome in ray.get(done):
                for name in ("measured", "kept", "failed", "seconds", "predicting"):
                    setattr(total, name, getattr(total, name) + getattr(outcome, name))
            bar.update(len(done))
    return total


@exit_codes("distributed")
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    args = parser().parse_args(arguments)
    if args.command != "run":
        raise ConfigError("only 'run' goes to many machines: python -m harness.cli.distributed run --profile P ...")
    settings = settings_of(args)
    outcome = execute(settings)
    print(f"cells: {outcome.measured} measured, {outcome.kept} kept from before, {outcome.failed} failed")
    print(f"now make the report: geep-bench report {settings.out}")
    return 1 if outcome.failed else 0


if __name__ == "__main__":
    sys.exit(main())
