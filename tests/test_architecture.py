"""The project's structure: imports between rooms, size limits, and forbidden code.

``reports`` may import the harness's statistics and its comparison of two runs besides the stored results. They are
pure functions of stored files, and the gate and the page must run the same tests.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("harness", "geep", "baselines", "suites", "reports")
MODULES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
LONGEST = 400  # lines

# What a room may import of the project; a room may always import itself.
ALLOWED: dict[str, tuple[str, ...]] = {
    "harness": (),
    "geep": ("harness",),
    "baselines": ("harness",),
    "suites": ("harness", "geep.exit_table"),  # methods come from the registry; the table is benchmarked directly
    "reports": (
        "harness.core",
        "harness.results",
        "harness.regression",
        "harness.measure.statistics",
        "harness.measure.paired_tests",
        "harness.measure.many_tests",
        "harness.measure.areas",
        "harness.measure.detectable",
        "harness.measure.expected_exits",
        "harness.measure.time_noise",
        "harness.__version__",
    ),
}
# Rooms inside the top-level packages, from the lowest floor to the highest; rooms of one floor do not import each other.
# "." is the package's own modules, where they form the top floor; a dotted name is a single module or a nested room.
FLOORS: dict[str, tuple[tuple[str, ...], ...]] = {
    "harness": (
        ("core",),
        ("kernels", "data", "results"),
        ("encoder",),
        ("contracts",),
        ("registry",),
        ("execution",),
        ("measure", "toolkit"),
        ("engines",),
        ("running", "regression", "pretraining"),
        ("deploy",),
        ("api",),
        ("cli",),
    ),
    "harness.pretraining": (("text",), (".",)),
    "geep": (("exit_table",), (".",)),
    "baselines": (("full_depth", "distilled", "early_exit", "learned_exits", "controls", "small_models", "pruned"),),
    "suites": (("profiles", "workloads"), ("studies", "gate"), (".",)),
    "suites.studies": (("shared",), (".",)),
    "reports": (("notation",), ("analysis",), ("tables", "figures"), (".",)),
    "reports.analysis": (
        ("cell_settings", "roles", "run_contents"),
        ("time_ratios",),
        ("result_rows",),
        ("decision", "verdicts"),
        (".",),
    ),
}
MOST_MODULES = 12  # in a room, its __init__ and __main__ aside
HEAVY = (
    "cupy",
    "datasets",
    "ray",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "openvino",
    "nncf",
    "ctranslate2",
    "mlperf_loadgen",
)


def shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def dotted(path: Path) -> str:
    """Return the name under which a file is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), shown(path))


def package(path: Path) -> list[str]:
    """Return the package that relative imports of a file refer to."""
    return list(path.relative_to(ROOT).parent.parts)


@cache
def everywhere(path: Path) -> list[ast.AST]:
    """Return a file's imports, also those inside functions."""
    return [node for node in ast.walk(tree(path)) if isinstance(node, ast.Import | ast.ImportFrom)]


def imports(path: Path, *, nodes: Iterable[ast.AST] | None = None) -> set[str]:
    """Return everything a file imports, also inside functions: ``from a.b import c`` is both ``a.b`` and ``a.b.c``."""
    found: set[str] = set()
    for node in everywhere(path) if nodes is None else nodes:
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
    """Yield the statements that run on import: not those in functions, nor those for type checkers."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from at_import_time(child)


def within(name: str, allowed: str) -> bool:
    return name == allowed or name.startswith(f"{allowed}.")


def test_all_rooms_exist() -> None:
    """Every room has modules, so the tests below check something."""
    assert {path.relative_to(ROOT).parts[0] for path in MODULES} == set(ROOMS)
    assert all((ROOT / room / "__init__.py").is_file() for room in ROOMS)


def foreign(room: str, found: set[str]) -> list[str]:
    """Return the imports among those found in a module of a room that the room may not have."""
    allowed = (room, *ALLOWED[room])
    project = {name for name in found if name.split(".")[0] in ROOMS}
    # `from harness import errors` also names harness itself; only the imported module counts.
    parents = {name for name in project for other in project if other != name and within(other, name)}
    return sorted(name for name in project - parents if not any(within(name, rule) for rule in allowed))


def test_allowed_imports_between_packages() -> None:
    """A room imports only itself and the rooms below it, anywhere in its code."""
    wrong = {shown(path): foreign(path.relative_to(ROOT).parts[0], imports(path)) for path in MODULES}
    assert not {path: names for path, names in wrong.items() if names}, "imports that these modules may not have"


def test_foreign_imports_are_detected() -> None:
    """A method that imports another package of methods is found; what it may import is not."""
    assert foreign("geep", {"baselines.full_depth.bert", "geep.method", "harness.core.errors", "torch"}) == [
        "baselines.full_depth.bert"
    ]
    assert foreign("reports", {"harness", "harness.core", "harness.running.grid"}) == ["harness.running.grid"]


def test_forbidden_imports_are_detected() -> None:
    """Imports in functions, relative imports and imports of submodules are all found."""
    source = "def f():\n    from geep import method\n    import reports.build as b\nfrom ..core.errors import X\nfrom . import y"
    place = ROOT / "harness" / "measure" / "imagined.py"
    found = imports(place, nodes=ast.walk(ast.parse(source)))
    assert {"geep.method", "reports.build", "harness.core.errors", "harness.measure.y"} <= found


def floor_of(name: str, package: str) -> tuple[int, str] | None:
    """Return floor and room of a module inside a package, ``None`` for the package itself and outside modules."""
    if not within(name, package) or name == package:
        return None
    room = name.removeprefix(f"{package}.").split(".")[0]
    floors = FLOORS[package]
    for number, rooms in enumerate(floors):
        if room in rooms:
            return number, room
    top = [number for number, rooms in enumerate(floors) if "." in rooms]
    return (top[0], ".") if top else None


NAMES = frozenset(map(dotted, MODULES))


@cache
def project_imports(path: Path) -> set[str]:
    """Return the modules of the project that a file imports, with imports for type checkers."""
    found = set()
    for name in imports(path):
        while name and name not in NAMES:
            name = name.rpartition(".")[0]
        if name and name != dotted(path) and name.split(".")[0] in ROOMS:
            found.add(name)
    # `from a.b import c` also names the package a.b if c is a module.
    return {n for n in found if not any(other != n and within(other, n) for other in found)}


@pytest.mark.parametrize("package", FLOORS)
def test_rooms_import_downwards_only(package: str) -> None:
    """Inside a package, a room imports from lower floors only, and every room has a floor."""
    wrong = []
    for path in MODULES:
        here = floor_of(dotted(path), package)
        if here is None:
            assert not within(dotted(path), package) or path.stem == "__init__", f"{shown(path)} has no floor"
            continue
        for name in sorted(project_imports(path)):
            there = floor_of(name, package)
            if there and there[1] != here[1] and there[0] >= here[0]:
                wrong.append(f"{dotted(path)} -> {name}")
    assert not wrong, "imports that do not go downwards: " + ", ".join(wrong)


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return import cycles: strongly connected components of more than one module."""
    reached = {name: set(graph[name]) for name in graph}
    changed = True
    while changed:
        changed = False
        for targets in reached.values():
            more = set().union(*(reached.get(target, set()) for target in targets)) - targets
            if more:
                targets |= more
                changed = True
    found = {tuple(sorted(o for o in graph if o in reached[n] and n in reached[o])) for n in graph if n in reached[n]}
    return [list(circle) for circle in sorted(found)]


def test_no_circles() -> None:
    """No modules import each other in a cycle, not even for type checkers."""
    assert not circles({dotted(path): project_imports(path) for path in MODULES})


def test_circles_are_detected() -> None:
    """A cycle of three is found, and a diamond is accepted."""
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"b", "c"}, "b": {"d"}, "c": {"d"}, "d": set()}) == []


def test_rooms_are_small_and_described() -> None:
    """A room has at most a dozen modules, and the docstring of its ``__init__`` describes it."""
    wrong = []
    for folder in sorted({path.parent for path in MODULES}):
        count = sum(path.stem not in {"__init__", "__main__", "conftest"} for path in folder.glob("*.py"))
        if count > MOST_MODULES:
            wrong.append(f"{shown(folder)} has {count} modules: split it")
        first = folder / "__init__.py"
        if not first.is_file() or not ast.get_docstring(tree(first)):
            wrong.append(f"{shown(first)} is missing or has no docstring that describes the room")
    assert not wrong


def test_no_two_files_or_classes_share_a_name() -> None:
    """Every file and class name is unique in the product."""
    files = Counter(path.stem for path in MODULES if path.stem not in {"__init__", "__main__", "conftest"})
    classes = Counter(
        node.name
        for path in MODULES
        for node in tree(path).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert not [name for counts in (files, classes) for name, count in counts.items() if count > 1]


# Allowed names in the harness: the model types of checkpoints, the kind of head, the reference, the distillation recipes.
# "oracle" is also a role, "static" also an exit rule.
# Methods that papers compare with, and the baseline that ELUE's score is defined by.
SHARED_NAMES = {"bert", "distilbert", "tinybert", "fastbert", "elasticbert", "oracle", "static"}


OLD_ROLES = "reports/analysis/roles.py"  # roles of results that were stored before methods declared them


def methods() -> set[str]:
    """Return the names of all registered methods."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return set(declared["project"]["entry-points"]["geep.methods"])


def said(module: ast.Module) -> set[str]:
    """Return a module's texts."""
    return {node.value for node in ast.walk(module) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def test_harness_and_reports_name_no_method() -> None:
    """Harness and reports use what methods declare, never their names."""
    names = methods() - SHARED_NAMES
    assert "geep" in said(tree(ROOT / OLD_ROLES)) & names, "names are found where they are allowed"
    neutral = [path for path in MODULES if shown(path).startswith(("harness/", "reports/analysis/"))]
    named = {shown(path): said(tree(path)) & names for path in neutral if shown(path) != OLD_ROLES}
    assert not {path: found for path, found in named.items() if found}, "modules that name a method"


def test_heavy_imports_are_lazy() -> None:
    """cupy, datasets, ray and ONNX are optional, so no module imports them on import."""
    now = {shown(path): imports(path, nodes=at_import_time(tree(path))) for path in MODULES}
    heavy = {path: [name for name in names if name.split(".")[0] in HEAVY] for path, names in now.items()}
    assert not {path: names for path, names in heavy.items() if names}


def test_importing_everything_imports_nothing_heavy() -> None:
    """A fresh interpreter that imports every module has loaded neither cupy, datasets, ray nor ONNX."""
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
    """Return uses of pickle and of code from data, under any alias."""
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


def test_no_code_from_data_is_executed() -> None:
    """The product uses no pickle, torch.load, remote code, eval or exec."""
    found = {shown(path): list(forbidden(tree(path))) for path in MODULES}
    assert not {path: uses for path, uses in found.items() if uses}


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
def test_forbidden_code_is_detected(source: str) -> None:
    """Each of these examples is found."""
    assert list(forbidden(ast.parse(source)))


def test_modules_stay_short_and_have_docstrings() -> None:
    """No module has more than 400 lines, and every one starts with a docstring."""
    lengths = {shown(path): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert not {path: lines for path, lines in lengths.items() if lines > LONGEST}, "modules to split"
    assert not [shown(path) for path in MODULES if not ast.get_docstring(tree(path))], "modules without a docstring"


def test_there_is_no_utils() -> None:
    """No module is called utils or helpers, because a name must describe the content."""
    assert not [path for path in MODULES if path.stem in {"utils", "util", "helpers", "misc", "common"}]
