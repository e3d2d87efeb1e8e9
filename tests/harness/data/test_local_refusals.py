"""Data folders that cannot be read are refused with one line that says how to correct them."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.core.errors import UnknownNameError
from harness.data.local import load_local
from tests.harness.data.conftest import refused, table, write


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
def test_a_missing_column_is_named(tmp_path, form, column):
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
def test_an_empty_file_is_refused(folder, form):
    """A file of zero bytes is refused in any format."""
    (folder / "toy" / "test.csv").unlink()
    (folder / "toy" / f"test.{form}").write_bytes(b"")
    refused(folder, f"test.{form}: ")


@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_a_table_without_rows_is_refused(folder, form):
    """A table without rows is refused."""
    (folder / "toy" / "test.csv").unlink()
    write(folder / "toy" / f"test.{form}", table([]))
    refused(folder, f"test.{form}: no rows")


@pytest.mark.parametrize("empty", ["", "   ", None])
def test_empty_texts_are_refused(folder, empty):
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
def test_an_invalid_card_is_refused(folder, text, message):
    """An invalid card.toml is refused with file, key and allowed values."""
    (folder / "toy" / "card.toml").write_text(text)
    refused(folder, message)


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
