"""Where expensive things that are not results are kept: backbones and fitted methods, keyed by content."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.errors import ConfigError


def cache_root() -> Path:
    """``$GEEP_BENCH_CACHE``, or ``geep-bench`` in the user's cache folder."""
    chosen = os.environ.get("GEEP_BENCH_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "geep-bench"


def content_key(*parts: Any) -> str:
    """16 hex digits that change whenever a part (JSON values) changes."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_folder(
    folder: Path,
    fill: Callable[[Path], None],
    advice: str = "point GEEP_BENCH_CACHE to a folder with space that you may write",
) -> None:
    """Let ``fill`` write into a temporary neighbour, then move it into place: whole, or not there at all.

    Args:
        advice: what to do if the folder cannot be written.

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
