"""Texts and labels before tokenisation, and the rules that they must satisfy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from harness.core.errors import DataError
from harness.data.labels import rows_of
from harness.data.unlabelled import MOST_UNLABELLED, RawTexts, UnlabelledTexts, draw_unlabelled

SPLITS = ("train", "dev", "test")
# Thresholds are chosen on dev, so this many rows are kept if the share of train allows it.
DEV_ROWS = 1000
# Dev rows per train row, at most: a method that chooses on dev has seen its labels, too.
DEV_SHARE = 0.5
_SHOWN = 5
_MANY_CLASSES = 1000


@dataclass(frozen=True)
class RawSplit(RawTexts):
    """Samples of one split.

    Attributes:
        labels: int64 [N].
        difficulty: int8 [N], the true difficulty of embedded samples (0 easy, 1 middle, 2 hard); ``None`` for real data.
    """

    labels: np.ndarray
    difficulty: np.ndarray | None = None

    def select(self, rows: np.ndarray | Sequence[int]) -> RawSplit:
        """Return the samples at ``rows`` (int64 [M]), in that order."""
        rows = np.asarray(rows, dtype=np.int64)
        return RawSplit(
            [self.texts[row] for row in rows],
            None if self.pairs is None else [self.pairs[row] for row in rows],
            self.labels[rows],
            None if self.difficulty is None else self.difficulty[rows],
        )


@dataclass(frozen=True)
class RawDataset:
    """A validated dataset, as every source returns it.

    Attributes:
        language: ``"en"`` or ``"zh"``.
        num_labels: C; labels are 0 .. C - 1.
        label_names: C names.
        source: ``"embedded"``, ``"local"`` or ``"hub"``.
        unlabelled: texts without labels; until the dataset is limited, only those of its own file.
        notes: facts that readers of results need, e.g. that dev was carved from train.
        remarks: messages for the user who starts a run, e.g. that a file is not read.
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
    remarks: list[str] = field(default_factory=list)
    unlabelled: UnlabelledTexts | None = None


def check_split(split: RawTexts, where: str, text_column: str = "text", pair_column: str = "text_pair") -> None:
    """Check that a split has rows, and no empty text. ``where`` and the names of the columns are for the message.

    Raises:
        DataError: names the column and the rows.
    """
    if not len(split):
        raise DataError(f"{where}: no rows: give it at least one sample")
    for column, texts in ((text_column, split.texts), (pair_column, split.pairs)):
        if texts is None:
            continue
        empty = np.fromiter((not text.strip() for text in texts), dtype=bool, count=len(texts))
        if empty.any():
            raise DataError(f"{where}: column '{column}' has no text in {rows_of(empty)}: delete or fill these rows")


def count_labels(train: RawSplit, where: str, expected: int | None = None, names_from: str = "the dataset") -> int:
    """Return the number of classes C of a train split, whose labels must be 0 .. C - 1.

    Args:
        expected: C if it is known beforehand. Then train may lack classes, as small samples of many classes do.
        names_from: where the names come from.

    Raises:
        DataError: labels are negative, leave gaps, are constant, exceed ``expected``, or are ids of rows.
    """
    present = np.unique(train.labels)
    shown = ", ".join(str(label) for label in present[:_SHOWN]) + (", ..." if len(present) > _SHOWN else "")
    if present[0] < 0:
        raise DataError(f"{where}: column 'label' has negative labels ({shown}): number the classes 0, 1, 2, ...")
    if len(present) < 2:
        raise DataError(
            f"{where}: column 'label' is {present[0]} in every row, which cannot be learned: give at least two classes"
        )
    if len(present) > max(_MANY_CLASSES, len(train) // 2):
        raise DataError(
            f"{where}: column 'label' has {len(present)} values in {len(train)} rows: it holds ids or texts, not classes; "
            "give the classes, numbered 0, 1, 2, ..."
        )
    classes = expected if expected is not None else int(present[-1]) + 1
    if present[-1] >= classes:
        raise DataError(
            f"{where}: column 'label' goes up to {present[-1]}, but {names_from} has {classes} "
            f"{'classes' if classes > 1 else 'class'}: use labels 0 to {classes - 1}, or name the others"
        )
    if expected is None and len(present) != classes:
        known = set(present.tolist())  # the classes are not listed: there are a billion of them if labels are ids
        missing = itertools.islice((label for label in itertools.count() if label not in known), _SHOWN)
        raise DataError(
            f"{where}: column 'label' leaves gaps: labels are {shown}, without "
            f"{', '.join(str(label) for label in missing if label < classes)}: "
            "number the classes 0, 1, 2, ... without leaving any out"
        )
    return classes


def check_known_labels(split: RawSplit, where: str, num_labels: int) -> None:
    """Check that labels are in 0 .. C - 1: no method could predict others.

    Raises:
        DataError: names the rows.
    """
    unknown = (split.labels < 0) | (split.labels >= num_labels)
    if unknown.any():
        example = split.labels[unknown][0]
        raise DataError(
            f"{where}: column 'label' has {example} in {rows_of(unknown)}, but train has labels 0 to {num_labels - 1}: "
            "correct these labels or add such rows to train"
        )


def carve_dev(train: RawSplit, fraction: float = 0.1, seed: int = 0) -> tuple[RawSplit, RawSplit]:
    """Split train into (train, dev), stratified by label. Both keep the order of rows.

    Every class gives ``round(fraction x rows)`` rows, at least one and never all; a class of one row stays in train.

    Raises:
        DataError: every class has a single row, so no row can be taken.
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


def assemble(
    splits: Mapping[str, RawSplit],
    places: Mapping[str, str],
    *,
    name: str,
    language: str,
    label_names: list[str] | None,
    source: str,
    why_carved: str,
    names_from: str = "the dataset",
    notes: Sequence[str] = (),
    remarks: Sequence[str] = (),
    unlabelled: UnlabelledTexts | None = None,
) -> RawDataset:
    """Validate labels, carve the splits that are missing (first test, then dev) from train, and return the dataset.

    Args:
        splits: by name; at least ``"train"``.
        places: file or hub split of each, for messages.
        label_names: ``None`` to count the classes of train and use their numbers as names.
        why_carved: ends the note about a carved split.
        names_from: where the names come from, for messages.
        unlabelled: texts without labels, from a file whose place is ``places["unlabelled"]``.

    Raises:
        DataError: labels are not valid, or only some of the splits have pairs of texts.
    """
    found, noted, origin = dict(splits), list(notes), places["train"]
    num_labels = count_labels(found["train"], origin, len(label_names) if label_names else None, names_from)
    for split in ("test", "dev"):
        if split not in found:
            found["train"], found[split] = carve_dev(found["train"])
            noted.append(f"{split} is 10 % of train, stratified, seed 0: {why_carved}")
    for split in ("dev", "test"):
        check_known_labels(found[split], places.get(split, origin), num_labels)
    others: dict[str, RawTexts] = {"dev": found["dev"], "test": found["test"]}
    for split, part in (others if unlabelled is None else {**others, "unlabelled": unlabelled}).items():
        if (part.pairs is None) != (found["train"].pairs is None):
            where = places.get(split, origin)
            has, lacks = (origin, where) if part.pairs is None else (where, origin)
            raise DataError(f"{lacks}: no column 'text_pair', but {has} has one: all splits need it, or none")
    names = label_names or [str(label) for label in range(num_labels)]
    return RawDataset(
        name, language, num_labels, names, source, notes=noted, remarks=list(remarks), unlabelled=unlabelled, **found
    )


def limited_rows(split: RawSplit, n: int | None, seed: int = 0) -> np.ndarray:
    """Return the numbers of at most ``n`` rows (int64), stratified by label, in their order; the same for the same seed.

    Each class gets its share of ``n`` by largest remainders, and at least one row if ``n`` allows it.

    Raises:
        DataError: ``n`` is below 1.
    """
    if n is None or n >= len(split):
        return np.arange(len(split))
    if n < 1:
        raise DataError(f"{n} rows would be left: ask for at least 1 with --max-train and --max-test")
    labels, sizes = np.unique(split.labels, return_counts=True)
    share = sizes * n / len(split)
    quota = np.floor(share).astype(np.int64)
    if n >= len(labels):
        quota = np.maximum(quota, 1)
    # Remaining rows go to the largest remainders; surplus rows come from the classes furthest above their share.
    while quota.sum() < n:
        quota[np.argmax(np.where(quota < sizes, share - quota, -np.inf))] += 1
    while quota.sum() > n:
        quota[np.argmax(np.where(quota > 1, quota - share, -np.inf))] -= 1
    rng = np.random.default_rng(seed)
    rows = [
        rng.permutation(np.flatnonzero(split.labels == label))[:count]
        for label, count in zip(labels, quota, strict=True)
    ]
    return np.sort(np.concatenate(rows))


def limit(split: RawSplit, n: int | None, seed: int = 0) -> RawSplit:
    """Return at most ``n`` rows, see :func:`limited_rows`."""
    return split if n is None or n >= len(split) else split.select(limited_rows(split, n, seed))


def limit_dataset(
    dataset: RawDataset,
    max_train: int | None = None,
    max_test: int | None = None,
    max_dev: int | None = None,
    dev_share: float = DEV_SHARE,
    max_unlabelled: int = MOST_UNLABELLED,
) -> RawDataset:
    """Return the dataset with limits on the rows of train, test and dev, and on the texts without labels.

    These are the rows of train that are left out, and those of the dataset's own file; never a row of dev or test, not even
    of those that the limits leave out (:func:`harness.data.unlabelled.draw_unlabelled`).

    Dev never has more rows than ``dev_share`` x the rows that train keeps, whatever ``max_dev`` says. Without ``max_dev``, it
    keeps at most a quarter of ``max_train``, but up to 1,000 rows, and 100 of small samples, where that share allows it:
    thresholds are chosen on dev, and a few hundred rows cannot tell two thresholds apart.

    Raises:
        DataError: a limit is below 1, leaves a single class to learn, or leaves dev fewer rows than there are classes.
    """
    try:
        chosen, test = limited_rows(dataset.train, max_train), limit(dataset.test, max_test)
    except DataError as error:
        raise DataError(f"dataset '{dataset.name}': {error}") from error
    train = dataset.train.select(chosen) if len(chosen) < len(dataset.train) else dataset.train
    if len(np.unique(train.labels)) < 2:
        raise DataError(
            f"dataset '{dataset.name}': --max-train {max_train} leaves one class in train: "
            f"allow at least {dataset.num_labels} rows"
        )
    asked = max_dev
    if asked is None and max_train is not None:
        asked = max(max_train // 4, min(max_train, DEV_ROWS), 100)
    wanted = len(dataset.dev) if asked is None else min(asked, len(dataset.dev))
    allowed = math.floor(dev_share * len(train) + 1e-9)  # 0.3 x 10 is a little less than 3
    dev = limit(dataset.dev, max(1, min(wanted, allowed)))
    if len(dev) < dataset.num_labels:
        advice = _more_dev(dataset.num_labels, len(dataset.dev), max_dev, dev_share, len(train))
        raise DataError(
            f"dataset '{dataset.name}': dev would have {len(dev)} row{'s' * (len(dev) > 1)} for {dataset.num_labels} classes, "
            f"too few to choose on: {advice}"
        )
    limited: dict[str, Any] = {"train": train, "dev": dev, "test": test}
    reason = f": dev_share allows {dev_share:g} x {len(train)} train rows" if allowed < wanted else ""
    notes = [
        f"{name} limited to {len(split)} of {before} rows, stratified, seed 0{reason if name == 'dev' else ''}"
        for name, split in limited.items()
        if len(split) < (before := len(getattr(dataset, name)))
    ]
    overruled = max_dev is not None and allowed < min(max_dev, len(dataset.dev))
    remarks = [f"dev has {len(dev)} rows, not {max_dev}{reason}"] if overruled else []
    left_out = np.ones(len(dataset.train), dtype=bool)
    left_out[chosen] = False
    known = (train, dataset.dev, dataset.test)
    return replace(
        dataset,
        notes=[*dataset.notes, *notes],
        remarks=[*dataset.remarks, *remarks],
        unlabelled=draw_unlabelled(dataset.train, np.flatnonzero(left_out), dataset.unlabelled, known, max_unlabelled),
        **limited,
    )


def _more_dev(classes: int, rows: int, max_dev: int | None, dev_share: float, train: int) -> str:
    """Return how to give dev a row per class: the first limit that is in the way."""
    if rows < classes:
        return "add rows to dev or, if it is a part of train, to train"
    if max_dev is not None and max_dev < classes:
        return f"set --max-dev to {classes} or more"
    return f"dev_share allows {dev_share:g} x {train} train rows, so allow more train rows, or raise dev_share in the profile"
