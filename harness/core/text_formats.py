"""Reads JSON and TOML. Files may come from anywhere, so their size and nesting are limited."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any, NoReturn

LARGEST = 64 * 2**20  # bytes of a file; a packed run of 10,000 cells has about 10 MiB
DEEPEST = 64  # levels of nested lists and tables
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(text: str) -> Any:
    """Return the content of a JSON text.

    Raises:
        ValueError: it is not JSON, is nested too deeply, or holds NaN, an infinity or a lone surrogate.
    """
    try:
        data = json.loads(text, parse_constant=_refuse)
        if _SURROGATE.search(text):  # such a text could not be written again
            json.dumps(data, ensure_ascii=False).encode()
    except RecursionError as error:
        raise _too_deep() from error
    return _checked(data)


def parse_toml(text: str) -> dict[str, Any]:
    """Return the content of a TOML text.

    Raises:
        ValueError: it is not TOML, or is nested too deeply.
    """
    try:
        data = tomllib.loads(text)
    except RecursionError as error:
        raise _too_deep() from error
    _checked(data)
    return data


def read_json(path: Path) -> Any:
    """Read a JSON file; a byte order mark is allowed.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a plain file, is too large, is not UTF-8, or as :func:`parse_json`.
    """
    return parse_json(_text(path))


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; a byte order mark is allowed.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a plain file, is too large, is not UTF-8, or as :func:`parse_toml`.
    """
    return parse_toml(_text(path))


def _text(path: Path) -> str:
    size = path.stat().st_size
    if not path.is_file():  # a named pipe would wait forever
        raise ValueError("it is not a plain file")
    if size > LARGEST:
        raise ValueError(f"it has {size:,} bytes, and at most {LARGEST:,} are read")
    return path.read_text(encoding="utf-8-sig")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number in JSON")


def _too_deep() -> ValueError:
    return ValueError(f"lists and tables are nested more than {DEEPEST} levels deep")


def _checked(data: Any) -> Any:
    """Return ``data`` if it is at most :data:`DEEPEST` levels deep."""
    level = [data]
    for _ in range(DEEPEST + 1):
        level = [item for item in level if isinstance(item, dict | list)]
        if not level:
            return data
        level = [part for item in level for part in (item.values() if isinstance(item, dict) else item)]
    raise _too_deep()
