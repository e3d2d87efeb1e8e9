"""A folder of files as a dataset: ``<folder>/<name>/{train,dev,test}.{parquet,csv,tsv,jsonl}``.

Columns: ``text``, optionally ``text_pair``, and ``label`` (integers from 0). Any folder is a dataset, known to
the cards or not; an optional ``card.toml`` beside the files gives ``language``, ``label_names`` and ``title``.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.core.errors import DataError, UnknownNameError
from harness.data.cards import CARDS
from harness.data.splits import (
    SPLITS,
    RawDataset,
    RawSplit,
    carve_dev,
    check_known_labels,
    check_split,
    count_labels,
    integer_labels,
)

FORMATS = ("parquet", "csv", "tsv", "jsonl")
_CJK = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_CARD_KEYS = {"language", "label_names", "title"}
_GUESS_ROWS = 200


def _cause(error: Exception) -> str:
    """The first line of what a library said."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


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
    columns = list(dict.fromkeys(key for row in rows for key in row))
    # Object columns: pandas would turn integers beside a missing value into floats.
    return pd.DataFrame({key: pd.Series([row.get(key) for row in rows], dtype=object) for key in columns})


def read_table(path: Path) -> pd.DataFrame:
    """The table in ``path`` (Parquet, CSV, TSV or JSON lines); texts such as "NA" and "null" stay texts.

    Raises:
        DataError: it cannot be read.
    """
    form = path.suffix[1:]
    try:
        if form == "parquet":
            return pd.read_parquet(path)
        if form == "jsonl":
            return _read_jsonl(path)
        return pd.read_csv(
            path,
            sep="," if form == "csv" else "\t",
            dtype=str,
            keep_default_na=False,
            na_filter=False,
            encoding="utf-8-sig",
        )
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}): save it as UTF-8") from error
    except pd.errors.EmptyDataError as error:
        raise DataError(f"{path}: the file is empty: give it a header and at least one row") from error
    except pd.errors.ParserError as error:
        raise DataError(f"{path}: not a {form} table ({_cause(error)}): quote texts that hold separators") from error
    except (OSError, ValueError, TypeError, LookupError, NotImplementedError) as error:
        raise DataError(f"{path}: cannot be read ({_cause(error)}): write the file again") from error


def _texts(table: pd.DataFrame, column: str, where: str) -> list[str]:
    values = table[column].tolist()
    wrong = np.fromiter((not isinstance(value, str) for value in values), dtype=bool, count=len(values))
    # A missing text is an empty one; check_split reports both in one way.
    missing = np.asarray(table[column].isna(), dtype=bool)
    if (wrong & ~missing).any():
        row = int(np.flatnonzero(wrong & ~missing)[0])
        kind = type(values[row]).__name__
        raise DataError(f"{where}: column '{column}' must hold text, but row {row + 1} holds {kind}: convert it")
    return ["" if gone else value for value, gone in zip(values, missing, strict=True)]


def read_split(path: Path) -> RawSplit:
    """One file as a split.

    Raises:
        DataError: it is broken, lacks a column, has no row, an empty text or a label that is not an integer.
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
        raise DataError(f"{folder}: {found[0].name} and {found[1].name} are both there: keep one file per split")
    return found[0] if found else None


def guess_language(texts: list[str]) -> str:
    """``"zh"`` where at least a fifth of the characters other than white space are Chinese, else ``"en"``."""
    sample = "".join(text[:1000] for text in texts[:_GUESS_ROWS])
    signs = len("".join(sample.split()))
    return "zh" if signs and len(_CJK.findall(sample)) >= 0.2 * signs else "en"


def _user_card(folder: Path) -> dict[str, Any]:
    """What ``card.toml`` says, checked."""
    path = folder / "card.toml"
    if not path.is_file():
        return {}
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path}: not valid TOML ({_cause(error)}): correct it, or delete it") from error
    if unknown := set(data) - _CARD_KEYS:
        raise DataError(f"{path}: unknown key '{min(unknown)}': known are {', '.join(sorted(_CARD_KEYS))}")
    if data.get("language", "en") not in ("en", "zh"):
        raise DataError(f'{path}: language is {data["language"]!r}: write "en" or "zh"')
    names = data.get("label_names", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}: label_names must be a list of texts, in label order")
    return data


def available(folder: Path) -> list[str]:
    """Names of the datasets in ``folder``: its sub-folders that hold a train or a test file, sorted."""
    return sorted(
        place.name
        for place in folder.iterdir()
        if place.is_dir() and any((place / f"{split}.{form}").is_file() for split in SPLITS for form in FORMATS)
    )


def load_local(folder: Path | str, name: str) -> RawDataset:
    """The dataset ``<folder>/<name>``.

    Where there is no dev file, dev is carved from train (10 %, stratified, seed 0) and a note says so.

    Raises:
        UnknownNameError: there is no such sub-folder; the message lists those that are there.
        DataError: the folder is missing, a file is missing or broken, or its content breaks a rule.
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
    known, own = CARDS.get(name), _user_card(place)
    splits = {split: read_split(path) for split, path in paths.items() if path is not None}
    train, where = splits["train"], str(paths["train"])
    names = own.get("label_names") or (list(known.label_names) if known else None)
    num_labels = count_labels(train, where, len(names) if names else None)
    notes: list[str] = []
    if "dev" not in splits:
        check_known_labels(train, train, where, num_labels)
        splits["train"], splits["dev"] = carve_dev(train)
        notes.append("dev is 10 % of train, stratified, seed 0: there is no dev file")
    for split in ("dev", "test"):
        origin = str(paths[split] or where)
        check_known_labels(splits[split], train, origin, num_labels)
        if (splits[split].pairs is None) != (train.pairs is None):
            has, lacks = (where, origin) if splits[split].pairs is None else (origin, where)
            raise DataError(f"{lacks}: no column 'text_pair', but {has} has one: all splits need it, or none")
    language = own.get("language") or (known.language if known else guess_language(train.texts))
    return RawDataset(
        name=name,
        language=language,
        num_labels=num_labels,
        label_names=names or [str(label) for label in range(num_labels)],
        source="local",
        train=splits["train"],
        dev=splits["dev"],
        test=splits["test"],
        notes=notes,
    )
