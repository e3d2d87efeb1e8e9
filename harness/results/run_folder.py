"""A run folder on disk: one JSON per cell, Parquet rows per sample, written atomically.

::

    RUN/run.json                 what was asked (profile, options); informative
    RUN/results/<stem>.json      one Result per cell
    RUN/samples/<stem>.parquet   its per-sample rows
    RUN/failures/<stem>.json     cells whose method raised, with the traceback
    RUN/report/                  made from the above by ``geep-bench report``
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError

from harness.core.errors import ResultError
from harness.core.files import write_atomic, write_json
from harness.results.schema import SAMPLE_COLUMNS, SCHEMA, Cell, Result


def stem(cell: Cell) -> str:
    """File name of a cell: readable first, then a hash of all coordinates, so that no two cells share one."""
    readable = f"{cell.dataset}--{cell.method}--{cell.point}--seed{cell.seed}"
    # File systems count bytes (255 at most), names may be Chinese.
    readable = re.sub(r"[^\w.=+-]+", "_", readable).encode()[:180].decode(errors="ignore")
    # Coordinates added later have defaults, which change no name given before them.
    digest = hashlib.sha256(cell.model_dump_json(exclude_defaults=True).encode()).hexdigest()[:8]
    return f"{readable}--{digest}"


def failed_cell(record: Any) -> Cell | None:
    """The cell of a failure record, coordinates that are younger than the record filled in; None where it names none."""
    try:
        return Cell.model_validate(record["cell"])
    except (KeyError, TypeError, ValidationError):
        return None


class RunFolder:
    """Reader and writer of one run folder.

    Attributes:
        path: the folder.
        broken: messages about files that could not be used; they are moved to ``set-aside/`` by :meth:`results`.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.broken: list[str] = []

    @classmethod
    def create(cls, path: Path | str) -> RunFolder:
        """Open ``path`` for writing, making it if need be.

        Raises:
            ResultError: the folder cannot be written.
        """
        run = cls(path)
        probe = run.path / ".writable"
        try:
            (run.path / "results").mkdir(parents=True, exist_ok=True)
            probe.write_text("", encoding="utf-8")
            probe.unlink()
        except OSError as error:
            raise ResultError(
                f"cannot write the run folder {run.path}: {error.strerror}: choose another folder with --out"
            ) from error
        return run

    @classmethod
    def open(cls, path: Path | str) -> RunFolder:
        """Open an existing run for reading.

        Raises:
            ResultError: there is no run.
        """
        run = cls(path)
        if not (run.path / "results").is_dir():
            raise ResultError(
                f"no run at {run.path} (no folder 'results' in it): make one with 'geep-bench run --out {run.path}'"
            )
        return run

    def result_path(self, cell: Cell) -> Path:
        return self.path / "results" / f"{stem(cell)}.json"

    def samples_path(self, cell: Cell) -> Path:
        return self.path / "samples" / f"{stem(cell)}.parquet"

    def save(self, result: Result, samples: pd.DataFrame) -> None:
        """Write the samples, then the result; a cell counts as finished once its JSON is there."""
        if list(samples.columns) != list(SAMPLE_COLUMNS):
            raise ValueError(f"sample columns {list(samples.columns)} are not {list(SAMPLE_COLUMNS)}")
        write_atomic(
            self.samples_path(result.cell),
            lambda temporary: samples.to_parquet(temporary, index=False, compression="zstd"),
        )
        write_json(self.result_path(result.cell), result.model_dump(mode="json", by_alias=True))

    def forget_result(self, name: str) -> None:
        """Delete the result and the samples called ``name`` (see :func:`stem`); the result first: it is what counts."""
        (self.path / "results" / f"{name}.json").unlink(missing_ok=True)
        (self.path / "samples" / f"{name}.parquet").unlink(missing_ok=True)

    def results(self) -> list[Result]:
        """Every readable result, ordered by file name. A broken file is moved to ``set-aside/`` and named in ``broken``.

        Raises:
            ResultError: a result of another schema version (that is not damage: nothing is touched).
        """
        return [result for _, result in self._read()]

    def _read(self) -> Iterator[tuple[Path, Result]]:
        for path in sorted((self.path / "results").glob("*.json")):
            try:
                data = json.loads(path.read_text(encoding="utf-8"))
                version = data.get("schema") if isinstance(data, dict) else None
                if isinstance(version, int) and version != SCHEMA:
                    raise ResultError(
                        f"{path} has result schema {version}, this program reads {SCHEMA}: "
                        "run again with --out and a new folder, or read it with the version that wrote it"
                    )
                yield path, Result.model_validate(data)
            except (ValueError, ValidationError) as error:
                self._set_aside(path, error)

    def _set_aside(self, path: Path, error: Exception) -> None:
        reason = str(error).splitlines()[0]
        target = self.path / "set-aside" / path.name
        try:
            target.parent.mkdir(exist_ok=True)
            os.replace(path, target)
            where = f"moved to {target}"
        except OSError as problem:
            where = f"left in place ({problem.strerror})"
        self.broken.append(f"broken result {path}: {reason}; {where}; its cell will be measured again")

    def samples(self, cell: Cell) -> pd.DataFrame:
        """Per-sample rows of a cell (columns: :data:`harness.results.schema.SAMPLE_COLUMNS`).

        Raises:
            ResultError: the file is missing or unreadable.
        """
        path = self.samples_path(cell)
        try:
            return pd.read_parquet(path)
        except (OSError, ValueError) as error:
            raise ResultError(f"cannot read {path}: {error}: delete {self.result_path(cell)} and run again") from error

    def fail(self, cell: Cell, traceback: str, reason: str = "") -> Path:
        """Record that a method raised in this cell, and why in one line."""
        path = self.path / "failures" / f"{stem(cell)}.json"
        write_json(path, {"cell": cell.model_dump(), "traceback": traceback, **({"reason": reason} if reason else {})})
        return path

    def failures(self) -> list[dict[str, Any]]:
        """What :meth:`fail` recorded; a broken record is named in ``broken`` and left out."""
        records = []
        for path in sorted((self.path / "failures").glob("*.json")):
            try:
                records.append(json.loads(path.read_text(encoding="utf-8")))
            except ValueError as error:
                self.broken.append(f"broken failure record {path}: {error}")
        return records

    def forget_failure(self, cell: Cell) -> None:
        """The cell has been measured after all."""
        (self.path / "failures" / f"{stem(cell)}.json").unlink(missing_ok=True)
