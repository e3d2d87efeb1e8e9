"""The scripts for a GPU machine and the CI workflows name modules and files that exist; the GPU check without a GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "suites" / "gpu_check.sh"
TEXTS = sorted([*(ROOT / "suites").glob("*.sh"), *(ROOT / ".github" / "workflows").glob("*.yml"), ROOT / "tox.ini"])


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_named_modules_and_files_exist(path: Path) -> None:
    """Every ``python -m`` module, import and file of ours in a script, workflow or tox.ini can be found."""
    text = path.read_text(encoding="utf-8")
    ours = r"(?:harness|geep|baselines|suites|reports)"
    modules = re.findall(rf"-m ({ours}[\w.]*)", text)
    modules += [f"{parent}.{name}" for parent, name in re.findall(rf"^from ({ours}[\w.]*) import (\w+)", text, re.M)]
    for module in modules:
        assert find_spec(module) is not None, module
    for file in re.findall(r"(?<![\w/.$])(?:tests|suites)/[\w/]+\.(?:py|sh|json|toml)", text):
        assert (ROOT / file).exists(), file


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["nonsense"], "unknown step 'nonsense': choose from tests"), (["quick"], "no usable CUDA device")],
)
def test_bad_input_is_one_line(tmp_path: Path, arguments: list[str], said: str) -> None:
    """An unknown step, or a machine without a device, gives one line and exit code 2 before anything is written."""
    here = Path(sys.executable).parent  # python3 is this interpreter, whether the environment is activated or not
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
    """If the environment is not activated, missing packages are named in one line."""
    python = tmp_path / "python3"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    python.chmod(0o755)
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path)}
    command = ["bash", str(SCRIPT), str(tmp_path / "out"), "quick"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "has no torch, transformers" in done.stderr
