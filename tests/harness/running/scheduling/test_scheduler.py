"""The scheduler on simulated nodes: order, room, timed tasks alone, lost tasks again, nodes that come and go."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.running.scheduling.scheduler import ATTEMPTS, LEARNS_FROM_FAILED, Event, Scheduler
from harness.running.scheduling.simulation import SimulatedNodes, makespan
from harness.running.scheduling.work_items import Answer, Ended, Node, WorkItem


class Watched(SimulatedNodes):
    """Nodes that check every start, and some of whose tasks fail or are lost."""

    def __init__(self, nodes: Sequence[Node], failing: set[str] = frozenset(), losses: dict[str, int] | None = None):
        super().__init__(list(nodes))
        self.failing, self.losses = failing, dict(losses or {})
        self.here: dict[str, list[WorkItem]] = {}
        self.started: list[str] = []
        self.stopped = False

    def start(self, item: WorkItem, node: Node) -> None:
        here = self.here.setdefault(node.name, [])
        here.append(item)
        assert item.fits(node) and node in self.machines
        assert sum(one.cpus for one in here) <= node.cpus and sum(one.gpus for one in here) <= node.gpus + 1e-9
        assert not any(one.alone for one in here) or len(here) == 1, "something runs beside a timed task"
        self.started.append(item.key)
        super().start(item, node)

    def answer(self, key: Any) -> Answer:
        return {"reason": "on purpose"} if key in self.failing else {}

    def wait(self, seconds: float) -> Sequence[Ended]:
        found = []
        for ended in super().wait(seconds):
            for here in self.here.values():
                here[:] = [item for item in here if item.key != ended.key]
            if self.losses.get(ended.key, 0):
                self.losses[ended.key] -= 1
                ended = Ended(ended.key, None, "its process was killed")
            found.append(ended)
        return found

    def stop(self) -> None:
        self.stopped = True
        super().stop()


@st.composite
def plans(draw: st.DrawFn) -> tuple[list[WorkItem], list[Node], set[str], dict[str, int]]:
    """Draw tasks with their needs, nodes that can take each of them, failures and losses."""
    items: list[WorkItem] = []
    for number in range(draw(st.integers(1, 10))):
        earlier = st.lists(st.sampled_from([item.key for item in items]), unique=True) if items else st.just([])
        alone = draw(st.booleans())
        item = WorkItem(
            f"m{number}",
            needs=tuple(draw(earlier)),
            after=tuple(draw(earlier)),
            seconds=draw(st.floats(0.1, 50)),
            cpus=draw(st.integers(1, 3)),
            gpus=draw(st.sampled_from([0, 0.5, 1])),
            alone=alone,
            kind="timing" if alone else "",
            place=draw(st.sampled_from("ab")),
        )
        items.append(item)
    sizes = draw(st.lists(st.integers(1, 5), max_size=3))
    nodes = [Node("t", 3, 1, kinds=frozenset({"timing"})), *(Node(f"n{i}", n, n % 2) for i, n in enumerate(sizes))]
    names = st.sampled_from([item.key for item in items])
    failing = draw(st.sets(names, max_size=2))
    return items, nodes, failing, draw(st.dictionaries(names, st.integers(1, ATTEMPTS), max_size=3))


@given(plans())
@settings(max_examples=80)
def test_every_task_ends_once(plan: tuple[list[WorkItem], list[Node], set[str], dict[str, int]]) -> None:
    """With any needs, nodes, failures and losses: each task runs after its needs, in the room there is, timed ones alone.

    A task fails if it fails by itself, is lost each time, or needs a failed one; all others are done.
    """
    items, nodes, failing, losses = plan
    back_end, ended = Watched(nodes, failing, losses), dict[str, str]()

    def tell(event: Event) -> None:
        item = event.item
        if event.kind == "started":
            assert all(ended[need] == "done" for need in item.needs) and set(item.after) <= set(ended)
        if event.kind in ("done", "failed"):
            assert item.key not in ended
            ended[item.key] = event.kind

    failed = Scheduler(back_end, tell).run(items)
    spoilt: set[str] = set()
    for item in items:
        if spoilt & set(item.needs) or item.key in failing or losses.get(item.key, 0) >= ATTEMPTS:
            spoilt.add(item.key)
    assert set(failed) == spoilt and set(ended) == {item.key for item in items}
    assert all(back_end.started.count(key) <= ATTEMPTS for key in back_end.started)


def test_longest_chains_start_first() -> None:
    """Of the tasks that may start, the one with the longest chain of tasks after it starts, by their expected seconds."""
    needs = {"bert": (), "short": ("bert",), "long": ("bert",), "geep": (), "control": ("geep",)}

    def order(**seconds: float) -> list[str]:
        back_end = Watched([Node("one", 1)])
        items = [WorkItem(name, needs=need, seconds=seconds.get(name, 1.0)) for name, need in needs.items()]
        Scheduler(back_end).run(items)
        return back_end.started

    assert order() == ["bert", "geep", "short", "long", "control"]
    assert order(long=9.0, geep=5.0) == ["bert", "long", "geep", "short", "control"]


def test_a_lost_task_waits_longer_each_time_and_changes_its_node() -> None:
    """Attempts are 2 and 4 seconds apart, on the node where it was lost least; the last loss is its reason."""
    back_end, starts = Watched([Node("a", 1), Node("b", 1)], losses={"x": 9}), list[tuple[float, str]]()

    def tell(event: Event) -> None:
        if event.kind == "started":
            starts.append((back_end.clock, event.node))

    failed = Scheduler(back_end, tell).run([WorkItem("x", seconds=1.0), WorkItem("user", needs=("x",))])
    assert failed == {"x": "its process was killed, 3 times", "user": LEARNS_FROM_FAILED}
    assert starts == [(0.0, "a"), (3.0, "b"), (8.0, "a")]


def test_a_node_that_a_timed_task_waits_for_gets_no_other_task() -> None:
    """Without that, many short fits could keep a measurement waiting for ever."""
    fits = [WorkItem(f"fit{n}", seconds=3.0 + n) for n in range(6)]
    back_end = Watched([Node("t", 2, kinds=frozenset({"timing"}))])
    Scheduler(back_end).run([WorkItem("time it", seconds=20.0, alone=True, kind="timing"), *fits])
    assert back_end.started[0] == "time it"
    back_end = Watched([Node("t", 2, kinds=frozenset({"timing"}))])
    timed = WorkItem("time it", needs=("fit0",), seconds=20.0, alone=True, kind="timing")
    Scheduler(back_end).run([*fits, timed])
    assert back_end.started[:2] == ["fit0", "fit5"] and back_end.started[2] == "time it"


def test_fits_leave_the_nodes_that_measure_to_those_that_measure() -> None:
    """They go there only if no other node has room; tasks of one dataset go to the node that has loaded it."""
    nodes = [Node("fast", 2, kinds=frozenset({"timing"})), Node("p", 2), Node("q", 2)]
    where: dict[str, str] = {}

    def tell(event: Event) -> None:
        where.setdefault(event.item.key, event.node)

    timed = WorkItem("timed", needs=("a1",), alone=True, kind="timing")
    fits = [WorkItem(f"{place}{n}", place=place) for place in "ab" for n in (1, 2)]
    Scheduler(Watched(nodes), tell).run([*fits, timed])
    assert where["timed"] == "fast" and {where["a1"], where["b1"]} == {"p", "q"}
    assert where["a1"] == where["a2"] and where["b1"] == where["b2"]


class Changing(Watched):
    """A cluster one of whose nodes is lost with its task; another one comes late, or never."""

    comes = 40.0
    later: Node | None = Node("late", 1)

    def nodes(self) -> Sequence[Node]:
        if self.later and self.clock >= self.comes and self.later not in self.machines:
            self.machines.append(self.later)
        return super().nodes()

    def wait(self, seconds: float) -> Sequence[Ended]:
        if self.clock < 1 and self.machines:
            self.machines.clear()
            lost = [Ended(item.key, None, "its node was lost") for here in self.here.values() for item in here]
            self.here.clear()
            self._ends.clear()
            return lost
        return super().wait(seconds)


def test_work_goes_on_when_a_node_is_lost_and_another_one_comes() -> None:
    """Tasks wait for a node; without one, they fail after a while with that reason."""
    back_end = Changing([Node("a", 1)])
    assert Scheduler(back_end).run([WorkItem("x"), WorkItem("y", needs=("x",))]) == {}
    assert back_end.started == ["x", "x", "y"] and back_end.clock >= 40
    back_end = Changing([Node("a", 1)])
    back_end.later = None
    failed = Scheduler(back_end, patience=60).run([WorkItem("x"), WorkItem("y", needs=("x",))])
    assert failed["x"] == "no node could take it for 60 s (0 nodes are left)" and set(failed) == {"x", "y"}


def test_an_interrupt_ends_what_runs() -> None:
    """Ctrl+C, or an error of the caller, stops the back end before it is passed on."""
    back_end = Watched([Node("a", 1)])

    def tell(event: Event) -> None:
        if event.kind == "done":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Scheduler(back_end, tell).run([WorkItem("x"), WorkItem("y")])
    assert back_end.stopped and back_end.started == ["x"]


def test_the_schedule_is_near_the_best_one_on_64_nodes() -> None:
    """Twelve sets with chains and many fits of very different lengths: at most 1.15 times the longest chain or the even share."""
    draw = random.Random(0)
    items: list[WorkItem] = []
    for dataset in range(12):
        for seed in range(3):
            scale = 10 ** draw.uniform(2, 3.5)
            place = f"set{dataset} seed{seed}"
            items.append(WorkItem(f"{place} bert", seconds=scale, place=place))
            for number in range(12):
                teacher = f"{place} {number}"
                items.append(WorkItem(teacher, needs=(f"{place} bert",), seconds=scale * draw.uniform(0.3, 2)))
                items.append(WorkItem(f"{teacher} user", needs=(teacher,), seconds=scale * draw.uniform(0.01, 1)))
    nodes = [Node(f"node{n}", 1) for n in range(64)]
    found = makespan(items, nodes)
    assert found.seconds <= 1.15 * found.bound and 0 <= found.idle < 0.2
    few = makespan([replace(item, needs=(), after=()) for item in items[:10]], nodes)
    assert few.seconds == few.chain == max(item.seconds for item in items[:10]) and few.idle > 0.8
