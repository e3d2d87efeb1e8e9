"""MkDocs hooks: links to files of the repository that are not pages of the site.

A page may link to any file of the repository by its relative path, which works on GitHub and in an editor. On the site such a
link leads to ``$DOCS_REPOSITORY_URL`` (set by the workflow); without that variable only its text remains. A link to a file that
does not exist is a warning, which strict mode turns into an error.
"""

from __future__ import annotations

import logging
import os
import posixpath
import re
from pathlib import Path
from typing import Any

log = logging.getLogger("mkdocs.plugins.site_hooks")

ROOT = Path(__file__).resolve().parents[1]
GENERATED = [
    f"reference/{name}.md" for name in ("command-line", "profile", "method-settings", "result-schema", "dataset-card")
]
_LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def on_pre_build(config: Any) -> None:
    """Check that the generated reference pages exist.

    Raises:
        SystemExit: one is missing.
    """
    missing = [name for name in GENERATED if not (Path(config.docs_dir) / name).is_file()]
    if missing:
        raise SystemExit(f"docs/{missing[0]} does not exist: run 'python docs/generate.py' first, or 'tox -e docs'")


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """Rewrite links that leave the docs folder, or lead to files in it that are not part of the site."""
    return _LINK.sub(lambda match: _rewritten(match, page.file.src_uri), markdown)


def _rewritten(match: re.Match[str], source: str) -> str:
    text, target = match[1], match[2]
    if re.match(r"[a-z]+:|#|/", target):
        return match[0]
    path, _, anchor = target.partition("#")
    place = posixpath.normpath(posixpath.join("docs", posixpath.dirname(source), path))
    if place.startswith("docs/") and not place.startswith("docs/example-plugin") and not place.endswith(".py"):
        return match[0]
    if not (ROOT / place).exists():
        log.warning("page %s links to %s, which is not in the repository", source, place)
    address = os.environ.get("DOCS_REPOSITORY_URL", "").rstrip("/")
    if not address:
        return text
    kind = "tree" if (ROOT / place).is_dir() else "blob"
    return f"[{text}]({address}/{kind}/main/{place}{'#' + anchor if anchor else ''})"
