"""Cache folders keyed by content are complete or absent."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.core.errors import WriteError
from harness.core.files import cache_root, content_key, write_folder

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=3), part, max_size=3),
    max_leaves=6,
)


def test_the_root_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment variable has priority over the user's cache folder and ~/.cache."""
    monkeypatch.setenv("GEEP_BENCH_CACHE", str(tmp_path / "own"))
    assert cache_root() == tmp_path / "own"
    monkeypatch.setenv("GEEP_BENCH_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "geep-bench"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cache_root() == tmp_path / ".cache" / "geep-bench"


@given(JSON, st.lists(st.integers(), max_size=4), st.lists(st.integers(), max_size=4))
def test_keys_follow_content(content: object, one: list[int], other: list[int]) -> None:
    """Equal content has equal keys of 16 hex digits; different content has different keys."""
    assert content_key(content) == content_key(content)
    assert len(content_key(content)) == 16
    assert int(content_key(content), 16) >= 0
    assert (content_key(one) == content_key(other)) == (one == other)


def test_the_order_of_keys_does_not_matter() -> None:
    """The order of settings does not change a key."""
    assert content_key({"a": 1, "b": 2}) == content_key({"b": 2, "a": 1})
    assert content_key(["a", "b"]) != content_key(["b", "a"])


def test_a_folder_is_written_completely(tmp_path: Path) -> None:
    """A second writing replaces the first completely."""
    target = tmp_path / "deep" / "folder"
    write_folder(target, lambda place: (place / "old").write_text("1") and None)
    write_folder(target, lambda place: (place / "new").write_text("2") and None)
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in target.parent.iterdir()] == ["folder"]


@pytest.mark.parametrize("problem", [OSError(28, "No space left on device"), RuntimeError("bug"), KeyboardInterrupt()])
def test_a_failed_write_keeps_the_old_folder(tmp_path: Path, problem: BaseException) -> None:
    """If filling fails, the old folder is unchanged and no other file remains."""
    target = tmp_path / "folder"
    write_folder(target, lambda place: (place / "old").write_text("1") and None)

    def half(place: Path) -> None:
        (place / "new").write_text("half")
        raise problem

    with pytest.raises((WriteError, RuntimeError, KeyboardInterrupt)):
        write_folder(target, half)
    assert [path.name for path in tmp_path.iterdir() if path.name != "geep-bench-cache"] == ["folder"]
    assert [path.name for path in target.iterdir()] == ["old"]


def test_an_unwritable_cache_is_reported(tmp_path: Path) -> None:
    """The message names the variable that sets another folder."""
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="GEEP_BENCH_CACHE"):
        write_folder(tmp_path / "file" / "folder", lambda place: None)
