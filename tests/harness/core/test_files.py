"""Cache folders keyed by content are complete or absent."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.core.errors import ConfigError, WriteError
from harness.core.files import cache_root, content_key, require_space, write_atomic, write_folder, write_json

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


def test_the_loser_of_a_race_takes_the_winners_folder(tmp_path: Path) -> None:
    """A folder that another process finished first stays; nothing else is left behind."""
    target = tmp_path / "cache" / "folder"

    def slow(place: Path) -> None:
        (place / "loser").touch()
        assert write_folder(target, lambda other: (other / "winner").touch(), replace=False)

    assert not write_folder(target, slow, replace=False)
    assert [path.name for path in target.iterdir()] == ["winner"]
    assert [path.name for path in target.parent.iterdir()] == ["folder"]


def test_two_writers_with_one_process_number_do_not_disturb_each_other(tmp_path: Path) -> None:
    """Threads share the number, as processes in two containers may: every write succeeds, and every file is complete."""
    whole = {"text": "x" * 10_000}

    def write(number: int) -> None:
        for _ in range(20):
            write_json(tmp_path / "race" / "file.json", {**whole, "by": number})
            write_folder(
                tmp_path / "race" / "folder", lambda place: [(place / name).touch() for name in "abc"] and None
            )

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, range(4)))
    assert json.loads((tmp_path / "race" / "file.json").read_text())["text"] == whole["text"]
    assert sorted(path.name for path in (tmp_path / "race" / "folder").iterdir()) == ["a", "b", "c"]
    assert sorted(path.name for path in (tmp_path / "race").iterdir()) == ["file.json", "folder"]


def test_temporary_folders_of_killed_processes_are_removed(tmp_path: Path) -> None:
    """Those of the last day stay: their process may be alive."""
    for name, age in (("old", 48), ("young", 1)):
        left = tmp_path / f".{name}.tmp"
        (left / "deep").mkdir(parents=True)
        os.utime(left, (time.time() - age * 3600,) * 2)
    write_folder(tmp_path / "folder", lambda place: None)
    assert sorted(path.name for path in tmp_path.glob(".*.tmp")) == [".young.tmp"]


@pytest.mark.parametrize(
    "problem",
    [OSError(28, "No space left on device"), RuntimeError("I/O error: ... (os error 28)")],
    ids=["system", "library"],
)
def test_a_full_disk_is_reported_with_what_to_free(
    tmp_path: Path, problem: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a library reports it in words of its own."""
    monkeypatch.setenv("GEEP_BENCH_CACHE", "/somewhere")

    def fill(place: Path) -> None:
        raise problem

    for write in (write_folder, write_atomic):
        with pytest.raises(WriteError, match=r"cannot write .*target: .*free space .* delete /somewhere"):
            write(tmp_path / "target", fill)
    assert not list(tmp_path.glob("*target*"))


def test_room_is_checked_before_work(tmp_path: Path) -> None:
    """A result that the disk cannot hold is not computed; the folder need not exist."""
    require_space(tmp_path / "a" / "b", 1)
    with pytest.raises(WriteError, match=r"MiB are left, 10\d+ MiB are needed: free space"):
        require_space(tmp_path / "a" / "b", 2**60)


def test_a_home_folder_in_the_cache_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``~`` is the home folder; without one the message says what to set."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GEEP_BENCH_CACHE", "~/cache")
    assert cache_root() == tmp_path / "cache"
    monkeypatch.setenv("GEEP_BENCH_CACHE", "~no-such-user/cache")
    with pytest.raises(ConfigError, match="set GEEP_BENCH_CACHE to a full path"):
        cache_root()
