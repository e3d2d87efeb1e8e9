"""JSON and TOML from anywhere are read with limits, and byte order marks are allowed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.core import text_formats
from harness.core.text_formats import DEEPEST, parse_json, parse_toml, read_json, read_toml


def test_a_byte_order_mark_is_allowed(tmp_path: Path) -> None:
    """Editors on Windows write one before the first character."""
    file = tmp_path / "file"
    file.write_text('{"a": 1}', encoding="utf-8-sig")
    assert read_json(file) == {"a": 1}
    file.write_text("a = 1\n", encoding="utf-8-sig")
    assert read_toml(file) == {"a": 1}


@pytest.mark.parametrize("levels", [DEEPEST + 1, 100_000])
def test_deep_nesting_is_refused(levels: int) -> None:
    """Slightly too deep and far too deep give the same error, not a crash."""
    lists = "[" * levels + "]" * levels
    for parse, text in ((parse_json, lists), (parse_toml, f"a = {lists}")):
        with pytest.raises(ValueError, match="nested more than 64 levels"):
            parse(text)


def test_moderate_nesting_is_read() -> None:
    """As many levels as are allowed are read."""
    assert parse_json("[" * DEEPEST + "]" * DEEPEST)
    assert parse_toml("a = " + "[" * (DEEPEST - 1) + "]" * (DEEPEST - 1))


@pytest.mark.parametrize("text", ["", "{", '{"a": NaN}', "[-Infinity]", '["\\ud800"]', "a" * 9])
def test_what_is_not_json_is_refused(text: str) -> None:
    """NaN, infinities and lone surrogates are no JSON either."""
    with pytest.raises(ValueError, match="."):
        parse_json(text)


def test_a_pair_of_surrogates_is_one_character() -> None:
    """JSON may write an emoji as two escapes."""
    assert parse_json('["\\ud83d\\ude00"]') == ["\N{GRINNING FACE}"]


def test_large_files_and_pipes_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file above the limit is refused before it is read, and so is a pipe, which would wait forever."""
    monkeypatch.setattr(text_formats, "LARGEST", 3)
    (tmp_path / "large").write_text("[ 1]")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="4 bytes"):
        read_json(tmp_path / "large")
    with pytest.raises(ValueError, match="plain file"):
        read_toml(tmp_path / "pipe")
