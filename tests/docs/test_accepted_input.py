"""The page of accepted input: every message about data that it quotes is the one that the program gives."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from harness.core.errors import GeepBenchError, format_error
from harness.data.local import load_local
from harness.running.task import load_raw

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "accepted-input.md"
GOOD = "text,label\ngood,1\nbad,0\n"


def jsonl(*rows: dict[str, object]) -> str:
    return "\n".join(json.dumps(row) for row in rows)


def labels(*values: object) -> str:
    return "text,label\n" + "".join(f"text {n},{value}\n" for n, value in enumerate(values))


REFUSED: dict[str, dict[str, str | bytes | None]] = {
    "two files of one split": {"test.parquet": "?"},
    "dev twice": {"validation.csv": GOOD},
    "no test": {"test.csv": None},
    "a part is missing": {"train.csv": None, "train-00000-of-00002.csv": GOOD},
    "no column": {"test.csv": "text,y\ngood,1\n"},
    "encoding": {"test.csv": "text,label\ncafé,1\n".encode("latin-1")},
    "empty": {"test.csv": ""},
    "unlabelled is empty": {"unlabelled.csv": ""},
    "unlabelled has no rows": {"unlabelled.csv": "text\n"},
    "unlabelled has no column": {"unlabelled.csv": "sentence,label\ngood,1\n"},
    "unlabelled lacks pairs": {
        **{f"{split}.csv": "text,text_pair,label\na,b,1\nc,d,0\n" for split in ("train", "dev", "test")},
        "unlabelled.csv": "text\ngood\n",
    },
    "comma in a text": {"test.csv": "text,label\ngood, really,1\n"},
    "comma at the end": {"test.csv": "text,label\ngood,1,\n"},
    "too few fields": {"test.csv": "text,label\ngood\n"},
    "quote in CSV": {"test.csv": 'text,label\n"good" film,1\n'},
    "tab in a text": {"test.csv": None, "test.tsv": "text\tlabel\ngood\treally\t1\n"},
    "column twice": {"test.csv": "label,text,text\n1,a,b\n"},
    "no JSON": {"test.csv": None, "test.jsonl": '{"text": "good"\n'},
    "key twice": {"test.csv": None, "test.jsonl": '{"text": "a", "text": "b", "label": 1}\n'},
    "gzip": {"test.csv": None, "test.csv.gz": GOOD},
    "no text": {"test.csv": "text,label\ngood,1\n  ,0\n,1\n"},
    "number as text": {"test.csv": None, "test.jsonl": jsonl({"text": 5, "label": 0})},
    "half a character": {"test.csv": None, "test.jsonl": jsonl({"text": "good \ud83d", "label": 0})},
    "pairs in one split": {"test.csv": "text,text_pair,label\na,b,1\n"},
    "no label": {"test.csv": labels(1, "")},
    "fraction": {"test.csv": labels(1, 0.5)},
    "number and name": {"test.csv": labels(1, "0_1")},
    "unknown name": {"train.csv": labels("yes", "no"), "dev.csv": labels("no"), "test.csv": labels("maybe")},
    "unknown number": {"test.csv": labels(1, 2)},
    "ids": {"train.csv": labels(0, 1, 1000000007)},
    "gap": {"train.csv": labels(0, 2)},
    "negative": {"train.csv": labels(-1, 1)},
    "one class": {"train.csv": labels(1, 1)},
    "names of the card": {"card.toml": 'label_names = ["only"]\n'},
    "key of the card": {"card.toml": 'lang = "en"\n'},
}


@pytest.fixture
def make(tmp_path: Path) -> Callable[[dict[str, str | bytes | None]], Path]:
    """Return a function that writes a good dataset and changes some of its files (``None`` deletes one)."""

    def write(files: dict[str, str | bytes | None]) -> Path:
        (tmp_path / "reviews").mkdir()
        for name, content in ({f"{split}.csv": GOOD for split in ("train", "dev", "test")} | files).items():
            if content is not None:
                data = content.encode() if isinstance(content, str) else content
                (tmp_path / "reviews" / name).write_bytes(data)
        return tmp_path

    return write


def message(folder: Path) -> str:
    """Return the message with the folder's path as on the page, in one line of Markdown."""
    with pytest.raises(GeepBenchError) as caught:
        load_local(folder, "reviews")
    return format_error(caught.value).replace(str(folder / "reviews"), "FOLDER").replace("|", "\\|")


@pytest.mark.parametrize("files", REFUSED.values(), ids=REFUSED)
def test_messages_on_the_page(files: dict[str, str | bytes | None], make: Callable[..., Path]) -> None:
    """What the page says to be refused is refused with the message that it quotes."""
    assert f"`{message(make(files))}`" in PAGE.read_text(encoding="utf-8")


def test_a_pipe_in_the_place_of_a_file(make: Callable[..., Path]) -> None:
    """A pipe, which would wait forever, is refused with the message on the page."""
    folder = make({"test.csv": None})
    os.mkfifo(folder / "reviews" / "test.csv")
    assert f"`{message(folder)}`" in PAGE.read_text(encoding="utf-8")


def test_remarks_on_the_page(make: Callable[..., Path]) -> None:
    """The page quotes what the program says about quotes, names of classes, other columns, other tables and built-in cards."""
    page = PAGE.read_text(encoding="utf-8")
    folder = make({"test.csv": None, "test.tsv": 'text\tlabel\n"so ""good"""\tyes\n', "train.csv": labels("yes", "no")})
    (folder / "reviews" / "dev.csv").write_text(labels("no"))
    (folder / "reviews" / "test-old.csv").write_text("?")
    (folder / "reviews" / "train.csv").write_text("text,text_b,label\ngood,x,yes\nbad,y,no\n")
    data = load_local(folder, "reviews")
    assert len(data.remarks) == 4 and all(f"`{remark}`" in page for remark in data.remarks)
    (folder / "reviews").rename(folder / "weibo")
    for split in ("train", "dev"):
        (folder / "weibo" / f"{split}.csv").write_text(GOOD)
    (folder / "weibo" / "test.tsv").write_text("text\tlabel\ngood\t1\n")
    (*_, remark) = load_local(folder, "weibo").remarks
    assert f"`{remark.replace(str(folder / 'weibo'), 'FOLDER')}`" in page


def test_every_message_about_data_is_tested(make: Callable[..., Path]) -> None:
    """The sections about data quote no refusal that the tests above do not produce."""
    sections = PAGE.read_text(encoding="utf-8").partition("## Data folders")[2].partition("<!-- end of data -->")[0]
    quoted = re.findall(r"refused: `([^`]+)`", sections)
    assert len(quoted) == len(set(quoted)) == len(REFUSED) + 1


@pytest.mark.parametrize(
    ("rows", "limits"),
    [
        ({"train": 40, "dev": 1}, {}),
        ({"train": 40, "dev": 20}, {"max_dev": 1}),
        ({"train": 40, "dev": 20}, {"max_train": 2}),
    ],
)
def test_too_few_dev_rows(rows: dict[str, int], limits: dict[str, int], make: Callable[..., Path]) -> None:
    """A dataset with fewer dev rows than classes is refused with a message on the page, for each reason."""
    folder = make({f"{split}.csv": labels(*(n % 2 for n in range(count))) for split, count in rows.items()})
    with pytest.raises(GeepBenchError) as caught:
        load_raw("reviews", "local", data=folder, **limits)
    assert f"refused: `{format_error(caught.value)}`" in PAGE.read_text(encoding="utf-8")


def test_the_share_of_dev(make: Callable[..., Path]) -> None:
    """The note and the remark about a dev split above its share are those on the page."""
    folder = make(
        {f"{split}.csv": labels(*(n % 2 for n in range(count))) for split, count in (("train", 40), ("dev", 60))}
    )
    data = load_raw("reviews", "local", data=folder, max_dev=30)
    assert len(data.dev) == 20
    assert all(f"`{text}`" in PAGE.read_text(encoding="utf-8") for text in (data.notes[-1], data.remarks[-1]))


def test_the_table_of_formats(make: Callable[..., Path]) -> None:
    """All spellings of file names that the page accepts are read."""
    folder = make({"train.csv": None, "dev.csv": None, "test.csv": None})
    place = folder / "reviews"
    (place / "train-00000-of-00002.csv").write_text(GOOD)
    (place / "train-00001-of-00002.csv").write_text(GOOD)
    (place / "val.jsonl").write_text(jsonl({"text": "good", "label": 1}, {"text": "bad", "label": False * 1}))
    pd.DataFrame({"text": ["good"], "label": [1.0]}).to_csv(place / "test.tsv.gz", sep="\t", index=False)
    data = load_local(folder, "reviews")
    assert [len(data.train), len(data.dev), len(data.test), data.remarks] == [4, 2, 1, []]
