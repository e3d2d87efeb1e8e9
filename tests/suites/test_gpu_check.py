"""The script for a GPU machine, as far as it goes without one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "suites" / "gpu_check.sh"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["nonsense"], "unknown step 'nonsense': choose from tests"), (["quick"], "no usable CUDA device here")],
)
def test_what_cannot_be_done_is_said_in_one_line(tmp_path: Path, arguments: list[str], said: str) -> None:
    """An unknown step, and a machine without a device, end in one line and exit code 2 before anything is written."""
    here = Path(sys.executable).parent  # python3 is this one, activated or not
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PATH": f"{here}{os.pathsep}{os.environ['PATH']}"}
    out = tmp_path / "out"
    done = subprocess.run(
        ["bash", str(SCRIPT), str(out), *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not out.exists() or not list(out.iterdir())


def test_a_python_without_torch_is_one_line(tmp_path: Path) -> None:
    """Not a traceback: the environment is not activated."""
    python = tmp_path / "python3"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    python.chmod(0o755)
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path)}
    done = subprocess.run(
        ["bash", str(SCRIPT), str(tmp_path / "out"), "quick"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "has no torch, transformers" in done.stderr
