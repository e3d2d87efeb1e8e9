"""Folders and run files in a store: complete or absent, never outside their folder; mirrors follow changes and deletions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.core.errors import ConfigError
from harness.running.cluster.file_store import FileStore, RunMirror


@pytest.fixture(params=["memory", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> FileStore:
    return FileStore(f"memory://{tmp_path.name}" if request.param == "memory" else f"file://{tmp_path}/store")


def test_a_folder_comes_back_as_it_was(store: FileStore, tmp_path: Path) -> None:
    """With its sub-folders, and only once it is stored completely."""
    (tmp_path / "fit" / "model").mkdir(parents=True)
    (tmp_path / "fit" / "model" / "a.safetensors").write_bytes(bytes(range(256)))
    (tmp_path / "fit" / "seal.json").write_text("{}")
    assert not store.has_folder("fits/x") and not store.get_folder("fits/x", tmp_path / "back")
    store.put_folder(tmp_path / "fit", "fits/x")
    assert store.has_folder("fits/x") and store.get_folder("fits/x", tmp_path / "back")
    assert (tmp_path / "back" / "model" / "a.safetensors").read_bytes() == bytes(range(256))
    assert sorted(path.name for path in (tmp_path / "back").rglob("*")) == ["a.safetensors", "model", "seal.json"]


@pytest.mark.parametrize("name", ["../outside", "/outside", "model/../../outside"])
def test_no_file_leaves_its_folder(store: FileStore, tmp_path: Path, name: str) -> None:
    """A list of files with such a name is refused, whoever wrote it."""
    store.write("fits/x/complete.json", json.dumps({name: "0"}).encode())
    with pytest.raises(ValueError):
        store.get_folder("fits/x", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_damaged_file_is_found(store: FileStore, tmp_path: Path) -> None:
    """Another content than that which was stored is one line, and nothing is left here."""
    (tmp_path / "fit").mkdir()
    (tmp_path / "fit" / "a").write_bytes(b"weights")
    store.put_folder(tmp_path / "fit", "fits/x")
    store.write("fits/x/a", b"Weights")
    with pytest.raises(ConfigError, match="fits/x/a is missing or damaged: delete fits/x there"):
        store.get_folder("fits/x", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_mirror_follows_changes_and_deletions(store: FileStore, tmp_path: Path) -> None:
    """Of its own files only: another node's results of the same run stay."""
    here, there = tmp_path / "here", tmp_path / "there"
    mirrors = [RunMirror(store, "runs/k", folder, "mine--") for folder in (here, there)]
    for name in ("results/mine--a.json", "samples/mine--a.parquet", "plan/other--b.json"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(name)
    assert mirrors[0].push() == ["results/mine--a.json", "samples/mine--a.parquet"]
    assert mirrors[0].push() == []
    mirrors[1].pull()
    assert (there / "results/mine--a.json").read_text() == "results/mine--a.json"
    (there / "results/mine--c.json").write_text("c")
    (there / "results/mine--a.json").unlink()
    changed = mirrors[1].push()
    assert changed == ["results/mine--c.json", "results/mine--a.json"]
    mirrors[0].pull_files(changed)
    assert not (here / "results/mine--a.json").exists() and (here / "results/mine--c.json").read_text() == "c"
    assert (here / "plan/other--b.json").exists()


def test_urls_that_cannot_be_used_are_one_line() -> None:
    """An unknown kind of store is refused."""
    with pytest.raises(ConfigError, match="--store nowhere://x: .*: give a URL that fsspec can open"):
        FileStore("nowhere://x")
