"""Datasets from a folder of files."""

import csv
import json
import os

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.data.embedded import load_embedded
from harness.data.local import available, content_files, guess_language, load_local
from tests.harness.data.conftest import ROWS, refused, table, write


@pytest.mark.parametrize("form", ["parquet", "csv", "tsv", "jsonl"])
def test_every_format_gives_the_same(tmp_path, form):
    """Parquet, CSV, TSV and JSON lines hold the same dataset."""
    rows = [('he said "no", twice', 0), ("NA", 1), ("null", 0), ("1.50", 1)] * 3
    for split in ("train", "dev", "test"):
        write(tmp_path / "toy" / f"{split}.{form}", table(rows))
    data = load_local(tmp_path, "toy")
    assert data.train.texts == [text for text, _ in rows]
    assert data.test.labels.tolist() == [label for _, label in rows]
    assert (data.source, data.num_labels, data.label_names, data.train.pairs) == ("local", 2, ["0", "1"], None)


def test_quotes_of_tsv_are_the_same_in_all_splits(tmp_path):
    """If the quotes of one file are part of its texts, so are those of the others; removed and kept quotes are reported."""
    quoted = 'text\tlabel\n"he said ""no"""\t0\nfine\t1\n'
    for split in ("train", "dev", "test"):
        write(tmp_path / "toy" / f"{split}.tsv", table())
    (tmp_path / "toy" / "test.tsv").write_text(quoted)
    data = load_local(tmp_path, "toy")
    assert data.test.texts == ['he said "no"', "fine"]
    assert data.notes == data.remarks == ["test.tsv: written with the quotes of CSV, which are not part of the texts"]
    (tmp_path / "toy" / "train.tsv").write_text('text\tlabel\n"an odd film\t0\nfine\t1\n')
    data = load_local(tmp_path, "toy")
    assert data.test.texts == ['"he said ""no"""', "fine"]
    assert data.notes == []
    assert data.remarks == ["test.tsv: read as plain TSV, whose double quotes are part of the texts"]


def test_a_missing_dev_split_is_carved(folder):
    """Without a dev file, a tenth of train becomes dev, with a note."""
    (folder / "toy" / "dev.csv").unlink()
    data = load_local(folder, "toy")
    assert (len(data.train), len(data.dev)) == (18, 2)
    assert any("dev is 10 % of train" in note for note in data.notes)


def test_a_column_text_pair_makes_pairs(folder):
    """A column text_pair makes samples pairs; it must be in all splits."""
    rows = [(*row, "other") for row in ROWS]
    for split in ("train", "dev", "test"):
        write(folder / "toy" / f"{split}.csv", table(rows, ("text", "label", "text_pair")))
    assert load_local(folder, "toy").dev.pairs == ["other"] * 20
    write(folder / "toy" / "test.csv", table())
    refused(folder, r"test\.csv: no column 'text_pair', but .*train\.csv has one")


@pytest.mark.parametrize("form", ["parquet", "csv", "tsv", "jsonl"])
def test_names_as_labels(tmp_path, form):
    """Names are numbered in sorted order, or in that of card.toml; the order is noted."""
    rows = [("a", "pos"), ("b", "neg"), ("c", "neutral"), ("d", "neg")]
    for split in ("train", "dev", "test"):
        write(tmp_path / "toy" / f"{split}.{form}", table(rows))
    data = load_local(tmp_path, "toy")
    assert (data.label_names, data.train.labels.tolist()) == (["neg", "neutral", "pos"], [2, 0, 1, 0])
    said = "labels are names, numbered in sorted order: 0 = neg, 1 = neutral, 2 = pos"
    assert said in data.notes and said in data.remarks
    (tmp_path / "toy" / "card.toml").write_text('label_names = ["pos", "neutral", "neg"]')
    data = load_local(tmp_path, "toy")
    assert (data.label_names, data.test.labels.tolist()) == (["pos", "neutral", "neg"], [0, 2, 1, 2])
    assert "labels are names, numbered as in card.toml: 0 = pos, 1 = neutral, 2 = neg" in data.notes
    (tmp_path / "toy" / "card.toml").write_text('label_names = ["pos", "neg"]')
    refused(tmp_path, "has 'neutral' in row 3, which is none of the classes of card.toml")


def test_unusual_texts_load(folder):
    """A very long text, emoji, mixed scripts and a single test row are accepted."""
    texts = ["x" * 100_000, "好 good 👍🏽 хорошо جيد", "\u200bzero\u2028width", "line\nbreak"]
    write(folder / "toy" / "train.csv", table([(text, i % 2) for i, text in enumerate(texts)]))
    write(folder / "toy" / "test.csv", table([("👍", 1)]))
    data = load_local(folder, "toy")
    assert data.train.texts == texts
    assert len(data.test) == 1


def test_the_language_is_guessed_from_the_characters(folder):
    """The language of an unknown dataset is guessed from its characters unless its card states it."""
    assert load_local(folder, "toy").language == "en"
    assert guess_language(["这家酒店很好", "ok"]) == "zh"
    assert guess_language(["", " "]) == "en"
    (folder / "toy" / "card.toml").write_text('language = "zh"\nlabel_names = ["bad", "good"]\ntitle = "Toy"\n')
    data = load_local(folder, "toy")
    assert (data.language, data.label_names) == ("zh", ["bad", "good"])


def test_card_with_a_byte_order_mark(folder):
    """Editors on Windows write a byte order mark before the first key."""
    (folder / "toy" / "card.toml").write_text('language = "zh"\n', encoding="utf-8-sig")
    assert load_local(folder, "toy").language == "zh"


def test_a_known_dataset_uses_its_card(folder):
    """A folder with the name of a card has that card's language, classes and label names, and says how to change that."""
    (folder / "toy").rename(folder / "thucnews")
    data = load_local(folder, "thucnews")
    assert (data.language, data.num_labels, data.label_names[1]) == ("zh", 10, "realty")
    assert "train has rows of 2 of the 10 classes of the built-in card 'thucnews' only" in data.notes
    assert data.remarks[-1].startswith(
        "its language and its label names come from the built-in card 'thucnews': if these are"
    )
    (folder / "thucnews" / "card.toml").write_text('language = "en"\nlabel_names = ["bad", "good"]\n')
    data = load_local(folder, "thucnews")
    assert (data.language, data.label_names, data.notes, data.remarks) == ("en", ["bad", "good"], [], [])


def test_own_labels_in_a_folder_named_like_a_card(folder):
    """Labels that the built-in card does not have are refused with its name and the place to override it."""
    (folder / "toy").rename(folder / "lcqmc")
    write(folder / "lcqmc" / "train.csv", table([("a", 0), ("b", 1), ("c", 2)]))
    refused(folder, "goes up to 2, but the built-in card 'lcqmc' has 2 classes", "lcqmc")


@pytest.mark.parametrize("name", ["validation", "valid", "val", "Dev"])
def test_names_of_the_dev_split(folder, name):
    """The dev file may have any of its usual names, but only one."""
    (folder / "toy" / "dev.csv").rename(folder / "toy" / f"{name}.csv")
    data = load_local(folder, "toy")
    assert (len(data.dev), len(data.train), data.notes) == (20, 20, [])
    write(folder / "toy" / "dev.csv", table())
    refused(folder, "both exist: keep one file per split")


def test_other_tables_are_named(folder):
    """Tables of other names are not read, and a remark names them."""
    for name in ("dev2.tsv", "train-extra.csv.gz", "notes.md", "extra.json"):
        (folder / "toy" / name).write_text("?")
    (remark,) = load_local(folder, "toy").remarks
    assert remark.startswith(
        "not read: dev2.tsv, extra.json, train-extra.csv.gz; tables are read if they are called train, "
    )


def test_a_second_text_under_another_name_is_not_passed_over(folder):
    """Pairs whose second text has another name would be measured as single texts, so columns that are not read are named."""
    (folder / "toy").rename(folder / "lcqmc")
    for split in ("train", "dev", "test"):
        (folder / "lcqmc" / f"{split}.csv").write_text(",text,text_b,label\n0,a,b,0\n1,c,d,1\n")
    data = load_local(folder, "lcqmc")
    assert data.train.pairs is None
    assert "columns that are not read: text_b; a second text is called text_pair" in data.remarks


def test_nothing_but_the_splits_is_opened(folder):
    """Hidden folders, a folder with a dot, broken links and pipes beside the data do not matter."""
    toy = folder / "toy"
    for name in (".ipynb_checkpoints", ".cache", ".git", "old.v1", "backup.csv"):
        (toy / name).mkdir()
        (toy / name / "train.csv").write_text("?")
    (toy / "link.tsv").symlink_to(toy / "nowhere")
    os.mkfifo(toy / "pipe.tsv")
    (folder / "lost+found").mkdir()
    assert load_local(folder, "toy").remarks == []
    assert [path.name for path in content_files(folder, "toy")] == ["train.csv", "dev.csv", "test.csv"]
    assert available(folder) == ["toy"]
    (toy / "test.csv").unlink()
    (toy / "test.csv").symlink_to(toy / "nowhere")
    refused(folder, "test.csv: not a file, but a folder, a pipe or a broken link")


def test_parts_are_joined_in_order(folder):
    """A split may come in numbered parts, as the hub writes them; all of them must be there."""
    (folder / "toy" / "train.csv").unlink()
    for part in (1, 0, 2):
        mark = "-09ecf6cd41ccd5b0" * (part == 2)  # older versions of the hub's library add one
        write(folder / "toy" / f"train-0000{part}-of-00003{mark}.parquet", table([(f"{part}a", 0), (f"{part}b", 1)]))
    assert load_local(folder, "toy").train.texts == ["0a", "0b", "1a", "1b", "2a", "2b"]
    (folder / "toy" / "train-00001-of-00003.parquet").unlink()
    refused(folder, "toy: train-00000-of-00003.parquet is one of 3 parts, but 2 of them are there: add the others")
    write(folder / "toy" / "train.parquet", table())
    refused(folder, "both exist")


def test_class_names_of_the_hub(folder):
    """Parquet files of the library datasets name the classes; they stand before a built-in card and after card.toml."""
    features = {"label": {"names": ["no", "yes"], "_type": "ClassLabel"}, "text": {"dtype": "string", "_type": "Value"}}
    for split in ("train", "dev", "test"):
        (folder / "toy" / f"{split}.csv").unlink()
        annotated = pa.Table.from_pandas(table()).replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": features}})}
        )
        pq.write_table(annotated, folder / "toy" / f"{split}-00000-of-00001.parquet")
    assert load_local(folder, "toy").label_names == ["no", "yes"]
    (folder / "toy").rename(folder / "weibo")
    assert load_local(folder, "weibo").label_names == ["no", "yes"]
    (folder / "weibo" / "card.toml").write_text('label_names = ["nein", "ja"]\n')
    assert load_local(folder, "weibo").label_names == ["nein", "ja"]


def test_long_white_space_does_not_hide_the_language():
    """White space does not count towards the characters from which the language is guessed."""
    assert guess_language([" " * 10_000 + "这家酒店很好"]) == "zh"


DIALECTS = {
    "plain.tsv": lambda data, path: path.write_text("".join(f"{text}\t{label}\n" for text, label in data), newline=""),
    "quoted.tsv": lambda data, path: pd.DataFrame(data).to_csv(
        path, sep="\t", header=False, index=False, quoting=csv.QUOTE_ALL
    ),
    "minimal.csv": lambda data, path: pd.DataFrame(data).to_csv(path, header=False, index=False),
    "packed.csv.gz": lambda data, path: pd.DataFrame(data).to_csv(path, header=False, index=False),
    "lines.jsonl": lambda data, path: path.write_text(
        "\n".join(json.dumps(dict(zip(data[0], row, strict=True))) for row in data[1:])
    ),
    "columns.parquet": lambda data, path: pd.DataFrame(data[1:], columns=data[0]).to_parquet(path),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_gives_the_embedded_data(tmp_path, dialect):
    """The embedded data, with some quotes added, is read back row by row from every dialect."""
    made = load_embedded("yelp_full")
    (tmp_path / "yelp_full").mkdir()
    wanted = {}
    for split in ("train", "dev", "test"):
        rows = getattr(made, split).select(range(300))
        texts = [
            ('"%s' if n % 7 == 3 else '%s, "so"' if n % 7 == 5 else "%s") % text for n, text in enumerate(rows.texts)
        ]
        wanted[split] = (texts, rows.labels.tolist())
        table = [("text", "label"), *zip(texts, map(int, rows.labels), strict=True)]
        DIALECTS[dialect](table, tmp_path / "yelp_full" / f"{split}.{dialect.partition('.')[2]}")
    data = load_local(tmp_path, "yelp_full")
    assert {split: (getattr(data, split).texts, getattr(data, split).labels.tolist()) for split in wanted} == wanted
    assert data.label_names == made.label_names
