"""The example of a third-party method is installed like any package, is found, is measured, and is short."""

from __future__ import annotations

import ast
import io
import json
import re
import shutil
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import registry
from harness.cli.main import main
from harness.data.embedded import load_embedded
from harness.pretraining.untrained import make_scratch

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "docs" / "example-plugin"
MOST = 30  # lines of code
PROFILE = """
title = "the example beside bert"
source = "embedded"
datasets = ["ag_news"]
methods = ["bert", "head-average"]
rounds = 2
max_length = 32
max_train = 60
max_test = 20
speeds = [0.5]
[training]
epochs = 1
batch_size = 16
head = "linear"
precision = "float32"
[method.fastbert]
distill_epochs = 1
"""


def code_lines(source: str) -> int:
    """Count lines of code: neither blank lines, comments nor docstrings."""
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            docstrings |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    found: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in layout:
            found |= set(range(token.start[0], token.end[0] + 1))
    return len(found - docstrings)


def test_lines_of_code_are_counted() -> None:
    """All lines of a long statement count; docstrings, comments and blank lines do not; other strings do."""
    assert (
        code_lines(
            '"""Doc\nmore."""\n# no\n\nx = (1,\n     2)\ndef f():\n    """Doc."""\n    return """a\nb"""  # no\n'
        )
        == 5
    )


def test_the_example_is_short() -> None:
    """The example has at most thirty lines of code."""
    assert code_lines((EXAMPLE / "head_average.py").read_text(encoding="utf-8")) <= MOST


def test_the_example_depends_on_the_harness_only() -> None:
    """It imports only torch and the public harness, like any package outside this repository."""
    tree = ast.parse((EXAMPLE / "head_average.py").read_text(encoding="utf-8"))
    names = [n for node in ast.walk(tree) if isinstance(node, ast.Import) for n in (a.name for a in node.names)]
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    packages = {name.split(".")[0] for name in [*names, *(node.module or "" for node in froms)]}
    assert packages <= {"__future__", "typing", "torch", "harness"}
    assert not [alias.name for node in froms for alias in node.names if alias.name.startswith("_")]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the example's unpacked wheel, which pip builds from a copy without a network."""
    pytest.importorskip("setuptools", minversion="77")
    place = tmp_path_factory.mktemp("example")
    shutil.copytree(EXAMPLE, place / "source", ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    offline = ["--no-deps", "--no-index", "--no-build-isolation"]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q", *offline]
    command += ["--target", str(place / "target"), str(place / "source")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    return place / "target"


@pytest.fixture
def on_the_path(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put the plug-in on the path of this process; one of its own would spend most of its time on imports."""
    monkeypatch.syspath_prepend(installed)
    yield
    registry._registered.pop("head-average", None)
    sys.modules.pop("head_average", None)


def test_its_wheel_registers_it(on_the_path: None, capsys: pytest.CaptureFixture[str]) -> None:
    """The list of methods has the installed plug-in under the name of its entry point."""
    declared = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))
    assert list(declared["project"]["entry-points"]["geep.methods"]) == ["head-average"]
    assert main(["list", "methods"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^head-average +method +The last two", out, re.MULTILINE), out


def test_it_is_measured_beside_bert(on_the_path: None, few_single_samples: None, tmp_path: Path) -> None:
    """A plain run has its rows: full depth, two or three heads per sample, answers independent of batches."""
    texts = load_embedded("ag_news").train.texts
    make_scratch(list(texts), tmp_path / "backbone", layers=4, width=16, heads=2, vocab=200, seed=0)
    (tmp_path / "example.toml").write_text(PROFILE, encoding="utf-8")
    options = ["--profile", str(tmp_path / "example.toml"), "--backbone", f"en={tmp_path / 'backbone'}"]
    assert main(["run", *options, "--device", "cpu", "--out", str(tmp_path / "out")]) == 0
    cells = [json.loads(path.read_text(encoding="utf-8")) for path in (tmp_path / "out" / "results").glob("*.json")]
    rows = {(cell["cell"]["method"], cell["cell"]["point"]): cell for cell in cells}
    assert set(rows) == {("bert", "full"), ("head-average", "heads=2"), ("head-average", "heads=3")}
    for (method, point), cell in rows.items():
        heads = 1 if method == "bert" else int(point[-1])
        assert (cell["cost"]["mean_layers"], cell["cost"]["mean_heads"]) == (4, heads)
        assert cell["quality"]["n"] == 20 and cell["synthetic"]
        assert cell["checks"]["rounds_agree"] == cell["checks"]["batches_agree"] == 1
    assert "head-average" in (tmp_path / "out" / "report" / "index.html").read_text(encoding="utf-8")
