"""Nodes of a cluster in this process, which carry out what they are told at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.results.run_folder import RunFolder
from harness.running.cluster import node_work
from harness.running.cluster.cluster_run import ClusterRun
from harness.running.cluster.preflight import ClusterOptions
from harness.running.grid import GridOutcome
from harness.running.run_settings import Settings
from harness.running.scheduling.simulation import SimulatedNodes
from harness.running.scheduling.work_items import Answer, Ended, Node, WorkItem

TWO = (Node("p", 1.0), Node("q", 1.0, kinds=frozenset({"timing"})))


class NodesHere(SimulatedNodes):
    """Nodes that share this process; each has its own loaded data and, without a shared folder, its own cache.

    Attributes:
        losses: words of a task -> how many of its attempts are lost.
        facts: node -> what it says about itself in another way than this machine.
        ran: node and task of each attempt.
    """

    def __init__(self, nodes: Sequence[Node], caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(list(nodes))
        self.caches, self.monkeypatch = caches, monkeypatch
        self.losses: dict[str, int] = {}
        self.facts: dict[str, dict[str, Any]] = {}
        self.ran: list[tuple[str, str]] = []
        self.items: dict[Any, tuple[WorkItem, Node]] = {}
        self.runs: dict[str, dict[str, Any]] = {}

    def start(self, item: WorkItem, node: Node) -> None:
        self.items[item.key] = item, node
        super().start(item, node)

    def wait(self, seconds: float) -> Sequence[Ended]:
        found = []
        for ended in super().wait(seconds):
            item, node = self.items.pop(ended.key)
            text = f"{item.message['work']} {ended.key}"
            self.ran.append((node.name, text))
            if self.losses.get(text, 0):
                self.losses[text] -= 1
                found.append(Ended(ended.key, None, "its worker process was ended"))
            else:
                found.append(Ended(ended.key, self._carry_out(item, node)))
        return found

    def _carry_out(self, item: WorkItem, node: Node) -> Answer:
        self.monkeypatch.setattr(node_work, "_runs", self.runs.setdefault(node.name, {}))
        if item.message["run"]["store"] is not None:
            self.monkeypatch.setenv("GEEP_BENCH_CACHE", str(self.caches / node.name))
        sent = json.dumps({**item.message, "cpus": int(node.cpus)})
        answer: dict[str, Any] = json.loads(node_work.carry_out(sent))
        return {**answer, **self.facts.get(node.name, {})} if item.message["work"] == "probe" else answer


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NodesHere:
    """Two nodes with one CPU each; the second one has the label ``timing``."""
    monkeypatch.setenv("GEEP_BENCH_ON_CLUSTER", "")  # nodes set both; undone after the test
    monkeypatch.setenv("GEEP_BENCH_COMMIT", "")
    return NodesHere(TWO, tmp_path / "caches", monkeypatch)


@pytest.fixture
def on_cluster(nodes: NodesHere) -> Callable[..., GridOutcome]:
    """Return a function that carries out a run on the nodes."""

    def run(settings: Settings, *, fit_only: bool = False, **options: Any) -> GridOutcome:
        return ClusterRun(settings, ClusterOptions(**options), nodes).execute(fit_only=fit_only)

    return run


def answers(folder: Path) -> dict[str, Any]:
    """Return what a run found, without times and machines: per cell its coordinates, quality, cost and rows."""
    found = {}
    run = RunFolder.open(folder)
    for result in run.results():
        rows: pd.DataFrame = run.samples(result.cell)
        facts = result.model_dump(include={"cell", "quality", "cost", "exit_histogram", "binding"})
        found[str(run.result_path(result.cell).stem)] = facts, rows.to_dict("list")
    return found


@pytest.fixture
def answers_of() -> Callable[[Path], dict[str, Any]]:
    return answers


@pytest.fixture
def settings(grid_settings: Settings) -> Settings:
    """Two datasets, the fakes, one thread a fit."""
    return replace(grid_settings, profile=grid_settings.profile.model_copy(update={"fit_threads": 1}))
