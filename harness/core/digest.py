"""Digests of files and folders: keys that follow content instead of paths, and checksums ("seals") that reveal damaged files."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, uint8

from harness.core.errors import ResultError
from harness.core.files import write_atomic
from harness.core.text_formats import read_json

SEAL = "seal.json"
_RECENT = 2_000_000_000  # ns; some file systems count time stamps in steps of two seconds
_known: dict[tuple[int, ...], str] = {}


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, 64 hex digits.

    A file is read again whenever its inode, size or a time stamp differs. The time of the last change (ctime) is one of them,
    because programs can set the other one (mtime) back, as ``cp -p`` does. Files that changed just now are never remembered.

    Raises:
        OSError: the file cannot be read.
    """
    before = _identity(path)
    if before in _known:
        return _known[before]
    with path.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    if _identity(path) == before and time.time_ns() - max(before[-2:]) > _RECENT:
        _known[before] = digest
    return digest


def _identity(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def files_below(folder: Path) -> list[Path]:
    """Return all regular files in a folder and its sub-folders, sorted; links are followed, hidden ones left out."""
    found, seen = list[Path](), set[tuple[int, int]]()
    for place, folders, files in os.walk(folder, followlinks=True):
        here = os.stat(place)
        # A link to a folder further up would lead round in a circle.
        if (here.st_dev, here.st_ino) in seen:
            folders.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [path for name in files if not name.startswith(".") and (path := Path(place, name)).is_file()]
    return sorted(found)


def digest_of(files: Iterable[Path], folder: Path) -> str:
    """Return 16 hex digits that change with names (below ``folder``) and bytes of the files, whatever their order.

    Raises:
        OSError: a file cannot be read.
    """
    facts = sorted([path.relative_to(folder).as_posix(), file_digest(path)] for path in files)
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def content_digest(place: Path) -> str:
    """Return 16 hex digits that change with the content of a file, or of all files in a folder; not with its path.

    Raises:
        OSError: a file cannot be read.
    """
    return digest_of(files_below(place), place) if place.is_dir() else file_digest(place)[:16]


def seal(folder: Path) -> None:
    """Write the digests of all files in a folder beside them, for :func:`check_seal`."""
    facts = {path.relative_to(folder).as_posix(): file_digest(path) for path in files_below(folder)}
    (folder / SEAL).write_text(json.dumps(facts, indent=1), encoding="utf-8")


def check_seal(folder: Path) -> None:
    """Compare a folder with the digests that :func:`seal` wrote.

    Raises:
        ResultError: a file was changed, added or removed since, or there are no digests; the message names the file.
    """
    try:
        stored = read_json(folder / SEAL)
        found = {path.relative_to(folder).as_posix(): file_digest(path) for path in files_below(folder)}
    except FileNotFoundError:
        raise ResultError(f"{folder} has no checksums ({SEAL})") from None
    except (OSError, ValueError) as error:
        raise ResultError(f"checksums of {folder} cannot be compared ({error})") from error
    found.pop(SEAL, None)
    if found != stored:
        names = {*found, *stored} if isinstance(stored, dict) else {SEAL}
        wrong = min(name for name in names if names == {SEAL} or found.get(name) != stored.get(name))
        raise ResultError(f"{folder / wrong} does not have its stored checksum: the file is damaged or was changed")


def _tensors_digest(facts: str, tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of facts and tensors (on the CPU, contiguous)."""
    digest = hashlib.sha256(facts.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(uint8).numpy().data)
    return digest.hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors and JSON values into one safetensors file with a checksum, atomically, for :func:`read_tensors`.

    Raises:
        WriteError: the file cannot be written.
    """
    here: dict[str, Tensor] = {}
    places = set[int]()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        # The format holds no two tensors in one place of memory.
        here[name] = value.clone() if value.untyped_storage().data_ptr() in places else value
        places.add(value.untyped_storage().data_ptr())
    header = json.dumps(facts)
    # Serialised to bytes first, so that a full disk raises an OSError with its cause.
    content = to_bytes(here, {"facts": header, "sha256": _tensors_digest(header, here)})
    write_atomic(path, lambda temporary: temporary.write_bytes(content))


def read_tensors(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the JSON values and the tensors of a file that :func:`write_tensors` wrote.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            stored = file.metadata()
            facts: dict[str, Any] = json.loads(stored["facts"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        # States of earlier versions have nothing but facts.
        if stored.keys() != {"facts"} and stored.get("sha256") != _tensors_digest(stored["facts"], tensors):
            raise ValueError("it does not have its stored checksum")
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(str(error)) from error
    return facts, tensors
