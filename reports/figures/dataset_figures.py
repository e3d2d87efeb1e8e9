"""All figures of a report: of the run, and of each dataset (cost, exit layers, predicted exits, factors of the speed-up)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from reports.analysis.cell_settings import grouped
from reports.analysis.view import Group, View, file_slug, of_group
from reports.figures.answer_figure import draw_answers, draw_families
from reports.figures.area_figure import draw_areas
from reports.figures.drawing import STYLE, Drawing, Look, looks
from reports.figures.exit_figures import draw_exit_histograms, draw_heat_maps
from reports.figures.factor_panels import draw_factor_panels
from reports.figures.fonts import fonts_for
from reports.figures.loss_figure import draw_losses
from reports.figures.pareto import draw_pareto
from reports.figures.rank_figure import draw_ranks


def draw_run_figures(view: View) -> list[Drawing]:
    """Return the figures about all datasets together, and the one that the report opens with."""
    return [*_drawn(view, draw_answers), *draw_figures_over_sets(view), *_drawn(view, draw_areas)]


def draw_figures_over_sets(view: View) -> list[Drawing]:
    """Return those of them that need no per-sample rows: losses against speed-ups, and average ranks."""
    return _drawn(view, lambda view, chosen: [*draw_losses(view, chosen), *draw_ranks(view)])


def _drawn(view: View, draw: Callable[[View, Mapping[str, Look]], list[Drawing]]) -> list[Drawing]:
    import matplotlib

    matplotlib.use("Agg")
    names = [*(group.label for group in view.groups), *(f"{row.method} {row.point}" for row in view.rows)]
    with matplotlib.rc_context(STYLE), fonts_for(names):  # type: ignore[arg-type]
        return draw(view, looks(view))


def draw_figures(view: View, group: Group) -> list[Drawing]:
    """Return the figures of one dataset, in the order shown."""
    import matplotlib

    matplotlib.use("Agg")
    names = [group.label, *(f"{row.method} {row.point}" for row in view.of(group))]
    with matplotlib.rc_context(STYLE), fonts_for(names):  # type: ignore[arg-type]
        chosen = looks(view)
        drawings = [
            draw_pareto(view, group, chosen, "flops_linear"),
            draw_pareto(view, group, chosen, "samples_per_s"),
            draw_families(view, group, chosen),
            draw_exit_histograms(view, group, chosen),
        ]
    found = [drawing for drawing in drawings if drawing is not None]
    if predictors := of_group(view.predictors, group):
        title = f"Predicted and sequential exits: {group.label}"
        svg, description = draw_heat_maps(title, predictors)
        found.append(Drawing(f"confusion-{group.slug}", title, description, svg, role="confusion"))
    return [*found, *_factor_figures(view, group)]


def _factor_figures(view: View, group: Group) -> list[Drawing]:
    """Return one figure per method whose speed-up has factors, with a panel per operating point."""
    with_factors = [row for row in view.of(group) if row.factors is not None and not row.is_reference]
    drawings = []
    for method, rows in grouped(with_factors, lambda row: row.method).items():
        title = f"Factors of the speed-up of {method}: {group.label}"
        panels = [(f"{row.point} {view.setting_of(row)}".strip(), row.factors) for row in rows if row.factors]
        svg, description = draw_factor_panels(title, panels, rows[0].noise)
        name = f"waterfall-{file_slug(method)}-{group.slug}"
        drawings.append(Drawing(name, title, description, svg, role="waterfall", about=method))
    return drawings
