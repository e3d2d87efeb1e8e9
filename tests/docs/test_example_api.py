"""The executed example of the Python API: its code runs and prints the page's output, except for numbers."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path
from types import ModuleType

import pytest

import harness
from harness.encoder import miniature

ROOT = Path(__file__).resolve().parents[2]
SMALLER = 'device="cpu", max_train=40, max_test=20, rounds=1,'


@pytest.fixture(scope="module")
def example() -> ModuleType:
    """Import docs/example_api.py."""
    spec = importlib.util.spec_from_file_location("example_api", ROOT / "docs" / "example_api.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stable(output: str) -> str:
    """Return a text without what depends on machine and training: numbers and column widths."""
    return re.sub(r"\s+", " ", re.sub(r"-?\b\d+(\.\d+)?\b", "#", output)).strip()


def test_stable_parts_are_compared() -> None:
    """Numbers and widths are ignored; words are compared."""
    assert stable("a  1.25\nb 3") == stable("a 0.5\nb     17") != stable("a 1\nc 3")


@pytest.mark.slow
def test_the_code_prints_the_output_on_the_page(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All code blocks run in order, on fewer samples, and print the stored output, except for numbers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEEP_BENCH_CACHE", str(tmp_path / "cache"))
    pretrain = miniature.pretrain_miniature
    monkeypatch.setattr(
        miniature, "pretrain_miniature", lambda seed=0, progress=True: pretrain(seed, progress=False, steps=2)
    )
    blocks = example.blocks(example.PAGE.read_text(encoding="utf-8"))
    codes = [code.replace('device="cpu",', SMALLER) for code, _ in blocks]
    assert len(codes) == 6 and sum(SMALLER in code for code in codes) == 2
    for (code, stored), printed in zip(blocks, example.execute(codes), strict=True):
        assert stable(printed) == stable(stored), code
    assert os.environ["GEEP_BENCH_CACHE"] == str(tmp_path / "cache")
    assert (tmp_path / "runs" / "api" / "report" / "index.html").is_file()


def test_readme_uses_names_that_exist() -> None:
    """The ten lines of Python in the README use existing functions and methods of the API."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    compile(code, "README.md", "exec")
    assert len(code.splitlines()) <= 12
    functions, methods = set(re.findall(r"harness\.(\w+)\(", code)), set(re.findall(r"\brun\.(\w+)\(", code))
    assert functions and functions <= set(harness.__all__)
    assert methods and all(hasattr(harness.Run, name) for name in methods)
