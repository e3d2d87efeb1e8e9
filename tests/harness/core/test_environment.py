"""The stored facts about a machine, and the ones that are private."""

from __future__ import annotations

import getpass
import json
import socket
from pathlib import Path

import pytest
import torch

from harness.core import environment as module
from harness.core.environment import environment_facts


def test_facts_that_make_timings_comparable() -> None:
    """Processor, cores, threads, versions and commit are recorded and fit into JSON."""
    facts = environment_facts()
    wanted = {
        "cpu",
        "cores",
        "usable_cores",
        "torch_threads",
        "memory_bytes",
        "system",
        "python",
        "commit",
        "versions",
        "gpu",
    }
    assert set(facts) == wanted
    assert facts["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert json.loads(json.dumps(facts)) == facts
    assert (facts["gpu"] is None) == (not torch.cuda.is_available())


def test_names_and_paths_are_not_stored() -> None:
    """The facts contain neither host name, user name nor paths."""
    facts = json.dumps({key: value for key, value in environment_facts().items() if key != "commit"})
    for secret in (socket.gethostname(), str(Path.home()), str(Path(module.__file__).parents[2]), str(Path.cwd())):
        assert len(secret) < 2 or secret not in facts
    user = getpass.getuser()
    assert f'"{user}"' not in facts
    assert f"/{user}" not in facts


def test_threads_are_those_of_now() -> None:
    """Facts of a cell have the threads that it was measured with, not those of an earlier call."""
    before, cores = torch.get_num_threads(), environment_facts()["cores"]
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            assert environment_facts()["torch_threads"] == count
    finally:
        torch.set_num_threads(before)
    assert environment_facts()["cores"] == cores


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 6), ("200000 100000", 2), ("250000 100000", 3), ("1000 100000", 1), (None, 6)]
)
def test_usable_cores_follow_affinity_and_quota(
    quota: str | None, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smaller one counts, and it is read anew for each cell."""
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda process: set(range(6)), raising=False)
    monkeypatch.setattr(module, "_QUOTA", tmp_path / "cpu.max")
    if quota is not None:
        (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert environment_facts()["usable_cores"] == module.usable_cores() == cores
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda process: {3})
    assert environment_facts()["usable_cores"] == 1


def test_facts_without_git_or_cpuinfo(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without git or cpuinfo these facts are unknown, and no error is raised."""

    def missing(*_: object, **__: object) -> str:
        raise FileNotFoundError(2, "no such file")

    monkeypatch.setattr(module.subprocess, "run", missing)
    monkeypatch.setattr(module.Path, "read_text", missing)
    facts = module._lasting_facts.__wrapped__()
    assert facts["commit"] is None
    assert isinstance(facts["cpu"], str)
