"""Check the built site: nothing is loaded from another host, no internal link is broken, the search index has every page.

::

    python docs/check_site.py [SITE]        # default: site
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Attributes by which a page loads something without a click.
LOADS = {
    "script": "src",
    "img": "src",
    "link": "href",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "object": "data",
    "embed": "src",
}
NOT_LOADED = {"canonical", "next", "prev", "alternate", "edit"}  # values of rel that load nothing
_STYLE = re.compile(r"@import\s+(?:url\()?['\"]?([^'\")\s;]+)|url\(\s*['\"]?([^'\")\s]+)")


class Page(HTMLParser):
    """What one HTML page loads and links to, and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self._style = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.anchors |= {found[name] for name in ("id", "name") if found.get(name)}
        self._style = tag == "style"
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        skipped = tag == "link" and set(found.get("rel", "").split()) & NOT_LOADED
        if tag in LOADS and found.get(LOADS[tag]) and not skipped:
            self.loads.append(found[LOADS[tag]])
        self.loads += _addresses(found.get("style", ""))

    def handle_data(self, data: str) -> None:
        if self._style:
            self.loads += _addresses(data)
            self._style = False


def _addresses(style: str) -> list[str]:
    return [first or second for first, second in _STYLE.findall(style)]


def is_external(address: str) -> bool:
    """Return whether an address leads to another host."""
    return address.startswith("//") or urlsplit(address).scheme in ("http", "https", "ftp", "ws", "wss")


def check(site: Path) -> list[str]:
    """Return a line per problem of the site."""
    paths = sorted(site.rglob("*.html"))
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in paths}
    problems = [] if paths else [f"{site} holds no page: build it with 'tox -e docs'"]
    for path, page in pages.items():
        name = path.relative_to(site)
        problems += [f"{name} loads {address} from another host" for address in page.loads if is_external(address)]
        if name.name == "404.html":  # its links are absolute, from the address under which the site is published
            continue
        for address in [*page.loads, *page.links]:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                problems.append(f"{name} links to {address}, which does not exist")
            elif (
                parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors | {"__top"}
            ):
                problems.append(f"{name} links to {address}, which has no such anchor")
    for style in sorted(site.rglob("*.css")):
        outside = [address for address in _addresses(style.read_text(encoding="utf-8")) if is_external(address)]
        problems += [f"{style.relative_to(site)} loads {address} from another host" for address in outside]
    return problems + _check_search(site, [path for path in paths if path.name != "404.html"])


def _check_search(site: Path, paths: list[Path]) -> list[str]:
    index = site / "search" / "search_index.json"
    if not index.is_file():
        return [f"{index.relative_to(site)} does not exist: is the plugin 'search' in mkdocs.yml?"]
    found = {urlsplit(entry["location"]).path for entry in json.loads(index.read_text(encoding="utf-8"))["docs"]}
    expected = {path.parent.relative_to(site).as_posix().removeprefix(".") for path in paths}
    return [
        f"the search index lacks the page {page or 'index'}"
        for page in sorted(expected - {one.rstrip("/") for one in found})
    ]


def main(arguments: list[str] | None = None) -> int:
    """Print all problems; returns 1 if there are any."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("site", nargs="?", type=Path, default=Path("site"))
    site = parser.parse_args(arguments).site.resolve()
    problems = check(site)
    print("\n".join(problems) if problems else f"{site}: no external loads, no broken links, every page can be found")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
