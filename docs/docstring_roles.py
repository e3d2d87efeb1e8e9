"""Griffe extension: show Sphinx roles in docstrings, such as ``:class:`harness.contracts.Method```, as code."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):`~?\.?([^`]+)`")
_LITERAL = re.compile(r"(^|\S)::$", re.MULTILINE)


class DocstringRoles(griffe.Extension):
    """Replace each role with its last two name parts in code style, and the mark "::" of a literal block with ":" or nothing."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is None:
            return
        text = _ROLE.sub(lambda match: f"`{'.'.join(match[1].split('.')[-2:])}`", obj.docstring.value)
        obj.docstring.value = _LITERAL.sub(lambda match: f"{match[1]}:" if match[1] else "", text)
