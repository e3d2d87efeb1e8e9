"""Folders of the cache: fits, and the weights that several fits of a method share. Each is sealed, and complete or absent."""

from __future__ import annotations

import filecmp
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from harness.contracts import Fitted
from harness.core.digest import SEAL, check_seal, files_below, seal
from harness.core.errors import ResultError, is_fatal
from harness.core.files import cache_root, write_folder

FITS = "fits-2"  # folder of the cache; "fits" is that of versions whose fits have no checksums
WEIGHTS = "weights"  # folder of the cache, for methods that learn in stages
_UNFINISHED = "unfinished"  # folder of the cache, with the trainings of fits that have not ended


def unfinished(folder: Path) -> Path:
    """Return the folder of the training states of a fit, from which a killed fit resumes."""
    return folder.parent.parent / _UNFINISHED / folder.name


def warn_of_old_fits() -> None:
    """Print a line if the cache has fits of a version whose fits have no checksums."""
    old = cache_root() / "fits"
    if old.is_dir():
        print(f"{old} holds fits of an older version, which are not used: delete that folder", file=sys.stderr)


def load_or_make(
    folder: Path, load: Callable[[Path], Fitted], make: Callable[[], Fitted], weights: Path | None = None
) -> Fitted:
    """Return what is stored in a folder; if it is absent or damaged, make it and store it.

    Args:
        load: reads the folder.
        weights: a folder whose files are not stored a second time.

    Raises:
        WriteError: the folder cannot be written.
        Exception: what ``make`` raised.
    """
    found = _load(folder, load)
    if found is not None:
        return found
    made = make()

    def fill(place: Path) -> None:
        made.save(place)
        if weights is not None:
            _share_files(place, weights)
        seal(place)

    if write_folder(folder, fill, replace=False):
        return made
    # Another run was faster. Its fit is taken, so that every run that uses this cache measures the same one.
    return _load(folder, load) or made


def _load(folder: Path, load: Callable[[Path], Fitted]) -> Fitted | None:
    if not folder.is_dir():
        return None
    try:
        check_seal(folder)
        return load(folder)
    except ResultError as error:
        if is_fatal(error):
            raise
        print(f"{error}; fitting again", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        return None


def _share_files(place: Path, other: Path) -> None:
    """Replace the files that are equal to those of another folder by hard links, where the file system has them."""
    for path in files_below(other):
        twin = place / path.relative_to(other)
        if path.name != SEAL and twin.is_file() and filecmp.cmp(path, twin, shallow=False):
            link = twin.with_name(f"{twin.name}.link")
            with suppress(OSError):  # no hard links here, or another process has just deleted the other folder
                os.link(path, link)
                os.replace(link, twin)
