"""Files that all nodes of a cluster reach by a URL (fsspec), for clusters without a shared folder."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from harness.core.digest import files_below
from harness.core.errors import ConfigError, WriteError, first_line
from harness.core.files import write_atomic, write_folder
from harness.core.names import check_name

_COMPLETE = "complete.json"  # lists the files of a folder and their SHA-256; written last
_BEGUN = "begun"  # of a run: the store has all that the run folder had when it was first stored


class FileStore:
    """Folders and files below a URL such as ``s3://bucket/geep``, ``file:///shared/geep`` or, in tests, ``memory://geep``.

    Raises:
        ConfigError: the URL cannot be used.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url
        try:
            self._fs, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError, OSError) as error:
            raise ConfigError(
                f"--store {url}: {first_line(error)}: give a URL that fsspec can open, or install what it names"
            ) from error
        self._root = root.rstrip("/")

    def _place(self, key: str) -> str:
        return f"{self._root}/{key}"

    def write(self, key: str, data: bytes) -> None:
        """Write a file.

        Raises:
            WriteError: it cannot be written.
        """
        place = self._place(key)
        try:
            self._fs.makedirs(place.rpartition("/")[0], exist_ok=True)
            self._fs.pipe_file(place, data)
        except Exception as error:
            raise WriteError(
                f"--store {self.url}: cannot write {key}: {first_line(error)}: check its rights and space"
            ) from error

    def read(self, key: str) -> bytes | None:
        """Return the bytes of a file, ``None`` if it is not there.

        Raises:
            ConfigError: the store cannot be read.
        """
        try:
            return bytes(self._fs.cat_file(self._place(key)))
        except FileNotFoundError:
            return None
        except Exception as error:
            raise ConfigError(
                f"--store {self.url}: cannot read {key}: {first_line(error)}: check its address and rights"
            ) from error

    def remove(self, key: str) -> None:
        """Delete a file, if it is there."""
        if self._fs.exists(self._place(key)):
            self._fs.rm_file(self._place(key))

    def names(self, key: str) -> list[str]:
        """Return the names of the files below a key, relative to it."""
        place = self._place(key)
        self._fs.invalidate_cache()
        # Some file systems list paths without the leading slash of their root.
        start = f"{place.strip('/')}/"
        found = (str(path).strip("/") for path in self._fs.find(place)) if self._fs.exists(place) else ()
        return sorted(path.removeprefix(start) for path in found if path.startswith(start))

    def has_folder(self, key: str) -> bool:
        """Return whether a folder is stored completely."""
        return bool(self._fs.exists(self._place(f"{key}/{_COMPLETE}")))

    def put_folder(self, folder: Path, key: str) -> None:
        """Store a folder, unless it is stored already."""
        if self.has_folder(key):
            return
        hashes: dict[str, str] = {}
        for path in files_below(folder):
            name, data = path.relative_to(folder).as_posix(), path.read_bytes()
            hashes[name] = hashlib.sha256(data).hexdigest()
            self.write(f"{key}/{name}", data)
        self.write(f"{key}/{_COMPLETE}", json.dumps(hashes, sort_keys=True).encode())

    def get_folder(self, key: str, folder: Path) -> bool:
        """Fetch a stored folder, unless there is one at ``folder``; return whether there is one now.

        Raises:
            ConfigError: a file is missing, damaged or leads out of the folder.
        """
        if folder.is_dir():
            return True
        listed = self.read(f"{key}/{_COMPLETE}")
        if listed is None:
            return False
        hashes: dict[str, Any] = json.loads(listed)

        def fill(place: Path) -> None:
            for name, digest in hashes.items():
                for part in name.split("/"):
                    check_name(part, longest=255)
                data = self.read(f"{key}/{name}")
                if data is None or hashlib.sha256(data).hexdigest() != digest:
                    raise ConfigError(f"--store {self.url}: {key}/{name} is missing or damaged: delete {key} there")
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                (place / name).write_bytes(data)

        write_folder(folder, fill, replace=False)
        return True


class RunMirror:
    """The files of a run folder in a store, where a node or the driver cannot see the other one's folder.

    Args:
        key: of the run in the store.
        folder: the copy here.
        start: only files whose names begin with this.
    """

    PARTS = ("plan", "results", "samples", "failures", "set-aside")

    def __init__(self, store: FileStore, key: str, folder: Path, start: str = "") -> None:
        self._store, self._key, self._folder, self._start = store, key, folder, start
        self._seen: dict[str, tuple[int, int]] = {}

    def _here(self) -> dict[str, tuple[int, int]]:
        found = {}
        for part in self.PARTS:
            for path in (self._folder / part).glob(f"{self._start}*"):
                if path.is_file() and not path.name.startswith("."):
                    found[f"{part}/{path.name}"] = _facts_of(path)
        return found

    def begin(self) -> None:
        """Store the copy here if that was never completed, then make it equal to the store's.

        Without the first step, what did not reach the store before it failed would be deleted here.
        """
        if self._store.read(f"{self._key}/{_BEGUN}") is None:
            self.push()
            self._store.write(f"{self._key}/{_BEGUN}", b"")
        self.pull()

    def pull(self) -> None:
        """Make the copy here equal to the store's."""
        names = [name for name in self._store.names(self._key) if name.partition("/")[2].startswith(self._start)]
        for name in set(self._here()) - set(names):
            (self._folder / name).unlink(missing_ok=True)
        self.pull_files(names)
        self._seen = self._here()

    def pull_files(self, names: Iterable[str]) -> None:
        """Fetch files, or delete those that the store no longer has."""
        for name in names:
            part, _, file = name.partition("/")
            if part not in self.PARTS:
                continue
            path, data = self._folder / part / check_name(file, longest=255), self._store.read(f"{self._key}/{name}")
            if data is None:
                path.unlink(missing_ok=True)
            else:
                write_atomic(path, lambda temporary, data=data: temporary.write_bytes(data))  # type: ignore[misc]
            self._see(name)

    def _see(self, name: str) -> None:
        """Note that a file here equals the one in the store."""
        path = self._folder / name
        if path.is_file():
            self._seen[name] = _facts_of(path)
        else:
            self._seen.pop(name, None)

    def push(self) -> list[str]:
        """Store what has changed here since the last call; return its names."""
        here = self._here()
        changed = sorted(name for name in here if self._seen.get(name) != here[name])
        # Results last: a cell counts as finished once its result is there.
        for name in sorted(changed, key=lambda name: name.startswith("results/")):
            self._store.write(f"{self._key}/{name}", (self._folder / name).read_bytes())
        gone = sorted(set(self._seen) - set(here))
        for name in gone:
            self._store.remove(f"{self._key}/{name}")
        self._seen = here
        return [*changed, *gone]

    def forget(self) -> None:
        """Delete the copy here."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _facts_of(path: Path) -> tuple[int, int]:
    """Return what changes whenever a file is written: the time of its last change in nanoseconds, and its bytes."""
    facts = path.stat()
    return facts.st_mtime_ns, facts.st_size
