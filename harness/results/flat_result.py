"""A result as one row of a data frame, with flat names."""

from __future__ import annotations

from typing import Any

from harness.results.run_folder import stem
from harness.results.schema import Result, Speed

_TIMES = [
    name for name in Speed.model_fields if name not in ("phases", "round_seconds", "reference_seconds", "together")
]


def flat(result: Result) -> dict[str, Any]:
    """Return the row of a cell, see :meth:`harness.api.Run.results`."""
    cell, training, resources = result.cell, result.training, result.resources
    latency = {f"latency_{name}": getattr(one, name) for one in result.latency[:1] for name in ("p50", "p90", "p99")}
    first = {name: getattr(cell, name) for name in ("dataset", "method", "point", "seed")}
    return {
        **first,
        "cell": stem(cell),
        "kind": result.kind,
        "role": result.role,
        **result.quality.model_dump(),
        **result.cost.model_dump(),
        **{name: getattr(result.speed, name, None) for name in _TIMES},
        "samples_per_s_from_text": result.samples_per_s_from_text,
        **latency,
        "peak_memory_bytes": result.peak_memory_bytes,
        "disk_bytes": resources.disk_bytes if resources else None,
        "training_seconds": training.seconds if training else None,
        "training_flops": training.flops if training else None,
        "language": result.language,
        "synthetic": result.synthetic,
        **{name: value for name, value in cell.model_dump().items() if name not in first},
    }
