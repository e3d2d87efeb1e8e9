"""A folder of files as a dataset: ``<folder>/<name>/{train,dev,test}.{parquet,csv,tsv,jsonl}``.

Columns: ``text``, optionally ``text_pair``, and ``label`` (integers from 0). The name need not be one of the cards; an
optional ``card.toml`` beside the files states ``language``, ``label_names`` and ``title``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from harness.core.errors import DataError, UnknownNameError, first_line
from harness.core.names import Label
from harness.core.settings import StrictSettings
from harness.data.cards import CARDS, parse_card, read_card_file
from harness.data.splits import SPLITS, RawDataset, RawSplit, assemble, check_split, integer_labels

FORMATS = ("parquet", "csv", "tsv", "jsonl")
_CJK = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_GUESS_ROWS = 200


class LocalCard(StrictSettings):
    """The optional ``card.toml`` of a local dataset; ``label_names`` are in the order of the labels."""

    title: str = ""
    language: Literal["en", "zh"] | None = None
    label_names: tuple[Label, ...] = ()


def _read_jsonl(path: Path) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    with path.open(encoding="utf-8-sig") as handle:
        for number, line in enumerate(handle, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path} line {number}: not JSON ({error}): one object per line is expected") from error
            if not isinstance(row, dict):
                raise DataError(f'{path} line {number}: not a JSON object: write {{"text": ..., "label": ...}}')
            rows.append(row)
    return pd.DataFrame(rows, dtype=object)  # otherwise integers beside a missing value would become floats


def read_table(path: Path) -> pd.DataFrame:
    """Read a table (Parquet, CSV, TSV or JSON lines). Texts such as "NA" and "null" stay texts.

    Raises:
        DataError: the file cannot be read.
    """
    form = path.suffix[1:]
    try:
        if form == "parquet":
            return pd.read_parquet(path)
        if form == "jsonl":
            return _read_jsonl(path)
        return pd.read_csv(path, sep="," if form == "csv" else "\t", dtype=str, na_filter=False, encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}): save it as UTF-8") from error
    except pd.errors.EmptyDataError as error:
        raise DataError(f"{path}: the file is empty: give it a header and at least one row") from error
    except pd.errors.ParserError as error:
        raise DataError(f"{path}: not a {form} table ({first_line(error)}): quote texts with separators") from error
    except (OSError, ValueError, TypeError, LookupError, NotImplementedError) as error:
        raise DataError(f"{path}: cannot be read ({first_line(error)}): write the file again") from error


def _texts(table: pd.DataFrame, column: str, where: str) -> list[str]:
    # A missing text counts as an empty one: check_split reports both in the same way.
    texts = ["" if gone else value for value, gone in zip(table[column].tolist(), table[column].isna(), strict=True)]
    for row, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            kind = type(text).__name__
            raise DataError(f"{where}: column '{column}' must hold text, but row {row} holds {kind}: convert it")
    return texts


def read_split(path: Path) -> RawSplit:
    """Read one file as a split.

    Raises:
        DataError: the file is broken, lacks a column, has no row, an empty text or a label that is not an integer.
    """
    table, where = read_table(path), str(path)
    if not len(table.columns):
        raise DataError(f"{where}: the file is empty: give it a header and at least one row")
    for column in ("text", "label"):
        if column not in table.columns:
            found = ", ".join(map(str, table.columns[:8]))
            raise DataError(f"{where}: no column '{column}' (columns: {found}): rename one; text and label are needed")
    split = RawSplit(
        _texts(table, "text", where),
        _texts(table, "text_pair", where) if "text_pair" in table.columns else None,
        integer_labels(table["label"].tolist(), where),
    )
    check_split(split, where)
    return split


def _find(folder: Path, split: str) -> Path | None:
    found = [path for form in FORMATS if (path := folder / f"{split}.{form}").is_file()]
    if len(found) > 1:
        raise DataError(f"{folder}: {found[0].name} and {found[1].name} both exist: keep one file per split")
    return found[0] if found else None


def guess_language(texts: list[str]) -> str:
    """Return ``"zh"`` if at least a fifth of the characters other than white space are Chinese, else ``"en"``."""
    sample = "".join(text[:1000] for text in texts[:_GUESS_ROWS])
    signs = len("".join(sample.split()))
    return "zh" if signs and len(_CJK.findall(sample)) >= 0.2 * signs else "en"


def available(folder: Path) -> list[str]:
    """Return the names of the datasets in ``folder``, sorted: its sub-folders with a file of any split."""
    return sorted(
        place.name
        for place in folder.iterdir()
        if place.is_dir() and any((place / f"{split}.{form}").is_file() for split in SPLITS for form in FORMATS)
    )


def load_local(folder: Path | str, name: str) -> RawDataset:
    """Load the dataset ``<folder>/<name>``.

    Without a dev file, dev is carved from train (10 %, stratified, seed 0), and a note says so.

    Raises:
        UnknownNameError: there is no such sub-folder; the message lists those that exist.
        DataError: the folder or a file is missing, a file is broken, or its content is not valid.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise DataError(f"data folder {folder} does not exist: give --data a folder with <name>/train.parquet ...")
    if name in (".", "..") or Path(name).name != name or not (folder / name).is_dir():
        raise UnknownNameError(f"dataset in {folder}", name, available(folder))
    place = folder / name
    paths = {split: _find(place, split) for split in SPLITS}
    for split in ("train", "test"):
        if paths[split] is None:
            raise DataError(f"{place}: no {split} file: add {split}.parquet, .csv, .tsv or .jsonl")
    card_file = place / "card.toml"
    own = parse_card(LocalCard, read_card_file(card_file), str(card_file)) if card_file.is_file() else LocalCard()
    known = CARDS.get(name)
    splits = {split: read_split(path) for split, path in paths.items() if path is not None}
    names = own.label_names or (known.label_names if known else ())
    return assemble(
        splits,
        {split: str(paths[split]) for split in splits},
        name=name,
        language=own.language or (known.language if known else guess_language(splits["train"].texts)),
        label_names=list(names) or None,
        source="local",
        notes=[],
        why_carved="there is no dev file",
    )
