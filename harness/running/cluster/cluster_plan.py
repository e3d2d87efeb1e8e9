"""What is left to do of a run on a cluster, and for how long (``geep-bench run --on ray --dry-run``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from harness.core.terminal_table import terminal_table
from harness.running.fits.fit_plan import FitJob, shown_time
from harness.running.scheduling.simulation import makespan
from harness.running.scheduling.work_items import Node, WorkItem


class RunPart(NamedTuple):
    """One dataset and seed."""

    dataset: str
    seed: int

    def __str__(self) -> str:
        return f"{self.dataset} seed {self.seed}"


@dataclass
class ClusterPlan:
    """What is left to do.

    Attributes:
        kept: cells that are finished.
        methods: part -> methods whose cells, or fits with ``--fit-only``, are wanted.
        keys: part -> method -> content key that its cells have with these settings; without methods that cannot be used.
        needs: missing fit -> missing fits that it needs.
        seconds: of missing fits, as expected.
        recorded: those whose seconds come from earlier fits.
        failed: methods that cannot be used, with the reason.
        fits: fits in all, those in the cache or the store included.
        broken: part -> why nothing is known of it.
    """

    kept: int = 0
    methods: dict[RunPart, list[str]] = field(default_factory=dict)
    keys: dict[RunPart, dict[str, str]] = field(default_factory=dict)
    needs: dict[FitJob, list[FitJob]] = field(default_factory=dict)
    seconds: dict[FitJob, float] = field(default_factory=dict)
    recorded: set[FitJob] = field(default_factory=set)
    failed: dict[FitJob, str] = field(default_factory=dict)
    fits: int = 0
    broken: dict[RunPart, str] = field(default_factory=dict)


def shown_forecast(
    plan: ClusterPlan, items: Sequence[WorkItem], nodes: Sequence[Node], facts: Mapping[str, Mapping[str, Any]]
) -> str:
    """Return tables of nodes and datasets, and the expected time of fits on these nodes."""
    rows = [
        [node.name, facts[node.name]["cpu"], f"{node.cpus:g}", f"{node.gpus:g}", ", ".join(sorted(node.kinds))]
        for node in nodes
    ]
    parts = [terminal_table(["node", "CPU", "CPUs", "GPUs", "labels"], rows)]
    sets: dict[str, list[WorkItem]] = {}
    fits = [item for item in items if not item.alone]
    for item in fits:
        sets.setdefault(item.key.dataset, []).append(item)
    lines = [
        [
            name,
            str(len(own)),
            shown_time(sum(item.seconds for item in own)),
            f"{sum(item.key in plan.recorded for item in own)} of {len(own)}",
            str(sum(len(methods) for part, methods in plan.methods.items() if part.dataset == name)),
        ]
        for name, own in sets.items()
    ]
    if lines:
        heads = ["dataset", "missing fits", "left to fit", "times recorded", "methods to measure"]
        parts.append(terminal_table(heads, lines))
    found = makespan(fits, nodes)
    measuring = sum(item.alone for item in items)
    parts.append(
        f"fits: {plan.fits - len(fits)} of {plan.fits} cached, {len(fits)} missing; {shown_time(found.work)} one after the other, "
        f"about {shown_time(found.seconds)} on {len(nodes)} nodes; the longest chain {shown_time(found.chain)}\n"
        f"measurements: {measuring} datasets and seeds, each alone on its node; {plan.kept} cells kept\n"
    )
    return "\n".join(parts)
