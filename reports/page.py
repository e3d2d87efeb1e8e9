"""The page and the Markdown report, filled from a view by templates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness import __version__
from reports.analysis.control_tests import headlines
from reports.analysis.view import View
from reports.figures.drawing import Drawing, inline_svg
from reports.notation.marks import footnotes
from reports.papers import paper_tables
from reports.rules import RULES
from reports.tables.breakdown import anatomy_table, predictor_table, waterfall_table
from reports.tables.checks import checks_tables, overlap_table
from reports.tables.control_tables import controls_tables, tally_tables
from reports.tables.costs import ownership_table
from reports.tables.formats import Table, escape_markdown, to_markdown
from reports.tables.significance import curve_tables, rival_tables
from reports.tables.summary import details_table, difficulty_table, results_table, summary_tables
from reports.tables.variant_table import variants_tables


class Contents:
    """Every table of a report, made once and used by all formats.

    Attributes:
        summary: method x dataset.
        variants: what rows that are no registered methods are.
        tally: verdicts counted.
        controls: predictions against controls, one by one.
        rivals: every method against its rivals.
        curves: areas and scores of accuracy/FLOPs curves.
        checks: invariance, leaks, overlaps.
        papers: the papers' form.
        datasets: slug -> tables of that dataset, by role.
    """

    def __init__(self, view: View) -> None:
        self.summary = summary_tables(view)
        self.variants = variants_tables(view)
        self.tally = tally_tables(view)
        self.controls = controls_tables(view)
        self.rivals = rival_tables(view)
        self.curves = curve_tables(view)
        self.checks = [*checks_tables(view), *([overlaps] if (overlaps := overlap_table(view)) else [])]
        self.papers = paper_tables(view)
        self.datasets: dict[str, dict[str, Table]] = {}
        for group in view.groups:
            tables = {
                "results": results_table(view, group),
                "waterfall": waterfall_table(view, group),
                "anatomy": anatomy_table(view, group),
                "predictor": predictor_table(view, group),
                "difficulty": difficulty_table(view, group),
                "ownership": ownership_table(view, group),
                "details": details_table(view, group),
            }
            self.datasets[group.slug] = {
                name: table for name, table in tables.items() if table is not None and table.cells
            }

    @property
    def all(self) -> list[Table]:
        """Every table that is written to ``tables/``."""
        own = [table for tables in self.datasets.values() for table in tables.values()]
        return [
            *self.summary,
            *self.variants,
            *self.tally,
            *self.controls,
            *self.rivals,
            *self.curves,
            *self.checks,
            *self.papers,
            *own,
        ]


def _context(view: View, contents: Contents, figures: dict[str, list[Drawing]]) -> dict[str, Any]:
    rows = view.rows
    kinds = dict(zip(rows["method"], rows["kind"], strict=True))
    return {
        "view": view,
        "contents": contents,
        "figures": figures,
        "rules": RULES,
        "headlines": headlines(view.verdicts),
        "methods": sorted(rows["method"].unique()),
        "version": __version__,
        "cells": len(view.cells),
        "marks": footnotes(rows),
        "kinds": kinds,
        "only_methods": [name for name, kind in kinds.items() if kind == "method"],
    }


def _environment(*, escape: bool) -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render_page(view: View, contents: Contents, figures: dict[str, list[Drawing]]) -> str:
    """One self-contained HTML page: styles, scripts and figures inline, nothing fetched."""
    from markupsafe import Markup

    environment = _environment(escape=True)
    # inline_svg is our own drawing; matplotlib escapes the text in it.
    environment.filters["inline_svg"] = lambda drawing: Markup(inline_svg(drawing))
    return str(environment.get_template("page.html.j2").render(_context(view, contents, figures)))


def render_markdown(view: View, contents: Contents, figures: dict[str, list[Drawing]]) -> str:
    """The same report as Markdown, with figures by relative path."""
    environment = _environment(escape=False)
    environment.filters["md"] = escape_markdown
    environment.filters["table"] = to_markdown
    return str(environment.get_template("report.md.j2").render(_context(view, contents, figures)))
