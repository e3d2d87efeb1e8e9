"""Datasets of the Hugging Face hub. Only repositories without a loading script are read."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from harness.core.errors import DataError, first_line
from harness.data.cards import DatasetCard
from harness.data.labels import number_labels
from harness.data.splits import RawDataset, RawSplit, assemble, check_split

_MEND = "use --data DIR with local files, or the embedded data (the default)"
_UNPINNED = "hub revision not pinned: no commit of this repository has been verified"


def _check_columns(table: Any, card: DatasetCard, where: str) -> None:
    columns = card.columns
    wanted = [*columns.text, columns.label, *([columns.text_pair] if columns.text_pair else [])]
    missing = [column for column in wanted if column not in table.column_names]
    if missing:
        raise DataError(
            f"{where}: no column '{missing[0]}' (columns: {', '.join(table.column_names)}): "
            f"the copy differs from the card; {_MEND}"
        )


def _to_split(table: Any, card: DatasetCard, labels: np.ndarray, where: str) -> RawSplit:
    columns = card.columns
    parts = [table[column] for column in columns.text]
    texts = [" ".join(part for part in row if part and part.strip()) for row in zip(*parts, strict=True)]
    pairs = None if columns.text_pair is None else [text or "" for text in table[columns.text_pair]]
    split = RawSplit(texts, pairs, labels)
    check_split(split, where, "+".join(columns.text), columns.text_pair or "")
    return split


def load_hub(card: DatasetCard) -> RawDataset:
    """Load the hub copy that a card names. Code of the repository is never run.

    A missing dev split is 10 % of train; a missing test split is 10 % of train, taken before dev (stratified, seed 0).

    Raises:
        DataError: no faithful copy is known, ``datasets`` is not installed, the hub cannot be reached, or the copy differs
            from its card.
    """
    if card.hub_id is None:
        why = f" ({card.notes[0]})" if card.notes else ""
        raise DataError(f"dataset '{card.name}' has no faithful copy on the hub{why}: {_MEND}")
    try:
        library = importlib.import_module("datasets")  # nothing else needs it
    except ImportError as error:
        raise DataError(f"the hub needs the package 'datasets' ({error}): pip install datasets, or {_MEND}") from error
    tables: dict[str, Any] = {}
    places: dict[str, str] = {split: f"hub {card.hub_id} split '{theirs}'" for split, theirs in card.hub_splits.items()}
    for split, theirs in card.hub_splits.items():
        try:
            tables[split] = library.load_dataset(card.hub_id, card.hub_config, split=theirs, revision=card.hub_revision)
        except Exception as error:  # the library raises errors of many other libraries
            cause = f"{type(error).__name__}: {first_line(error)[:200]}"
            raise DataError(f"{places[split]} cannot be loaded ({cause}): {_MEND}") from error
        _check_columns(tables[split], card, places[split])
    column = card.columns.label
    numbered = number_labels(
        {split: list(table[column]) for split, table in tables.items()},
        places,
        card.label_names,
        names_from="the card",
        column=column,
        offset=card.label_offset,
    )
    return assemble(
        {split: _to_split(table, card, numbered.labels[split], places[split]) for split, table in tables.items()},
        places,
        name=card.name,
        language=card.language,
        label_names=list(card.label_names),
        source="hub",
        notes=[*([] if card.hub_revision else [_UNPINNED]), *card.notes],
        why_carved="the hub has none",
    )
