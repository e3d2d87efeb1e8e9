"""Write the whole report of a run: the page and the Markdown report, filled by templates, and tables and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from harness import __version__
from harness.core.files import fill_template, write_folder
from reports.analysis.caveats import caveats_by_place
from reports.analysis.decision.decision_words import ALL_SETS, allowed, basis_text, sentences, verdict
from reports.analysis.verdicts.verdict_words import headlines
from reports.analysis.view import View, build_view
from reports.figures.dataset_figures import draw_figures, draw_run_figures
from reports.figures.drawing import Drawing, inline_svg
from reports.notation.marks import footnotes
from reports.notation.table_formats import escape_markdown, table_files, to_markdown
from reports.tables.catalogue import Contents


def write_report(run_path: Path, progress: bool = False) -> Path:
    """Write ``RUN/report/``: page, Markdown, tables, figures.

    The report is built beside the old one and then replaces it, so that a killed process leaves no incomplete report.

    Args:
        run_path: the run folder.
        progress: show a progress bar.

    Returns:
        Path of ``report/index.html``.

    Raises:
        ResultError: no run there, no results in it, or another schema version.
        WriteError: the folder cannot be written.
    """
    run_path = Path(run_path)
    view = build_view(run_path)
    target = run_path / "report"
    write_folder(target, lambda place: _write(view, place, progress), "make the run folder writable")
    return target / "index.html"


def _write(view: View, folder: Path, progress: bool) -> None:
    from tqdm import tqdm

    (folder / "tables").mkdir(parents=True)
    (folder / "figures").mkdir()
    contents = Contents(view)
    for name, text in table_files(contents.all):
        (folder / "tables" / name).write_text(text, encoding="utf-8")
    figures: dict[str, list[Drawing]] = {RUN: draw_run_figures(view)}
    for group in tqdm(view.groups, desc="report", unit="dataset", disable=not progress, leave=False):
        figures[group.slug] = draw_figures(view, group)
    for drawing in (drawing for some in figures.values() for drawing in some):
        (folder / "figures" / f"{drawing.name}.svg").write_text(drawing.svg, encoding="utf-8")
        if drawing.png is not None:
            (folder / "figures" / f"{drawing.name}.png").write_bytes(drawing.png)
    (folder / "report.md").write_text(render_markdown(view, contents, figures), encoding="utf-8")
    (folder / "index.html").write_text(render_page(view, contents, figures), encoding="utf-8")


RUN = ""  # stands for all datasets together among the slugs
Figures = Mapping[str, Sequence[Drawing]]  # slug -> figures of this dataset


def _context(view: View, contents: Contents, figures: Figures) -> dict[str, object]:
    kinds = {row.method: row.kind for row in view.rows}
    labels = {group.slug: group.label for group in view.groups}
    general, checks, own = caveats_by_place(view.caveats[view.warnings :], labels)
    return {
        "answers": [(one.label or ALL_SETS, verdict(one), sentences(one), one.confirmed) for one in view.decisions],
        "asked": allowed(view.decisions[0].asked) if view.decisions else "",
        "bases": list(dict.fromkeys(map(basis_text, view.decisions))),
        "warnings": view.caveats[: view.warnings],
        "caveats": general,
        "check_caveats": checks,
        "caveats_of": own,
        "view": view,
        "contents": contents,
        "figures": figures,
        "of_run": figures.get(RUN, ()),
        "headlines": headlines(view.pooled, view.verdicts, view.bounds),
        "methods": sorted(kinds),
        "version": __version__,
        "marks": footnotes(view.rows),
        "kinds": kinds,
        "only_methods": [name for name, kind in kinds.items() if kind == "method"],
    }


def render_page(view: View, contents: Contents, figures: Figures) -> str:
    """Return one self-contained HTML page: styles, scripts and figures are inside, and nothing is loaded."""
    from markupsafe import Markup

    def as_markup(drawing: Drawing) -> Markup:
        return Markup(inline_svg(drawing))  # matplotlib and Canvas escape the text in figures

    facts = _context(view, contents, figures)
    return fill_template(__file__, "page.html.j2", facts, escape=True, inline_svg=as_markup)


def render_markdown(view: View, contents: Contents, figures: Figures) -> str:
    """Return the same report as Markdown, with figures by relative path."""
    facts = _context(view, contents, figures)
    return fill_template(__file__, "report.md.j2", facts, md=escape_markdown, table=to_markdown)
