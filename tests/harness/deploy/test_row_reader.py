"""Rows of large files one by one: the same rows as the reader of datasets, places to go on from, files that change."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.core.errors import DataError
from harness.data.tables import read_table
from harness.deploy.row_reader import LONGEST, ReadPlace, RowReader

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r"), min_size=1, max_size=12)


def place(tmp_path: Path, content: str | bytes, name: str = "texts.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def rows(path: Path, paired: bool = False, start: ReadPlace | None = None) -> list[tuple[str, str | None]]:
    with RowReader(path, paired=paired) as reader:
        assert start is None or reader.skip_to(start)
        return [tuple(row) for row in reader]  # type: ignore[misc]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=9), st.data(), st.sampled_from(["\n", "\r\n"]))
def test_rows_and_places(tmp_path: Path, texts: list[tuple[str, str]], data: st.DataObject, end: str) -> None:
    """Quotes, commas and line breaks inside texts are read as elsewhere; from any place, reading goes on with the next row."""
    text = io.StringIO()
    csv.writer(text, lineterminator=end).writerows([("text", "n", "text_pair"), *((a, "1", b) for a, b in texts)])
    content = text.getvalue() if data.draw(st.booleans()) else text.getvalue().removesuffix(end)
    path = place(tmp_path, content)
    table = read_table(path, ("text", "text_pair"))
    expected = list(zip(*table.columns.values(), strict=True))
    assert rows(path, paired=True) == expected == texts
    stop = data.draw(st.integers(0, len(texts)))
    with RowReader(path, paired=True) as reader:
        noted = reader.place
        for number, _ in enumerate(reader, start=1):
            noted = reader.place if number == stop else noted
    assert (noted.rows, rows(path, True, noted)) == (stop, expected[stop:])


def test_json_lines(tmp_path: Path) -> None:
    """Objects are read line by line; null is an empty text."""
    content = "".join(json.dumps(one) + "\n" for one in ({"text": "a\nb"}, {"text": None, "n": 1}, {"text": "c"}))
    path = place(tmp_path, content, "texts.jsonl")
    assert rows(path) == [("a\nb", None), ("", None), ("c", None)]
    with RowReader(path, paired=False) as reader:
        next(iter(reader))
        assert rows(path, start=reader.place) == [("", None), ("c", None)]


def test_a_place_of_another_file_is_refused(tmp_path: Path) -> None:
    """Rows before the place that differ, are fewer, or whose last one went on are found; rows after it do not matter."""
    path = place(tmp_path, "text\none\ntwo")
    with RowReader(path, paired=False) as reader:
        first, last = [reader.place for _ in reader]
    for content, at_first, at_last in (
        ("text\none\ntwo\nthree\n", True, True),
        ("text\none\ntwo\r\nthree\n", True, True),
        ("text\none\ntwofold\n", True, False),
        ("text\nonE\ntwo", False, False),
        ("text\n", False, False),
    ):
        with RowReader(place(tmp_path, content), paired=False) as reader:
            assert reader.skip_to(first) is at_first, content
        with RowReader(path, paired=False) as reader:
            assert reader.skip_to(last) is at_last, content
    assert rows(place(tmp_path, "text\none\ntwo\nthree\n"), start=last) == [("three", None)]


@pytest.mark.parametrize(("added", "read"), [("\nthree\nfour", ["one"]), ("!\nthree\n", ["one"]), ("", ["one", "two"])])
def test_a_file_that_grows(tmp_path: Path, added: str, read: list[str]) -> None:
    """Only rows that were complete when it was opened are read, never half a row; the growth is reported at the end."""
    path = place(tmp_path, "text\none\ntwo")
    with RowReader(path, paired=False) as reader:
        with path.open("a") as handle:
            handle.write(added)
        assert [row.text for row in reader] == read
        if not added:
            reader.check_unchanged()
            return
        with pytest.raises(DataError, match=r"grew from 12 to \d+ bytes .* first 1 rows are answered"):
            reader.check_unchanged()


def test_a_quoted_row_that_is_still_written(tmp_path: Path) -> None:
    """A row whose quotes are not closed yet is left for later if the file grows, and refused otherwise."""
    path = place(tmp_path, 'text\none\n"two\n')
    with RowReader(path, paired=False) as reader:
        with path.open("a") as handle:
            handle.write('lines"\n')
        assert [row.text for row in reader] == ["one"]
        noted = reader.place
    assert rows(path, start=noted) == [("two\nlines", None)]
    with pytest.raises(DataError, match="line 3: not a row of CSV"):
        rows(place(tmp_path, 'text\none\n"two\n'))


def test_a_file_that_is_written_again(tmp_path: Path) -> None:
    """A file that becomes shorter, or changes in place, is reported."""
    path = place(tmp_path, "text\n" + "one\n" * 9000)
    with RowReader(path, paired=False) as reader:
        path.write_text("text\n")
        with pytest.raises(DataError, match="became shorter"):
            list(reader)
    path = place(tmp_path, "text\none\n")
    with RowReader(path, paired=False) as reader:
        path.write_text("text\ntwo\n")
        list(reader)
        with pytest.raises(DataError, match="was changed while it was read"):
            reader.check_unchanged()


@pytest.mark.parametrize(
    ("content", "paired", "message"),
    [
        ("", False, "no column 'text' .columns: none."),
        ("sentence\nx\n", False, "no column 'text' .columns: sentence."),
        ("text\nx\n", True, "no column 'text_pair'"),
        ("text,text_pair\nx,y\n", False, "the model reads single texts"),
        ("text,text\nx,y\n", False, "two columns are called 'text'"),
        ("text\nx,y\n", False, "line 2: 2 fields, but the header has 1"),
        ("text,n\nx,1\n\ny,2\n", False, "line 3: a blank line between rows"),
        (b"text\nx\n\xff\n", False, "line 3: not UTF-8"),
        ('text\nx\n"y\n', False, "line 3: not a row of CSV"),
        ("text\n" + "x" * (LONGEST + 1) + "\n", False, "line 2: a row of more than"),
    ],
)
def test_refused_files(tmp_path: Path, content: str | bytes, paired: bool, message: str) -> None:
    """What is wrong is named with its line."""
    with pytest.raises(DataError, match=message):
        rows(place(tmp_path, content), paired)


def test_refused_formats_and_json(tmp_path: Path) -> None:
    """Other formats, missing files, and lines that are not JSON objects with texts."""
    for name in ("texts.parquet", "texts.csv.gz", "texts"):
        with pytest.raises(DataError, match="files of texts are .csv or .jsonl"):
            RowReader(place(tmp_path, "text\n", name), paired=False)
    with pytest.raises(DataError, match="cannot be read"):
        RowReader(tmp_path / "none.csv", paired=False)
    for line, message in (
        ("nonsense", "line 1: not JSON"),
        ("[]", "not a JSON object"),
        ('{"n": 1}', "no column 'text'"),
        ('{"text": 3}', "must hold text, not int"),
        ('{"text": "\\ud800"}', "half a character"),
    ):
        with pytest.raises(DataError, match=message):
            rows(place(tmp_path, line, "texts.jsonl"))
