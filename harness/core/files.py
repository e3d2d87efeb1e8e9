"""Atomic writes of files and folders, filled templates, and content keys for the cache of backbones and fitted methods."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.core.errors import ConfigError, ResultError


def cache_root() -> Path:
    """Return ``$GEEP_BENCH_CACHE``, or ``geep-bench`` in the user's cache folder."""
    chosen = os.environ.get("GEEP_BENCH_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "geep-bench"


def content_key(*parts: Any) -> str:
    """Return 16 hex digits that change whenever a part (JSON values) changes."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_folder(
    folder: Path,
    fill: Callable[[Path], None],
    advice: str = "set GEEP_BENCH_CACHE to a writable folder with enough space",
) -> None:
    """Let ``fill`` write a temporary folder, then move it into place, so that ``folder`` is complete or absent.

    Args:
        advice: the last part of the error message.

    Raises:
        ConfigError: the folder cannot be written.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        fill(temporary)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    except OSError as error:
        raise ConfigError(f"cannot write {folder}: {error.strerror}: {advice}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write`` with a temporary path, flush the file to disk, then move it into place.

    A process that is killed leaves the complete old file or the complete new one.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise ResultError(
            f"cannot write {path}: {error.strerror}: choose another folder with --out or free space"
        ) from error
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
    """Fill the Jinja template ``name``, which lies in the folder ``templates`` beside a module.

    Args:
        module: its ``__file__``.
        escape: escape facts for HTML.
        filters: more filters, by their names in templates.

    Raises:
        jinja2.UndefinedError: the template names a fact that is missing.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(module).parent / "templates"),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template(name).render(facts)
