"""The script for a GPU machine, as far as it goes without one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "suites" / "gpu_check.sh"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["nonsense"], "unknown step 'nonsense': choose from tests"), (["quick"], "no usable CUDA device here")],
)
def test_what_cannot_be_done_is_said_in_one_line(tmp_path: Path, arguments: list[str], said: str) -> None:
    """An unknown step, and a machine without a device, end in one line and exit code 2 before anything is written."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    out = tmp_path / "out"
    done = subprocess.run(
        ["bash", str(SCRIPT), str(out), *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not out.exists() or not list(out.iterdir())
