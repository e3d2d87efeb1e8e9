"""The scheduler: each task after those that it needs, longest chains first, timed ones alone on their node, lost ones again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.running.scheduling.work_items import Answer, BackEnd, Ended, Node, WorkItem

ATTEMPTS = 3
BACK_OFF = 2.0  # seconds before the second attempt; doubled before each further one
PATIENCE = 300.0  # seconds to wait for a node that can take the tasks that are left
_LOOK = 5.0  # seconds after which nodes are looked at again, as some may have come or gone
LEARNS_FROM_FAILED = "it learns from a method that failed"


@dataclass
class _Running:
    item: WorkItem
    node: Node
    started: float


@dataclass(frozen=True)
class Event:
    """A task that was started, that ended, or that was lost and will be tried again.

    Attributes:
        kind: ``"started"``, ``"done"``, ``"failed"`` or ``"lost"``.
        reason: why it failed or was lost.
        seconds: how long the attempt took.
        answer: of the node, where there is one.
    """

    kind: str
    item: WorkItem
    node: str = ""
    reason: str = ""
    seconds: float = 0.0
    answer: Answer = field(default_factory=dict)


class Scheduler:
    """Carries out tasks on the nodes of a back end.

    Of the tasks that may start, that one goes first after which most is left to do: its own seconds and the longest chain of tasks
    that wait for it. A task that is timed waits for an idle node of its kind; nothing else is started on the node it waits for.

    Args:
        tell: called with every event, in this thread. An exception from it ends the run.
        attempts: how often a task that is lost with its process or node is started.
    """

    def __init__(
        self,
        back_end: BackEnd,
        tell: Callable[[Event], object] = lambda event: None,
        *,
        attempts: int = ATTEMPTS,
        back_off: float = BACK_OFF,
        patience: float = PATIENCE,
    ) -> None:
        self._back_end, self._tell = back_end, tell
        self._attempts, self._back_off, self._patience = attempts, back_off, patience
        self.running: dict[Any, _Running] = {}
        self.failed: dict[Any, str] = {}
        self.done: set[Any] = set()
        self._lost: dict[Any, list[str]] = {}  # task -> nodes on which it was lost
        self._earliest: dict[Any, float] = {}
        self._last_node: dict[str, str] = {}  # place -> node
        self._left: dict[Any, float] = {}  # task -> seconds of it and of the longest chain of tasks that wait for it
        self._known: set[Any] = set()

    def run(self, items: Sequence[WorkItem]) -> dict[Any, str]:
        """Carry out all tasks, each of which comes after those that it needs; return the failures, with their reasons.

        Raises:
            BaseException: an interrupt, or what ``tell`` or the back end raised; tasks that run are ended before.
        """
        self._left = _seconds_left(items)
        self._known = {item.key for item in items}
        todo, idle_since, failures = self._in_order(items), None, 0
        try:
            while todo or self.running:
                if len(self.failed) > failures:
                    todo = self._skip_hopeless(todo)
                    failures = len(self.failed)
                started = self._start(todo)
                todo = [item for item in todo if item.key not in started]
                if self.running:
                    idle_since = None
                elif todo:
                    now = self._back_end.now()
                    idle_since = now if idle_since is None else idle_since
                    waiting = any(self._earliest.get(item.key, now) > now for item in todo)
                    if not waiting and now - idle_since >= self._patience:
                        self._give_up(todo)
                        break
                else:
                    break
                again = [item for ended in self._back_end.wait(self._pause(todo)) if (item := self._end(ended))]
                todo = self._in_order([*todo, *again]) if again else todo
        except BaseException:
            self._back_end.stop()  # otherwise they would go on for hours
            raise
        return self.failed

    def _in_order(self, items: Iterable[WorkItem]) -> list[WorkItem]:
        """Return tasks by what is left to do from their start on, most first."""
        return sorted(items, key=lambda item: -self._left[item.key])

    def _skip_hopeless(self, todo: list[WorkItem]) -> list[WorkItem]:
        """Fail the tasks that need a failed one, those that need these, and so on."""
        while hopeless := [item for item in todo if any(need in self.failed for need in item.needs)]:
            for item in hopeless:
                self._fail(item, LEARNS_FROM_FAILED)
            todo = [item for item in todo if item.key not in self.failed]
        return todo

    def _fail(self, item: WorkItem, reason: str, **facts: Any) -> None:
        self.failed[item.key] = reason
        self._tell(Event("failed", item, reason=reason, **facts))

    def _give_up(self, todo: Sequence[WorkItem]) -> None:
        nodes = self._back_end.nodes()
        for item in todo:
            if item.key not in self.failed:
                self._fail(item, f"no node could take it for {self._patience:.0f} s ({len(nodes)} nodes are left)")

    def _may_start(self, item: WorkItem, now: float) -> bool:
        needed = all(need in self.done for need in item.needs if need in self._known)
        ended = all(one in self.done or one in self.failed for one in item.after if one in self._known)
        return needed and ended and self._earliest.get(item.key, now) <= now

    def _start(self, todo: Sequence[WorkItem]) -> set[Any]:
        """Start what can start now; return its keys."""
        now, started = self._back_end.now(), set[Any]()
        nodes = {node.name: node for node in self._back_end.nodes()}
        taken: dict[str, list[WorkItem]] = {name: [] for name in nodes}
        for run in self.running.values():
            taken.setdefault(run.node.name, []).append(run.item)
        kept: set[str] = set()  # nodes that a timed task waits for
        timing_kinds = {item.kind for item in todo if item.alone and item.kind}
        free = {name: node for name, node in nodes.items() if _is_open(node, taken[name])}
        for item in todo:
            if not free:
                break
            if not self._may_start(item, now):
                continue
            places = nodes if item.alone else free
            able = [node for name, node in places.items() if name not in kept and item.fits(node)]
            if not able:
                continue
            if item.alone:
                idle = [node for node in able if not taken[node.name]]
                if not idle:  # it waits for the node that is idle first, where nothing else is started now
                    kept.add(min(able, key=lambda node: (self._free_at(node.name, now), node.name)).name)
                    continue
                able = idle
            else:
                able = [node for node in able if _has_room(item, node, taken[node.name])]
            if able:
                node = min(able, key=lambda one: self._preference(item, one, taken[one.name], timing_kinds))
                self.running[item.key] = _Running(item, node, now)
                taken[node.name].append(item)
                if not _is_open(node, taken[node.name]):
                    del free[node.name]
                started.add(item.key)
                self._last_node[item.place] = node.name
                self._back_end.start(item, node)
                self._tell(Event("started", item, node.name))
        return started

    def _preference(self, item: WorkItem, node: Node, taken: Sequence[WorkItem], timing_kinds: set[str]) -> Any:
        """Return a key that is smallest for the node that a task should go to."""
        keeps_timed_waiting = not item.alone and bool(timing_kinds & node.kinds)
        near = bool(item.place) and self._last_node.get(item.place) == node.name
        load = sum(other.cpus for other in taken) / max(node.cpus, 1e-9)
        lost_here = self._lost.get(item.key, []).count(node.name)
        return lost_here, keeps_timed_waiting, not near, load, node.name

    def _free_at(self, name: str, now: float) -> float:
        """Return when a node should have nothing left to do."""
        ends = [max(now, run.started + run.item.seconds) for run in self.running.values() if run.node.name == name]
        return max(ends, default=now)

    def _pause(self, todo: Sequence[WorkItem]) -> float:
        """Return for how long nothing can change but by a task's end or a new node."""
        now = self._back_end.now()
        waits = [at - now for item in todo if (at := self._earliest.get(item.key, now)) > now]
        return min([*waits, _LOOK])

    def _end(self, ended: Ended) -> WorkItem | None:
        """Note the end of an attempt; return the task if it is to be tried again."""
        run = self.running.pop(ended.key)
        now = self._back_end.now()
        facts: dict[str, Any] = {"node": run.node.name, "seconds": now - run.started}
        if ended.answer is not None:
            reason = ended.answer.get("reason")
            if reason is None:
                self.done.add(ended.key)
                self._tell(Event("done", run.item, answer=ended.answer, **facts))
            else:
                self._fail(run.item, reason, answer=ended.answer, **facts)
            return None
        lost = self._lost.setdefault(ended.key, [])
        lost.append(run.node.name)
        if len(lost) >= self._attempts:
            times = f", {len(lost)} times" if len(lost) > 1 else ""
            self._fail(run.item, f"{ended.lost}{times}", **facts)
            return None
        self._earliest[ended.key] = now + self._back_off * 2 ** (len(lost) - 1)
        self._tell(Event("lost", run.item, reason=ended.lost, **facts))
        return run.item


def _seconds_left(items: Sequence[WorkItem]) -> dict[Any, float]:
    """Return the seconds of each task and of the longest chain of tasks that wait for it."""
    users: dict[Any, list[Any]] = {}
    for item in items:
        for need in (*item.needs, *item.after):
            users.setdefault(need, []).append(item.key)
    left: dict[Any, float] = {}
    for item in reversed(items):
        left[item.key] = item.seconds + max((left[user] for user in users.get(item.key, ())), default=0.0)
    return left


def _is_open(node: Node, taken: Sequence[WorkItem]) -> bool:
    return not any(item.alone for item in taken) and sum(item.cpus for item in taken) < node.cpus


def _has_room(item: WorkItem, node: Node, taken: Sequence[WorkItem]) -> bool:
    cpus = sum(other.cpus for other in taken) + item.cpus
    gpus = sum(other.gpus for other in taken) + item.gpus
    memory = sum(other.memory for other in taken) + item.memory
    slack = 1e-9  # shares of a GPU add up to a whole one
    return cpus <= node.cpus + slack and gpus <= node.gpus + slack and (not node.memory or memory <= node.memory)
