"""Ray as a back end, with a stand-in for Ray: what is asked of it, and how its errors become losses."""

from __future__ import annotations

import json
import socket
import sys
from importlib.metadata import distributions
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from harness.core.errors import ConfigError
from harness.running.cluster.ray_nodes import RayNodes, ray_cluster, send_code
from harness.running.scheduling.work_items import Node, WorkItem


class RayError(Exception):
    """The base of Ray's errors."""


class Exceptions:
    """Ray's errors, as far as they are told apart."""

    RayError = RayError
    for _name in ("OutOfMemoryError", "WorkerCrashedError", "RuntimeEnvSetupError", "NodeDiedError"):
        locals()[_name] = type(_name, (RayError,), {})
    for _name in ("TaskUnschedulableError", "ObjectLostError"):
        locals()[_name] = type(_name, (RayError,), {})

    class RayTaskError(RayError):
        cause: BaseException | None = None


class FakeRay:
    """Keeps what it is asked; its tasks end at once, with the answers that a test sets."""

    exceptions = Exceptions

    def __init__(self) -> None:
        self.asked: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self.answers: list[Any] = []
        self.cancelled: list[int] = []

    def nodes(self) -> list[dict[str, Any]]:
        labels = {"ray.io/node-id": "x", "kind": "fast"}
        resources = {"CPU": 8.0, "GPU": 2.0, "memory": 1e9, "node:10.0.0.1": 1.0, "measure": 1.0}
        alive = {"NodeID": "abcdef", "Alive": True, "Resources": resources, "Labels": labels}
        return [
            {**alive, "NodeManagerHostname": "gpu1"},
            {**alive, "NodeID": "b", "Alive": False, "NodeManagerHostname": "dead"},
        ]

    def remote(self, function: Any) -> Any:
        def options(**given: Any) -> Any:
            def start(text: str) -> int:
                self.asked.append((given, json.loads(text)))
                return len(self.asked) - 1

            return SimpleNamespace(remote=start)

        return SimpleNamespace(options=options)

    def wait(self, references: list[int], **_: Any) -> tuple[list[int], list[int]]:
        return references[:1], references[1:]

    def get(self, reference: int) -> str:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return json.dumps(answer)

    def cancel(self, reference: int, force: bool) -> None:
        assert force
        self.cancelled.append(reference)


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    strategies = ModuleType("strategies")
    vars(strategies)["NodeAffinitySchedulingStrategy"] = lambda node, soft: (node, soft)
    monkeypatch.setitem(sys.modules, "ray", ModuleType("ray"))
    monkeypatch.setitem(sys.modules, "ray.util", ModuleType("ray.util"))
    monkeypatch.setitem(sys.modules, "ray.util.scheduling_strategies", strategies)
    return FakeRay()


def test_nodes_have_their_labels_and_only_living_ones_count(ray: FakeRay) -> None:
    """Custom resources and labels are labels; what Ray adds itself is none."""
    assert RayNodes(ray).nodes() == [Node("gpu1-abcd", 8.0, 2.0, 10**9, frozenset({"measure", "kind=fast"}))]


def test_a_timed_task_reserves_its_whole_node(ray: FakeRay) -> None:
    """A fit reserves what it asks for; both are bound to their node, and Ray does not try again by itself."""
    nodes = RayNodes(ray)
    (node,) = nodes.nodes()
    nodes.start(WorkItem("fit", cpus=2, gpus=0.5, memory=7, message={"work": "fit"}), node)
    nodes.start(WorkItem("time", cpus=1, alone=True, message={"work": "measure"}), node)
    (fit, message), (timed, _) = ray.asked
    assert (fit["num_cpus"], fit["num_gpus"], fit["memory"]) == (2, 0.5, 7)
    assert (timed["num_cpus"], timed["num_gpus"]) == (8, 2)
    assert fit["runtime_env"]["env_vars"]["OMP_NUM_THREADS"] == "2"
    assert timed["runtime_env"]["env_vars"]["OMP_NUM_THREADS"] == "8"
    assert message == {"work": "fit", "cpus": 8}
    assert all(one["scheduling_strategy"] == ("abcdef", False) and one["max_retries"] == 0 for one, _ in ray.asked)
    nodes.stop()
    assert ray.cancelled == [0, 1]


def test_errors_of_ray_are_losses_and_answers_are_not(ray: FakeRay) -> None:
    """A lost node or process may be tried again, code that cannot be loaded not; reasons are words of ours."""
    nodes, errors = RayNodes(ray), vars(Exceptions)
    (node,) = nodes.nodes()
    broken = Exceptions.RayTaskError("remote traceback")
    broken.cause = ModuleNotFoundError("No module named 'torch'")
    ray.answers = [{"x": 1}, errors["NodeDiedError"]("a"), errors["WorkerCrashedError"]("b"), broken]
    found = []
    for number in range(4):
        nodes.start(WorkItem(number), node)
        found += nodes.wait(1.0)
    assert found[0].answer == {"x": 1}
    assert (found[1].answer, found[1].lost) == (None, "its node was lost")
    assert found[2].answer is None and found[2].lost.startswith("its worker process was ended")
    assert found[3].answer == {
        "reason": "cannot load geep-bench (No module named 'torch'): install its dependencies there"
    }


def test_the_code_travels_with_its_entry_points(tmp_path: Path) -> None:
    """Nodes get all packages, with the files beside the code, and find the methods by their entry points."""
    send_code(tmp_path)
    assert {path.name for path in tmp_path.iterdir() if path.name.isidentifier()} == {
        "harness",
        "geep",
        "baselines",
        "suites",
        "reports",
    }
    assert (tmp_path / "harness" / "data" / "cards.toml").is_file() and not list(tmp_path.rglob("__pycache__"))
    (found,) = distributions(path=[str(tmp_path)])
    assert found.name == "geep-bench" and "geep" in {
        one.name for one in found.entry_points if one.group == "geep.methods"
    }


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line says what to install."""
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"geep-bench\[ray\]"), ray_cluster(""):
        pass


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionError("Could not find any running Ray instance. Please specify"), "no Ray cluster at 127.0.0.1:"),
        (
            RuntimeError("Version mismatch: The cluster was started with:\n Ray: 2.9.0"),
            "another version of Ray or Python",
        ),
    ],
)
def test_a_cluster_that_cannot_be_used_is_one_line(
    error: Exception, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is none at the address, or it runs another version of Ray."""

    def init(**_: Any) -> None:
        raise error

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init))
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ConfigError) as found, ray_cluster(address):
            pass
    assert words in str(found.value) and "\n" not in str(found.value)


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_an_address_where_nothing_answers_is_refused_at_once(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray is not asked, since it would try for many minutes."""
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=lambda **_: pytest.fail("Ray was asked")))
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = form.format(server.getsockname()[1])
    with pytest.raises(ConfigError, match="no Ray cluster at") as found, ray_cluster(address):
        pass
    assert "ray start --head" in str(found.value)
