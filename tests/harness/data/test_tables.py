"""Tables in every dialect: what is written is read back row by row, or refused with its line."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from harness.core.errors import DataError
from harness.data.tables import Quotes, TextTable, read_table

WANTED = ("text", "text_pair", "label")

# Characters that formats treat in their own ways, and some that only look like ends of lines.
SIGNS = st.sampled_from(list("ab \"',;\\#\t\n\r\x0b\x0c\x1c\x85\u2028\ufeff\u200b好é👍"))
TEXTS = st.text(SIGNS, max_size=12)
PLAIN = TEXTS.map(lambda text: text.translate({9: None, 10: None, 13: None}))


def rows_of(texts: st.SearchStrategy[str]) -> st.SearchStrategy[list[tuple[str, int, str]]]:
    return st.lists(st.tuples(texts, st.integers(0, 9), texts), min_size=1, max_size=8)


def read(path: Path, content: str | bytes) -> TextTable:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_table(path, WANTED)


def values(table: TextTable) -> list[tuple[Any, ...]]:
    """Return the rows, with labels as numbers."""
    columns = [table.columns[name] for name in ("text", "label", "text_pair")]
    return [(text, int(label), pair) for text, label, pair in zip(*columns, strict=True)]


def by_csv(rows: list[tuple[str, int, str]], **dialect: Any) -> str:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, **dialect).writerows([("text", "label", "text_pair"), *rows])
    return buffer.getvalue()


def plain(rows: list[tuple[str, int, str]], end: str) -> str:
    return "".join("\t".join(map(str, row)) + end for row in [("text", "label", "text_pair"), *rows])


pressed = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pressed
@given(rows_of(PLAIN), st.sampled_from(["\n", "\r\n"]))
def test_quotes_of_plain_tsv_are_characters(tmp_path: Path, rows: list[tuple[str, int, str]], end: str) -> None:
    """In plain TSV a line is a row and quotes are characters.

    Only a file that is also exactly what a program for CSV would have written is read as such, and says so.
    """
    found = read(tmp_path / "a.tsv", content := plain(rows, end))
    if found.quotes is Quotes.EITHER:
        doubled = [text for row in values(found) for text in row[::2] if '"' in text]
        assert all(f'"{text.replace(chr(34), 2 * chr(34))}"' in content for text in doubled)
    else:
        assert values(found) == rows


@pressed
@given(
    rows_of(TEXTS),
    st.sampled_from([",", "\t"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
)
def test_quoted_tables_are_read_back(
    tmp_path: Path, rows: list[tuple[str, int, str]], separator: str, kind: int, end: str, packed: bool
) -> None:
    """CSV, and TSV with the quoting of CSV, are read back, whichever fields are quoted, and also packed."""
    if kind == csv.QUOTE_MINIMAL:  # Python before 3.13 does not quote it
        rows = [(text.replace("\r", ""), label, pair.replace("\r", "")) for text, label, pair in rows]
    content = by_csv(rows, delimiter=separator, quoting=kind, lineterminator=end).encode()
    lines = content.decode().splitlines()
    # A broken field whose every line has the tabs of a row is a table of plain TSV, too, and is read as that.
    assume(separator == "," or len(lines) == len(rows) + 1 or any(line.count("\t") != 2 for line in lines))
    name = "a.csv" if separator == "," else "a.tsv"
    found = read(tmp_path / (f"{name}.gz" if packed else name), gzip.compress(content) if packed else content)
    assert values(found) == rows


@pressed
@given(rows_of(TEXTS), st.booleans(), st.booleans())
def test_json_lines_are_read_back(
    tmp_path: Path, rows: list[tuple[str, int, str]], ascii_only: bool, mark: bool
) -> None:
    """JSON lines are read back with escapes or without, and with a byte order mark or without."""
    lines = [
        json.dumps({"text": text, "label": label, "text_pair": pair}, ensure_ascii=ascii_only)
        for text, label, pair in rows
    ]
    assert values(read(tmp_path / "a.jsonl", "\ufeff" * mark + "\n".join(lines))) == rows


@settings(pressed, max_examples=20)
@given(rows_of(TEXTS), st.booleans())
def test_parquet_is_read_back(tmp_path: Path, rows: list[tuple[str, int, str]], packed: bool) -> None:
    """Parquet is read back, also packed with gzip."""
    buffer = io.BytesIO()
    pd.DataFrame(rows, columns=["text", "label", "text_pair"]).to_parquet(buffer)
    content = gzip.compress(buffer.getvalue()) if packed else buffer.getvalue()
    assert values(read(tmp_path / ("a.parquet.gz" if packed else "a.parquet"), content)) == rows


@settings(pressed, max_examples=30)
@given(rows_of(PLAIN), st.data())
def test_a_line_with_other_fields_is_refused(
    tmp_path: Path, rows: list[tuple[str, int, str]], data: st.DataObject
) -> None:
    """A field too many or too few in one line of CSV is refused with the number of that line, never shifted."""
    lines = by_csv(rows, quoting=csv.QUOTE_ALL, lineterminator="\n").split("\n")[:-1]
    number = data.draw(st.integers(1, len(lines) - 1))
    lines[number] = data.draw(st.sampled_from([lines[number] + ",", lines[number] + ',"b"', '"a",1']))
    with pytest.raises(
        DataError, match=rf"a.csv line {number + 1}: \d fields, but the header has 3 \(text, label, text_pair\)"
    ):
        read(tmp_path / "a.csv", "\n".join(lines))


def test_quotes_of_plain_tsv_swallow_no_line(tmp_path: Path) -> None:
    """Texts that begin with a quote, or begin and end with one, keep it, and no line is joined with another."""
    texts = ['"an odd film', "good", 'odd" too', '"all of it"', '""', '"a', 'b"', '"""x', 'he said "no"']
    found = read(tmp_path / "a.tsv", "text\tlabel\n" + "".join(f"{text}\t{n % 2}\n" for n, text in enumerate(texts)))
    assert (found.columns["text"], found.quotes) == (texts, Quotes.PLAIN)
    found = read(tmp_path / "a.tsv", 'text\tlabel\n"fine, fine"\t1\nbad\t0\n"so so"\t1\n')
    assert (found.columns["text"], found.quotes) == (['"fine, fine"', "bad", '"so so"'], Quotes.DOUBTFUL)
    # Row 1 up to row 3 would be one field of CSV.
    found = read(tmp_path / "a.tsv", 'text\tlabel\n"fine\t1\nbad\t0\nso"\t1\n')
    assert (found.columns["text"], found.quotes) == (['"fine', "bad", 'so"'], Quotes.PLAIN)


@pytest.mark.parametrize(
    ("content", "quotes"),
    [
        ('text\tlabel\n"he said ""no"""\t0\nfine\t1\n', Quotes.EITHER),
        ('"text"\t"label"\n"fine"\t"1"\n"bad"\t"0"\n', Quotes.EITHER),
        ('"text"\t"label"\n"fine"\t1\n""\t0\n', Quotes.EITHER),
        ("text\tlabel\n" + '"one, two"\t0\n' * 5 + "fine\t1\n", Quotes.EITHER),
        ("text\tlabel\n" + '"fine"\t0\n' * 5, Quotes.EITHER),
        ('text\tlabel\n"two\nlines"\t1\nbad\t0\n', Quotes.CSV),
        ('text\tlabel\r\n"a\ttab"\t1\r\nbad\t0\r\n', Quotes.CSV),
    ],
)
def test_tsv_with_the_quotes_of_csv(tmp_path: Path, content: str, quotes: Quotes) -> None:
    """TSV as programs for CSV write it is recognised, whichever fields they quote."""
    found = read(tmp_path / "a.tsv", content)
    assert found.quotes is quotes
    assert not any(text.startswith('"') for text in found.columns["text"])
    assert not any(label.startswith('"') for label in found.columns["label"])


def test_quotes_stay_where_another_file_is_plain(tmp_path: Path) -> None:
    """A file that could be either is read as plain if it is told so; one that cannot be plain is not."""
    (tmp_path / "a.tsv").write_text('text\tlabel\n"he said ""no"""\t0\nfine\t1\n')
    found = read_table(tmp_path / "a.tsv", WANTED, plain=True)
    assert (found.columns["text"], found.quotes) == (['"he said ""no"""', "fine"], Quotes.DOUBTFUL)
    (tmp_path / "a.tsv").write_text('text\tlabel\n"two\nlines"\t0\nfine\t1\n')
    assert read_table(tmp_path / "a.tsv", WANTED, plain=True).columns["text"] == ["two\nlines", "fine"]


def test_a_broken_line_does_not_make_quotes_of_csv(tmp_path: Path) -> None:
    """Where a text holds a line break, quotes elsewhere must not join complete rows."""
    content = 'text\tlabel\n"odd\t1\nfine\t0\nbroken\ntext\t1\ngood\t1\nend"\t0\n'
    with pytest.raises(
        DataError, match=r"a.tsv line 4: 1 field, but the header has 2 \(text, label\): fill the missing"
    ):
        read(tmp_path / "a.tsv", content)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            "text,label\na, b,1\n",
            r"line 2: 3 fields, but the header has 2 \(text, label\): put texts with commas",
        ),
        ("a.csv", "text,label\na,1,\n", "line 2: 3 fields, .*: delete the comma at the end of the line"),
        ("a.csv", "text,label\na,1\nb\n", "line 3: 1 field, .*: fill the missing fields, or delete the line"),
        ("a.csv", "text,label\na,1\n\nb,0\n", "line 3: 0 fields"),
        ("a.csv", 'text,label\n"a" b,1\n', "line 2: not a row of CSV .*: a text that begins with a double quote"),
        ("a.csv", 'text,label\na,1\n"b,0\nc,1\n', "line 3: not a row of CSV"),
        ("a.tsv", "label\ttext\n1\ta\tb\n", "line 2: 3 fields, .*: take tabs and line breaks out of the texts"),
        ("a.tsv", "label\ttext\n1\ta\n\n0\tb\n", "line 3: 1 field"),
        ("a.tsv", "label\ttext\ttext\n1\ta\tb\n", "line 1: two columns are called 'text': rename or delete one"),
        ("a.csv", "text,label,note,note\na,1,,\n", "line 1: two columns are called 'note'"),
        (
            "a.jsonl",
            '{"text": "a", "label": 1}\n{"text": "a", "text": "b", "label": 1}',
            "line 2: .*'text' occurs twice",
        ),
        (
            "a.jsonl",
            '{"text": "a"}\n{"text": "b \\ud83d c"}',
            r"line 2: 'text' holds '\\ud83d', which is half a character",
        ),
        ("a.jsonl", "[" * 100_000, "line 1: not JSON"),
        ("a.tsv", "\ufeff\r\n", "the file is empty"),
        ("a.tsv.gz", b"text\tlabel\na\t1\n", "cannot be read"),
        ("a.tsv.gz", gzip.compress(b"text\tlabel\na\t1\n" * 99, mtime=0)[:-20], "cannot be read"),
        ("a.tsv", gzip.compress(b"text\tlabel\na\t1\n", mtime=0), "not UTF-8"),
        ("a.csv", "text,label\na,1\n".encode("utf-16"), "not UTF-8"),
    ],
)
def test_refused_tables(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    """What cannot be read with certainty is refused in one line with the file, and the line where there is one."""
    with pytest.raises(DataError, match=f"{name}:? ?{message}") as caught:
        read(tmp_path / name, content)
    assert "\n" not in str(caught.value)


def test_columns_of_one_name_in_parquet(tmp_path: Path) -> None:
    """Parquet can hold two columns of one name, which are refused, too."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table([["a"], ["b"]], names=["text", "text"]), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="a.parquet: two columns are called 'text'"):
        read_table(tmp_path / "a.parquet", WANTED)


def test_the_index_of_pandas_is_read_over(tmp_path: Path) -> None:
    """A header that begins with a comma, as pandas writes its index, is read, and so are empty columns of a spreadsheet."""
    assert read(tmp_path / "a.csv", ",text,label\n0,fine,1\n1,bad,0\n").columns == {
        "text": ["fine", "bad"],
        "label": ["1", "0"],
    }
    assert read(tmp_path / "a.csv", "text,label,,\nfine,1,,\n").columns == {"text": ["fine"], "label": ["1"]}


def test_texts_that_look_like_missing_values(tmp_path: Path) -> None:
    """The texts "NA", "null" and "1.50" stay as they are."""
    write: dict[str, Callable[[pd.DataFrame, Path], object]] = {
        "csv": lambda frame, path: frame.to_csv(path, index=False),
        "tsv": lambda frame, path: frame.to_csv(path, index=False, sep="\t"),
        "parquet": lambda frame, path: frame.to_parquet(path),
        "jsonl": lambda frame, path: frame.to_json(path, orient="records", lines=True),
    }
    texts = ["NA", "null", "1.50", "None", "nan"]
    for form, act in write.items():
        act(pd.DataFrame({"text": texts}), path := tmp_path / f"a.{form}")
        assert read_table(path, WANTED).columns["text"] == texts
