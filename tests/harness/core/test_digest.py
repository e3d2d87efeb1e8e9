"""Digests follow content, whatever the path and the time stamps say; seals reveal every changed file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.core import digest
from harness.core.digest import check_seal, content_digest, file_digest, files_below, seal
from harness.core.errors import ResultError


def filled(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_a_digest_follows_content_and_names(tmp_path: Path) -> None:
    """A copy under another path has the same digest; another byte, name or file gives another one."""
    first = content_digest(filled(tmp_path / "a", x="1", y="2"))
    assert content_digest(filled(tmp_path / "b", x="1", y="2")) == first
    others = [{"x": "1", "y": "3"}, {"x": "1", "z": "2"}, {"x": "2", "y": "1"}, {"x": "1"}, {"x": "12", "y": ""}]
    found = {content_digest(filled(tmp_path / f"c{i}", **files)) for i, files in enumerate(others)}
    assert len(found) == len(others) and first not in found
    assert content_digest(tmp_path / "a" / "x") == content_digest(tmp_path / "b" / "x") != first


def test_hidden_files_and_circular_links_do_not_matter(tmp_path: Path) -> None:
    """Files of tools, such as ``.git``, are left out; links are followed, but not in a circle."""
    folder = filled(tmp_path / "a", x="1")
    first = content_digest(folder)
    filled(folder / ".git", config="1")
    (folder / "again").symlink_to(folder)
    os.mkfifo(folder / "pipe")
    (folder / "nowhere").symlink_to(tmp_path / "missing")
    assert content_digest(folder) == first
    (folder / "linked").symlink_to(filled(tmp_path / "b", y="2"))
    assert [path.relative_to(folder).as_posix() for path in files_below(folder)] == ["linked/y", "x"]


@pytest.mark.parametrize("recent", [digest._RECENT, -1])
def test_a_file_with_its_old_size_and_time_is_read_again(
    tmp_path: Path, recent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another content of the same size, written in place and with the old mtime, gives another digest."""
    monkeypatch.setattr(digest, "_RECENT", recent)  # -1: every file is old enough to be remembered
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    before, first = path.stat(), file_digest(path)
    while True:
        path.write_bytes(b"two")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        if recent > 0 or path.stat().st_ctime_ns != before.st_ctime_ns:  # the file system's clock moves in steps
            break
    assert file_digest(path) != first


def test_an_unchanged_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large weights are not read again for every key."""
    monkeypatch.setattr(digest, "_RECENT", -1)
    (tmp_path / "x").write_text("1")
    first = file_digest(tmp_path / "x")
    monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("read again"))
    assert file_digest(tmp_path / "x") == first


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "changed": (lambda f: (f / "y").write_text("3"), "y does not have its stored checksum"),
    "removed": (lambda f: (f / "y").unlink(), "y does not have"),
    "added": (lambda f: (f / "z").write_text("3"), "z does not have"),
    "never sealed": (lambda f: (f / digest.SEAL).unlink(), "no checksums"),
    "broken seal": (lambda f: (f / digest.SEAL).write_text("{"), "cannot be compared"),
    "foreign seal": (lambda f: (f / digest.SEAL).write_text("[1]"), "does not have"),
    "seal is a folder": (lambda f: ((f / digest.SEAL).unlink(), (f / digest.SEAL).mkdir()), "cannot be compared"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_folder_is_found(tmp_path: Path, case: str) -> None:
    """A sealed folder passes; with any file changed, added or removed, the message names that file."""
    folder, (damage, words) = filled(tmp_path / "a", x="1", y="2"), DAMAGE[case]
    seal(folder)
    check_seal(folder)
    damage(folder)
    with pytest.raises(ResultError, match=words):
        check_seal(folder)


@settings(max_examples=15)
@given(content=st.binary(min_size=1, max_size=50), data=st.data())
def test_every_flipped_bit_is_found(
    content: bytes, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whichever bit of a file flips, its seal breaks."""
    folder = tmp_path_factory.mktemp("sealed")
    (folder / "x").write_bytes(content)
    seal(folder)
    place = data.draw(st.integers(0, len(content) - 1))
    flipped = bytearray(content)
    flipped[place] ^= 1 << data.draw(st.integers(0, 7))
    (folder / "x").write_bytes(flipped)
    with pytest.raises(ResultError):
        check_seal(folder)
