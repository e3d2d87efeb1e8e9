"""A CSV file of answers that grows row by row, and the note beside it that says which model and which rows it holds answers of.

The note, ``OUT.progress.json``, is written after every group of rows, once they are on the disk. What a killed process wrote
after its last note is cut off when the file is opened again, so that no row is lost or doubled.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import ValidationError

from harness.core.errors import ResultError, first_line
from harness.core.files import write_error, write_json
from harness.core.text_formats import read_json
from harness.deploy.row_reader import ReadPlace, RowReader
from harness.results.schema import StrictRecord

_BLOCK = 2**20
_FORMAT = 1


class AnswerProgress(StrictRecord):
    """How far a file of answers is.

    Attributes:
        format: number of this format.
        model: content hash of the exported model.
        input: the place in the file of texts up to which it has answers.
        bytes: of answers.
        sha256: of these bytes.
        complete: all rows that the file of texts had are answered.
        exact_labels: labels are written exactly, with no apostrophe in front of formulas.
    """

    format: int
    model: str
    input: ReadPlace
    bytes: int
    sha256: str
    complete: bool
    exact_labels: bool = False


class AnswerFile:
    """A file of answers, open for appending.

    Attributes:
        path: of the file.
        progress: as last noted; ``None`` before the first note.
    """

    def __init__(self, path: Path, model: str, *, exact_labels: bool = False) -> None:
        self.path, self._model, self._exact_labels = path, model, exact_labels
        self.note = path.with_name(f"{path.name}.progress.json")
        self.progress: AnswerProgress | None = None
        self._digest = hashlib.sha256()
        self._bytes = 0

    def continue_after(self, rows: RowReader) -> None:
        """Resume an earlier call: cut what it wrote after its last note, and let ``rows`` skip what is answered.

        Raises:
            ResultError: the file is not of this model and this file of texts, or its labels are written in another way.
        """
        if not self.path.exists() and not self.note.exists():
            return
        mend = "choose another --out, or delete both files to start again"
        if not self.note.exists():
            raise ResultError(
                f"{self.path} exists, and no {self.note.name} says what it holds: choose another --out, or delete it"
            )
        try:
            data = read_json(self.note)
            found = AnswerProgress.model_validate(data)
        except (OSError, ValueError, ValidationError) as error:
            raise ResultError(f"{self.note} cannot be read ({first_line(error)}): {mend}") from error
        if found.format != _FORMAT:
            raise ResultError(f"{self.note} is of another version of this program: {mend}")
        if found.model != self._model:
            raise ResultError(f"{self.path} holds answers of another model: {mend}")
        if found.exact_labels != self._exact_labels:
            without = "out" * (not found.exact_labels)
            raise ResultError(f"{self.path} was begun with{without} --exact-labels: do the same, or {mend}")
        if not rows.skip_to(found.input):
            raise ResultError(f"{self.path} holds answers to other texts than those of {rows.path}: {mend}")
        if not self._keep(found):
            raise ResultError(f"{self.path} is not as this program left it: {mend}")
        self.progress = found

    def _keep(self, found: AnswerProgress) -> bool:
        """Cut the file to what was noted; return ``False`` if that is not there, or has changed."""
        if not self.path.is_file():
            return not found.bytes
        with self.path.open("r+b") as handle:
            while self._bytes < found.bytes:
                block = handle.read(min(_BLOCK, found.bytes - self._bytes))
                if not block:
                    return False
                self._digest.update(block)
                self._bytes += len(block)
            if self._digest.hexdigest() != found.sha256:
                return False
            handle.truncate(found.bytes)
        return True

    def append(self, rows: Iterable[Sequence[object]], place: ReadPlace, *, complete: bool = False) -> None:
        """Write rows to the disk, then note the place in the texts that they reach.

        Raises:
            WriteError: the disk is full, or the folder cannot be written.
        """
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        content = text.getvalue().encode()
        try:
            with self.path.open("ab") as handle:
                handle.write(content)
                handle.flush()
                os.fsync(handle.fileno())
        except OSError as error:
            raise write_error(self.path, error, "choose another --out") from error
        self._digest.update(content)
        self._bytes += len(content)
        self._write_note(place, complete)

    def start(self, header: Sequence[object], place: ReadPlace) -> None:
        """Write the first note, then the header, unless an earlier process did."""
        if self.progress is None:
            self._write_note(place, complete=False)  # so that a kill leaves no file without a note
        if not self._bytes:
            self.append([header], place)

    def _write_note(self, place: ReadPlace, complete: bool) -> None:
        self.progress = AnswerProgress(
            format=_FORMAT,
            model=self._model,
            input=place,
            bytes=self._bytes,
            sha256=self._digest.hexdigest(),
            complete=complete,
            exact_labels=self._exact_labels,
        )
        write_json(self.note, self.progress.model_dump(mode="json"))


@contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Hold the lock of a file of answers.

    Raises:
        ResultError: another process writes it.
        WriteError: its folder cannot be written.
    """
    lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ResultError(
            f"{path} is being written by another process: wait until it ends, or choose another --out"
        ) from error
    except OSError as error:
        raise write_error(path, error, "choose another --out") from error
    try:
        yield
    finally:
        lock.release()
