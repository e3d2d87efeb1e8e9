"""Argument types parse valid text and reject everything else in one line."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.cli.argument_types import comma_separated, names, one_of, positive_number, whole_number


@given(st.lists(st.integers(0, 99), min_size=1), st.sampled_from([",", " , "]))
def test_lists_keep_their_order_and_drop_duplicates(values: list[int], separator: str) -> None:
    """A list of numbers keeps its order, with each number once."""
    read = comma_separated(whole_number(0))(separator.join(map(str, values)))
    assert read == list(dict.fromkeys(values))


@given(st.integers(), st.integers(-5, 5))
def test_whole_numbers_have_a_limit(value: int, least: int) -> None:
    """A number below the limit is rejected; all others are returned unchanged."""
    if value >= least:
        assert whole_number(least)(str(value)) == value
    else:
        with pytest.raises(argparse.ArgumentTypeError, match=f"'{value}' is not a whole number of at least {least}"):
            whole_number(least)(str(value))


@pytest.mark.parametrize(
    ("read", "text"),
    [
        *((positive_number, text) for text in ("0", "-1", "nan", "inf", "fast", "")),
        *((whole_number(1), text) for text in ("1.5", "x", "")),
        *((names, text) for text in ("", " , ")),
        (comma_separated(one_of("modern", "paper")), "modern,old"),
    ],
)
def test_other_texts_are_rejected(read: Callable[[str], object], text: str) -> None:
    """Text of another type gives a one-line argparse error."""
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        read(text)
    assert len(str(caught.value).splitlines()) == 1
