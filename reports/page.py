"""The page and the Markdown report, filled from a view by templates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness import __version__
from reports.analysis.control_tests import headlines
from reports.analysis.view import View
from reports.figures.drawing import Drawing, inline_svg
from reports.notation.marks import footnotes
from reports.notation.table_formats import escape_markdown, to_markdown
from reports.rules import RULES
from reports.tables.catalogue import Contents

if TYPE_CHECKING:
    from jinja2 import Environment

Figures = Mapping[str, Sequence[Drawing]]  # slug -> figures of this dataset


def _context(view: View, contents: Contents, figures: Figures) -> dict[str, object]:
    kinds = {row.method: row.kind for row in view.rows}
    return {
        "view": view,
        "contents": contents,
        "figures": figures,
        "rules": RULES,
        "headlines": headlines(view.verdicts),
        "methods": sorted(kinds),
        "version": __version__,
        "marks": footnotes(view.rows),
        "kinds": kinds,
        "only_methods": [name for name, kind in kinds.items() if kind == "method"],
    }


def _environment(*, escape: bool) -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render_page(view: View, contents: Contents, figures: Figures) -> str:
    """Return one self-contained HTML page: styles, scripts and figures are inside, and nothing is loaded."""
    from markupsafe import Markup

    environment = _environment(escape=True)
    # matplotlib and Canvas escape the text in figures.
    environment.filters["inline_svg"] = lambda drawing: Markup(inline_svg(drawing))
    return str(environment.get_template("page.html.j2").render(_context(view, contents, figures)))


def render_markdown(view: View, contents: Contents, figures: Figures) -> str:
    """Return the same report as Markdown, with figures by relative path."""
    environment = _environment(escape=False)
    environment.filters["md"] = escape_markdown
    environment.filters["table"] = to_markdown
    return str(environment.get_template("report.md.j2").render(_context(view, contents, figures)))
