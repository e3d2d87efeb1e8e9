"""The floors of the house: who may import whom, and what nobody may do.

``reports`` may use the referee's statistics and its comparison of two runs beside results and store: they are pure functions of
what lies on disk, and a test that the gate and the page each did in their own way would be two tests.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("harness", "geep", "baselines", "suites", "reports")
MODULES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
LONGEST = 400  # lines

# What a room may import of the project; itself always.
ALLOWED: dict[str, tuple[str, ...]] = {
    "harness": (),
    "geep": ("harness",),
    "baselines": ("harness",),
    "suites": ("harness", "geep.exit_table"),  # methods through the registry; the table is timed by itself
    "reports": (
        "harness.core",
        "harness.results",
        "harness.regression",
        "harness.measure.statistics",
        "harness.__version__",
    ),
}
HEAVY = ("cupy", "datasets", "ray", "onnx", "onnxscript", "onnxruntime")


def shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def dotted(path: Path) -> str:
    """Name under which a file is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), shown(path))


def package(path: Path) -> list[str]:
    """The package that relative imports of a file start from."""
    return list(path.relative_to(ROOT).parent.parts)


def imports(path: Path, *, nodes: Iterator[ast.AST] | None = None) -> set[str]:
    """Everything a file imports, also inside functions: ``from a.b import c`` is both ``a.b`` and ``a.b.c``."""
    found: set[str] = set()
    for node in nodes or ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package(path)[: len(package(path)) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


def at_import_time(node: ast.AST) -> Iterator[ast.AST]:
    """Statements that run when a module is imported: not those in functions, nor those for type checkers."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from at_import_time(child)


def within(name: str, allowed: str) -> bool:
    return name == allowed or name.startswith(f"{allowed}.")


def every(what: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(what, MODULES, ids=shown)


def test_all_rooms_are_there() -> None:
    """Every room has modules, so that the tests below look at something."""
    assert {path.relative_to(ROOT).parts[0] for path in MODULES} == set(ROOMS)
    assert all((ROOT / room / "__init__.py").is_file() for room in ROOMS)


@every("path")
def test_arrows(path: Path) -> None:
    """A room imports of the project only itself and the rooms below it, anywhere in its code."""
    room = path.relative_to(ROOT).parts[0]
    allowed = (room, *ALLOWED[room])
    project = {name for name in imports(path) if name.split(".")[0] in ROOMS}
    # `from harness import errors` names harness itself on the way; what counts is what was taken from it.
    parents = {name for name in project for other in project if other != name and within(other, name)}
    wrong = sorted(name for name in project - parents if not any(within(name, rule) for rule in allowed))
    assert not wrong, f"{shown(path)} may not import {', '.join(wrong)}"


def test_arrows_are_seen() -> None:
    """The check above would notice: imports in functions, relative ones and those of submodules are all found."""
    source = "def f():\n    from geep import method\n    import reports.build as b\nfrom ..core.errors import X\nfrom . import y"
    place = ROOT / "harness" / "measure" / "imagined.py"
    found = imports(place, nodes=ast.walk(ast.parse(source)))
    assert {"geep.method", "reports.build", "harness.core.errors", "harness.measure.y"} <= found


@every("path")
def test_heavy_imports_are_lazy(path: Path) -> None:
    """No module imports cupy, datasets, ray or ONNX when it is imported itself; they are optional."""
    now = imports(path, nodes=at_import_time(tree(path)))
    assert not [name for name in now if name.split(".")[0] in HEAVY]


def test_importing_everything_imports_nothing_heavy() -> None:
    """A fresh interpreter that imports every module of the rooms has not loaded cupy, datasets, ray or ONNX by then."""
    names = [dotted(path) for path in MODULES if path.relative_to(ROOT).parts[0] != "suites"]
    names = [name for name in names if not name.endswith("__main__")]
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == "[]"


def forbidden(module: ast.Module) -> Iterator[str]:
    """Uses of pickle and of code from data, whatever they are called in."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            yield from (name for name in names if name.split(".")[0] in PICKLES)
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in {"eval", "exec", "compile", "__import__", "torch.load", "torch.save"}:
                yield called
            if called.split(".")[-1] in {"read_pickle", "to_pickle"}:
                yield called
            for keyword in node.keywords:
                if keyword.arg == "trust_remote_code":
                    yield keyword.arg
                if keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False":
                    yield keyword.arg
        elif isinstance(node, ast.Constant) and node.value == "trust_remote_code":
            yield node.value


PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


@every("path")
def test_nothing_from_outside_is_executed(path: Path) -> None:
    """No pickle, no torch.load, no remote code, no eval or exec."""
    assert not list(forbidden(tree(path)))


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import torch\nx = torch.load('a')",
        "exec('1')",
        "f(trust_remote_code=True)",
        "options = {'trust_remote_code': 1}",
        "np.load('a', allow_pickle=True)",
    ],
)
def test_what_is_forbidden_is_seen(source: str) -> None:
    """The check above would notice each of these."""
    assert list(forbidden(ast.parse(source)))


@every("path")
def test_modules_stay_short(path: Path) -> None:
    """No module has more than 400 lines: a longer one holds two things."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST, f"split {shown(path)}"


@every("path")
def test_modules_say_what_they_are(path: Path) -> None:
    """Every module begins with a docstring."""
    assert ast.get_docstring(tree(path))


def test_there_is_no_utils() -> None:
    """Nothing is called utils or helpers: a name says what is inside."""
    assert not [path for path in MODULES if path.stem in {"utils", "util", "helpers", "misc", "common"}]
