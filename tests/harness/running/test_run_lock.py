"""Only one run at a time writes to a run folder, and a killed run leaves no lock."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from filelock import SoftFileLock

from harness.core.errors import ResultError
from harness.running import run_lock as module
from harness.running.grid import Grid
from harness.running.run_lock import LOCK, run_lock
from harness.running.run_settings import Settings

HOLD = """
import sys
from pathlib import Path
from harness.running.run_lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_run_is_refused_and_a_killed_one_leaves_no_lock(
    stage: Any, grid_settings: Settings, tmp_path: Path
) -> None:
    """The message names the process that holds the folder; after SIGKILL, the next run starts at once."""
    grid = Grid(grid_settings)
    command = [sys.executable, "-c", HOLD, str(grid_settings.out)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        for act in (grid.execute, grid.fit):
            with pytest.raises(ResultError, match=rf"in use by another run \(process {holder.pid} on .*--out"):
                act()
        assert stage.fits == []
    finally:
        holder.kill()
        holder.communicate()
    assert grid.execute().measured == 12
    assert (grid_settings.out / LOCK).read_text() == ""


def test_one_run_after_the_other(tmp_path: Path) -> None:
    """The lock is free again after the block, also after an error."""
    with pytest.raises(KeyError), run_lock(tmp_path):
        raise KeyError
    with run_lock(tmp_path), pytest.raises(ResultError), run_lock(tmp_path):
        pass
    with run_lock(tmp_path):
        assert (tmp_path / LOCK).read_text().startswith(f"{os.getpid()}\n")


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There, a file with the process's number is the lock; that of a process that has ended is ignored."""
    monkeypatch.setattr(module, "FileLock", SoftFileLock)
    with run_lock(tmp_path), pytest.raises(ResultError, match=f"process {os.getpid()} on"), run_lock(tmp_path):
        pass
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with run_lock(tmp_path):
        holder = (tmp_path / LOCK).read_text()
    lines = holder.splitlines()
    (tmp_path / LOCK).write_text("\n".join([str(ended.pid), *lines[1:2], ""]))
    with run_lock(tmp_path):
        pass
