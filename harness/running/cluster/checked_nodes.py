"""A back end that gives tasks only to nodes that passed the checks; nodes that join later are checked first."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from harness.running.scheduling.work_items import BackEnd, Ended, Node, WorkItem


class _Probe(NamedTuple):
    node: Node


class CheckedNodes:
    """Nodes of a cluster that can do their part of a run.

    Args:
        inner: the cluster.
        checked: names of the nodes that passed the checks before the run.
        message: request to which a node answers with facts about itself.
        problem: returns what is wrong with a node that joined, by its answer; empty if nothing is.
    """

    def __init__(
        self,
        inner: BackEnd,
        checked: set[str],
        message: Mapping[str, Any],
        problem: Callable[[Node, Mapping[str, Any]], str],
    ) -> None:
        self._inner, self._checked, self._message, self._problem = inner, checked, message, problem
        self._asked = set(checked)

    def nodes(self) -> Sequence[Node]:
        found = self._inner.nodes()
        for node in found:
            if node.name not in self._asked and node.cpus >= 1:
                self._asked.add(node.name)
                self._inner.start(WorkItem(_Probe(node), message=self._message), node)
        return [node for node in found if node.name in self._checked]

    def start(self, item: WorkItem, node: Node) -> None:
        self._inner.start(item, node)

    def wait(self, seconds: float) -> Sequence[Ended]:
        others = []
        for ended in self._inner.wait(seconds):
            if isinstance(ended.key, _Probe):
                self._admit(ended.key.node, ended)
            else:
                others.append(ended)
        return others

    def _admit(self, node: Node, ended: Ended) -> None:
        answer = ended.answer or {"reason": ended.lost}
        if wrong := answer.get("reason") or self._problem(node, answer):
            print(f"node {node.name} has joined, but gets no work: {wrong}", file=sys.stderr)
        else:
            self._checked.add(node.name)
            print(f"node {node.name} has joined", file=sys.stderr)

    def stop(self) -> None:
        self._inner.stop()

    def now(self) -> float:
        return self._inner.now()
