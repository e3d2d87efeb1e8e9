"""Datasets of the Hugging Face hub; repositories without loading script only."""

from __future__ import annotations

import importlib
from typing import Any

from harness.core.errors import DataError
from harness.data.cards import DatasetCard
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

_MEND = "use --data DIR with local files, or the embedded data (the default)"


def _library() -> Any:
    """The package ``datasets``, imported only here: everything else works without it."""
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        raise DataError(f"the hub needs the package 'datasets' ({error}): pip install datasets, or {_MEND}") from error


def _to_split(table: Any, card: DatasetCard, where: str) -> RawSplit:
    columns = card.columns
    wanted = [*columns.text, columns.label, *([columns.text_pair] if columns.text_pair else [])]
    missing = [column for column in wanted if column not in table.column_names]
    if missing:
        raise DataError(
            f"{where}: no column '{missing[0]}' (columns: {', '.join(table.column_names)}): "
            f"the copy differs from the card; {_MEND}"
        )
    parts = [table[column] for column in columns.text]
    texts = [" ".join(part for part in row if part and part.strip()) for row in zip(*parts, strict=True)]
    pairs = None if columns.text_pair is None else [text or "" for text in table[columns.text_pair]]
    labels = integer_labels(list(table[columns.label]), where, columns.label, card.label_offset)
    split = RawSplit(texts, pairs, labels)
    check_split(split, where, "+".join(columns.text), columns.text_pair or "")
    return split


def load_hub(card: DatasetCard) -> RawDataset:
    """The hub's copy of a dataset, by its card; code from the repository is never run.

    A missing dev split is 10 % of train; a missing test split is 10 % of train taken before that (stratified, seed 0).

    Raises:
        DataError: there is no faithful copy, ``datasets`` is not installed, the hub cannot be reached, or the copy is
            not what the card says.
    """
    if card.hub_id is None:
        raise DataError(f"dataset '{card.name}' has no faithful copy on the hub ({card.notes[0]}): {_MEND}")
    library = _library()
    splits: dict[str, RawSplit] = {}
    for split, theirs in card.hub_splits.items():
        where = f"hub {card.hub_id} split '{theirs}'"
        try:
            table = library.load_dataset(card.hub_id, card.hub_config, split=theirs, revision=card.hub_revision)
        except Exception as error:  # the library lets errors of many other libraries through
            cause = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise DataError(f"{where} cannot be loaded ({type(error).__name__}: {cause}): {_MEND}") from error
        splits[split] = _to_split(table, card, where)
    count_labels(splits["train"], f"hub {card.hub_id}", card.num_labels)
    notes = list(card.notes)
    for split in ("test", "dev"):
        if split not in splits:
            splits["train"], splits[split] = carve_dev(splits["train"])
            notes.append(f"{split} is 10 % of train, stratified, seed 0: the hub has none")
    for split in SPLITS:
        check_known_labels(splits[split], splits["train"], f"hub {card.hub_id} {split}", card.num_labels)
    return RawDataset(
        name=card.name,
        language=card.language,
        num_labels=card.num_labels,
        label_names=list(card.label_names),
        source="hub",
        train=splits["train"],
        dev=splits["dev"],
        test=splits["test"],
        notes=notes,
    )
