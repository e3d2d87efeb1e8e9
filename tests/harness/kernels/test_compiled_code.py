"""Compiled code is loaded only from folders where nobody else may write."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.kernels import compiled_code
from harness.kernels.compiled_code import changeable_by_others, own_compiler_caches

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


@pytest.fixture(autouse=True)
def _caches_are_chosen_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in compiled_code._CACHES:
        monkeypatch.setenv(name, "")  # so that its old value, or none, comes back
    monkeypatch.setenv("GEEP_BENCH_CACHE", str(tmp_path / "cache"))
    own_compiler_caches.cache_clear()
    yield
    own_compiler_caches.cache_clear()


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o775, 0o757, 0o1777])
def test_a_folder_that_others_may_write_to_is_found(tmp_path: Path, mode: int) -> None:
    """Group and others may read a folder, but not write to it, whatever other bits are set."""
    file = tmp_path / "a" / "b" / "file"
    file.parent.mkdir(parents=True)
    file.write_text("")
    assert changeable_by_others(file, tmp_path) is None
    assert changeable_by_others(file.parent / "missing", tmp_path) is None
    (tmp_path / "a").chmod(mode)
    assert changeable_by_others(file, tmp_path) == (tmp_path / "a" if mode & 0o022 else None)
    assert changeable_by_others(file, file.parent) is None  # folders above the cache are not our matter


def test_torch_compiles_into_the_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By default, torch would use a folder in /tmp whose name everybody knows."""
    own_compiler_caches()
    assert os.environ[VARIABLE] == str(tmp_path / "cache" / "inductor")
    assert not capsys.readouterr().err


@pytest.mark.parametrize("mode", [0o755, 0o777])
def test_a_chosen_folder_is_used_if_it_is_safe(
    tmp_path: Path, mode: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder that the user has chosen is kept, unless others may write to it; then a line says so."""
    chosen = tmp_path / "chosen"
    chosen.mkdir()
    chosen.chmod(mode)
    monkeypatch.setenv(VARIABLE, str(chosen))
    own_compiler_caches()
    assert (os.environ[VARIABLE] == str(chosen)) == (mode == 0o755)
    assert (f"other users may write to {chosen}" in capsys.readouterr().err) == (mode == 0o777)
