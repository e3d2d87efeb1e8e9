"""Tasks and the nodes that carry them out, as the scheduler sees them; the interface of what starts tasks on nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

Answer = Mapping[str, Any]  # JSON; {"reason": ...} if the task failed by itself, so that it would fail again


@dataclass(frozen=True)
class Node:
    """A machine, or a share of one, that takes tasks.

    Attributes:
        name: unique.
        cpus: tasks on it may ask for this many together.
        gpus: devices.
        memory: bytes that tasks may ask for together; 0: unknown, so not limited.
        kinds: labels that the user gave it.
    """

    name: str
    cpus: float
    gpus: float = 0.0
    memory: int = 0
    kinds: frozenset[str] = frozenset()


@dataclass(frozen=True)
class WorkItem:
    """One task.

    Attributes:
        key: unique, comparable and shown to the user.
        needs: tasks that must have succeeded before it starts; if one fails, so does this one.
        after: tasks that must have ended, in whatever way.
        seconds: expected duration.
        cpus, gpus, memory: what it reserves. With ``alone``, it has the whole node.
        alone: nothing else runs on its node, because it is timed.
        kind: label of the nodes that may run it; empty: any.
        place: what a node keeps loaded for it, e.g. a dataset; tasks of one place go to the same node if they can.
        message: request to the node; JSON.
    """

    key: Any
    needs: tuple[Any, ...] = ()
    after: tuple[Any, ...] = ()
    seconds: float = 1.0
    cpus: float = 1.0
    gpus: float = 0.0
    memory: int = 0
    alone: bool = False
    kind: str = ""
    place: str = ""
    message: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def fits(self, node: Node) -> bool:
        """Return whether a node that does nothing else could carry it out."""
        enough = self.cpus <= node.cpus and self.gpus <= node.gpus and (not node.memory or self.memory <= node.memory)
        return enough and (not self.kind or self.kind in node.kinds)


@dataclass(frozen=True)
class Ended:
    """How an attempt at a task ended.

    Attributes:
        answer: of the task; ``None`` if it was lost with its process or node, so that another attempt may succeed.
        lost: why, in words.
    """

    key: Any
    answer: Answer | None
    lost: str = ""


class BackEnd(Protocol):
    """Starts tasks on nodes: processes of this machine, a cluster, or a simulation."""

    def nodes(self) -> Sequence[Node]:
        """Return the nodes that can take tasks now."""
        ...

    def start(self, item: WorkItem, node: Node) -> None:
        """Start a task; returns at once. If the node is gone, :meth:`wait` says that the task was lost."""
        ...

    def wait(self, seconds: float) -> Sequence[Ended]:
        """Return what has ended, after waiting for at most this long."""
        ...

    def stop(self) -> None:
        """End all tasks now."""
        ...

    def now(self) -> float:
        """Return seconds since some start."""
        ...
