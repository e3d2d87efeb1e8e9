"""A folder of files as a dataset: ``<folder>/<name>/{train,dev,test}.{parquet,csv,tsv,jsonl}``.

Columns: ``text``, optionally ``text_pair``, and ``label`` (numbers from 0, or names). A file ``unlabelled`` with texts only
serves methods that learn without labels. The dev split may also be called
``validation``, ``valid`` or ``val``. Files may be packed (``train.tsv.gz``) and come in parts, as the hub writes them
(``train-00000-of-00002.parquet``). The name need not be one of the cards; an optional ``card.toml`` beside the files states
``language``, ``label_names`` and ``title``. Nothing else in the folder is opened.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from harness.core.errors import DataError, UnknownNameError
from harness.core.names import Label
from harness.core.settings import StrictSettings
from harness.data.cards import CARDS, parse_card, read_card_file
from harness.data.labels import number_labels
from harness.data.splits import SPLITS, RawDataset, RawSplit, assemble, check_split
from harness.data.tables import FORMATS, Quotes, TextTable, form_of, listed, read_table
from harness.data.unlabelled import UnlabelledTexts

TEXT_COLUMNS = ("text", "text_pair")
COLUMNS = (*TEXT_COLUMNS, "label")
UNLABELLED = "unlabelled"
_DEV_NAMES = ("dev", "validation", "valid", "val")
_NAME = re.compile(
    rf"(?P<split>train|test|{UNLABELLED}|{'|'.join(_DEV_NAMES)})(-\d{{5}}-of-(?P<parts>\d{{5}})(-[0-9a-f]{{16}})?)?"
    rf"\.(?P<form>({'|'.join(FORMATS)})(\.gz)?)",
    re.IGNORECASE,
)
_OTHER_TABLES = (*FORMATS, "json", "txt", "xls", "xlsx", "arrow", "feather")
_CJK = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_GUESS_ROWS, _GUESS_CHARACTERS = 200, 1000
_SHOWN = 10
_BUILT_IN = "the built-in card"


class LocalCard(StrictSettings):
    """The optional ``card.toml`` of a local dataset; ``label_names`` are in the order of the labels."""

    title: str = ""
    language: Literal["en", "zh"] | None = None
    label_names: tuple[Label, ...] = ()


@dataclass(frozen=True)
class DatasetFiles:
    """The files of a dataset folder.

    Attributes:
        splits: the parts of each split, in order; most have one.
        unlabelled: the parts of the file of texts without labels; most datasets have none.
        others: names of tables that belong to no split.
    """

    splits: dict[str, list[Path]]
    unlabelled: list[Path]
    others: list[str]


def _entries(place: Path) -> Iterator[Path]:
    try:
        yield from sorted(place.iterdir())
    except OSError as error:
        raise DataError(f"{place}: cannot be read ({error.strerror}): give a folder that you may read") from error


def find_files(place: Path) -> DatasetFiles:
    """Return the files of the dataset folder ``place`` by their names, without opening any.

    Raises:
        DataError: two files are the same split, a part is missing, or something with the name of a split is no file.
    """
    found: dict[str, dict[Path, re.Match[str]]] = {}
    others = []
    for path in _entries(place):
        if match := _NAME.fullmatch(path.name):
            if not path.is_file():
                raise DataError(f"{path}: not a file, but a folder, a pipe or a broken link: replace or remove it")
            split = match["split"].lower()
            found.setdefault("dev" if split in _DEV_NAMES else split, {})[path] = match
        elif form_of(path) in _OTHER_TABLES and path.is_file():
            others.append(path.name)
    for names in found.values():
        first, *more = names
        parts = int(names[first]["parts"] or 1)
        kinds = {(match["split"], match["parts"], match["form"]) for match in names.values()}
        if len(kinds) > 1 or len(names) > parts:
            raise DataError(f"{place}: {first.name} and {more[-1].name} both exist: keep one file per split")
        if len(names) < parts:
            raise DataError(
                f"{place}: {first.name} is one of {parts} parts, but {len(names)} of them are there: add the others"
            )
    splits = {split: list(found[split]) for split in SPLITS if split in found}
    return DatasetFiles(splits, list(found.get(UNLABELLED, ())), others)


def content_files(folder: Path, name: str) -> list[Path]:
    """Return all files that train, dev and test of the dataset ``<folder>/<name>`` depend on.

    Raises:
        DataError: as :func:`find_files`.
    """
    card = folder / name / "card.toml"
    return [path for parts in find_files(folder / name).splits.values() for path in parts] + [card] * card.is_file()


def _texts(values: list[Any], column: str, where: str) -> list[str]:
    # A missing text counts as an empty one: check_split reports both in the same way.
    texts = ["" if value is None else value for value in values]
    for row, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            kind = type(text).__name__
            raise DataError(f"{where}: column '{column}' must hold text, but row {row} holds {kind}: convert it")
    return texts


def _read(path: Path, *, plain: bool = False, labels: bool = True) -> TextTable:
    table = read_table(path, COLUMNS if labels else TEXT_COLUMNS, plain=plain)
    for column in ("text", "label") if labels else ("text",):
        if column not in table.columns:
            found, needed = listed(table.names), "text and label are needed" if labels else "text is needed"
            raise DataError(f"{path}: no column '{column}' (columns: {found}): rename one; {needed}")
    return table


def _is_plain(tables: Iterable[TextTable]) -> bool:
    return any(table.quotes in (Quotes.PLAIN, Quotes.DOUBTFUL) for table in tables)


def _read_all(paths: list[Path]) -> dict[Path, TextTable]:
    """Read all files of a dataset. If one TSV file is plain, so are all that can be."""
    tables = {path: _read(path) for path in paths}
    if _is_plain(tables.values()):
        tables |= {path: _read(path, plain=True) for path, table in tables.items() if table.quotes == Quotes.EITHER}
    return tables


def _joined(parts: dict[Path, TextTable]) -> TextTable:
    """Return the parts of a split as one table."""
    first, *more = parts
    for path in more:
        if parts[path].columns.keys() != parts[first].columns.keys():
            raise DataError(f"{path}: no column 'text_pair', or {first.name} has none: all parts need it, or none")
    columns = {
        name: [value for table in parts.values() for value in table.columns[name]] for name in parts[first].columns
    }
    return replace(parts[first], columns=columns)


def _quoting(tables: dict[Path, TextTable]) -> tuple[list[str], list[str]]:
    """Return a note on files whose quotes were removed, and a remark on files whose quotes were kept."""
    quoted = [path.name for path, table in tables.items() if table.quotes in (Quotes.CSV, Quotes.EITHER)]
    kept = [path.name for path, table in tables.items() if table.quotes == Quotes.DOUBTFUL]
    return (
        [f"{', '.join(quoted)}: written with the quotes of CSV, which are not part of the texts"] if quoted else [],
        [f"{', '.join(kept)}: read as plain TSV, whose double quotes are part of the texts"] if kept else [],
    )


def guess_language(texts: list[str]) -> str:
    """Return ``"zh"`` if at least a fifth of the characters other than white space are Chinese, else ``"en"``."""
    signs = "".join("".join(text.split())[:_GUESS_CHARACTERS] for text in texts[:_GUESS_ROWS])
    return "zh" if signs and len(_CJK.findall(signs)) >= 0.2 * len(signs) else "en"


def available(folder: Path) -> list[str]:
    """Return the names of the datasets in ``folder``, sorted: its sub-folders with a file of any split."""
    return [
        place.name
        for place in _entries(folder)
        # e.g. lost+found must not be read
        if place.is_dir()
        and os.access(place, os.R_OK | os.X_OK)
        and any(_NAME.fullmatch(e.name) for e in _entries(place))
    ]


def _class_names(
    own: LocalCard, tables: dict[str, TextTable], paths: dict[str, str], name: str
) -> tuple[tuple[str, ...], str]:
    """Return the names of the classes and their source: card.toml, the Parquet files or the built-in card, in this order."""
    if own.label_names:
        return own.label_names, "card.toml"
    said = {split: table.class_names for split, table in tables.items() if table.class_names}
    if said:
        first, *more = said
        for other in more:
            if said[other] != said[first]:
                raise DataError(
                    f"{paths[other]}: its class names are not those of {paths[first]}: state them in card.toml"
                )
        return said[first], paths[first]
    if name in CARDS:
        return CARDS[name].label_names, f"{_BUILT_IN} '{name}'"
    return (), ""


def _order(names: Sequence[str], names_from: str) -> str:
    listed = ", ".join(f"{number} = {name}" for number, name in enumerate(names[:_SHOWN]))
    more = f", ... ({len(names)} classes)" if len(names) > _SHOWN else ""
    return f"labels are names, numbered {f'as in {names_from}' if names_from else 'in sorted order'}: {listed}{more}"


def _read_unlabelled(paths: list[Path], *, plain: bool) -> tuple[UnlabelledTexts | None, list[str]]:
    """Return the texts of the file without labels, ``None`` if there is none, and remarks on how it was read.

    Args:
        plain: another file of the dataset is plain TSV. This file has no influence on the others, whose fits must not change
            when it is added.
    """
    if not paths:
        return None, []
    tables = {path: _read(path, plain=plain, labels=False) for path in paths}
    table, where = _joined(tables), str(paths[0])
    pairs = table.columns.get("text_pair")
    found = UnlabelledTexts(
        _texts(table.columns["text"], "text", where),
        None if pairs is None else _texts(pairs, "text_pair", where),
        origin=f"{len(table.columns['text']):,} rows of {paths[0].name}",
        drawn=len(table.columns["text"]),
    )
    check_split(found, where)
    labelled = [path.name for path, part in tables.items() if "label" in part.names]
    ignored = [f"{', '.join(labelled)}: the column 'label' is ignored"] if labelled else []
    return found, [*itertools.chain(*_quoting(tables)), *ignored]


def _not_read(tables: Iterable[TextTable]) -> list[str]:
    """Return a remark on columns that are not read: one of them may be a second text under another name."""
    others = [name for name in dict.fromkeys(name for table in tables for name in table.names) if name.strip()]
    unread = [name for name in others if name not in COLUMNS]
    return [f"columns that are not read: {listed(unread)}; a second text is called text_pair"] if unread else []


def _remarks(place: Path, others: list[str], own: LocalCard, names_from: str) -> list[str]:
    """Return remarks on tables that are not read, and on a built-in card that describes the folder."""
    found = []
    if others:
        known = ", ".join((*SPLITS, *_DEV_NAMES[1:], UNLABELLED))
        found.append(f"not read: {', '.join(others)}; tables are read if they are called {known}")
    taken = [
        what
        for what, used in (("its language", not own.language), ("its label names", names_from.startswith(_BUILT_IN)))
        if used
    ]
    if place.name in CARDS and taken:
        found.append(
            f"{' and '.join(taken)} come from the built-in card '{place.name}': if these are other data, state language and "
            f"label_names in {place / 'card.toml'}, or rename the folder"
        )
    return found


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
    files = find_files(place)
    for split in ("train", "test"):
        if split not in files.splits:
            there = f" (other tables there: {', '.join(files.others[:_SHOWN])})" if files.others else ""
            raise DataError(f"{place}: no {split} file{there}: add {split}.parquet, .csv, .tsv or .jsonl")
    card_file = place / "card.toml"
    own = parse_card(LocalCard, read_card_file(card_file), str(card_file)) if card_file.is_file() else LocalCard()
    known = CARDS.get(name)
    read = _read_all([path for parts in files.splits.values() for path in parts])
    tables = {split: _joined({path: read[path] for path in parts}) for split, parts in files.splits.items()}
    paths = {split: str(parts[0]) for split, parts in files.splits.items()}
    unlabelled, ignored = _read_unlabelled(files.unlabelled, plain=_is_plain(read.values()))
    names, names_from = _class_names(own, tables, paths, name)
    numbered = number_labels(
        {split: table.columns["label"] for split, table in tables.items()}, paths, names, names_from=names_from
    )
    splits = {}
    for split, table in tables.items():
        text, pair = (table.columns.get(column) for column in ("text", "text_pair"))
        splits[split] = RawSplit(
            _texts(text or [], "text", paths[split]),
            None if pair is None else _texts(pair, "text_pair", paths[split]),
            numbered.labels[split],
        )
        check_split(splits[split], paths[split])
    noted, kept = _quoting(read)
    if numbered.by_name:
        noted.append(_order(numbered.names, names_from))
    if names_from.startswith(_BUILT_IN) and (lacking := len(names) - len(set(numbered.labels["train"].tolist()))):
        noted.append(f"train has rows of {len(names) - lacking} of the {len(names)} classes of {names_from} only")
    return assemble(
        splits,
        {**paths, UNLABELLED: str(next(iter(files.unlabelled), ""))},
        name=name,
        language=own.language or (known.language if known else guess_language(splits["train"].texts)),
        label_names=list(numbered.names) or None,
        names_from=names_from or "the dataset",
        source="local",
        notes=noted,
        remarks=[*noted, *kept, *ignored, *_not_read(read.values()), *_remarks(place, files.others, own, names_from)],
        unlabelled=unlabelled,
        why_carved="there is no dev file",
    )
