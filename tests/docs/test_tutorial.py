"""The tutorial: its files and commands, taken from the page and run in order."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.cli.main import main

pytestmark = pytest.mark.slow

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorial.md"
# test_packaging tests the installation.
NOT_RUN = ("cd ", "python3 -m venv", ".venv/bin/python -m pip", "source ", "mkdir ")


def files_and_commands(text: str) -> list[tuple[str, str]]:
    """Return a reader's steps in order: ``("file name", content)`` and ``("", command)``."""
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


def run(command: str) -> str:
    """Run one command in this process, which has the heavy imports done, and return its output."""
    program, *arguments = shlex.split(command)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        if program == "python":
            runpy.run_path(*arguments, run_name="__main__")
        else:
            assert program == "geep-bench"
            assert main(arguments) == 0, command
    return printed.getvalue()


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """Return the folder after all steps, and the output of each command."""
    folder = tmp_path_factory.mktemp("tutorial")
    printed = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("GEEP_BENCH_CACHE", str(folder / "cache"))
        for name, content in files_and_commands(PAGE.read_text(encoding="utf-8")):
            if name:
                (folder / name).write_text(content, encoding="utf-8")
            else:
                printed[content] = run(content)
        yield folder, printed


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
    """The run has a row per method and point of the page, and the mentioned report and samples."""
    folder, printed = done
    rows = ("bert full", "fastbert speed=0.5", "geep speed=0.5", "geep speed=0.5/shared", "geep budget=0.5")
    (table,) = [text for command, text in printed.items() if command.endswith("--device cpu")]
    shown = PAGE.read_text(encoding="utf-8")
    for row in rows:
        method, point = row.split()
        line = rf"^{method}( \S)? {re.escape(point)} "  # with or without a mark
        assert re.search(line, table, re.MULTILINE), table
        assert re.search(line, shown, re.MULTILINE)
    assert (folder / "runs" / "reviews" / "report" / "index.html").is_file()
    assert printed["python samples.py"].count("correct, mean exit layer") == len(rows)


def test_its_numbers_are_plausible(done: tuple[Path, dict[str, str]]) -> None:
    """Every method learns the toy task to at least 80 %, where guessing gives 50 %."""
    accuracies = [float(share) for share in re.findall(r"([\d.]+)% correct", done[1]["python samples.py"])]
    assert len(accuracies) == 5 and min(accuracies) > 80


def test_fits_are_reused(done: tuple[Path, dict[str, str]]) -> None:
    """The second run takes bert's fit from the cache, so all of its answers are the same."""
    (compared,) = [text for command, text in done[1].items() if "compare" in command]
    assert re.search(r"bert full +\S+ += +0:0", compared), compared
