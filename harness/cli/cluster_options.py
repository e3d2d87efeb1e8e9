"""The options of ``geep-bench run`` that say where it runs: on this machine, or on the nodes of a cluster."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from harness.core.errors import ConfigError

if TYPE_CHECKING:
    from harness.running.cluster.preflight import ClusterOptions


def _place(text: str) -> str:
    if text not in ("local", "ray") and not text.startswith("ray://"):
        raise argparse.ArgumentTypeError(f"'{text}' is not local, ray or ray://HOST:PORT")
    return text


def add_cluster_options(run: argparse.ArgumentParser) -> None:
    """Add the options."""
    group = run.add_argument_group("many machines")
    group.add_argument(
        "--on",
        type=_place,
        default="local",
        metavar="WHERE",
        help="local (default): this machine, fits in --workers processes; ray: the Ray cluster of $RAY_ADDRESS, or the one that "
        "this machine belongs to; ray://HOST:PORT: another one",
    )
    group.add_argument(
        "--measure-on",
        metavar="LABEL",
        help="measure on nodes with this label only: a custom resource (ray start --resources) or KEY=VALUE (--labels)",
    )
    group.add_argument(
        "--store",
        metavar="URL",
        help="data, fits and results go through this URL (fsspec, such as s3://BUCKET/PATH), where nodes share no folder",
    )


def cluster_options(args: argparse.Namespace) -> ClusterOptions | None:
    """Return the options of a run on a cluster, ``None`` for one on this machine.

    Raises:
        ConfigError: an option of a cluster is given without one.
    """
    if args.on == "local":
        for option in ("measure_on", "store"):
            if getattr(args, option):
                raise ConfigError(f"--{option.replace('_', '-')} is for a cluster: add --on ray")
        return None
    from harness.running.cluster.preflight import ClusterOptions

    return ClusterOptions("" if args.on == "ray" else args.on, args.measure_on or "", args.store, args.device)
