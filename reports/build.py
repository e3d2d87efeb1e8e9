"""Write the whole report of a run: page, Markdown, tables and figures."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from harness.core.errors import ResultError
from reports.analysis.view import View, build_view
from reports.figures.dataset_figures import draw_figures
from reports.figures.drawing import Drawing
from reports.notation.table_formats import table_files
from reports.page import render_markdown, render_page
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
        ResultError: no run there, no results in it, another schema version, or the folder cannot be written.
    """
    run_path = Path(run_path)
    view = build_view(run_path)
    target = run_path / "report"
    fresh, old = (run_path / f".report.{os.getpid()}.{word}" for word in ("new", "old"))
    try:
        _sweep(run_path)
        _write(view, fresh, progress)
        if target.exists():
            os.replace(target, old)
        os.replace(fresh, target)
    except OSError as error:
        raise ResultError(
            f"cannot write {target}: {error.strerror or error}: free space or make the run folder writable"
        ) from error
    finally:
        if old.exists() and not target.exists():
            os.replace(old, target)
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return target / "index.html"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sweep(run_path: Path) -> None:
    """Remove what killed writers left; a report that they had moved away is put back first."""
    for left in sorted(run_path.glob(".report.*.*")):
        pid = left.name.split(".")[2]
        if not pid.isdecimal() or (int(pid) != os.getpid() and _alive(int(pid))):
            continue
        if left.suffix == ".old" and not (run_path / "report").exists():
            os.replace(left, run_path / "report")
        else:
            shutil.rmtree(left)


def _write(view: View, folder: Path, progress: bool) -> None:
    from tqdm import tqdm

    (folder / "tables").mkdir(parents=True)
    (folder / "figures").mkdir()
    contents = Contents(view)
    for name, text in table_files(contents.all):
        (folder / "tables" / name).write_text(text, encoding="utf-8")
    figures: dict[str, list[Drawing]] = {}
    for group in tqdm(view.groups, desc="report", unit="dataset", disable=not progress, leave=False):
        figures[group.slug] = draw_figures(view, group)
        for drawing in figures[group.slug]:
            (folder / "figures" / f"{drawing.name}.svg").write_text(drawing.svg, encoding="utf-8")
            if drawing.png is not None:
                (folder / "figures" / f"{drawing.name}.png").write_bytes(drawing.png)
    (folder / "report.md").write_text(render_markdown(view, contents, figures), encoding="utf-8")
    (folder / "index.html").write_text(render_page(view, contents, figures), encoding="utf-8")
