"""``geep-bench predict``: answers to a file of texts of any size, in constant memory; a killed command resumes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from harness.core.errors import ConfigError, DataError
from harness.core.names import csv_value
from harness.deploy.answer_file import AnswerFile, only_writer
from harness.deploy.classifier import Classifier
from harness.deploy.row_reader import RowReader, TextRow

COLUMNS = ("row", "label", "probability", "exit_layer")
GROUP = 2048  # rows that are answered together and then stored; a killed process loses at most their work
_MOST_CHARACTERS = 2**23  # of a group with long texts


@dataclass(frozen=True)
class Predicted:
    """What a call did.

    Attributes:
        rows: in the file of answers now.
        new: of them, answered by this call.
    """

    rows: int
    new: int


def predict_file(
    classify: Classifier, texts: Path, answers: Path, *, skip_empty: bool = False, exact_labels: bool = False
) -> Predicted:
    """Answer the rows of a CSV or JSON-lines file.

    Columns of the answers: ``row`` (counted from 1, without the header), ``label``, ``probability`` of that label, ``exit_layer``.
    Rows are ordered and batched within groups of :data:`GROUP`; the groups, and so the answers, are those of an undisturbed call
    also after a kill.

    Args:
        skip_empty: a row without a text gets empty fields; otherwise it ends the call.
        exact_labels: write labels exactly as they are; otherwise those that a spreadsheet would run as a formula get an apostrophe
            in front (:func:`harness.core.names.csv_value`).

    Raises:
        DataError: a row cannot be read, has no text, or the file changed while it was read.
        ResultError: the answers are of another model, other texts or another ``exact_labels``; nothing is written then.
        WriteError: the answers cannot be written.
    """
    if texts.resolve() == answers.resolve():
        raise ConfigError(f"--in and --out are one file, {texts}: choose another --out")
    with only_writer(answers), RowReader(texts, paired=classify.facts.paired) as rows:
        file = AnswerFile(answers, classify.facts.fingerprint, exact_labels=exact_labels)
        file.continue_after(rows)
        before = rows.place.rows
        file.start(COLUMNS, rows.place)
        with tqdm(
            total=rows.size, initial=rows.place.bytes, unit="B", unit_scale=True, desc="texts", disable=None
        ) as bar:
            for group in _groups(rows):
                first = rows.place.rows - len(group) + 1
                file.append(_answered(classify, group, first, texts, skip_empty, exact_labels), rows.place)
                bar.update(rows.place.bytes - bar.n)
                bar.set_postfix_str(f"{rows.place.rows:,} rows")
        rows.check_unchanged()
        file.append([], rows.place, complete=True)
    return Predicted(rows.place.rows, rows.place.rows - before)


def _groups(rows: RowReader) -> Iterator[list[TextRow]]:
    group: list[TextRow] = []
    characters = 0
    for row in rows:
        group.append(row)
        characters += len(row.text) + len(row.pair or "")
        if len(group) == GROUP or characters > _MOST_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


def _answered(
    classify: Classifier, group: list[TextRow], first: int, texts: Path, skip_empty: bool, exact_labels: bool
) -> list[tuple[object, ...]]:
    """Return the fields of a group's answers; ``first`` is the number of its first row."""
    empty = [not row.text.strip() or (row.pair is not None and not row.pair.strip()) for row in group]
    if any(empty) and not skip_empty:
        raise DataError(
            f"{texts} row {first + empty.index(True)} has no text: fill or delete it and run the same command again, or give "
            "--skip-empty"
        )
    full = [row for row, nothing in zip(group, empty, strict=True) if not nothing]
    pairs = [row.pair or "" for row in full] if classify.facts.paired else None
    found = classify([row.text for row in full], pairs)
    answers = zip(
        found.labels if exact_labels else map(csv_value, found.labels),
        # The shortest text that gives the same float32.
        map(str, found.probabilities.max(1, initial=0.0)),
        found.exit_layers.tolist(),
        strict=True,
    )
    numbers = itertools.count(first)
    return [
        (number, "", "", "") if nothing else (number, *next(answers))
        for number, nothing in zip(numbers, empty, strict=False)
    ]
