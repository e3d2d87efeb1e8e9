"""The exit table's kernels: sanitizers are clean, planted bugs are detected, and the machine code is efficient."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from geep.exit_table import ExitTable
from geep.exit_table.backends import hashed
from geep.exit_table.backends.hashed import HashedBackend
from geep.exit_table.columns import TableColumns
from geep.exit_table.rows import prior_row
from geep.exit_table.rules import UNIT, Cuts, Expected, Quantiles, Rule
from harness.core.errors import DeviceError
from harness.kernels import Launcher, Source, host
from harness.kernels.replay import SANITIZERS, LaunchRecorder, problem, replay

NEEDS_COMPILER = pytest.mark.skipif(host.problem() is not None, reason=str(host.problem()))
SMALL = {"FIRST_CAPACITY": 16, "CHUNK": 200, "DENSE_IDS": 12, "PROBES": 8}
FLAGS = ("-O1",)


def observed(columns: TableColumns, count: int, rng: np.random.Generator) -> tuple[torch.Tensor, ...]:
    """Draw what samples mark in every group of columns."""
    found = []
    for group in columns.groups:
        size = group.columns.stop - group.columns.start
        flags = torch.from_numpy(rng.random((count, size)) < np.linspace(0.2, 1, size))
        flags[:, -1] = True
        found.append(torch.from_numpy(rng.integers(0, size, count)) if group.exclusive else flags)
    return tuple(found)


@dataclass(frozen=True)
class Case:
    """A table's options, inserts and queries."""

    columns: TableColumns
    ngram: int
    special: tuple[int, ...]
    train: list[torch.Tensor]
    marks: tuple[torch.Tensor, ...]
    test: list[torch.Tensor]
    absorbed: tuple[np.ndarray, np.ndarray]
    min_count: int = 5

    @classmethod
    def draw(cls, seed: int, columns: TableColumns) -> Case:
        rng = np.random.default_rng(seed)

        def samples(count: int, ids: int) -> list[torch.Tensor]:
            # Small ids are dense and rare: some occur exactly min_count times.
            sizes = [0, *rng.integers(0, 40, count - 1).tolist()]
            return [torch.from_numpy((ids * (1 - rng.random(size) ** 3)).astype(np.int64)) for size in sizes]

        train = samples(30, 40)
        keys = np.unique(rng.integers(0, 60, 20)) + (1 << 20) << 40  # single tokens, half of them dense
        counts = rng.integers(0, 1 << 22, (len(keys), columns.width)).astype(np.uint32)
        counts[:, : columns.agreement].sort(axis=1)  # none agrees more often than the last layer
        special = (3, 7) if seed % 2 else (3, 7, 11, 19, 25, 30)
        marks = observed(columns, len(train), rng)
        if columns.exits == 3:  # long samples with known n-grams of one exit have the largest sums
            train[1], marks[0][1:] = torch.full((60,), 39), 1
        return cls(columns, 2 + seed % 2, special, train, marks, samples(20, 60), (keys, counts))

    @property
    def rules(self) -> list[Rule]:
        """Rules for these columns, with several settings each; cuts and prices near what samples have."""
        layers = self.columns.num_layers
        if self.columns.agreement:
            return [Expected((0, 700, 2500, 6000, 65536))]
        # One cut point is the expected exit of samples whose keys are all unknown: mass is in 1/16384, cut points in 1/65536.
        marks = self.columns.marks(len(self.train), self.marks)
        prior = prior_row(self.columns.histogram(marks), self.columns)[:layers]
        usual = 4 * int(prior @ np.arange(layers))
        middle = sorted(max(0, usual + (k - layers // 2) * UNIT // 16) for k in range(layers - 1))
        never = (layers - 1) * UNIT + 1
        return [
            Quantiles((1, 250, 500, 999, 1000)),
            Cuts((tuple(middle), (0,) + (never,) * (layers - 2), (UNIT,) * (layers - 1))),
        ]

    def table(self, launcher: Launcher | None = None) -> ExitTable:
        made = ExitTable(self.columns, self.ngram, "cpu", special=self.special)
        if launcher:
            made._backend = HashedBackend("host", self.columns, self.ngram, 5, launcher)
        return made

    def run_out(self, table: ExitTable, backend: HashedBackend) -> None:
        """Simulate an insert that counts two pieces and has no memory for the keys that the second one postponed."""
        settle, left = backend._settle, [None]

        def full(*args: Any) -> None:
            if not left:
                raise torch.OutOfMemoryError("full")
            left.pop()
            settle(*args)

        backend._settle = full  # type: ignore[method-assign]
        count = len(self.test) + len(self.train)
        with pytest.raises(DeviceError):
            table.insert([*self.test, *self.train], *observed(self.columns, count, np.random.default_rng(1)))
        backend._settle = settle  # type: ignore[method-assign]

    def answers(self, table: ExitTable, runs_out: bool = False) -> list[Any]:
        """Return all answers in order, optionally with a failing insert in between."""
        found: list[Any] = []
        table.insert(self.train, *self.marks)
        if runs_out and isinstance(table._backend, HashedBackend):
            self.run_out(table, table._backend)
        found += [*table._backend.export(), table._backend.keys]
        table._backend.absorb(*self.absorbed)
        table._tokens += 1 << 31
        found += [*table._backend.export(), table._backend.keys]
        table.freeze(self.min_count, smoothing=8)
        for test in (self.test, [torch.full((200_000,), 39)] if self.columns.exits == 3 else []):
            found += [table.distribution(test).numpy(), *(table.assign(test, rule).numpy() for rule in self.rules)]
            found += [table.stats()["query_keys"], table.stats()["hit_rate"]]
        return found


COLUMNS = [
    TableColumns(exits=5),
    TableColumns(exits=9, labels=3),
    TableColumns(agreement=6),
    TableColumns(exits=3),
    TableColumns(exits=24),
    TableColumns(agreement=13, labels=30),
]
CASES = [Case.draw(seed, columns) for seed, columns in enumerate(COLUMNS)]


def compare(text: str, cases: Sequence[int] = range(len(CASES))) -> None:
    """Compare kernels of that text with the CPU backend on those cases; AssertionError at the first difference."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL.items():
            patch.setattr(hashed, name, value)
        for seed in cases:
            case = CASES[seed]
            source = replace(hashed.kernels(case.columns.width), text=text)
            launcher = host.launcher(source, workers=1 + seed % 2, fuzz=seed > 0, seed=seed, flags=FLAGS)
            expected = case.answers(case.table())
            for runs_out in (False, True)[: 1 + (seed < 2)]:
                found = case.answers(case.table(launcher), runs_out)
                for number, (one, two) in enumerate(zip(expected, found, strict=True)):
                    np.testing.assert_array_equal(one, two, err_msg=f"case {seed}, answer {number}")


def record(path: Path) -> Source:
    """Record launches of every kernel on a small case and return the source."""
    case = CASES[0]
    source = hashed.kernels(case.columns.width)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL.items():
            patch.setattr(hashed, name, value)
        case.answers(case.table(LaunchRecorder(host.launcher(source, flags=FLAGS), path)), runs_out=True)
    return source


@pytest.mark.slow
@NEEDS_COMPILER
@pytest.mark.parametrize("fuzz", [False, True])
@pytest.mark.parametrize("sanitizer", list(SANITIZERS))
def test_kernels_are_clean_under_sanitizers(tmp_path: Path, sanitizer: str, fuzz: bool) -> None:
    """The sanitizers find no race between blocks, threads or lanes, no access outside a buffer, no undefined behaviour."""
    if problem(sanitizer):
        pytest.skip(str(problem(sanitizer)))
    source = record(tmp_path / "launches")
    assert set(source.kernels) == {
        name for name in source.kernels if name.encode() in (tmp_path / "launches").read_bytes()
    }
    replay(source, tmp_path / "launches", sanitizer, fuzz=fuzz).raise_if_bad()


MUTANTS = {
    "the loser of a CAS also takes the slot": (
        "if (there == EMPTY) {\n        ++fresh;\n        there = key;\n      }", "++fresh;\n      there = key;"),
    "a store instead of a CAS": ("there = atomicCAS(keys + slot * stride, EMPTY, key);", "keys[slot * stride] = key;"),
    "searches skip every other slot": ("slot = (slot + 1) & mask) {\n    u64 there", "slot = (slot + 2) & mask) {\n    u64 there"),
    "the longest search is one too short": ("probe + 1 > (int)searched ? probe + 1", "probe > (int)searched ? probe"),
    "marks of late n-grams are lost": ("late_marks[at] = marks;", "late_marks[at] = 1;"),
    "late n-grams overwrite each other": ("late_keys[at] = key;", "late_keys[at / 2] = key;"),
    "no tag for the length of an n-gram": ("key | (u64)n << N_SHIFT", "key | 1ull << N_SHIFT"),
    "the last n-gram of a sample is left out": ("n <= ngram && at + n <= end", "n <= ngram && at + n < end + (n == 1)"),
    "n-grams reach into the next sample": ("n <= ngram && at + n <= end", "n <= ngram && at + n <= end + (n == 2)"),
    "special ids are words": ("!is_word(id, special)", "false"),
    "the last special id is forgotten": ("i < special.more_count", "i + 1 < special.more_count"),
    "a chunk begins at its sample": ("(begin > low ? begin : low) + lane", "begin + lane"),
    "fresh keys are counted per lane": ("fresh = warp_sum(fresh);", ""),
    "free slots are moved": ("if (from_keys[i] == EMPTY) continue;", ""),
    "32 bits for cumulative counts": ("(seen * SCALE +", "((u32)seen * SCALE +"),
    "rows are not rounded cumulatively": ("(seen * SCALE + smoothing *", "(seen * SCALE + 1 + smoothing *"),
    "one count more than min_count": ("if (sums[id] >= min_count)", "if (sums[id] > min_count)"),
    "the second half of a row is the first": ("add_word(sums, next.b, pair * 8);", "add_word(sums, next.a, pair * 8);"),
    "32-bit sums of long samples": ("#define SEGMENT 32768", "#define SEGMENT (1 << 30)"),
    "unknown keys add nothing": ("mine[part] += missed * usual[part];", ";"),
    "hits of one lane": ("found = warp_sum(found);", ""),
    "cumulative sums of half a warp": ("by < 32; by <<= 1", "by < 16; by <<= 1"),
    "more than the quantile": ("reading * 1000 >= mass", "reading * 1000 > mass"),
    "dense counts are not undone": ("add_marks(dense + (u64)id * width, marked, ~0u);", ""),
    "the first key found is undone": ("if (keys[slot] == key) {", "if (keys[slot] != EMPTY) {"),
    "only the first probe is undone": ("add_marks(counts + slot * width, marked, ~0u);\n            return;\n          }",
        "add_marks(counts + slot * width, marked, ~0u);\n            return;\n          } else return;"),
    "all marks are undone as the first": ("counts + slot * width, marked, ~0u", "counts + slot * width, 1, ~0u"),
    "empty samples exit at the first layer": (": layers - 1);", ": 0);"),
}  # fmt: skip
# Bugs of other columns and other rules, each with the first case that has them.
MUTANTS_OF_COLUMNS = {
    "only the first mark is counted": ("for (; marks; marks &= marks - 1)", "if (marks)", 1),
    "marks of the 32 lower columns are counted": ("__ffsll((i64)marks)", "__ffs((int)marks)", 5),
    "all columns count for the total": ("column = once_from; column < once_to", "column = 0; column < width", 1),
    "columns are cumulative over groups": ("if (starts >> column & 1) seen = below = 0;", "", 2),
    "the back-off row is cumulative over groups": (
        "(starts >> column & 1 ? 0 : (u64)prior[column - 1])", "(column ? prior[column - 1] : 0)", 2),
    "columns beyond a warp are those of the first": ("mine[column / 32] += sum", "mine[0] += sum", 5),
    "other columns take part in the rule": ("own = lane < layers ? mine[0] : 0", "own = mine[0]", 1),
    "a cut point must be passed": ("|| reading < mass", "|| reading <= mass", 3),
    "cut points of another setting": ("settings[q * (layers - 1) + lane]", "settings[q + lane]", 1),
    "exits are weighted from one": ("warp_total(lane * own)", "warp_total((lane + 1) * own)", 1),
    "prices of another setting": ("mass * (u64)settings[q] * (lane", "mass * (u64)settings[0] * (lane", 2),
    "the worst exit": ("theirs < value ? theirs : value", "theirs > value ? theirs : value", 2),
}  # fmt: skip
RACES = {
    "counts are added without an atomic": (
        "atomicAdd(counts + __ffsll((i64)marks) - 1, by)", "counts[__ffsll((i64)marks) - 1] += by"),
    "hits are tallied without an atomic": ("atomicAdd(tally, all_found)", "tally[0] += all_found"),
}  # fmt: skip


def planted(good: str, bad: str) -> str:
    text = hashed.kernels(1).text
    assert text.count(good) == 1, "the planted bug must apply exactly once"
    return text.replace(good, bad)


@pytest.mark.slow
@NEEDS_COMPILER
def test_the_unchanged_kernels_pass_the_comparison(fails_apart: Callable[..., bool]) -> None:
    """The comparison passes without a planted bug."""
    assert not fails_apart(compare, hashed.kernels(1).text)


@pytest.mark.slow
@NEEDS_COMPILER
@pytest.mark.parametrize("bug", list(MUTANTS))
def test_planted_bugs_are_caught(bug: str, fails_apart: Callable[..., bool]) -> None:
    """A comparison with the CPU backend on six small cases detects each of them."""
    assert fails_apart(compare, planted(*MUTANTS[bug]))


@pytest.mark.slow
@NEEDS_COMPILER
@pytest.mark.parametrize("bug", list(MUTANTS_OF_COLUMNS))
def test_planted_bugs_of_columns_and_rules_are_caught(bug: str, fails_apart: Callable[..., bool]) -> None:
    """One case with such columns detects each of them."""
    good, bad, case = MUTANTS_OF_COLUMNS[bug]
    assert fails_apart(compare, planted(good, bad), [case])


@pytest.mark.slow
@NEEDS_COMPILER
@pytest.mark.parametrize("bug", list(RACES))
def test_planted_races_are_caught(tmp_path: Path, bug: str) -> None:
    """The thread sanitizer finds races that rarely change an answer."""
    if problem("thread"):
        pytest.skip(str(problem("thread")))
    source = record(tmp_path / "launches")
    report = replay(replace(source, text=planted(*RACES[bug])), tmp_path / "launches", "thread")
    assert report.found and "data race" in report.text


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc on the PATH")
@pytest.mark.parametrize("width", [12, 28, 60])
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_machine_code_has_no_spills_and_reads_slots_in_16_bytes(tmp_path: Path, arch: int, width: int) -> None:
    """ptxas keeps all values in registers, and predict reads slots with vector loads only."""
    source = Source.of("geep.exit_table", "exit_table.cu", WIDTH=width)
    file = tmp_path / source.name
    file.write_text(source.text)
    command = ["nvcc", "-std=c++17", *source.options, f"-gencode=arch=compute_{arch},code=sm_{arch}", str(file)]
    listing = subprocess.run(
        [*command, "-ptx", "-o", str(tmp_path / "out.ptx")], capture_output=True, text=True, check=False
    )
    assert listing.returncode == 0, listing.stderr
    done = subprocess.run(
        [*command, "-cubin", "-Xptxas", "-v", "-o", str(tmp_path / "out.cubin")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    assert frames == [("0", "0", "0")] * len(source.kernels)
    assert all(int(used) <= 128 for used in re.findall(r"Used (\d+) registers", done.stderr))
    body = (tmp_path / "out.ptx").read_text().split(".entry predict(")[1].split(".entry ")[0]
    wide = re.findall(r"ld\.global(?:\.\w+)*\.v(?:2\.u64|2\.b64|4\.u32|4\.b32)", body)
    assert len(wide) >= width // 12 * 2
    assert not re.findall(r"ld\.global(?:\.\w+)*\.[ub]16", body), "rows are read in pieces"
