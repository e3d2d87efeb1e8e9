"""A table on disk: counts and keys in safetensors, all else in JSON. Rows are not stored: they follow from the counts.

Keys are written in rising order, so the files do not depend on insertion order or backend.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save_file

from geep.exit_table.columns import MAX_COLUMNS, MAX_LAYERS, TableColumns
from geep.exit_table.keys import MAX_ID, MAX_NGRAM, N_SHIFT
from geep.exit_table.rows import COUNT_LIMIT
from harness.core.errors import ConfigError, ResultError, first_line
from harness.core.files import write_atomic, write_json
from harness.core.settings import StrictSettings
from harness.core.text_formats import read_json

VERSIONS = (1, 2)  # 1: exits only
HEADER = "exit_table.json"
ARRAYS = "exit_table.safetensors"


class Frozen(StrictSettings):
    """Arguments of the table's ``freeze``."""

    min_count: int = Field(ge=1, lt=COUNT_LIMIT)
    smoothing: int = Field(ge=0, lt=COUNT_LIMIT)


class OtherColumns(StrictSettings):
    """Columns of a table that does not hold exits only."""

    exits: int = Field(ge=0, le=MAX_LAYERS)
    agreement: int = Field(ge=0, le=MAX_LAYERS)
    labels: int = Field(ge=0, le=MAX_COLUMNS)


class Header(StrictSettings):
    """The JSON file. ``exits``: samples per column, [W]; ``tokens``: inserted tokens; ``sha256``: of the other file."""

    format: Literal["geep-exit-table"] = "geep-exit-table"
    version: int = 1
    num_layers: int = Field(ge=0, le=MAX_LAYERS)
    columns: OtherColumns | None = None
    ngram: int = Field(ge=1, le=MAX_NGRAM)
    seed: int
    special: list[Annotated[int, Field(ge=0, le=MAX_ID)]]
    exits: list[Annotated[int, Field(ge=0)]]
    tokens: int = Field(ge=0, lt=COUNT_LIMIT)
    frozen: Frozen | None = None
    sha256: str = ""

    @property
    def table_columns(self) -> TableColumns:
        """The columns.

        Raises:
            ConfigError: there are none, too many, or groups that do not go together.
        """
        return (
            TableColumns(exits=self.num_layers) if self.columns is None else TableColumns(**self.columns.model_dump())
        )


def columns_header(columns: TableColumns) -> dict[str, Any]:
    """Return what the header says of the columns; files of tables with exits only are those of version 1."""
    if columns.exits == columns.width:
        return {"num_layers": columns.exits}
    return {"version": 2, "num_layers": columns.num_layers, "columns": OtherColumns(**asdict(columns))}


def write(folder: Path, header: Header, keys: np.ndarray, counts: np.ndarray) -> None:
    """Write both files and create the folder if needed.

    Args:
        folder: target.
        header: its ``sha256`` is filled in here.
        keys: int64 [K], rising.
        counts: uint32 [K, W].

    Raises:
        ResultError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResultError(f"cannot write {folder}: {error.strerror}: choose another folder") from error
    arrays = folder / ARRAYS
    write_atomic(arrays, lambda temporary: save_file({"counts": counts, "keys": keys}, temporary))
    digest = hashlib.sha256(arrays.read_bytes()).hexdigest()
    data = header.model_copy(update={"sha256": digest}).model_dump(mode="json")
    write_json(folder / HEADER, {name: value for name, value in data.items() if name != "columns" or value is not None})


def read(folder: Path) -> tuple[Header, np.ndarray, np.ndarray]:
    """Read the files of :func:`write`.

    Raises:
        ResultError: a file is missing, damaged or of another version.
    """
    advice = "build and save the table again"
    try:
        data = read_json(folder / HEADER)
        raw = (folder / ARRAYS).read_bytes()
    except OSError as error:
        raise ResultError(f"no exit table in {folder}: {error.filename}: {error.strerror}: {advice}") from error
    except ValueError as error:
        raise ResultError(f"{folder / HEADER} is not valid JSON ({first_line(error)}): {advice}") from error
    version = data.get("version") if isinstance(data, dict) else None
    if isinstance(data, dict) and (type(version) is not int or version not in VERSIONS):
        reads = " and ".join(map(str, VERSIONS))
        raise ResultError(f"{folder / HEADER} has version {version}, this program reads {reads}: {advice}")
    try:
        header = Header.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ResultError(f"{folder / HEADER} is damaged: {where}: {first['msg']}: {advice}") from error
    if hashlib.sha256(raw).hexdigest() != header.sha256:
        raise ResultError(f"{folder / ARRAYS} does not match the checksum in {HEADER}: {advice}")
    try:
        arrays = load(raw)
    except SafetensorError as error:
        raise ResultError(f"{folder / ARRAYS} is damaged ({first_line(error)}): {advice}") from error
    problem = _problem(header, arrays)
    if problem:
        raise ResultError(f"exit table in {folder} is damaged: {problem}: {advice}")
    return header, arrays["keys"], arrays["counts"]


def _problem(header: Header, arrays: dict[str, np.ndarray]) -> str | None:
    if set(arrays) != {"keys", "counts"}:
        return "it must hold 'keys' and 'counts'"
    if (header.version == 1) != (header.columns is None):
        return f"version {header.version} does not fit its columns"
    try:
        columns = header.table_columns
    except ConfigError as error:
        return str(error)
    keys, counts = arrays["keys"], arrays["counts"]
    if keys.dtype != np.int64 or counts.dtype != np.uint32:
        return "keys must be int64 and counts uint32"
    if keys.ndim != 1 or counts.shape != (len(keys), columns.width) or len(header.exits) != columns.width:
        return "shapes do not fit the number of layers"
    counts = counts[:, columns.once]
    if (np.diff(keys) <= 0).any() or (len(keys) and not 1 <= keys[0] >> N_SHIFT <= keys[-1] >> N_SHIFT <= header.ngram):
        return "keys are out of order or out of range"
    if len(keys) and not 1 <= counts.sum(axis=1, dtype=np.int64).min() <= counts.sum(axis=1).max() <= header.tokens:
        return "counts do not fit the number of tokens"
    if header.frozen and not sum(header.exits):
        return "it is frozen but empty"
    return None
