"""Copies of runs that are small enough to publish, and complete: reports can be made from them, and runs continued."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

from harness.core.errors import ResultError
from harness.core.files import write_folder
from harness.results.run_folder import RunFolder

_FOLDERS = ("plan", "results", "failures", "report")


class Published(NamedTuple):
    """What a copy holds: cells, cells among them with per-sample rows, and bytes."""

    cells: int
    with_rows: int
    bytes: int


def publish(run_path: Path, target: Path) -> Published:
    """Copy a run, with the per-sample rows of all cells in one file (:mod:`harness.results.rows.row_archive`).

    Args:
        target: a folder that does not exist, or is empty.

    Raises:
        ResultError: there is no run, it has no results, or the target has content.
        WriteError: the target cannot be written.
    """
    run = RunFolder.open(run_path)
    results = run.results()
    if not results:
        raise ResultError(f"no results in {run.path}: measure some with 'geep-bench run --out {run.path}'")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ResultError(f"{target} is not an empty folder: choose another --out, or delete it")
    with_rows = 0

    def fill(folder: Path) -> None:
        nonlocal with_rows
        if (run.path / "run.json").is_file():
            shutil.copy(run.path / "run.json", folder / "run.json")
        for name in _FOLDERS:
            if (run.path / name).is_dir():
                shutil.copytree(run.path / name, folder / name)
        with_rows = run.archive_rows(folder, results)

    write_folder(target, fill, "choose another --out")
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    return Published(len(results), with_rows, size)
