"""Rows of all cells of a run in one file, ``rows.parquet``: far smaller than a file per cell, since cells share most columns.

``geep-bench publish`` writes it. A run folder with this file needs no ``samples/``; a cell that is measured later has its own
file, which takes precedence.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow
from pyarrow import parquet
from pydantic import Field, TypeAdapter

from harness.core.errors import ResultError, format_error
from harness.core.files import write_atomic
from harness.results.rows.sample_columns import DEPTH_COLUMNS, SAMPLE_COLUMNS
from harness.results.strict_record import StrictRecord

NAME = "rows.parquet"
_PLACES = b"geep-bench-rows"  # metadata of the file: name of a cell -> its place
# Everything that pyarrow raises for a file that is not intact.
UNREADABLE = (OSError, ValueError, KeyError, NotImplementedError, pyarrow.ArrowException)


class CellRows(NamedTuple):
    """Rows of a cell that go into an archive.

    Attributes:
        name: of the cell's files (:func:`harness.results.run_folder.stem`).
        checksum: of the cell's own file, as its result states it; empty for results of older versions.
        rows: with the columns :data:`~harness.results.rows.sample_columns.SAMPLE_COLUMNS`, and maybe those of depths.
    """

    name: str
    checksum: str
    rows: pd.DataFrame


class _Place(StrictRecord):
    """Where the rows of a cell are: ``count`` of them from ``first``; ``seal``: a checksum of their values."""

    first: int = Field(ge=0)
    count: int = Field(ge=0)
    checksum: str
    seal: str


_Places = TypeAdapter(dict[str, _Place])


class RowArchive:
    """The rows of the cells of one run, read when first asked for.

    Args:
        folder: the run folder, which may have no archive.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME

    @property
    def exists(self) -> bool:
        return self.path.is_file()

    @cached_property
    def _content(self) -> tuple[dict[str, _Place], pyarrow.Table]:
        """Return places by the name of the cell, and all rows.

        Raises:
            ResultError: the file is damaged.
        """
        try:
            table = parquet.read_table(self.path)
            return _Places.validate_json(table.schema.metadata[_PLACES]), table
        except (*UNREADABLE, TypeError) as error:
            raise ResultError(f"{self.path} cannot be read ({format_error(error)}): copy it again") from error

    def rows(self, name: str, checksum: str) -> pd.DataFrame | None:
        """Return the rows of a cell; None if they are not here, or are those of another measurement of it.

        Args:
            checksum: as the result of the cell states it.

        Raises:
            ResultError: the file is damaged, or was changed after it was written.
        """
        if not self.exists:
            return None
        places, table = self._content
        place = places.get(name)
        if place is None or place.checksum != checksum:
            return None
        try:
            part = table.slice(place.first, place.count)
            empty = [name for name in DEPTH_COLUMNS if part[name].null_count]
            found = part.drop_columns(empty).to_pandas(ignore_metadata=True)
            intact = len(found) == place.count and _seal(found) == place.seal
        except UNREADABLE as error:
            raise ResultError(f"{self.path} cannot be read ({format_error(error)}): copy it again") from error
        if not intact:
            raise ResultError(f"{self.path} has other rows of {name} than were written: copy it again")
        return found


def write_archive(folder: Path, cells: Iterable[CellRows]) -> Path:
    """Write the rows of cells as the archive of a run folder, and return its path.

    Raises:
        WriteError: the file cannot be written.
    """
    places, tables, first = dict[str, dict[str, object]](), [_table(pd.DataFrame(columns=[*SAMPLE_COLUMNS]))], 0
    for name, checksum, rows in cells:
        places[name] = {"first": first, "count": len(rows), "checksum": checksum, "seal": _seal(rows)}
        tables.append(_table(rows))
        first += len(rows)
    table = pyarrow.concat_tables(tables).replace_schema_metadata({_PLACES: json.dumps(places).encode()})
    path = folder / NAME
    write_atomic(
        path, lambda temporary: parquet.write_table(table, temporary, compression="zstd", compression_level=19)
    )
    return path


def _table(rows: pd.DataFrame) -> pyarrow.Table:
    """Return rows with all columns in the types that they are documented with; missing ones are null."""
    kinds = {name: text.split(":")[0] for name, text in (SAMPLE_COLUMNS | DEPTH_COLUMNS).items()}
    columns = {}
    for name, kind in kinds.items():
        values = rows[name].to_numpy().astype(kind) if name in rows else [None] * len(rows)
        columns[name] = pyarrow.array(values, pyarrow.bool_() if kind == "bool" else pyarrow.type_for_alias(kind))
    return pyarrow.table(columns)


def _seal(rows: pd.DataFrame) -> str:
    """Return a checksum of the values of rows, whatever their integer types."""
    digest = hashlib.sha256()
    for name in (*SAMPLE_COLUMNS, *DEPTH_COLUMNS):
        if name in rows:
            values = rows[name].to_numpy().astype("float32" if name == "confidence" else "int64")
            digest.update(f"{name}:".encode() + values.tobytes())
    return digest.hexdigest()[:32]
