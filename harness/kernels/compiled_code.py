"""Folders for compiled code. Code that another user could have written is never loaded."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from functools import cache
from pathlib import Path

from harness.core.files import cache_root

# Caches of libraries that compile for us: torch's is in the shared /tmp by default.
_CACHES = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "CUPY_CACHE_DIR": "cupy"}


def changeable_by_others(path: Path, top: Path) -> Path | None:
    """Return the first of ``path`` and its folders up to ``top`` that another user may write to or owns, ``None`` if there is none.

    What does not exist yet is left out. A link that leads out of ``top`` counts as somebody else's.
    """
    path, top = path.resolve(), top.resolve()
    if not path.is_relative_to(top):
        return path
    for place in (path, *path.parents):
        if place.exists():
            found = place.stat()
            if found.st_uid not in (0, os.getuid()) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                return place
        if place == top:
            break
    return None


@cache
def _private() -> tempfile.TemporaryDirectory[str]:
    """Return a folder that only this user can use, deleted at the end of the process."""
    return tempfile.TemporaryDirectory(prefix="geep-bench-kernels-")


def compiled_code_folder(name: str, file: str = "", top: Path | None = None) -> Path:
    """Return a folder of the cache if only this user can write there, else a private one for this process, with a line why.

    Args:
        name: of the folder, relative to ``top``.
        file: in the folder; it is checked, too.
        top: default: the cache.
    """
    top = top or cache_root()
    others = changeable_by_others(top / name / file, top)
    if others is None:
        return top / name
    print(
        f"other users may write to {others}: its kernels are not loaded, but compiled again for this process; correct it with "
        "chmod go-w, or set GEEP_BENCH_CACHE to a folder of your own",
        file=sys.stderr,
    )
    return Path(_private().name) / name


@cache
def own_compiler_caches() -> None:
    """Let torch's compiler and CuPy keep compiled code where only this user can write; call it before they compile."""
    for variable, name in _CACHES.items():
        chosen = os.environ.get(variable)
        folder = compiled_code_folder("", top=Path(chosen)) if chosen else compiled_code_folder(name)
        os.environ[variable] = str(folder)
