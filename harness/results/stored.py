"""The stored form of one cell, and whether it is intact: checksums, and numbers that agree with the per-sample rows.

A result file holds two checksums: of its own content and of the file with its per-sample rows. Results of older versions have
none; their numbers are recomputed from the rows instead.
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from pandas.api.types import is_integer_dtype, is_numeric_dtype
from pyarrow import parquet

from harness.core.errors import ResultError
from harness.core.names import clean_all
from harness.core.text_formats import read_json
from harness.results.rows.row_archive import UNREADABLE, RowArchive
from harness.results.rows.sample_columns import BEFORE_BIT, DEPTH_COLUMNS, SAMPLE_COLUMNS
from harness.results.schema import SCHEMA, Result

CHECKSUMS = "checksums"


class StoredResult(NamedTuple):
    """A result and the checksum of its per-sample rows; empty in files of older versions."""

    result: Result
    samples_checksum: str


class Fault(NamedTuple):
    """What is wrong with per-sample rows: they are ``missing`` or ``damaged``, or the result ``contradicts`` them."""

    kind: Literal["missing", "damaged", "contradicts"]
    text: str


def stored_form(result: Result, samples: Path) -> dict[str, Any]:
    """Return the JSON form of a result, with the checksums of itself and of its rows, which are stored in ``samples``."""
    data = result.model_dump(mode="json", by_alias=True)
    return {**data, CHECKSUMS: {"result": _checksum(data), "samples": _digest(samples.read_bytes())}}


def read_result(path: Path) -> StoredResult:
    """Read a result file.

    Raises:
        ValueError: it is not JSON, not a valid result, or was changed after it was written.
        ResultError: it has another schema version.
        OSError: it cannot be read.
    """
    data = read_json(path)
    version = data.get("schema") if isinstance(data, dict) else None
    if isinstance(version, int) and version != SCHEMA:
        raise ResultError(
            f"{path} has result schema {version}, this program reads {SCHEMA}: "
            "run again with --out and a new folder, or use the version that wrote it"
        )
    checksums = data.pop(CHECKSUMS, None) if isinstance(data, dict) else None
    result = Result.model_validate(data)  # refuses names that hold control characters; other texts are made safe
    if (safe := clean_all(data)) != data:
        result = Result.model_validate(safe)
    if checksums is None:
        return StoredResult(result, "")
    if not isinstance(checksums, dict) or checksums.get("result") != _checksum(data):
        raise ValueError("its content does not match its checksum, so it was changed after it was measured")
    return StoredResult(result, str(checksums.get("samples")))


def read_rows(source: Path | io.BytesIO) -> pd.DataFrame:
    """Read a Parquet file; notes of pandas inside it, which may be damaged, are ignored.

    Raises:
        UNREADABLE: it is missing or not intact.
    """
    return parquet.read_table(source).to_pandas(ignore_metadata=True)


def samples_fault(stored: StoredResult, samples: Path, archive: RowArchive) -> Fault | None:
    """Return what is wrong with the per-sample rows of a result; None if they are intact.

    Args:
        samples: the cell's own file.
        archive: has the rows of cells without one.
    """
    try:
        raw = samples.read_bytes()
    except FileNotFoundError:
        return _archive_fault(stored, samples.stem, archive)
    except OSError as error:
        return Fault("damaged", f"cannot be read ({error.strerror})")
    if stored.samples_checksum and stored.samples_checksum == _digest(raw):
        return None
    try:
        frame = read_rows(io.BytesIO(raw))
    except UNREADABLE as error:
        return Fault("damaged", f"cannot be read ({' '.join(str(error).split())[:200]})")
    if text := _unusable(frame):
        return Fault("damaged", text)
    if text := _contradiction(stored.result, frame):
        return Fault("contradicts", text)
    return Fault("damaged", "does not match the checksum in its result") if stored.samples_checksum else None


def _archive_fault(stored: StoredResult, name: str, archive: RowArchive) -> Fault | None:
    try:
        frame = archive.rows(name, stored.samples_checksum)
    except ResultError as error:
        return Fault("damaged", f"is missing, and {error}")
    if frame is None:
        return Fault("missing", "is missing")
    if text := _unusable(frame):
        return Fault("damaged", text)
    text = _contradiction(stored.result, frame)
    return Fault("contradicts", text) if text else None


def _unusable(frame: pd.DataFrame) -> str:
    """Return why rows cannot be used; empty if they can."""
    if missing := [name for name in SAMPLE_COLUMNS if name not in frame]:
        return f"has no column {missing[0]}"
    if holes := [name for name in SAMPLE_COLUMNS if frame[name].isna().any()]:
        return f"has empty values in column {holes[0]}"
    if wrong := [name for name in SAMPLE_COLUMNS if not is_numeric_dtype(frame[name])]:
        return f"has values that are not numbers in column {wrong[0]}"
    if depths := [name for name in DEPTH_COLUMNS if name in frame]:
        if missing := [name for name in DEPTH_COLUMNS if name not in frame]:
            return f"has a column {depths[0]}, but no column {missing[0]}"
        if wrong := [name for name in depths if not is_integer_dtype(frame[name])]:
            return f"has values that are not integers in column {wrong[0]}"
    return "" if frame["index"].is_unique else "has several rows for the same test sample"


def _contradiction(result: Result, frame: pd.DataFrame) -> str:
    """Return where the numbers of a result are not those of its rows; empty if they are."""
    quality = result.quality
    if len(frame) != quality.n:
        return f"has {len(frame)} rows, but the result counts {quality.n} test samples"
    if not ((frame["label"] == frame["prediction"]) == frame["correct"].astype(bool)).all():
        return "counts other predictions as correct than those that equal the label"
    share = float(frame["correct"].mean())
    if np.isfinite(quality.accuracy) and abs(share - quality.accuracy) * quality.n > 0.5:
        return f"gives an accuracy of {share:.4f}, but the result says {quality.accuracy:.4f}"
    exits = np.bincount(frame["exit_layer"].clip(lower=0), minlength=len(result.exit_histogram) + 1).tolist()
    if exits != [result.answered_before, *result.exit_histogram]:
        return "has other exit layers than the histogram of the result"
    return _depth_contradiction(frame, result.cost.depth)


def _depth_contradiction(frame: pd.DataFrame, depth: int) -> str:
    """Return why the answers of all exits cannot be those of one model; empty if they can, or were not stored."""
    if not all(name in frame for name in DEPTH_COLUMNS):
        return ""
    right, agreeing = (frame[name].to_numpy(dtype=np.int64) for name in DEPTH_COLUMNS)
    last = np.int64(1 << (depth - 1))
    layers = (right | agreeing) & ~np.int64(1 << BEFORE_BIT)
    if ((layers >> depth) != 0).any():  # the sign bit, too: negative numbers stay negative
        return f"names other layers than 1 to {depth} in the columns {' and '.join(DEPTH_COLUMNS)}"
    if not (agreeing & last).all():
        return "says that the last layer does not agree with itself"
    # Layers that agree with a right answer are right, and layers that agree with a wrong one are wrong.
    possible = np.where(right & last, right == agreeing, (right & agreeing) == 0)
    return "" if possible.all() else "says of layers with the same answer that some are right and some are wrong"


def _checksum(data: dict[str, Any]) -> str:
    return _digest(json.dumps(data, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass"))


def _digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()[:32]
