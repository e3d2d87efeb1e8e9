"""Labels as numbers: spellings of numbers, names and their order, and what is refused."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.core.errors import DataError
from harness.data.labels import number_labels


def numbered(train: list[Any], *, names: tuple[str, ...] = (), offset: int = 0) -> tuple[list[int], tuple[str, ...]]:
    """Return numbers and names of the labels of a single split."""
    found = number_labels({"train": train}, {"train": "f.csv"}, names, names_from="card.toml", offset=offset)
    return found.labels["train"].tolist(), found.names


@pytest.mark.parametrize(
    "good", [[0, 1], ["0", " 1"], ["0.0", "1."], [0.0, 1.0], [np.int8(0), np.int32(1)], [Decimal(0), Decimal("1.0")]]
)
def test_whole_numbers_in_any_spelling(good: list[Any]) -> None:
    """Numbers may be integers, whole floats, decimals, or digits in text."""
    assert numbered(good) == ([0, 1], ())
    assert numbered(good, offset=-1) == ([1, 2], ())


@pytest.mark.parametrize(
    ("bad", "shown"),
    [
        (1.5, "e.g. 1.5"),
        ("1.5", "e.g. '1.5'"),
        ("1e3", "e.g. '1e3'"),
        (10**30, "e.g. 1000000000000000000000000000000"),
        ("9" * 5000, "e.g. '9999"),
        (float("inf"), "e.g. inf"),
        (float("nan"), "no value"),
        ("NaN", "e.g. 'NaN'"),
        (None, "no value"),
        ("", "no value"),
        ([1], "e.g. \\[1\\]"),
        ({"a": 1}, "e.g. {'a': 1}"),
        (b"1", "e.g. b'1'"),
        ("a\x1b[31m", "e.g. 'a\\\\x1b\\[31m'"),
        ("x" * 201, "e.g. 'xxxx"),
    ],
)
def test_what_is_no_label(bad: Any, shown: str) -> None:
    """Other values are refused in one line with file, column, row and advice."""
    wanted = "integers or names of up to 200 characters"
    with pytest.raises(
        DataError, match=f"^f.csv: column 'label' must hold {wanted}, but row 2 holds {shown}"
    ) as caught:
        numbered([0, bad, 1])
    assert str(caught.value).endswith(": number the classes 0, 1, 2, ..., or give each a name")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


def test_names_are_numbered_in_sorted_order() -> None:
    """Names are sorted, or in a given order; booleans are names; white space around a name does not count."""
    assert numbered(["pos", "neg ", "pos"]) == ([1, 0, 1], ("neg", "pos"))
    assert numbered(["pos", "neg"], names=("pos", "mixed", "neg")) == ([0, 2], ("pos", "mixed", "neg"))
    assert numbered([True, False]) == numbered(["True", "False"]) == ([1, 0], ("False", "True"))
    assert numbered(["体育", "财经"], names=("财经", "体育")) == ([1, 0], ("财经", "体育"))


def test_numbers_that_are_names() -> None:
    """Numbers index the names, unless all of them are names: then 5 is the class called "5"."""
    assert numbered([0, 1], names=("bad", "good")) == ([0, 1], ("bad", "good"))
    stars = ("1", "2", "3", "4", "5")
    assert numbered(["5", "1.0", "3"], names=stars) == numbered([5, 1, 3], names=stars) == ([4, 0, 2], stars)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            {"train": [0, 1], "test": [0, "0_1"]},
            "test.csv: .* has '0_1' in row 2, a name where other rows have numbers",
        ),
        (
            {"train": ["0", "0_1"], "test": ["0"]},
            "train.csv: .* has '0_1' in row 2, a name where other rows have numbers",
        ),
        (
            {"train": ["a", "b"], "test": ["a", "7"]},
            "test.csv: .* has 7 in row 2, a number where other rows have names",
        ),
        (
            {"train": ["a", "b"], "test": ["c", "a", "c"]},
            r"test.csv: .* has 'c' in rows 1, 3, .* none of the labels of train.csv",
        ),
    ],
)
def test_labels_that_do_not_fit_together(labels: dict[str, list[Any]], message: str) -> None:
    """Numbers beside names, and names that train lacks, are refused with the file where they are."""
    with pytest.raises(DataError, match=message):
        number_labels(labels, {split: f"{split}.csv" for split in labels})


@given(st.lists(st.sampled_from(["a", "B", "é", "财经", "1 star", "none", "NA"]), min_size=2))
def test_names_come_back(labels: list[str]) -> None:
    """The name of a row's number is the row's name, whatever the order."""
    numbers, names = numbered(list(labels))
    assert [names[number] for number in numbers] == labels
    assert list(names) == sorted(set(labels))
