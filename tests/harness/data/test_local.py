"""Datasets from a folder of files."""

import csv
import json
import os

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.core.errors import DataError, UnknownNameError
from harness.data.embedded import load_embedded
from harness.data.local import available, content_files, guess_language, load_local

ROWS = [("good film", 1), ("bad film", 0)] * 10


def table(rows=ROWS, columns=("text", "label")):
    return pd.DataFrame(rows, columns=list(columns))


def write(path, data):
    """Write a frame in the format of the path's suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        data.to_parquet(path, index=False)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in data.to_dict("records")), encoding="utf-8")
    else:
        data.to_csv(path, index=False, sep="," if path.suffix == ".csv" else "\t")


@pytest.fixture
def folder(tmp_path):
    """A valid dataset ``toy``, in which each test damages one thing."""
    for split in ("train", "dev", "test"):
        write(tmp_path / "toy" / f"{split}.csv", table())
    return tmp_path


def refused(folder, message, name="toy"):
    with pytest.raises(DataError, match=message) as caught:
        load_local(folder, name)
    assert "\n" not in str(caught.value)
    assert ": " in str(caught.value)


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


def test_pairs(folder):
    """A column text_pair makes samples pairs; it must be in all splits."""
    rows = [(*row, "other") for row in ROWS]
    for split in ("train", "dev", "test"):
        write(folder / "toy" / f"{split}.csv", table(rows, ("text", "label", "text_pair")))
    assert load_local(folder, "toy").dev.pairs == ["other"] * 20
    write(folder / "toy" / "test.csv", table())
    refused(folder, r"test\.csv: no column 'text_pair', but .*train\.csv has one")


def test_missing_folder_split_and_name(folder):
    """Errors about missing folders and names list the existing ones."""
    refused(folder / "nowhere", "data folder .*nowhere does not exist")
    with pytest.raises(UnknownNameError, match="unknown dataset in .*'tay': did you mean toy"):
        load_local(folder, "tay")
    with pytest.raises(UnknownNameError):
        load_local(folder / "toy", "../toy")
    (folder / "toy" / "test.csv").unlink()
    refused(folder, "no test file: add test.parquet")
    (folder / "toy" / "testing.csv").write_text("?")
    refused(folder, r"no test file \(other tables there: testing.csv\): add test.parquet")


def test_two_files_for_one_split(folder):
    """Two files for one split are refused."""
    write(folder / "toy" / "test.parquet", table())
    refused(folder, "test.csv and test.parquet both exist: keep one file per split")


@pytest.mark.parametrize("form", ["parquet", "csv", "tsv", "jsonl"])
@pytest.mark.parametrize("column", ["text", "label"])
def test_missing_column(tmp_path, form, column):
    """An error about a missing column lists the existing columns."""
    for split in ("train", "dev", "test"):
        write(tmp_path / "toy" / f"{split}.{form}", table().rename(columns={column: "other"}))
    refused(tmp_path, f"train.{form}: no column '{column}'")


@pytest.mark.parametrize("labels", [[1.5, 0.0], [None, 1.0]])
@pytest.mark.parametrize("form", ["parquet", "csv", "tsv", "jsonl"])
def test_labels_that_are_no_classes(folder, labels, form):
    """Fractions and missing labels are refused in every format, naming column and row."""
    (folder / "toy" / "train.csv").unlink()
    write(folder / "toy" / f"train.{form}", table([("a", labels[0]), ("b", labels[1])]))
    refused(
        folder, f"train.{form}: column 'label' must hold integers or names of up to 200 characters, but row 1 holds "
    )


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


def test_unknown_names_of_classes(folder):
    """A name that train lacks is refused, and so is a name among numbers."""
    write(folder / "toy" / "test.csv", table([("a", "0_1"), ("b", 0)]))
    refused(folder, "test.csv: column 'label' has '0_1' in row 1, a name where other rows have numbers")
    for split in ("train", "dev"):
        write(folder / "toy" / f"{split}.csv", table([("a", "yes"), ("b", "no")]))
    refused(folder, "test.csv: column 'label' has 0 in row 2, a number where other rows have names")
    write(folder / "toy" / "test.csv", table([("a", "yes"), ("b", "maybe")]))
    refused(
        folder, r"test.csv: column 'label' has 'maybe' in row 2, which is none of the labels of .*train.csv \(no, yes\)"
    )


@pytest.mark.parametrize(
    ("labels", "message"), [([0, 2], "leaves gaps"), ([1, 1], "is 1 in every row"), ([-1, 0], "negative")]
)
def test_label_sets_that_make_no_sense(folder, labels, message):
    """Gaps, constants and negative labels in train are refused."""
    write(folder / "toy" / "train.csv", table([("a", labels[0]), ("b", labels[1])]))
    refused(folder, f"train.csv: column 'label' .*{message}")


def test_unseen_test_label(folder):
    """A test label that train lacks is refused."""
    write(folder / "toy" / "test.csv", table([("a", 0), ("b", 2)]))
    refused(folder, "test.csv: column 'label' has 2 in row 2")


@pytest.mark.parametrize("form", ["parquet", "csv", "tsv", "jsonl"])
def test_empty_file(folder, form):
    """A file of zero bytes is refused in any format."""
    (folder / "toy" / "test.csv").unlink()
    (folder / "toy" / f"test.{form}").write_bytes(b"")
    refused(folder, f"test.{form}: ")


@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_header_only(folder, form):
    """A table without rows is refused."""
    (folder / "toy" / "test.csv").unlink()
    write(folder / "toy" / f"test.{form}", table([]))
    refused(folder, f"test.{form}: no rows")


@pytest.mark.parametrize("empty", ["", "   ", None])
def test_empty_texts(folder, empty):
    """Empty, blank and missing texts are refused with their rows."""
    (folder / "toy" / "train.csv").unlink()
    write(folder / "toy" / "train.parquet", table([("a", 0), (empty, 1), (empty, 1)]))
    refused(folder, "train.parquet: column 'text' has no text in rows 2, 3")


def test_texts_that_are_no_texts(folder):
    """Numbers in the text column of a Parquet file are refused."""
    (folder / "toy" / "train.csv").unlink()
    write(folder / "toy" / "train.parquet", table([(1, 0), (2, 1)]))
    refused(folder, "column 'text' must hold text, but row 1 holds int")


@pytest.mark.parametrize("content", [b"PAR1 this is no parquet", b"\x00" * 64])
def test_broken_parquet(folder, content):
    """A damaged Parquet file gives an error in one line."""
    (folder / "toy" / "train.csv").unlink()
    (folder / "toy" / "train.parquet").write_bytes(content)
    refused(folder, "train.parquet: cannot be read")


def test_undecodable_text(folder):
    """Text that is not UTF-8 is refused with advice."""
    for name, message in (("train.csv", "not UTF-8"), ("train.jsonl", "not UTF-8")):
        for old in (folder / "toy").glob("train.*"):
            old.unlink()
        (folder / "toy" / name).write_bytes("text,label\ncafé,1\nthé,0\n".encode("latin-1"))
        refused(folder, f"{name}: {message}")


def test_broken_json_line(folder):
    """A bad line of a JSON lines file is named by its number."""
    (folder / "toy" / "train.csv").unlink()
    (folder / "toy" / "train.jsonl").write_text('{"text": "a", "label": 0}\n{"text": \n')
    refused(folder, "train.jsonl line 2: not JSON")
    (folder / "toy" / "train.jsonl").write_text('{"text": "a", "label": 0}\n[1]\n')
    refused(folder, "train.jsonl line 2: not a JSON object")


def test_broken_csv(folder):
    """A row with too many fields is refused with its line."""
    (folder / "toy" / "train.csv").write_text("text,label\na,0\nb,c,d,1\n")
    refused(
        folder, r"train.csv line 3: 4 fields, but the header has 2 \(text, label\): put texts with commas in double"
    )


def test_unusual_texts_load(folder):
    """A very long text, emoji, mixed scripts and a single test row are accepted."""
    texts = ["x" * 100_000, "好 good 👍🏽 хорошо جيد", "\u200bzero\u2028width", "line\nbreak"]
    write(folder / "toy" / "train.csv", table([(text, i % 2) for i, text in enumerate(texts)]))
    write(folder / "toy" / "test.csv", table([("👍", 1)]))
    data = load_local(folder, "toy")
    assert data.train.texts == texts
    assert len(data.test) == 1


def test_language(folder):
    """The language of an unknown dataset is guessed from its characters unless its card states it."""
    assert load_local(folder, "toy").language == "en"
    assert guess_language(["这家酒店很好", "ok"]) == "zh"
    assert guess_language(["", " "]) == "en"
    (folder / "toy" / "card.toml").write_text('language = "zh"\nlabel_names = ["bad", "good"]\ntitle = "Toy"\n')
    data = load_local(folder, "toy")
    assert (data.language, data.label_names) == ("zh", ["bad", "good"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("language = ", "not valid TOML"),
        ('tongue = "en"', "unknown key 'tongue'"),
        ('language = "fr"', 'card.toml: language = "fr" is not allowed: give one of "en", "zh"'),
        ("label_names = [1]", r"card.toml: label_names\[0\] = 1 is not allowed: give text in quotes"),
        ('label_names = ["only"]', "goes up to 1, but card.toml has 1 class: use"),
        ('label_names = ["a", "a"]', "card.toml: two classes are called 'a'"),
        ("label_names = ['a\\u001b']".replace("'", '"'), "a label cannot contain the control character"),
    ],
)
def test_bad_card(folder, text, message):
    """An invalid card.toml is refused with file, key and allowed values."""
    (folder / "toy" / "card.toml").write_text(text)
    refused(folder, message)


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


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("{", "train.parquet: cannot be read"),
        (
            json.dumps({"info": {"features": {"label": {"names": ["a", "b\x1b[31m"]}}}}),
            "a label cannot contain the control",
        ),
        (
            json.dumps({"info": {"features": {"label": {"names": ["a", "a"]}}}}),
            "train.parquet: two classes are called 'a'",
        ),
        (
            json.dumps({"info": {"features": {"label": {"names": ["b", "c"]}}}}),
            "test.parquet: its class names are not those of",
        ),
    ],
)
def test_unusable_class_names_of_the_hub(folder, metadata, message):
    """Class names that are damaged, hostile or contradictory are refused."""
    good = json.dumps({"info": {"features": {"label": {"names": ["a", "b"]}}}})
    for split in ("train", "dev", "test"):
        (folder / "toy" / f"{split}.csv").unlink()
        told = good if "its class names" in message and split != "test" else metadata
        pq.write_table(
            pa.Table.from_pandas(table()).replace_schema_metadata({"huggingface": told}),
            folder / "toy" / f"{split}.parquet",
        )
    refused(folder, message)


def test_a_table_without_header(folder):
    """Where the first row stands in place of the header, the message shows the beginning of its texts."""
    (folder / "toy" / "train.csv").write_text(f"{'good ' * 999},1\nbad,0\n")
    refused(folder, r"no column 'text' \(columns: good good good good good good good good ..., 1\): rename one")


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
