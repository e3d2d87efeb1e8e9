"""A Ray cluster (extra ``ray``) as a back end of the scheduler. Ray carries text to a node and text back, and keeps resources."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from harness.core import clock
from harness.core.errors import ConfigError, first_line
from harness.running.scheduling.work_items import Ended, Node, WorkItem

_ANSWERS_IN = 10.0  # seconds
_AUTOMATIC = ("CPU", "GPU", "memory", "object_store_memory")


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ConfigError("running on many machines needs Ray: pip install 'geep-bench[ray]'") from error
    return ray


def send_code(folder: Path) -> None:
    """Copy the project's packages and its entry points into a folder that Ray gives to all nodes."""
    installed = distribution("geep-bench")
    for name in (installed.read_text("top_level.txt") or "").split():
        spec = find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise ConfigError(f"package '{name}' of geep-bench is not installed here: install geep-bench again")
        shutil.copytree(
            spec.submodule_search_locations[0],
            folder / name,
            ignore=shutil.ignore_patterns("__pycache__", "*.pyc", "published"),
        )
    facts = folder / f"geep_bench-{installed.version}.dist-info"
    facts.mkdir()
    for file in ("METADATA", "entry_points.txt"):
        (facts / file).write_text(installed.read_text(file) or "", encoding="utf-8")


@contextmanager
def ray_cluster(address: str) -> Iterator[RayNodes]:
    """Connect to a cluster; end what runs on it and disconnect at the end.

    Args:
        address: ``ray://HOST:PORT``, ``HOST:PORT``, or empty: ``$RAY_ADDRESS``, else the cluster that this machine belongs to.

    Raises:
        ConfigError: Ray is not installed here, there is no cluster, or it runs another version of Ray or Python.
    """
    ray = _ray()
    _check_answers(address or os.environ.get("RAY_ADDRESS", ""))
    with tempfile.TemporaryDirectory() as place:
        send_code(Path(place))
        # Ray ends the process at SIGTERM; here it is an interrupt.
        main = threading.current_thread() is threading.main_thread()
        before = signal.getsignal(signal.SIGTERM) if main else None
        try:
            ray.init(
                address=address or "auto",
                log_to_driver=False,
                configure_logging=False,
                runtime_env={"working_dir": place},
            )
        except (ConnectionError, RuntimeError, ValueError, ImportError, TimeoutError) as error:
            raise ConfigError(_refusal(address, error)) from error
        finally:
            if main:
                signal.signal(signal.SIGTERM, before)
        nodes = RayNodes(ray)
        try:
            yield nodes
        finally:
            nodes.stop()
            ray.shutdown()


def _check_answers(address: str) -> None:
    """Refuse an address where nothing answers; Ray itself would try again for many minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():  # a name such as "auto", or a default port
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWERS_IN).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(_refusal(address, error)) from error


def _refusal(address: str, error: Exception) -> str:
    text = " ".join(str(error).split())
    if "ersion mismatch" in text:
        return (
            f"the cluster runs another version of Ray or Python than this machine: {text[:300]}: install the same ones"
        )
    where = f" at {address}" if address else ""
    how = "start one with 'ray start --head', or give its address with --on ray://HOST:10001 or RAY_ADDRESS"
    return f"no Ray cluster{where} ({first_line(error)[:200]}): {how}"


class RayNodes:
    """The nodes of a Ray cluster.

    Every task is bound to one node. A timed task reserves all CPUs and GPUs of its node, so that not even other users get a part
    of it. The scheduler tries again, so Ray does not.
    """

    def __init__(self, ray: Any) -> None:
        self._ray, self._ids = ray, dict[str, str]()
        self._running: dict[Any, Any] = {}  # reference -> task
        self._lost: list[Ended] = []

        def carry_out(text: str) -> str:  # sent by value, so that a node without our packages can say what it lacks
            from harness.running.cluster import node_work

            return node_work.carry_out(text)

        self._remote = ray.remote(carry_out)

    def nodes(self) -> Sequence[Node]:
        found = []
        for facts in sorted(self._ray.nodes(), key=lambda facts: facts["NodeID"]):
            if not facts["Alive"]:
                continue
            has = facts["Resources"]
            name = self._name(facts)
            own = {key for key in has if key not in _AUTOMATIC and not key.startswith(("node:", "accelerator_type:"))}
            labels = facts.get("Labels") or {}
            own |= {f"{key}={value}" for key, value in labels.items() if not key.startswith("ray.io/")}
            self._ids[name] = facts["NodeID"]
            found.append(
                Node(name, has.get("CPU", 0.0), has.get("GPU", 0.0), int(has.get("memory", 0)), frozenset(own))
            )
        return found

    @staticmethod
    def _name(facts: Mapping[str, Any]) -> str:
        # Several nodes may be on one machine, as on a laptop.
        return f"{facts['NodeManagerHostname']}-{facts['NodeID'][:4]}"

    def start(self, item: WorkItem, node: Node) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        message = {**item.message, "cpus": int(node.cpus)}
        threads = int(node.cpus) if item.alone else max(1, int(item.cpus))
        remote = self._remote.options(
            num_cpus=node.cpus if item.alone else item.cpus,
            num_gpus=node.gpus if item.alone else item.gpus,
            memory=item.memory or None,
            max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(self._ids[node.name], soft=False),
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(threads), "TQDM_DISABLE": "1"}},
        )
        try:
            self._running[remote.remote(json.dumps(message))] = item.key
        except self._ray.exceptions.RayError as error:
            self._lost.append(Ended(item.key, None, self._reason(error)))

    def wait(self, seconds: float) -> Sequence[Ended]:
        if self._lost or not self._running:
            found, self._lost = self._lost, []
            if not found:
                time.sleep(seconds)
            return found
        ready, _ = self._ray.wait([*self._running], num_returns=1, timeout=seconds)
        ended = []
        for reference in ready:
            key = self._running.pop(reference)
            try:
                ended.append(Ended(key, json.loads(self._ray.get(reference))))
            except self._ray.exceptions.RayTaskError as error:  # not ours: those are answers
                ended.append(Ended(key, {"reason": self._reason(error.cause or error)}))
            except self._ray.exceptions.RayError as error:
                ended.append(Ended(key, None, self._reason(error)))
        return ended

    def _reason(self, error: BaseException) -> str:
        exceptions = self._ray.exceptions
        if isinstance(error, ImportError):
            return f"cannot load geep-bench ({first_line(error)}): install its dependencies there"
        if isinstance(error, exceptions.OutOfMemoryError):
            return "its worker process was ended because the node's memory is full"
        if isinstance(error, exceptions.WorkerCrashedError):
            return "its worker process was ended; if the memory is full, reserve more for it (resources in the profile)"
        if isinstance(error, exceptions.RuntimeEnvSetupError):
            return f"the node cannot set up the code: {first_line(error)[:300]}"
        gone = (exceptions.NodeDiedError, exceptions.TaskUnschedulableError, exceptions.ObjectLostError)
        if isinstance(error, gone):
            return "its node was lost"
        return f"Ray: {first_line(error)[:300]}"

    def stop(self) -> None:
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._running.clear()

    def now(self) -> float:
        return clock.now()
