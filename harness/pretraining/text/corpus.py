"""Raw text, document by document.

* ``.txt`` (also ``.txt.gz`` and ``.txt.zst``): documents are separated by blank lines. In a file without a blank line in its
  first 10,000 lines, every line is a document.
* ``.parquet``, ``.csv``, ``.tsv``, ``.jsonl``: every row is a document: its column ``text`` or ``text_pair``, or a pair of texts
  if both have text.

Files named like a test or dev split are always refused, because a backbone must not know the data that methods are tested on.
(Rename the file if it is not a split of a dataset.)
"""

from __future__ import annotations

import hashlib
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from harness.core.errors import DataError, first_line
from harness.data.tables import FORMATS, listed, read_table

Document = str | tuple[str, str]  # a text, or a pair of texts
PACKED = {".gz": "gzip", ".zst": "zstd"}
_LOOK = 10_000  # lines that are searched for a blank one
_SPLIT = re.compile(r"(^|[^a-z])(test|dev|val|valid|validation|eval)([^a-z]|$)")


@dataclass(frozen=True)
class CorpusFile:
    """A file of a corpus."""

    path: Path
    form: str
    packed: str | None = None

    def facts(self) -> dict[str, Any]:
        """Return name, size in bytes and SHA-256. Only tables get their folder's name, because many are called train."""
        with self.path.open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
        path = self.path.resolve()
        name = path.name if self.form == "txt" else f"{path.parent.name}/{path.name}"
        return {"name": name, "bytes": self.path.stat().st_size, "sha256": digest}


def corpus_file(path: Path) -> CorpusFile:
    """Check a file by its name.

    Raises:
        DataError: it is missing, has an unknown suffix, or is named like a test or dev split.
    """
    suffixes = [part.lower() for part in path.suffixes]
    packed = PACKED.get(suffixes[-1]) if suffixes else None
    form = (suffixes[:-1] if packed else suffixes)[-1:]
    kinds = ("txt", *(() if packed else FORMATS))
    if not form or form[0][1:] not in kinds:
        raise DataError(
            f"{path}: not a corpus: give .txt (also .txt.gz, .txt.zst), or {', '.join(f'.{kind}' for kind in FORMATS)} with a "
            "column text"
        )
    if _SPLIT.search(path.name.lower()):
        raise DataError(
            f"{path} is named like a dev or test split, which must not be used for pretraining: leave it out (or rename it if "
            "it is none)"
        )
    if not path.is_file():
        raise DataError(f"{path}: no such file: give the corpus with --corpus FILE[,FILE]")
    return CorpusFile(path, form[0][1:], packed)


def _lines(given: CorpusFile) -> Iterator[str]:
    """Yield the lines of a text file, decoded one by one, so that an error can name the line."""
    try:
        stream = pa.input_stream(str(given.path), compression=given.packed)
        with io.BufferedReader(stream) as handle:
            for number, line in enumerate(handle, start=1):
                try:
                    yield line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                except UnicodeDecodeError as error:
                    raise DataError(f"{given.path} line {number}: not UTF-8 text: save the file as UTF-8") from error
    except OSError as error:
        raise DataError(f"{given.path}: cannot be read ({first_line(error)}): download or write it again") from error


def _paragraphs(lines: Iterator[str]) -> Iterator[Document]:
    head = list(itertools.islice(lines, _LOOK))
    blocks = any(not line for line in "\n".join(head).strip().split("\n"))
    paragraph: list[str] = []
    for line in itertools.chain(head, lines):
        if line and blocks:
            paragraph.append(line)
        elif line:
            yield line
        elif paragraph:
            yield " ".join(paragraph)
            paragraph = []
    if paragraph:
        yield " ".join(paragraph)


def _rows(path: Path) -> Iterator[Document]:
    table = read_table(path, ("text", "text_pair"))
    if "text" not in table.columns:
        found = listed(table.names)
        raise DataError(f"{path}: no column 'text' (columns: {found}): rename the one with the text")
    for row in zip(*table.columns.values(), strict=True):
        texts = [value.strip() for value in row if isinstance(value, str) and value.strip()]
        if texts:
            yield texts[0] if len(texts) == 1 else (texts[0], texts[1])


def read(given: CorpusFile) -> Iterator[Document]:
    """Yield the documents of one file in order, without empty ones.

    Raises:
        DataError: the file cannot be read, is not UTF-8, has no column ``text``, or has no text.
    """
    found = _paragraphs(_lines(given)) if given.form == "txt" else _rows(given.path)
    first = next(found, None)
    if first is None:
        raise DataError(f"{given.path} has no text: give another file, or leave it out")
    yield first
    yield from found


def documents(sources: Sequence[CorpusFile]) -> Iterator[Document]:
    """Yield the documents of all files, one file after the other. See :func:`read`."""
    for given in sources:
        yield from read(given)
