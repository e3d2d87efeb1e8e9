"""Texts without labels: which rows they are, and that none of them is a row of train, dev or test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.core.errors import DataError
from harness.core.tokens import TokenSet
from harness.data.local import content_files, load_local
from harness.data.overlaps import without_rows_of
from harness.data.splits import RawDataset, RawSplit, limit_dataset
from harness.data.unlabelled import UnlabelledTexts

Row = tuple[str, str | None]


def split_of(rows: list[Row], paired: bool) -> RawSplit:
    labels = np.arange(len(rows), dtype=np.int64) % 2
    return RawSplit([text for text, _ in rows], [pair or "" for _, pair in rows] if paired else None, labels)


def dataset_of(train: int, own: list[str] | None = None) -> RawDataset:
    """Return a dataset with distinct rows, two of them in dev and in test, and the texts of a file of its own."""
    parts = {"train": train, "dev": 2, "test": 2}
    splits = {name: split_of([(f"{name} {n}", None) for n in range(rows)], False) for name, rows in parts.items()}
    file = None if own is None else UnlabelledTexts(own, None, f"{len(own)} rows of unlabelled.csv", len(own))
    return RawDataset("toy", "en", 2, ["a", "b"], "local", unlabelled=file, **splits)


@st.composite
def datasets(draw: st.DrawFn) -> tuple[RawDataset, dict[str, int | None]]:
    """Draw a dataset of few distinct words, so that rows occur in several places, and limits for it."""
    paired = draw(st.booleans())
    row = st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("xyz") if paired else st.none())
    train, dev, test = (split_of(draw(st.lists(row, min_size=4, max_size=20)), paired) for _ in range(3))
    own = draw(st.lists(row, max_size=10))
    file = split_of(own, paired)
    unlabelled = (
        UnlabelledTexts(file.texts, file.pairs, f"{len(own)} rows of unlabelled.csv", len(own)) if own else None
    )
    limits = {
        "max_train": draw(st.none() | st.integers(4, 20)),
        "max_dev": draw(st.none() | st.integers(2, 20)),
        "max_test": draw(st.none() | st.integers(1, 20)),
        "max_unlabelled": draw(st.integers(0, 40)),
    }
    return RawDataset("toy", "en", 2, ["a", "b"], "local", train, dev, test, unlabelled=unlabelled), limits


@given(datasets())
def test_no_unlabelled_row_is_in_another_split(drawn: tuple[RawDataset, dict[str, int | None]]) -> None:
    """No row is in the kept train rows, or in dev or test as they were before the limits; none occurs twice."""
    full, limits = drawn
    limited = limit_dataset(full, **limits)
    if limited.unlabelled is None:
        return
    rows = [*limited.unlabelled.rows()]
    assert 0 < len(rows) == len(set(rows)) <= limits["max_unlabelled"]
    for part in (limited.train, full.dev, full.test):
        assert not set(rows) & {*part.rows()}
    sources = iter([*full.train.rows(), *(() if full.unlabelled is None else full.unlabelled.rows())])
    assert all(row in sources for row in rows)  # each after the one before it: the order of train, then of the file
    assert (limited.unlabelled.pairs is None) == (full.train.pairs is None)


def test_rows_beyond_the_limit_of_train() -> None:
    """They are exactly the rows that train leaves out, in their order, and there are none without a limit."""
    limited = limit_dataset(dataset_of(30), max_train=10)
    assert limited.unlabelled is not None
    assert sorted([*limited.train.texts, *limited.unlabelled.texts]) == sorted(dataset_of(30).train.texts)
    assert limited.unlabelled.texts == [text for text in dataset_of(30).train.texts if text in limited.unlabelled.texts]
    assert limited.unlabelled.origin == "20 rows of train beyond its limit"
    assert limit_dataset(dataset_of(30)).unlabelled is None
    assert limit_dataset(dataset_of(30), max_train=30).unlabelled is None


def test_the_file_comes_after_the_rows_of_train() -> None:
    """Both sources are used; equal rows are dropped and can be counted."""
    own = ["new 0", "train 3", "dev 1", "test 0", "new 1", "new 0"]
    found = limit_dataset(dataset_of(6, own), max_train=4).unlabelled
    assert found is not None
    assert found.texts[-2:] == ["new 0", "new 1"] and len(found) in (4, 5)
    assert (found.drawn, found.origin) == (8, "2 rows of train beyond its limit and 6 rows of unlabelled.csv")
    only = limit_dataset(dataset_of(6, own)).unlabelled
    assert only is not None and only.texts == ["new 0", "new 1"]
    assert limit_dataset(dataset_of(6, ["dev 0", "train 5"])).unlabelled is None


def test_the_limit_draws_at_random_but_always_the_same() -> None:
    """A limit takes rows from all over the sources, whatever their labels, and 0 takes none."""
    few = limit_dataset(dataset_of(400), max_train=100, max_unlabelled=30).unlabelled
    again = limit_dataset(dataset_of(400), max_train=100, max_unlabelled=30).unlabelled
    assert few is not None and again is not None
    assert few.texts == again.texts and len(few) == few.drawn == 30
    numbers = [int(text.split()[1]) for text in few.texts]
    assert numbers == sorted(numbers) and numbers[0] < 100 and numbers[-1] > 300
    assert limit_dataset(dataset_of(40), max_train=10, max_unlabelled=0).unlabelled is None


def test_the_limit_changes_no_other_split() -> None:
    """Train, dev and test, their notes and remarks are the same with and without texts without labels."""
    plain, more = (limit_dataset(dataset_of(30, own), max_train=10) for own in (None, ["new"]))
    off = limit_dataset(dataset_of(30), max_train=10, max_unlabelled=0)
    for other in (more, off):
        assert (other.train.texts, other.notes, other.remarks) == (plain.train.texts, plain.notes, plain.remarks)


def test_equal_token_ids_are_dropped() -> None:
    """Rows whose ids and segments occur elsewhere are dropped, and so are repeated ones; the others keep their order."""
    tokens = TokenSet.from_lists(
        [[1, 5], [1, 6], [1, 7], [1, 6], [1, 5, 6]], [[0, 0], [0, 0], [0, 1], [0, 0], [0, 0, 0]]
    )
    other = TokenSet.from_lists([[1, 5], [1, 7]], [[0, 0], [0, 0]])
    kept = without_rows_of(tokens, other, other)
    assert [kept.sample(n).ids.tolist() for n in range(len(kept))] == [[1, 6], [1, 7], [1, 5, 6]]
    assert len(without_rows_of(other, tokens.select([0, 2]), other)) == 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A valid dataset ``toy``."""
    (tmp_path / "toy").mkdir()
    for split in ("train", "dev", "test"):
        (tmp_path / "toy" / f"{split}.tsv").write_text(f'text\tlabel\n"{split} ""a"""\t0\n{split} b\t1\n')
    return tmp_path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("unlabelled.csv", "text\nfirst\nsecond\n"),
        ("unlabelled.tsv", "other\ttext\n1\tfirst\n2\tsecond\n"),
        ("unlabelled.jsonl", '{"text": "first"}\n{"text": "second", "label": "any"}\n'),
        ("UNLABELLED-00000-of-00001.csv", "text,label\nfirst,\nsecond,77\n"),
    ],
)
def test_every_format_is_read(folder: Path, name: str, content: str) -> None:
    """All formats of the splits are read, and labels are ignored with a remark, however odd they are."""
    (folder / "toy" / name).write_text(content)
    data = load_local(folder, "toy")
    assert data.unlabelled is not None
    assert (data.unlabelled.texts, data.unlabelled.pairs) == (["first", "second"], None)
    ignored = [remark for remark in data.remarks if "ignored" in remark]
    assert ignored == ([f"{name}: the column 'label' is ignored"] if "label" in content else [])
    assert not any("not read" in remark for remark in data.remarks)


def test_the_file_does_not_change_the_splits(folder: Path) -> None:
    """A plain TSV file without labels does not decide how the quotes of train are read, nor what a fit depends on."""
    before, files = load_local(folder, "toy"), content_files(folder, "toy")
    (folder / "toy" / "unlabelled.tsv").write_text('text\n"an odd one\nfine\n')
    after = load_local(folder, "toy")
    assert after.unlabelled is not None and after.unlabelled.texts == ['"an odd one', "fine"]
    assert (after.train.texts, after.notes) == (before.train.texts, before.notes)
    assert content_files(folder, "toy") == files


def test_texts_without_pairs_in_a_dataset_of_pairs(folder: Path) -> None:
    """Second texts are needed in all files or in none."""
    (folder / "toy" / "unlabelled.csv").write_text("text,text_pair\na,b\n")
    with pytest.raises(DataError, match=r"train\.tsv: no column 'text_pair', but .*unlabelled\.csv has one"):
        load_local(folder, "toy")
