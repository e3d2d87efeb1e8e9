"""A back end that carries out nothing: tasks take their expected seconds on a clock of its own."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.running.scheduling.scheduler import Scheduler
from harness.running.scheduling.work_items import Answer, Ended, Node, WorkItem


@dataclass
class SimulatedNodes:
    """Nodes that only let time pass.

    Attributes:
        machines: the nodes that are there now.
        busy: node -> seconds during which it had a task.
    """

    machines: list[Node]
    busy: dict[str, float] = field(default_factory=dict)
    clock: float = 0.0
    _ends: list[tuple[float, int, Any]] = field(default_factory=list)
    _on: dict[Any, str] = field(default_factory=dict)
    _count: int = 0

    def nodes(self) -> Sequence[Node]:
        return self.machines

    def start(self, item: WorkItem, node: Node) -> None:
        self._count += 1
        heapq.heappush(self._ends, (self.clock + item.seconds, self._count, item.key))
        self.busy[node.name] = self.busy.get(node.name, 0.0) + item.seconds
        self._on[item.key] = node.name

    def answer(self, key: Any) -> Answer:
        """Return what a task answers when it ends."""
        return {}

    def wait(self, seconds: float) -> Sequence[Ended]:
        if not self._ends or self._ends[0][0] > self.clock + seconds:
            self.clock += seconds
            return []
        self.clock, _, key = heapq.heappop(self._ends)
        return [Ended(key, self.answer(key))]

    def stop(self) -> None:
        self._ends.clear()

    def now(self) -> float:
        return self.clock


@dataclass(frozen=True)
class Makespan:
    """How long tasks take on some nodes.

    Attributes:
        seconds: from the first start to the last end.
        work: seconds of all tasks together.
        chain: seconds of the longest chain of tasks that wait for each other.
        nodes: their number.
    """

    seconds: float
    work: float
    chain: float
    nodes: int

    @property
    def bound(self) -> float:
        """No schedule of tasks that have a node each is shorter."""
        return max(self.chain, self.work / self.nodes)

    @property
    def idle(self) -> float:
        """Share of the nodes' time without a task, 0..1; of one task a node at a time."""
        return 1 - self.work / (self.nodes * self.seconds) if self.seconds else 0.0


def makespan(items: Sequence[WorkItem], nodes: Sequence[Node]) -> Makespan:
    """Return how long the scheduler takes for tasks on nodes if each takes its expected seconds."""
    simulated = SimulatedNodes(list(nodes))
    Scheduler(simulated).run(items)
    ends: dict[Any, float] = {}
    for item in items:
        ends[item.key] = item.seconds + max((ends.get(one, 0.0) for one in (*item.needs, *item.after)), default=0.0)
    work = sum(item.seconds for item in items)
    return Makespan(simulated.clock, work, max(ends.values(), default=0.0), len(nodes))
