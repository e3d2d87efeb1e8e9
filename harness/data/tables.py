"""Reads tables: Parquet, CSV, plain TSV and JSON lines, each also packed with gzip.

A row is never shifted, joined with another or dropped: what cannot be read with certainty is refused with file and line.

TSV files are plain by default, as in the repositories of FastBERT, K-BERT and GLUE: a line is a row, and a double quote is a
character like any other. A TSV file that was written with the quoting of CSV is recognised; see :class:`Quotes`.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from harness.core.errors import DataError, first_line
from harness.core.names import check_label

FORMATS = ("parquet", "csv", "tsv", "jsonl")
_SHOWN, _SHOWN_CHARACTERS = 8, 40  # column names in a message
_SURROGATE = re.compile("[\\ud800-\\udfff]")
_MANY_QUOTED = 5  # fields; fewer may be quoted by chance

Row = list[str]

csv.field_size_limit(2**31 - 1)  # the default, 128 KiB, is shorter than some texts


class Quotes(Enum):
    """What the double quotes of a TSV file are.

    ``PLAIN``: parts of the texts; they cannot be the quotes of CSV. ``CSV``: the quotes of CSV; without them, some lines would
    not be rows. ``EITHER``: every line is a row, and each quote is where a program for CSV would have put it; read as
    quotes of CSV. ``DOUBTFUL``: they could be quotes of CSV, but are not where a program would have put them; read as parts of
    the texts.
    """

    NONE = "no quotes"
    PLAIN = "plain"
    DOUBTFUL = "doubtful"
    EITHER = "either"
    CSV = "csv"


@dataclass(frozen=True)
class TextTable:
    """Some columns of a table.

    Attributes:
        names: all columns of the file, in its order.
        columns: the wanted columns that the file has, each with one value per row; ``None`` where a value is missing.
        class_names: names of the classes in the order of their numbers, if the Parquet file says so, as those of
            ``datasets`` do; otherwise empty.
        quotes: how a TSV file was read.
    """

    names: list[str]
    columns: dict[str, list[Any]]
    class_names: tuple[str, ...] = ()
    quotes: Quotes = Quotes.NONE


def form_of(path: Path) -> str:
    """Return the format of a file by its name: one of :data:`FORMATS`, or another suffix."""
    return path.name.lower().removesuffix(".gz").rpartition(".")[2]


def listed(names: Sequence[str]) -> str:
    """Return names of columns for a message. In a table without a header they are texts, of any length."""
    cut = [name if len(name) <= _SHOWN_CHARACTERS else f"{name[:_SHOWN_CHARACTERS]}..." for name in names[:_SHOWN]]
    return ", ".join(cut)


def read_table(path: Path, wanted: Sequence[str], *, plain: bool = False) -> TextTable:
    """Read the columns ``wanted`` of a table. Texts such as "NA" and "null" stay texts.

    Args:
        plain: read a TSV file as plain if it can be read so, because another file of the dataset is plain.

    Raises:
        DataError: the file cannot be read, a row has more or fewer fields than the header, or two columns share a name.
    """
    form, packed = form_of(path), path.suffix.lower() == ".gz"
    try:
        if form == "parquet":
            return _read_parquet(path, packed, wanted)
        content = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}): save it as UTF-8") from error
    except (OSError, EOFError, zlib.error, ValueError, TypeError, LookupError, NotImplementedError) as error:
        raise DataError(f"{path}: cannot be read ({first_line(error)}): write the file again") from error
    if not text.strip():
        raise DataError(f"{path}: the file is empty: write a table with at least one row")
    if form == "jsonl":
        return _read_jsonl(path, text, wanted)
    if form == "csv":
        return _columns(path, _csv_rows(path, text, ","), Quotes.NONE, wanted)
    return _columns(path, *_tsv_rows(path, text, plain), wanted)


def unique_names(names: Sequence[str], where: str) -> None:
    """Check that no two columns share a name; raises :class:`DataError`."""
    repeated = [name for name, count in Counter(names).items() if count > 1 and name]
    if repeated:
        raise DataError(f"{where}: two columns are called '{repeated[0]}': rename or delete one of them")


def _columns(path: Path, rows: list[Row], quotes: Quotes, wanted: Sequence[str]) -> TextTable:
    names = rows.pop(0)
    unique_names(names, f"{path} line 1")
    places = {name: names.index(name) for name in wanted if name in names}
    return TextTable(names, {name: [row[place] for row in rows] for name, place in places.items()}, quotes=quotes)


def wrong_fields(path: Path, line: int, row: Row, header: Row, separator: str) -> DataError:
    """Return the error of a row with more or fewer fields than the header."""
    name = {"\t": "tab", ",": "comma"}[separator]
    if len(row) < len(header):
        mend = "fill the missing fields, or delete the line"
    elif row[-1] == "" and len(row) == len(header) + 1:
        mend = f"delete the {name} at the end of the line"
    elif separator == ",":
        mend = "put texts with commas in double quotes"
    else:
        mend = "take tabs and line breaks out of the texts, or quote all of these texts as in CSV"
    fields = f"{len(row)} field{'s' * (len(row) != 1)}"
    return DataError(f"{path} line {line}: {fields}, but the header has {len(header)} ({listed(header)}): {mend}")


def _csv_rows(path: Path, text: str, separator: str) -> list[Row]:
    """Return header and rows of a table with the quoting of CSV. Blank lines are allowed at the end only.

    Raises:
        DataError: names the first line that cannot be read.
    """
    reader = csv.reader(io.StringIO(text.rstrip("\r\n"), newline=""), delimiter=separator, strict=True)
    rows: list[Row] = []
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            quote = "a text that begins with a double quote must also end with one, and double those inside"
            raise DataError(f"{path} line {line}: not a row of CSV ({error}): {quote}") from error
        if row is None:
            return rows
        if rows and len(row) != len(rows[0]):
            raise wrong_fields(path, line, row, rows[0], separator)
        rows.append(row)


def _tsv_rows(path: Path, text: str, plain: bool) -> tuple[list[Row], Quotes]:
    """Return header and rows of a TSV file, and what its quotes are."""
    lines = text.split("\n")
    while not lines[-1].strip("\r"):
        lines.pop()
    if lines[0].endswith("\r"):
        lines = [line.removesuffix("\r") for line in lines]
    rows = [line.split("\t") for line in lines]
    wrong = next((number for number, row in enumerate(rows) if len(row) != len(rows[0])), None)
    if '"' not in text and wrong is None:
        return rows, Quotes.NONE
    try:
        quoted = _csv_rows(path, text, "\t")
    except DataError:  # some quotes are part of texts: the file is plain, or broken
        quoted = []
    if wrong is not None:
        if not quoted or _joins_rows(rows, quoted):
            raise wrong_fields(path, wrong + 1, rows[wrong], rows[0], "\t")
        return quoted, Quotes.CSV
    # Every line is a row already: quotes that would join lines are part of texts.
    if len(quoted) != len(rows) or quoted == rows:
        return rows, Quotes.PLAIN
    if plain or not _looks_quoted(rows, quoted):
        return rows, Quotes.DOUBTFUL
    return quoted, Quotes.EITHER


def _joins_rows(lines: list[Row], quoted: list[Row]) -> bool:
    """Return whether reading the quotes as those of CSV would join lines that are rows already, each with a known label.

    Args:
        lines: header and lines, each split at its tabs.
        quoted: header and rows of the other reading.
    """
    if "label" not in quoted[0]:
        return False
    place = quoted[0].index("label")
    labels = {row[place] for row in quoted[1:]}
    complete = sum(len(line) == len(quoted[0]) and line[place].strip('"') in labels for line in lines[1:])
    return complete > len(quoted) - 1  # a row of CSV that covers several lines has its label in one of them


def _looks_quoted(plain: list[Row], quoted: list[Row]) -> bool:
    """Return whether a program that quotes as in CSV would have written these fields.

    Such programs quote whole columns, or the fields that hold a double quote (some programs: or a comma). In a plain file, some
    text with a double quote follows neither rule.

    Args:
        plain: header and rows with their quotes.
        quoted: the same fields, with quotes removed.
    """
    header, rows = zip(plain[0], quoted[0], strict=True), list(zip(plain[1:], quoted[1:], strict=True))

    def fields() -> Iterator[tuple[str, str]]:
        return ((raw, read) for before, after in rows for raw, read in zip(before, after, strict=True))

    def only(signs: str) -> bool:
        return all((raw != read) == any(sign in read for sign in signs) for raw, read in fields())

    many = sum(raw != read for raw, read in fields()) >= _MANY_QUOTED
    columns = all(len({raw[n] != read[n] for raw, read in rows if raw[n]}) < 2 for n in range(len(plain[0])))
    return only('"') or (many and only('",')) or (columns and (many or all(raw != read for raw, read in header)))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        name = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"'{name}' occurs twice")
    return found


def json_object(line: str, where: str) -> dict[str, Any]:
    """Return the object in a line of JSON.

    Raises:
        DataError: it is not JSON, or no object.
    """
    try:
        row = json.loads(line, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where}: not JSON ({first_line(error)}): write one object per line, with each key once"
        ) from error
    if not isinstance(row, dict):
        raise DataError(f'{where}: not a JSON object: write {{"text": ..., "label": ...}}')
    return row


def _read_jsonl(path: Path, text: str, wanted: Sequence[str]) -> TextTable:
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        row = json_object(line, f"{path} line {number}")
        for name in wanted:
            if isinstance(value := row.get(name), str) and (half := _SURROGATE.search(value)):
                raise DataError(
                    f"{path} line {number}: '{name}' holds {half[0]!a}, which is half a character: delete it or add the other half"
                )
        rows.append(row)
    names = list(dict.fromkeys(name for row in rows for name in row))
    return TextTable(names, {name: [row.get(name) for row in rows] for name in wanted if name in names})


def _read_parquet(path: Path, packed: bool, wanted: Sequence[str]) -> TextTable:
    source = pa.BufferReader(gzip.decompress(path.read_bytes())) if packed else path
    with pq.ParquetFile(source) as file:
        schema = file.schema_arrow
        unique_names(schema.names, str(path))
        table = file.read(columns=[name for name in wanted if name in schema.names])
    columns = {name: table.column(name).to_pylist() for name in wanted if name in table.column_names}
    return TextTable(schema.names, columns, _class_names((schema.metadata or {}).get(b"huggingface")))


def _class_names(metadata: bytes | None) -> tuple[str, ...]:
    """Return the names of the feature ``label`` that the library ``datasets`` writes into a Parquet file."""
    place: Any = json.loads(metadata) if metadata else None
    for key in ("info", "features", "label", "names"):
        place = place.get(key) if isinstance(place, dict) else None
    return tuple(check_label(str(name)) for name in place) if isinstance(place, list) else ()
