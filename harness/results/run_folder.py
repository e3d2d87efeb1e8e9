"""A run folder on disk: one JSON file per cell and Parquet rows per sample, written atomically.

::

    RUN/run.json                 profile and options, for information
    RUN/results/<stem>.json      one Result per cell
    RUN/samples/<stem>.parquet   its per-sample rows
    RUN/rows.parquet             those of cells without such a file, in a published run
    RUN/failures/<stem>.json     cells whose method raised, with the traceback
    RUN/report/                  written by ``geep-bench report``
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet  # noqa: F401 - else pandas imports it when the first cell is stored
from pydantic import ValidationError

from harness.core.errors import ResultError, format_error
from harness.core.files import write_atomic, write_json, write_text
from harness.core.names import clean, clean_all
from harness.core.text_formats import read_json
from harness.results.rows.row_archive import CellRows, RowArchive, write_archive
from harness.results.rows.sample_columns import DEPTH_COLUMNS, SAMPLE_COLUMNS
from harness.results.schema import Cell, Result
from harness.results.stored import UNREADABLE, read_result, read_rows, samples_fault, stored_form

_LONGEST = 500  # characters of a reason


def stem(cell: Cell) -> str:
    """Return the file name of a cell: a readable part, and a hash of all coordinates that makes it unique."""
    readable = f"{cell.dataset}--{cell.method}--{cell.point}--seed{cell.seed}"
    # File systems allow 255 bytes, and names may be Chinese.
    readable = re.sub(r"[^\w.=+-]+", "_", readable).encode()[:180].decode(errors="ignore")
    # Coordinates added later have defaults, which are left out, so that old names stay valid.
    digest = hashlib.sha256(cell.model_dump_json(exclude_defaults=True).encode()).hexdigest()[:8]
    return f"{readable}--{digest}"


def failed_cell(record: Any) -> Cell | None:
    """Return the cell of a failure record, with defaults for coordinates added later; None if it has no cell."""
    try:
        return Cell.model_validate(record["cell"])
    except (KeyError, TypeError, ValidationError):
        return None


class RunFolder:
    """Reader and writer of one run folder.

    Attributes:
        path: the folder.
        broken: messages about unusable files; :meth:`results` moves them to ``set-aside/``.
        without_rows: cells whose per-sample rows :meth:`results` found missing or damaged, each with the reason.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.broken: list[str] = []
        self.without_rows: dict[Cell, str] = {}
        self._archive = RowArchive(self.path)
        self._checksums: dict[Cell, str] = {}  # of the files with rows, as results state them

    @classmethod
    def create(cls, path: Path | str) -> RunFolder:
        """Open ``path`` for writing; create it if it does not exist.

        Raises:
            ResultError: the folder cannot be written.
        """
        run = cls(path)
        probe = run.path / ".writable"
        try:
            (run.path / "results").mkdir(parents=True, exist_ok=True)
            probe.write_text("", encoding="utf-8")
            probe.unlink(missing_ok=True)
        except OSError as error:
            raise ResultError(
                f"cannot write the run folder {run.path}: {error.strerror}: choose another --out"
            ) from error
        return run

    @classmethod
    def open(cls, path: Path | str) -> RunFolder:
        """Open an existing run for reading.

        Raises:
            ResultError: there is no run at ``path``.
        """
        run = cls(path)
        if not (run.path / "results").is_dir():
            raise ResultError(f"no run at {run.path} : create one with 'geep-bench run --out {run.path}'")
        return run

    def result_path(self, cell: Cell) -> Path:
        return self.path / "results" / f"{stem(cell)}.json"

    def samples_path(self, cell: Cell) -> Path:
        return self.path / "samples" / f"{stem(cell)}.parquet"

    def save(self, result: Result, samples: pd.DataFrame) -> None:
        """Write the samples, then the result: a cell counts as finished once its JSON file exists."""
        if list(samples.columns) not in ([*SAMPLE_COLUMNS], [*SAMPLE_COLUMNS, *DEPTH_COLUMNS]):
            raise ValueError(f"sample columns {list(samples.columns)} are not {list(SAMPLE_COLUMNS)}")
        write_atomic(
            self.samples_path(result.cell),
            lambda temporary: samples.to_parquet(temporary, index=False, compression="zstd"),
        )
        write_json(self.result_path(result.cell), stored_form(result, self.samples_path(result.cell)))
        self.without_rows.pop(result.cell, None)

    def archive_rows(self, folder: Path, results: Iterable[Result]) -> int:
        """Write the per-sample rows of results, as far as they are intact, into one file of another folder.

        Args:
            results: those that :meth:`results` returned.

        Returns:
            the number of cells in the file.

        Raises:
            WriteError: the file cannot be written.
        """
        cells = [result.cell for result in results if result.cell not in self.without_rows]
        write_archive(folder, (CellRows(stem(cell), self._checksums[cell], self.samples(cell)) for cell in cells))
        return len(cells)

    def has_rows(self, cell: Cell) -> bool:
        """Return whether there are per-sample rows of a cell, intact or not."""
        return self.samples_path(cell).exists() or self._archive.exists

    def forget_result(self, name: str) -> None:
        """Delete the result called ``name`` (see :func:`stem`), then its samples."""
        (self.path / "results" / f"{name}.json").unlink(missing_ok=True)
        (self.path / "samples" / f"{name}.parquet").unlink(missing_ok=True)

    def results(self) -> list[Result]:
        """Return every usable result, ordered by file name.

        Broken files, and results whose numbers contradict their own per-sample rows, move to ``set-aside/``; see ``broken``.
        Rows that are missing or damaged are listed in ``without_rows``.

        Raises:
            ResultError: a result has another schema version; nothing is moved then.
        """
        found: list[Result] = []
        self.without_rows = {}
        for path in sorted((self.path / "results").glob("*.json")):
            try:
                stored = read_result(path)
            except (OSError, ValueError) as error:
                self._set_aside(path, f"broken result {path}: {' '.join(str(error).split())[:_LONGEST]}")
                continue
            cell = stored.result.cell
            samples = self.samples_path(cell)
            self._checksums[cell] = stored.samples_checksum
            fault = samples_fault(stored, samples, self._archive)
            if fault is not None and fault.kind == "contradicts":
                self._set_aside(path, f"the result {path} contradicts its own per-sample rows: {samples} {fault.text}")
                continue
            if fault is not None:
                self.without_rows[cell] = f"{samples} {fault.text}"
            found.append(stored.result)
        return found

    def _set_aside(self, path: Path, reason: str) -> None:
        target = self.path / "set-aside" / path.name
        try:
            write_text(target.with_suffix(".txt"), f"{reason}\n")
            os.replace(path, target)
            where = f"moved to {target}"
        except (OSError, ResultError) as problem:
            where = f"left in place ({format_error(problem)})"
        self.broken.append(clean(f"{reason}; {where}; its cell will be measured again"))

    def lost(self) -> list[str]:
        """Return a sentence for each result that was set aside, now or earlier, and not measured again since."""
        sentences = []
        for path in sorted((self.path / "set-aside").glob("*.json")):
            if not (self.path / "results" / path.name).is_file():
                note = path.with_suffix(".txt")  # older versions wrote none
                reason = note.read_text(encoding="utf-8", errors="replace") if note.is_file() else "broken result"
                text = f"{' '.join(reason.split())[:_LONGEST]}; {path}: its cell is missing until it is measured again"
                sentences.append(clean(text))
        return sentences

    def samples(self, cell: Cell) -> pd.DataFrame:
        """Return the per-sample rows of a cell, with the columns :data:`harness.results.rows.sample_columns.SAMPLE_COLUMNS`.

        Some cells also have the columns :data:`harness.results.rows.sample_columns.DEPTH_COLUMNS`.

        Raises:
            ResultError: the file is missing or unreadable, or :meth:`results` found that it is not what was measured.
        """
        path = self.samples_path(cell)
        if fault := self.without_rows.get(cell):
            raise ResultError(f"{fault}: its cell is measured again by another run with --out {self.path}")
        try:
            if not path.is_file():
                if cell not in self._checksums:
                    self._checksums[cell] = read_result(self.result_path(cell)).samples_checksum
                if (found := self._archive.rows(path.stem, self._checksums[cell])) is not None:
                    return found
            return read_rows(path)
        except UNREADABLE as error:
            raise ResultError(f"cannot read {path}: {error}: delete {self.result_path(cell)} and run again") from error

    def fail(self, cell: Cell, traceback: str, reason: str = "") -> Path:
        """Record that a method raised in this cell, with the reason in one line."""
        path = self.path / "failures" / f"{stem(cell)}.json"
        write_json(path, {"cell": cell.model_dump(), "traceback": traceback, **({"reason": reason} if reason else {})})
        return path

    def failures(self) -> list[dict[str, Any]]:
        """Return the records of :meth:`fail`. Broken ones are left out; see ``broken``."""
        records = []
        for path in sorted((self.path / "failures").glob("*.json")):
            try:
                records.append(clean_all(read_json(path)))
            except (OSError, ValueError) as error:
                self.broken.append(clean(f"broken failure record {path}: {error}"))
        return records

    def forget_failure(self, cell: Cell) -> None:
        """Delete the failure record of a cell that has been measured since."""
        (self.path / "failures" / f"{stem(cell)}.json").unlink(missing_ok=True)
