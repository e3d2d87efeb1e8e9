"""Rows of a CSV or JSON-lines file of any size, one by one: the place in bytes after each, and a hash of all bytes before it.

Only what the file held when it was opened is read, and only complete rows: a last line without an end is a row unless the file
grows. The hash tells another file from the same one, also from one to which rows were added.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from harness.core.errors import DataError, first_line
from harness.data.local import TEXT_COLUMNS
from harness.data.tables import form_of, json_object, listed, unique_names, wrong_fields

FORMS = ("csv", "jsonl")
LONGEST = 16 * 2**20  # bytes of a row
_BLOCK = 2**20


class TextRow(NamedTuple):
    """One row; ``pair`` is ``None`` in files of single texts. A missing text is empty."""

    text: str
    pair: str | None


@dataclass(frozen=True)
class ReadPlace:
    """A place between two rows.

    Attributes:
        bytes: before it.
        sha256: of these bytes.
        rows: before it, the header left out.
        lines: before it.
        ended: the last line has an end.
    """

    bytes: int
    sha256: str
    rows: int
    lines: int
    ended: bool


class RowReader:
    """The rows of a file; a context manager and an iterator.

    Attributes:
        path: of the file.
        size: bytes that it had when it was opened.
        place: after the last row that was returned.
        grew: a last row was left out, since the file grew while it was read.

    Args:
        paired: rows need both columns, ``text`` and ``text_pair``; otherwise they must have ``text`` alone.

    Raises:
        DataError: the file cannot be read, is not of a known format, or lacks a column.
    """

    def __init__(self, path: Path, *, paired: bool) -> None:
        self.path, self.paired, self.grew = path, paired, False
        self._form = form_of(path)
        if self._form not in FORMS or path.suffix == ".gz":
            raise DataError(f"{path}: files of texts are .csv or .jsonl, not packed: write it so")
        try:
            self._handle = path.open("rb")
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}): give a file that you may read") from error
        found = os.fstat(self._handle.fileno())
        self.size, self._changed = found.st_size, found.st_mtime_ns
        self._digest = hashlib.sha256()
        self._bytes = self._lines = self._rows = self._since = 0
        self._ended = True
        self._csv = csv.reader(self._texts(), strict=True)
        self._header: list[str] = []
        self._columns: list[int] = []
        try:
            if self._form == "csv":
                self._read_header()
        except BaseException:
            self._handle.close()
            raise
        self.place = self._here()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.close()

    def __iter__(self) -> Iterator[TextRow]:
        rows = self._csv_rows() if self._form == "csv" else self._json_rows()
        for row in rows:
            self._rows += 1
            self._since = 0
            self.place = self._here()
            yield row

    def skip_to(self, place: ReadPlace) -> bool:
        """Go to a place that an earlier reader noted; return whether everything before it is as it was then."""
        if place.bytes > self.size or place.bytes < self._bytes:
            return False
        while (left := place.bytes - self._bytes) > 0:
            block = self._handle.read(min(left, _BLOCK))
            if not block:
                return False
            self._digest.update(block)
            self._bytes += len(block)
        if self._digest.hexdigest() != place.sha256:
            return False
        self._rows, self._lines, self._ended = place.rows, place.lines, place.ended
        if not place.ended and self._bytes < self.size:
            end = self._handle.readline(3)
            if end not in (b"\n", b"\r\n"):
                return False  # the last row went on after it was read
            self._digest.update(end)
            self._bytes, self._ended = self._bytes + len(end), True
        self.place = self._here()
        return True

    def check_unchanged(self) -> None:
        """Check that the file is still as it was when it was opened.

        Raises:
            DataError: it grew, became shorter or was written again.
        """
        found = self.path.stat()
        if found.st_size > self.size or self.grew:
            raise DataError(
                f"{self.path} grew from {self.size:,} to {found.st_size:,} bytes while it was read: its first {self._rows:,} rows "
                "are answered; run the same command again for the others"
            )
        if found.st_size < self.size or found.st_mtime_ns != self._changed:
            raise DataError(
                f"{self.path} was changed while it was read: run the same command again, which finds out whether the rows that "
                "are answered are still the same"
            )

    def _here(self) -> ReadPlace:
        return ReadPlace(self._bytes, self._digest.hexdigest(), self._rows, self._lines, self._ended)

    def _lines_left(self) -> Iterator[bytes]:
        """Yield the complete lines that are left of what the file held at first."""
        while self._bytes < self.size:
            line = self._handle.readline(LONGEST + 1)
            self._since += len(line)
            if not line:
                raise DataError(f"{self.path} became shorter while it was read: run the same command again")
            if self._since > LONGEST:
                raise DataError(
                    f"{self.path} line {self._lines + 1}: a row of more than {LONGEST:,} bytes: cut its text, or close its quotes"
                )
            ended = line.endswith(b"\n")
            beyond = self._bytes + len(line) > self.size
            if beyond or (not ended and os.fstat(self._handle.fileno()).st_size > self.size):
                self.grew = True
                return
            self._digest.update(line)
            self._bytes += len(line)
            self._lines += 1
            self._ended = ended
            yield line

    def _texts(self) -> Iterator[str]:
        for line in self._lines_left():
            try:
                yield line.decode("utf-8-sig" if self._lines == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"{self.path} line {self._lines}: not UTF-8 text: save the file as UTF-8") from error

    def _next_row(self) -> list[str] | None:
        line = self._lines + 1
        try:
            return next(self._csv, None)
        except csv.Error as error:
            if self.grew or os.fstat(self._handle.fileno()).st_size > self.size:
                self.grew = True
                return None  # the row had not been written to its end
            quote = "a text that begins with a double quote must also end with one, and double those inside"
            raise DataError(f"{self.path} line {line}: not a row of CSV ({error}): {quote}") from error

    def _read_header(self) -> None:
        self._header = self._next_row() or []
        self._since = 0
        unique_names(self._header, f"{self.path} line 1")
        self._check_columns(self._header, f"{self.path}")
        self._columns = [self._header.index(name) for name in TEXT_COLUMNS[: 1 + self.paired]]

    def _check_columns(self, names: list[str], where: str) -> None:
        for name in TEXT_COLUMNS[: 1 + self.paired]:
            if name not in names:
                raise DataError(
                    f"{where}: no column '{name}' (columns: {listed(names) or 'none'}): rename one, or add it"
                )
        if not self.paired and TEXT_COLUMNS[1] in names:
            raise DataError(
                f"{where}: there is a column '{TEXT_COLUMNS[1]}', and the model reads single texts: take that column out"
            )

    def _csv_rows(self) -> Iterator[TextRow]:
        blank = 0
        while (row := self._next_row()) is not None:
            if not row:
                blank = blank or self._lines
                continue
            if blank:
                raise DataError(f"{self.path} line {blank}: a blank line between rows: delete it")
            if len(row) != len(self._header):
                raise wrong_fields(self.path, self._lines, row, self._header, ",")
            text, *pair = (row[column] for column in self._columns)
            yield TextRow(text, pair[0] if pair else None)

    def _json_rows(self) -> Iterator[TextRow]:
        for line in self._texts():
            if not line.strip():
                continue
            where = f"{self.path} line {self._lines}"
            row = json_object(line, where)
            self._check_columns(list(row), where)
            text, *pair = (self._text(row[name], name, where) for name in TEXT_COLUMNS[: 1 + self.paired])
            yield TextRow(text, pair[0] if pair else None)

    def _text(self, value: Any, name: str, where: str) -> str:
        if value is not None and not isinstance(value, str):
            raise DataError(f"{where}: '{name}' must hold text, not {type(value).__name__}: convert it")
        try:
            (value or "").encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{where}: '{name}' holds half a character ({first_line(error)}): delete it") from error
        return value or ""
