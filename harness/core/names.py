"""Rules for names and labels. They are checked where they enter: profiles, folders, cards, plans, results, packed runs.

Free text from files, such as a note or an error message, is not refused: :func:`clean` makes it safe to print.
"""

from __future__ import annotations

import re
import unicodedata
from functools import partial
from typing import Annotated, Any

from pydantic import AfterValidator

LONGEST_NAME = 100  # bytes; two names, a seed and a hash make a file name, and file systems allow 255 bytes
LONGEST_FILE_NAME = 255  # bytes
LONGEST_LABEL = 200  # characters
# Method names stand between "--" in file names, and must not contain it.
_METHOD = re.compile(r"\w+([-.+]\w+)*")
# Control characters, lone surrogates, line and paragraph separators.
_UNPRINTABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})
# First characters of a formula in spreadsheets; white space before one is ignored there.
_FORMULA = ("=", "+", "-", "@", "\t", "\n")
_SIGNED_NUMBER = re.compile(r"[+-]\d+(\.\d+)?", re.ASCII)
# Marks that turn the direction of the text after them.
_DIRECTION = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def check_name(name: str, *, longest: int = LONGEST_NAME) -> str:
    """Return ``name`` if it can be a part of a file name and cannot leave its folder.

    Args:
        longest: bytes in UTF-8.

    Raises:
        ValueError: it is empty or too long, begins with a dot, has space at an end, or holds a separator of paths or a
            character that cannot be printed.
    """
    if not name:
        raise ValueError("a name cannot be empty: give one")
    wrong = next((sign for sign in name if sign in "/\\" or not sign.isprintable()), None)
    if wrong is not None:
        raise ValueError(f"a name cannot contain {wrong!a}: use letters, digits and - _ . +")
    if name.startswith("."):
        raise ValueError("a name cannot begin with a dot: choose another one")
    if name.strip() != name:
        raise ValueError("a name cannot begin or end with a space: remove it")
    if (size := len(name.encode())) > longest:
        raise ValueError(f"this name has {size} bytes: use at most {longest}")
    return name


def check_method_name(name: str) -> str:
    """Return ``name`` if a method or variant may have it.

    Raises:
        ValueError: as :func:`check_name`, or it has other characters than letters, digits and single ``-``, ``.``, ``+``.
    """
    if not _METHOD.fullmatch(check_name(name)):
        raise ValueError("use letters and digits, with single - . + between them")
    return name


def check_label(label: str, *, longest: int = LONGEST_LABEL) -> str:
    """Return ``label`` if it is one line of text that a table can show: the name of a class or an operating point.

    Raises:
        ValueError: it is empty or too long, or holds a control character or another one that is not text.
    """
    if not label.strip():
        raise ValueError("a label cannot be empty: give it a name")
    wrong = next((sign for sign in label if sign in _DIRECTION or unicodedata.category(sign) in _UNPRINTABLE), None)
    if wrong is not None:
        raise ValueError(f"a label cannot contain the control character {wrong!a}: delete it")
    if len(label) > longest:
        raise ValueError(f"this label has {len(label)} characters: use at most {longest}")
    return label


def clean(text: str) -> str:
    """Return ``text`` with control characters as visible escapes, e.g. ``\\x1b``; line breaks become ``\\n``."""
    text = text.replace("\r\n", "\n")
    return "".join(_shown(char) if _is_unsafe(char) else char for char in text)


def clean_all(data: Any) -> Any:
    """Return JSON data with all of its texts cleaned, the keys of its objects included."""
    if isinstance(data, str):
        return clean(data)
    if isinstance(data, dict):
        return {clean(key) if isinstance(key, str) else key: clean_all(value) for key, value in data.items()}
    return [clean_all(item) for item in data] if isinstance(data, list | tuple) else data


def csv_value(value: object) -> object:
    """Return a value for a CSV file: a text that a spreadsheet would run as a formula gets an apostrophe in front.

    Control characters become escapes. Numbers are never changed, nor are texts that are one, such as the label ``-1``.
    """
    if not isinstance(value, str):
        return value
    text = clean(value)
    if _SIGNED_NUMBER.fullmatch(text):
        return text
    # One more apostrophe also before a text that looks as if it had one of these, so that from_csv returns every text.
    return f"'{text}" if text.lstrip("'").startswith(_FORMULA) else text


def from_csv(value: object) -> object:
    """Return a value that :func:`csv_value` wrote as it was before."""
    escaped = isinstance(value, str) and value.startswith("'") and value.lstrip("'").startswith(_FORMULA)
    return str(value)[1:] if escaped else value


def _is_unsafe(char: str) -> bool:
    return char in _DIRECTION or (char not in "\n\t" and unicodedata.category(char) in _UNPRINTABLE)


def _shown(char: str) -> str:
    return char.encode("ascii", "backslashreplace").decode() if ord(char) > 0x7F else f"\\x{ord(char):02x}"


# Types for pydantic models.
Name = Annotated[str, AfterValidator(check_name)]
StoredName = Annotated[str, AfterValidator(partial(check_name, longest=LONGEST_FILE_NAME))]  # written by any version
Label = Annotated[str, AfterValidator(check_label)]
FolderLabel = Annotated[str, AfterValidator(partial(check_label, longest=LONGEST_FILE_NAME))]
