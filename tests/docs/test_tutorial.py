"""The tutorial: its files and commands, taken from the page and run one after the other."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorial.md"
# Installing is what test_packaging does.
NOT_RUN = ("cd ", "python3 -m venv", ".venv/bin/python -m pip", "source ", "mkdir ")
PROGRAMS = {"python": [sys.executable], "geep-bench": [sys.executable, "-m", "harness.cli"]}


def files_and_commands(text: str) -> list[tuple[str, str]]:
    """What a reader does, in order: ``("file name", content)`` and ``("", command)``."""
    steps = []
    for block in re.finditer(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        kind, name, body = block.groups()
        if name:
            steps.append((name, body))
        elif kind == "console":
            steps += [("", line.removeprefix("$ ")) for line in body.splitlines() if line.startswith("$ ")]
        elif kind == "bash":
            assert all(line.startswith(NOT_RUN) for line in body.splitlines()), f"not tested: {body}"
    return steps


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The folder after all steps, and what each command printed."""
    folder = tmp_path_factory.mktemp("tutorial")
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "GEEP_BENCH_CACHE": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
    }
    printed = {}
    for name, content in files_and_commands(PAGE.read_text(encoding="utf-8")):
        if name:
            (folder / name).write_text(content, encoding="utf-8")
            continue
        program, *arguments = shlex.split(content)
        ended = subprocess.run(
            [*PROGRAMS[program], *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert ended.returncode == 0, f"{content}\n{ended.stdout}\n{ended.stderr}"
        printed[content] = ended.stdout
    return folder, printed


def test_every_command_runs(done: tuple[Path, dict[str, str]]) -> None:
    """All commands of the page succeed in order, in an empty folder and without a network."""
    commands = list(done[1])
    assert len(commands) == 8
    for words in (
        "pretrain --corpus",
        "run --profile reviews.toml",
        "report runs/reviews",
        "compare runs/reviews runs/longer",
    ):
        assert any(words in command for command in commands), words


def test_three_methods_are_compared(done: tuple[Path, dict[str, str]]) -> None:
    """The run has a row per method and point that the page shows, and the report and the samples that it speaks of."""
    folder, printed = done
    rows = ("bert full", "fastbert speed=0.5", "geep speed=0.5", "geep speed=0.5/shared")
    (table,) = [text for command, text in printed.items() if command.endswith("--device cpu")]
    shown = PAGE.read_text(encoding="utf-8")
    for row in rows:
        assert re.search(rf"^{re.escape(row)} ", table, re.MULTILINE), table
        assert re.search(rf"^{re.escape(row)} ", shown, re.MULTILINE)
    assert (folder / "runs" / "reviews" / "report" / "index.html").is_file()
    assert printed["python samples.py"].count("correct, mean exit layer") == len(rows)


def test_its_numbers_are_plausible(done: tuple[Path, dict[str, str]]) -> None:
    """Every method learns the toy task: at least 80 % where chance gives 50 %."""
    accuracies = [float(share) for share in re.findall(r"([\d.]+)% correct", done[1]["python samples.py"])]
    assert len(accuracies) == 4 and min(accuracies) > 80


def test_fits_are_reused(done: tuple[Path, dict[str, str]]) -> None:
    """The second run finds the fit of bert in the cache, so that all of its answers stay the same."""
    (compared,) = [text for command, text in done[1].items() if "compare" in command]
    assert re.search(r"bert full +\S+ += +0:0", compared), compared
