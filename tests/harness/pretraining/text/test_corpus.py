"""Documents from files of several kinds."""

from __future__ import annotations

import gzip
from pathlib import Path

import pandas as pd
import pytest

from harness.core.errors import DataError
from harness.pretraining.text import corpus


def read(path: Path) -> list[corpus.Document]:
    return list(corpus.read(corpus.corpus_file(path)))


def test_blank_lines_separate_documents(tmp_path: Path) -> None:
    """Lines up to a blank one are a document, with any line endings."""
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\ntwo \r\n\r\n \n\nthree\n".encode())
    assert read(tmp_path / "a.txt") == ["one two", "three"]


def test_without_blank_lines_every_line_is_a_document(tmp_path: Path) -> None:
    """In a file without blank lines between them, every line is a document."""
    (tmp_path / "a.txt").write_text("\none\ntwo\n\n", encoding="utf-8")
    assert read(tmp_path / "a.txt") == ["one", "two"]


def test_packed_text_is_read(tmp_path: Path) -> None:
    """A compressed file gives the same documents."""
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"eins\n\nzwei"))
    assert read(tmp_path / "a.txt.gz") == ["eins", "zwei"]


@pytest.mark.parametrize("form", ["parquet", "csv", "tsv", "jsonl"])
def test_rows_of_tables_are_documents(form: str, tmp_path: Path) -> None:
    """A row with two texts is a pair, a row with one text is a document, and labels are ignored."""
    table = pd.DataFrame({"text": ["a b", "c", ""], "text_pair": ["d", "", "e"], "label": [0, 1, 1]})
    path = tmp_path / f"train.{form}"
    if form == "parquet":
        table.to_parquet(path)
    elif form == "jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_csv(path, sep="," if form == "csv" else "\t", index=False)
    assert read(path) == [("a b", "d"), "c", "e"]


@pytest.mark.parametrize(
    "name", ["test.parquet", "dev.csv", "my_test.jsonl", "DEV.txt", "wiki-valid.txt.gz", "validation.tsv", "val.csv"]
)
def test_dev_and_test_splits_are_refused(name: str, tmp_path: Path) -> None:
    """Files named like a dev or test split are refused."""
    (tmp_path / name).write_text("text\nx\n", encoding="utf-8")
    with pytest.raises(DataError, match="named like a dev or test split"):
        corpus.corpus_file(tmp_path / name)


@pytest.mark.parametrize("name", ["train.parquet", "latest.txt", "testimonials.csv", "develop.txt", "contest.txt"])
def test_similar_names_are_accepted(name: str, tmp_path: Path) -> None:
    """A longer word that contains "test" does not name a split."""
    (tmp_path / name).write_text("", encoding="utf-8")
    assert corpus.corpus_file(tmp_path / name).path.name == name


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.txt", b"", "has no text"),
        ("blank.txt", b" \n\n \n", "has no text"),
        ("broken.txt", b"good\n\nb\xffd\n", "line 3: not UTF-8"),
        ("latin.csv", b"text\nb\xffd\n", "not UTF-8"),
        ("nothing.jsonl", b"", "the file is empty"),
        ("half.jsonl", b'{"text": "a"}\n{"text": "b \\ud83d"}\n', "line 2: 'text' holds .* half a character"),
        ("columns.csv", b"words,label\na,0\n", "no column 'text'"),
        ("cut.txt.gz", gzip.compress(b"word " * 1000, mtime=0)[:40], "cannot be read"),
        ("plain.txt.zst", b"not packed at all", "cannot be read"),
        ("what.pdf", b"x", "not a corpus"),
        ("rows.csv.gz", b"x", "not a corpus"),
    ],
)
def test_unusable_files_are_refused(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    """The error is one line with the name of the file."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        read(tmp_path / name)
    assert name in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_a_missing_file_is_reported() -> None:
    """A missing file is reported first."""
    with pytest.raises(DataError, match="no such file"):
        corpus.corpus_file(Path("nowhere.txt"))
