"""The LaTeX tables are compiled by a real LaTeX; the tests are skipped without TeX."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from reports.build import write_report

PDFLATEX = shutil.which("pdflatex")


def compile_tables(folder, tables):
    """Compile one document of all tables; return exit code and log."""
    inputs = "\n".join(rf"\input{{\detokenize{{{path.name}}}}}\clearpage" for path in tables)
    (folder / "all.tex").write_text(
        "\\documentclass{article}\n\\usepackage{booktabs}\n\\usepackage{graphicx}\n"
        f"\\begin{{document}}\n{inputs}\n\\end{{document}}\n",
        encoding="utf-8",
    )
    command = [PDFLATEX, "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "all.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, timeout=120, check=False)
    return done.returncode, done.stdout.decode(errors="replace")


@pytest.mark.skipif(not PDFLATEX, reason="no pdflatex on this machine: the LaTeX tables were not compiled")
def test_every_table_compiles(plausible_report, tmp_path):
    """All tables of a report, including names with special characters, compile without overfull lines."""
    source = plausible_report.parent / "tables"
    tables = [tmp_path / f"t{i}.tex" for i, _ in enumerate(sorted(source.glob("*.tex")))]
    for path, original in zip(tables, sorted(source.glob("*.tex")), strict=True):
        shutil.copy(original, path)
    code, log = compile_tables(tmp_path, tables)
    assert code == 0, log[-3000:]
    assert (tmp_path / "all.pdf").stat().st_size > 20_000
    assert not re.search(r"Overfull \\hbox|Missing character|multiply.defined", log)


@pytest.mark.skipif(not PDFLATEX, reason="no pdflatex on this machine: the LaTeX tables were not compiled")
def test_marks_compile(fabricate, tmp_path):
    """Marks of failed checks and dashes of missing data compile."""
    run = fabricate()
    run.cell("bert", speedup=None, reference=None)
    run.cell(
        "geep",
        "speed=0.5",
        rounds_agree=0.5,
        checks={"batches_agree": 0.5, "state_unchanged": False},
        overlaps={"train_test": 1, "dev_test": 0, "train_dev": 0, "within_test": 0},
        samples=False,
    )
    run.cell("fastbert", "speed=0.5", seed=1)
    run.cell("fastbert", "speed=0.5", seed=2)
    source = write_report(run.path).parent / "tables"
    tables = []
    for path in sorted(source.glob("*.tex")):
        tables.append(tmp_path / path.name)
        shutil.copy(path, tables[-1])
    code, log = compile_tables(tmp_path, tables)
    assert code == 0, log[-3000:]


def test_tables_are_plain_ascii(plausible_report):
    """If the names of the data are ASCII, every character works in pdfTeX."""
    for path in (plausible_report.parent / "tables").glob("*.tex"):
        assert path.read_text(encoding="utf-8").isascii(), path.name
