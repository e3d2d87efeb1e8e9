"""Atomic writes of files and folders, filled templates, and content keys for the cache of backbones and fitted methods.

Temporary names are random, because processes in two containers that share a file system may have the same number.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core.errors import ConfigError, WriteError, is_disk_full

if TYPE_CHECKING:
    from jinja2 import Environment

_ABANDONED = 24 * 3600.0  # seconds after which a temporary folder belongs to a process that was killed


def cache_root() -> Path:
    """Return ``$GEEP_BENCH_CACHE``, or ``geep-bench`` in the user's cache folder; ``~`` is the home folder.

    Raises:
        ConfigError: no home folder is known.
    """
    chosen = os.environ.get("GEEP_BENCH_CACHE")
    try:
        if chosen:
            return Path(chosen).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "geep-bench"
    except RuntimeError as error:
        raise ConfigError(f"no folder for the cache ({error}): set GEEP_BENCH_CACHE to a full path") from error


def content_key(*parts: Any) -> str:
    """Return 16 hex digits that change whenever a part (JSON values) changes."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_error(path: Path, error: Exception, advice: str) -> WriteError:
    """Return the error of a failed write. On a full disk it says what to free, otherwise ``advice``."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if is_disk_full(error):
        advice = (
            f"free space on that disk, e.g. delete {cache_root()}, which is made again when it is needed, "
            "then run the same command again"
        )
    return WriteError(f"cannot write {path}: {reason}: {advice}")


def require_space(folder: Path, size: int) -> None:
    """Check that a disk has room, before work whose result would be lost.

    Args:
        folder: where the result will be stored; it need not exist.
        size: bytes.

    Raises:
        WriteError: the disk has less.
    """
    place = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(place).free
    if free < size:
        left = f"{free / 2**20:.0f} MiB are left, {size / 2**20:.0f} MiB are needed"
        raise write_error(folder, OSError(errno.ENOSPC, left), "")


def write_folder(
    folder: Path,
    fill: Callable[[Path], None],
    advice: str = "set GEEP_BENCH_CACHE to a writable folder with enough space",
    *,
    replace: bool = True,
) -> bool:
    """Let ``fill`` write a temporary folder, then move it into place, so that ``folder`` is complete or absent.

    Args:
        advice: the last part of the error message, unless the disk is full.
        replace: replace a folder that is there already; otherwise it stays, because another process was faster.

    Returns:
        Whether ``folder`` is the one written now; if not, use the other process's.

    Raises:
        WriteError: the folder cannot be written.
    """
    temporary = folder.with_name(_temporary_name())
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder.parent)
        temporary.mkdir()
        fill(temporary)
        if _move(temporary, folder):
            return True
        if not replace:
            return False
        aside = folder.with_name(_temporary_name())
        with contextlib.suppress(FileNotFoundError):  # another process has just moved it
            os.rename(folder, aside)
        moved = _move(temporary, folder)
        shutil.rmtree(aside, ignore_errors=True)
        return moved
    except Exception as error:
        if isinstance(error, OSError) or is_disk_full(error):
            raise write_error(folder, error, advice) from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _temporary_name() -> str:
    # Without the name of the target, which may be as long as file systems allow.
    return f".{secrets.token_hex(8)}.tmp"


def _move(temporary: Path, folder: Path) -> bool:
    """Rename a folder; return ``False`` if the target is there and not empty."""
    try:
        os.rename(temporary, folder)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def _remove_abandoned(parent: Path) -> None:
    """Delete the temporary folders of processes that were killed long ago."""
    for left in parent.glob(".*.tmp"):
        with contextlib.suppress(OSError):  # another process deletes it
            if time.time() - left.stat().st_mtime > _ABANDONED:
                shutil.rmtree(left)


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write`` with a temporary path, flush the file to disk, then move it into place.

    A process that is killed leaves the complete old file or the complete new one. Of two writers the last one counts.

    Raises:
        WriteError: the file cannot be written.
    """
    temporary = path.with_name(_temporary_name())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except Exception as error:
        if isinstance(error, OSError) or is_disk_full(error):
            raise write_error(path, error, "choose another folder with --out or free space") from error
        raise
    finally:
        with contextlib.suppress(OSError):  # the first error is the one to report
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file, atomically."""
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, data: Any) -> None:
    """Write ``data`` as indented JSON, atomically."""
    text = json.dumps(data, indent=1, ensure_ascii=False, sort_keys=True, allow_nan=False)
    write_text(path, text + "\n")


def fill_template(
    module: str, name: str, facts: dict[str, Any], *, escape: bool = False, **filters: Callable[..., Any]
) -> str:
    """Fill the Jinja template ``name`` of the folder ``templates`` next to a module.

    Args:
        module: its ``__file__``.
        escape: escape facts for HTML.
        filters: more filters, by their names in templates.

    Raises:
        jinja2.UndefinedError: the template names a fact that is missing.
    """
    environment = _templates(Path(module).parent / "templates", escape)
    environment.filters |= filters
    return environment.get_template(name).render(facts)


@cache
def _templates(folder: Path, escape: bool) -> Environment:
    """Return what compiles the templates of a folder, each once."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
