"""Exit tables on disk."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geep.exit_table import ExitTable
from harness.core.errors import ConfigError, ResultError
from harness.kernels import cuda, host

BACKENDS = ["reference", "cpu", *["host"] * (host.problem() is None), *["cuda"] * (cuda.problem() is None)]
HEADER, ARRAYS = "exit_table.json", "exit_table.safetensors"
ROWS = st.lists(
    st.tuples(st.lists(st.integers(0, 9), max_size=8), st.integers(0, 4)), min_size=1, max_size=10
)  # samples and their exits


def build(rows: list[tuple[list[int], int]], ngram: int, backend: str) -> ExitTable:
    made = ExitTable(columns=5, ngram=ngram, backend=backend, seed=3, special=(9,))
    made.insert([torch.tensor(sample, dtype=torch.int32) for sample, _ in rows], [exit_layer for _, exit_layer in rows])
    return made


@settings(max_examples=40)
@given(ROWS, st.integers(1, 3), st.booleans(), st.randoms(use_true_random=False))
def test_files_do_not_depend_on_insert_order_or_backend(rows: list, ngram: int, frozen: bool, random) -> None:
    """Equal counts give equal bytes, and a loaded table saves the same files."""
    shuffled = random.sample(rows, len(rows))
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / backend for backend in (*BACKENDS, "again")]
        for backend, folder in zip(BACKENDS, folders[:-1], strict=True):
            made = build(rows if backend == "reference" else shuffled, ngram, backend)
            if frozen:
                made.freeze(min_count=2, smoothing=1)
            made.save(folder)
        ExitTable.load(folders[0], BACKENDS[-1]).save(folders[-1])
        for file in (HEADER, ARRAYS):
            assert len({(folder / file).read_bytes() for folder in folders}) == 1


@settings(max_examples=30)
@given(ROWS, st.integers(1, 3), st.sampled_from(BACKENDS), st.sampled_from(BACKENDS))
def test_a_frozen_table_predicts_the_same_after_loading(rows: list, ngram: int, wrote: str, reads: str) -> None:
    """A loaded table gives the same predictions and statistics on any backend."""
    made = build(rows, ngram, wrote)
    made.freeze(min_count=2, smoothing=4)
    asked = [torch.tensor(sample) for sample in ([1, 2, 3], [9], [7, 7, 7, 7, 1])]
    with tempfile.TemporaryDirectory() as folder:
        made.save(folder)
        back = ExitTable.load(folder, reads, num_layers=5, ngram=ngram, seed=3)
    assert torch.equal(back.distribution(asked), made.distribution(asked))
    for name in ("keys", "samples", "tokens", "frozen", "min_count", "smoothing", "hit_rate", "seed"):
        assert back.stats()[name] == made.stats()[name]


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_unfrozen_table_continues_after_loading(tmp_path: Path, backend: str) -> None:
    """A table saved while counting takes more samples after loading."""
    first, second = [([1, 2], 0)], [([2, 3], 4)]
    build(first, 2, backend).save(tmp_path)
    back = ExitTable.load(tmp_path, backend)
    back.merge(build(second, 2, backend))
    whole = build(first + second, 2, backend)
    for made in (back, whole):
        made.freeze()
    asked = [torch.tensor([1, 2, 3])]
    assert torch.equal(back.distribution(asked), whole.distribution(asked))


def test_an_unexpected_table_is_rejected(tmp_path: Path) -> None:
    """The error names the layer count, n-gram length or seed that differs."""
    build([([1], 0)], 1, "cpu").save(tmp_path)
    for name, value in (("num_layers", 12), ("ngram", 2), ("seed", 0)):
        with pytest.raises(ConfigError, match=f"{name}=.*, not {value}"):
            ExitTable.load(tmp_path, **{name: value})


def edit(folder: Path, **changes: object) -> None:
    data = json.loads((folder / HEADER).read_text())
    (folder / HEADER).write_text(json.dumps({**data, **changes}))


def drop(folder: Path, name: str) -> None:
    data = json.loads((folder / HEADER).read_text())
    del data[name]
    (folder / HEADER).write_text(json.dumps(data))


def flip(folder: Path) -> None:
    raw = bytearray((folder / ARRAYS).read_bytes())
    raw[-1] ^= 1
    (folder / ARRAYS).write_bytes(raw)


@pytest.mark.parametrize(("damage", "word"), [
    (lambda folder: (folder / HEADER).unlink(), "no exit table"),
    (lambda folder: (folder / ARRAYS).unlink(), "no exit table"),
    (lambda folder: (folder / HEADER).write_text("{"), "not valid JSON"),
    (lambda folder: (folder / HEADER).write_bytes(b"\xff\xfe"), "not valid JSON"),
    (lambda folder: (folder / HEADER).write_text("[]"), "damaged"),
    (lambda folder: edit(folder, version=0), "version 0, this program reads 1 and 2: build and save the table again"),
    (lambda folder: edit(folder, version=3), "version 3, this program reads 1 and 2"),
    (lambda folder: edit(folder, version=2), "version 2 does not fit its columns"),
    (lambda folder: edit(folder, version=2, columns={"exits": 0, "agreement": 6, "labels": 0}), "shapes do not fit"),
    (lambda folder: edit(folder, version=2, columns={"exits": 2, "agreement": 3, "labels": 0}), "make two tables"),
    (lambda folder: edit(folder, version=2, columns={"exits": 5, "agreement": 0, "labels": 56}), "room for 55"),
    (lambda folder: edit(folder, version="1"), "version 1"),
    (lambda folder: edit(folder, version=True), "version True"),
    (lambda folder: drop(folder, "version"), "version None"),
    (lambda folder: edit(folder, seed="0"), "damaged: seed"),
    (lambda folder: edit(folder, format="other"), "damaged: format"),
    (lambda folder: edit(folder, ngram=9), "damaged: ngram"),
    (lambda folder: edit(folder, extra=1), "damaged: extra"),
    (lambda folder: edit(folder, num_layers=6), "shapes do not fit"),
    (lambda folder: edit(folder, ngram=1), "out of range"),
    (lambda folder: edit(folder, tokens=0), "counts do not fit"),
    (flip, "checksum"),
    (lambda folder: (folder / ARRAYS).write_bytes(b""), "checksum"),
])  # fmt: skip
def test_a_damaged_table_is_rejected_in_one_line(tmp_path: Path, damage, word: str) -> None:
    """The error names the folder and the reason for any damage."""
    build([([1, 2, 1], 0), ([3], 4)], 2, "cpu").save(tmp_path)
    damage(tmp_path)
    with pytest.raises(ResultError, match=word) as caught:
        ExitTable.load(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    """A file at the folder's path gives an error without a traceback."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultError, match="cannot write"):
        build([([1], 0)], 1, "cpu").save(tmp_path / "file")
