"""Names cannot leave their folder, and labels are one line of text."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.core.names import LONGEST_LABEL, LONGEST_NAME, check_label, check_method_name, check_name


def accepts(check: object, text: str) -> bool:
    try:
        assert check(text) == text  # type: ignore[operator]
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("name", ["ag_news", "书评", "my data (v2)", "a.b", "--", "é", "a" * LONGEST_NAME])
def test_usual_names_are_accepted(name: str) -> None:
    """Letters of any language, spaces inside and punctuation may be part of a name."""
    assert accepts(check_name, name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "/etc/x",
        "a/b",
        "a\\b",
        ".git",
        "a\n",
        "a\x1b[2J",
        " a",
        "a ",
        "\ud800",
        "a\u202eb",
        "x" * 101,
        "书" * 34,
    ],
)
def test_names_that_leave_the_folder_or_cannot_be_shown_are_refused(name: str) -> None:
    """Path separators, hidden names, control characters, space at an end and too many bytes are refused."""
    assert not accepts(check_name, name)


@given(st.text(max_size=8))
@settings(max_examples=200)
def test_an_accepted_name_stays_in_its_folder(name: str) -> None:
    """An accepted name is exactly one part of a path."""
    if accepts(check_name, name):
        assert (PurePosixPath("run") / f"{name}.json").name == f"{name}.json"


@pytest.mark.parametrize(("name", "fine"), [("bert-6.l+x", True), ("a--b", False), ("a b", False), ("-a", False)])
def test_method_names_cannot_hold_the_separator_of_file_names(name: str, fine: bool) -> None:
    """Two hyphens separate the parts of a file name, so a method cannot have them in its name."""
    assert accepts(check_method_name, name) == fine


@pytest.mark.parametrize(
    "label", ["0", "Science & Technology", "体育", "speed=0.1/shared", "=SUM(A1)", "a" * LONGEST_LABEL]
)
def test_usual_labels_are_accepted(label: str) -> None:
    """A label may hold any visible text."""
    assert accepts(check_label, label)


@pytest.mark.parametrize(
    "label", ["", " ", "a\nb", "a\x00", "\x1b[31mred", "\u202eabc", "\udc80", "a" * (LONGEST_LABEL + 1)]
)
def test_labels_that_cannot_be_shown_are_refused(label: str) -> None:
    """Control characters, lone surrogates, marks that turn the direction of text, and long texts are refused."""
    assert not accepts(check_label, label)
