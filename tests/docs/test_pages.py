"""The pages as files: links, the README, and facts that are stated in two files."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import harness

ROOT = Path(__file__).resolve().parents[2]
GENERATED = {
    f"docs/reference/{name}.md"
    for name in ("command-line", "profile", "method-settings", "result-schema", "dataset-card")
}
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if page.relative_to(ROOT).as_posix() not in GENERATED]
TWO_COMMANDS = "python3 -m venv .venv && .venv/bin/python -m pip install -q -c constraints.txt tox && .venv/bin/tox"


def module(name: str) -> ModuleType:
    """Import a program of docs/, which is not a package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def broken_links(text: str, folder: Path) -> list[str]:
    """Return relative links and images of a Markdown text that lead to no file of the repository."""
    found = []
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        place = (folder / target.partition("#")[0]).resolve()
        external = re.match(r"[a-z]+:|#|\.\./\.\./actions/", target)
        if not external and place.relative_to(ROOT).as_posix() not in GENERATED and not place.exists():
            found.append(target)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files(page: Path) -> None:
    """Every relative link of a page leads to a file of the repository or to a generated page."""
    assert broken_links(page.read_text(encoding="utf-8"), page.parent) == []


def test_broken_links_are_detected() -> None:
    """A missing file is found, and external addresses are ignored."""
    text = "[a](missing.md) [b](README.md#x) [c](https://example.org/x) ![d](docs/images/none.svg)"
    assert broken_links(text, ROOT) == ["missing.md", "docs/images/none.svg"]


def test_readme_is_short_and_has_the_two_commands() -> None:
    """README.md has at most 110 lines and contains the two commands that CI runs."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 110
    assert {f"    {TWO_COMMANDS}", f"    {TWO_COMMANDS} -e quick"} <= set(lines)
    assert TWO_COMMANDS in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_citation_has_the_version() -> None:
    """CITATION.cff names the version of the package."""
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.+)$", text, re.MULTILINE)[1] == harness.__version__  # type: ignore[index]


def test_docs_tools_are_the_same_in_both_places() -> None:
    """The extra ``docs`` and tox's environment ``docs`` install the same tools."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    tox = (ROOT / "tox.ini").read_text(encoding="utf-8").partition("[testenv:docs]")[2]
    assert [tool for tool in project["optional-dependencies"]["docs"] if tool not in tox] == []


def test_generated_pages_follow_the_code(tmp_path: Path) -> None:
    """The generated reference has every command, option, profile key, stored field and registered method."""
    from harness import registry
    from harness.data.cards import DatasetCard
    from harness.results.rows.sample_columns import SAMPLE_COLUMNS
    from harness.results.schema import Cell, Result
    from harness.running.profile import Profile

    generate = module("generate")
    assert generate.main([str(tmp_path)]) == 0
    pages = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.glob("*.md")}
    assert {f"docs/reference/{name}" for name in pages} == GENERATED
    for command in (
        "run",
        "report",
        "compare",
        "pack",
        "publish",
        "export",
        "predict",
        "list",
        "flops",
        "pretrain",
        "distill",
    ):
        assert f"\n## `{command}`" in pages["command-line.md"]
    for option in ("--profile P", "--gate", "--minutes M", "--dtype {auto,float32,bfloat16}"):
        assert f"`{option}`" in pages["command-line.md"]
    for key in Profile.model_fields:
        assert f"| `{key}` |" in pages["profile.md"]
    for key in [
        *Cell.model_fields,
        *SAMPLE_COLUMNS,
        *(info.alias or name for name, info in Result.model_fields.items()),
    ]:
        assert f"| `{key}` |" in pages["result-schema.md"]
    for key in DatasetCard.model_fields:
        assert f"| `{key}` |" in pages["dataset-card.md"]
    for name in registry.names():
        assert f"\n## `{name}`\n" in pages["method-settings.md"]


def test_site_check_finds_errors(tmp_path: Path) -> None:
    """The check of the built site names external loads, broken links, missing anchors and pages without search."""
    check_site = module("check_site")
    (tmp_path / "search").mkdir()
    (tmp_path / "a").mkdir()
    (tmp_path / "search" / "search_index.json").write_text('{"docs": [{"location": ""}]}', encoding="utf-8")
    (tmp_path / "site.css").write_text(
        "@import 'https://fonts.example.org/x.css'; a { background: url(x.png) }", encoding="utf-8"
    )
    (tmp_path / "index.html").write_text(
        '<link rel="canonical" href="https://example.org/"><link rel="stylesheet" href="site.css">'
        '<script src="//cdn.example.org/x.js"></script><style>a { background: url(https://example.org/y.png) }</style>'
        '<a href="https://example.org/">elsewhere</a><a href="b/">b</a><a href="a/#here">a</a><a href="a/#no">a</a>',
        encoding="utf-8",
    )
    (tmp_path / "a" / "index.html").write_text('<h1 id="here">A</h1>', encoding="utf-8")
    assert check_site.check(tmp_path) == [
        "index.html loads //cdn.example.org/x.js from another host",
        "index.html loads https://example.org/y.png from another host",
        "index.html links to b/, which does not exist",
        "index.html links to a/#no, which has no such anchor",
        "site.css loads https://fonts.example.org/x.css from another host",
        "the search index lacks the page a",
    ]
