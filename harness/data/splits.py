"""Texts and labels before tokenising, and the rules they must satisfy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from harness.core.errors import DataError

SPLITS = ("train", "dev", "test")
DEV_ROWS = 1000  # of dev are worth their time, however few rows there are to train on
_SHOWN = 5


@dataclass(frozen=True)
class RawSplit:
    """Samples of one split.

    Attributes:
        texts: N texts.
        pairs: N second texts, or ``None`` where samples are single texts.
        labels: int64 [N].
        difficulty: int8 [N], the true difficulty of embedded samples (0 easy, 1 middle, 2 hard); else ``None``.
    """

    texts: list[str]
    pairs: list[str] | None
    labels: np.ndarray
    difficulty: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, rows: np.ndarray | Sequence[int]) -> RawSplit:
        """The samples at ``rows`` (int64 [M]), in that order."""
        rows = np.asarray(rows, dtype=np.int64)
        return RawSplit(
            [self.texts[row] for row in rows],
            None if self.pairs is None else [self.pairs[row] for row in rows],
            self.labels[rows],
            None if self.difficulty is None else self.difficulty[rows],
        )


@dataclass(frozen=True)
class RawDataset:
    """A dataset as every source returns it, validated.

    Attributes:
        name: dataset name.
        language: ``"en"`` or ``"zh"``.
        num_labels: C; labels are 0 .. C - 1.
        label_names: C names.
        source: ``"embedded"``, ``"local"`` or ``"hub"``.
        notes: what a reader of results should know, e.g. that dev was carved from train.
    """

    name: str
    language: str
    num_labels: int
    label_names: list[str]
    source: str
    train: RawSplit
    dev: RawSplit
    test: RawSplit
    notes: list[str] = field(default_factory=list)


def _rows(mask: np.ndarray) -> str:
    """``row 3, 8, ... (12 rows)`` for the true entries of ``mask``; rows count from 1, header and blank lines aside."""
    found = np.flatnonzero(mask) + 1
    listed = ", ".join(str(row) for row in found[:_SHOWN])
    return f"row{'s' if len(found) > 1 else ''} {listed}" + (
        f", ... ({len(found)} rows)" if len(found) > _SHOWN else ""
    )


def integer_labels(
    values: Sequence[Any] | np.ndarray, where: str, column: str = "label", offset: int = 0
) -> np.ndarray:
    """Labels as int64 [N], less ``offset``.

    Integers, whole floats and their decimal spellings are accepted, since file formats differ in what they can hold.

    Raises:
        DataError: something else is among them.
    """
    labels, wrong = np.zeros(len(values), dtype=np.int64), np.zeros(len(values), dtype=bool)
    for row, value in enumerate(values):
        try:
            if isinstance(value, str):
                labels[row] = int(value)
            elif isinstance(value, bool | np.bool_) or int(value) != value:
                wrong[row] = True
            else:
                labels[row] = int(value)
        except (TypeError, ValueError, OverflowError):
            wrong[row] = True
    if wrong.any():
        example = values[int(np.flatnonzero(wrong)[0])]
        raise DataError(
            f"{where}: column '{column}' must hold integers, but {_rows(wrong)} hold{'s' if wrong.sum() == 1 else ''} "
            f"e.g. {_short(example)}: number the classes 0, 1, 2, ..."
        )
    return labels - offset


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def check_split(split: RawSplit, where: str, text_column: str = "text", pair_column: str = "text_pair") -> None:
    """Refuse a split without rows or with empty texts.

    Args:
        split: the samples.
        where: file or hub split, for the message.
        text_column: name of the column of ``texts``, for the message.
        pair_column: name of the column of ``pairs``, for the message.

    Raises:
        DataError: naming column and rows.
    """
    if not len(split):
        raise DataError(f"{where}: no rows: give it at least one sample")
    for column, texts in ((text_column, split.texts), (pair_column, split.pairs)):
        if texts is None:
            continue
        empty = np.fromiter((not text.strip() for text in texts), dtype=bool, count=len(texts))
        if empty.any():
            raise DataError(
                f"{where}: column '{column}' has no text in {_rows(empty)}: delete these rows or fill them in"
            )


def count_labels(train: RawSplit, where: str, expected: int | None = None) -> int:
    """Number of classes C of a train split whose labels must be 0 .. C - 1.

    Args:
        train: the split.
        where: its file, for the message.
        expected: C where it is known beforehand; then train may lack classes (a small sample of many classes does).

    Raises:
        DataError: labels are negative, leave gaps, are constant, or exceed ``expected``.
    """
    present = np.unique(train.labels)
    shown = ", ".join(str(label) for label in present[:_SHOWN]) + (", ..." if len(present) > _SHOWN else "")
    if present[0] < 0:
        raise DataError(f"{where}: column 'label' has negative labels ({shown}): number the classes 0, 1, 2, ...")
    if len(present) < 2:
        raise DataError(
            f"{where}: column 'label' is {present[0]} in every row, so there is nothing to learn: "
            "give at least two classes"
        )
    classes = expected if expected is not None else int(present[-1]) + 1
    if present[-1] >= classes:
        raise DataError(
            f"{where}: column 'label' goes up to {present[-1]}, but the dataset has {classes} classes: "
            f"use labels 0 to {classes - 1}"
        )
    if expected is None and len(present) != classes:
        missing = sorted(set(range(classes)) - set(present.tolist()))[:_SHOWN]
        raise DataError(
            f"{where}: column 'label' leaves gaps: labels are {shown}, without {', '.join(map(str, missing))}: "
            "number the classes 0, 1, 2, ... without leaving any out"
        )
    return classes


def check_known_labels(split: RawSplit, train: RawSplit, where: str, num_labels: int) -> None:
    """Refuse labels outside 0 .. C - 1, which no method could ever predict.

    Raises:
        DataError: naming rows.
    """
    unknown = (split.labels < 0) | (split.labels >= num_labels)
    if unknown.any():
        example = split.labels[unknown][0]
        raise DataError(
            f"{where}: column 'label' has {example} in {_rows(unknown)}, but train has labels 0 to {num_labels - 1}: "
            "correct these labels or add such rows to train"
        )


def carve_dev(train: RawSplit, fraction: float = 0.1, seed: int = 0) -> tuple[RawSplit, RawSplit]:
    """Split train in (train, dev), stratified by label; both keep the order of rows.

    Every class gives ``round(fraction x rows)`` rows, at least one and never all; a class of one row stays in train.

    Raises:
        DataError: every class has but one row, so nothing can be carved.
    """
    rng = np.random.default_rng(seed)
    taken = np.zeros(len(train), dtype=bool)
    for label in np.unique(train.labels):
        rows = np.flatnonzero(train.labels == label)
        if len(rows) > 1:
            count = min(max(1, round(fraction * len(rows))), len(rows) - 1)
            taken[rng.permutation(rows)[:count]] = True
    if not taken.any():
        raise DataError("train: no class has two rows, so no dev split can be carved: add rows, or a dev file")
    return train.select(np.flatnonzero(~taken)), train.select(np.flatnonzero(taken))


def limit(split: RawSplit, n: int | None, seed: int = 0) -> RawSplit:
    """At most ``n`` rows, chosen at random but the same ones every time, with the classes' shares kept; order kept.

    Each class gets its share of ``n`` by largest remainders, and, while ``n`` allows, at least one row.

    Raises:
        DataError: ``n`` is below 1.
    """
    if n is None or n >= len(split):
        return split
    if n < 1:
        raise DataError(f"{n} rows would be left: ask for at least 1 with --max-train and --max-test")
    labels, sizes = np.unique(split.labels, return_counts=True)
    share = sizes * n / len(split)
    quota = np.floor(share).astype(np.int64)
    if n >= len(labels):
        quota = np.maximum(quota, 1)
    # Rows left over go to the largest remainders; rows too many come from the classes that are furthest above theirs.
    while quota.sum() < n:
        quota[np.argmax(np.where(quota < sizes, share - quota, -np.inf))] += 1
    while quota.sum() > n:
        quota[np.argmax(np.where(quota > 1, quota - share, -np.inf))] -= 1
    rng = np.random.default_rng(seed)
    rows = [
        rng.permutation(np.flatnonzero(split.labels == label))[:count]
        for label, count in zip(labels, quota, strict=True)
    ]
    return split.select(np.sort(np.concatenate(rows)))


def limit_dataset(dataset: RawDataset, max_train: int | None = None, max_test: int | None = None) -> RawDataset:
    """The dataset with at most ``max_train`` train rows, ``max_test`` test rows and a dev split to match.

    Dev gets at most a quarter of ``max_train``, but as many rows as train up to 1,000, and at least 100, where it has
    them: thresholds are chosen on it, and a few hundred rows do not tell two of them apart.

    Raises:
        DataError: a limit below 1, or one that leaves a single class to learn.
    """
    if max_train is None and max_test is None:
        return dataset
    try:
        train = limit(dataset.train, max_train)
        test = limit(dataset.test, max_test)
    except DataError as error:
        raise DataError(f"dataset '{dataset.name}': {error}") from error
    if len(np.unique(train.labels)) < 2:
        raise DataError(
            f"dataset '{dataset.name}': --max-train {max_train} leaves one class in train: "
            f"allow at least {dataset.num_labels} rows"
        )
    dev = dataset.dev if max_train is None else limit(dataset.dev, max(max_train // 4, min(max_train, DEV_ROWS), 100))
    notes = [*dataset.notes]
    for name, before, after in (
        ("train", dataset.train, train),
        ("dev", dataset.dev, dev),
        ("test", dataset.test, test),
    ):
        if len(after) < len(before):
            notes.append(f"{name} limited to {len(after)} of {len(before)} rows, stratified, seed 0")
    return RawDataset(
        dataset.name,
        dataset.language,
        dataset.num_labels,
        dataset.label_names,
        dataset.source,
        train,
        dev,
        test,
        notes,
    )
