"""What a fit reserves on a node of a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from pydantic import Field

from harness.core.settings import StrictSettings

DEFAULT = "default"  # stands for all methods that have no table of their own


class FitResources(StrictSettings):
    """What fits of one method reserve on a node of a cluster, in a table ``resources.METHOD``, or ``resources.default`` for all."""

    cpus: float | None = Field(default=None, gt=0, description="CPUs; by default the threads of a fit, on a GPU one")
    gpus: float | None = Field(
        default=None, ge=0, description="GPUs, or a share of one; by default one with `--device cuda`"
    )
    memory_gib: float | None = Field(default=None, ge=0, description="memory in GiB; by default none is reserved")


class Reserved(NamedTuple):
    """CPUs, GPUs and bytes of memory."""

    cpus: float
    gpus: float
    memory: int


def reserved(tables: Mapping[str, FitResources], name: str, device: str, threads: int) -> Reserved:
    """Return what a fit reserves: by its own table, else by the default one, else by threads and device."""
    own, others = tables.get(name, FitResources()), tables.get(DEFAULT, FitResources())
    cpus = own.cpus or others.cpus or max(1, threads)
    gpus = next((one.gpus for one in (own, others) if one.gpus is not None), 1.0) if device == "cuda" else 0.0
    memory = next((one.memory_gib for one in (own, others) if one.memory_gib is not None), 0.0)
    return Reserved(cpus, gpus, int(memory * 2**30))
