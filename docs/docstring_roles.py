"""Griffe extension: docstrings as Markdown.

Docstrings name code with Sphinx roles and mark literal blocks with "::". The site's pages are Markdown, where both would show.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):`~?\.?([^`]+)`")
_FLAG = re.compile(r" *# doctest: \S+$", re.MULTILINE)
_LITERAL = re.compile(r"(^|\S)::$", re.MULTILINE)
_EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)  # the section that shows code is called "Examples"


class DocstringRoles(griffe.Extension):
    """Write roles as code with the last two parts of the name; drop the marks of literal blocks, and doctest flags."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is None:
            return
        text = _EXAMPLE.sub("Examples:", _FLAG.sub("", obj.docstring.value))
        text = _ROLE.sub(lambda match: f"`{'.'.join(match[1].split('.')[-2:])}`", text)
        obj.docstring.value = _LITERAL.sub(lambda match: f"{match[1]}:" if match[1] else "", text)
