"""Runs of ``geep-bench`` as processes that can be killed, and what is compared after a fault.

A run has tiny data, a tiny backbone that it pretrains first, two methods and two seeds: eight cells in two seconds. Faults are
random; ``FAULT_SEED=N`` repeats those of an earlier session, whose seed is printed at its end.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

PROFILE = """
title = "a tiny run"
source = "embedded"
datasets = ["ag_news"]
methods = ["bert", "geep"]
seeds = [0, 1]
speeds = [1.0]
rounds = 1
max_length = 32
backbones = { en = "embedded", zh = "embedded" }
training = { epochs = 1, batch_size = 8, learning_rate = 5e-3, budgets = [0.5] }
"""
CELLS = 8
# What a result says about answers and counts. Times, memory and the machine differ from run to run.
COMPARED = ("cell", "kind", "params", "quality", "cost", "exit_histogram", "unseen_tokens", "overlaps", "language")


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code (negative for a signal) and what it printed."""

    code: int | None
    log: str

    def lines(self) -> list[str]:
        """Return the messages of the program: lines that begin with its name."""
        return [line for line in self.log.splitlines() if line.startswith("geep-bench: ")]


class Program:
    """Starts ``geep-bench`` in processes of their own, see ``program_server.py``."""

    def __init__(self) -> None:
        server = Path(__file__).with_name("program_server.py")
        self._server = subprocess.Popen(
            [sys.executable, str(server)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )

    def _ask(self, **order: Any) -> Any:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def start(self, *arguments: str, log: Path, env: dict[str, str], fault: dict[str, Any] | None = None) -> int:
        """Start a command and return its process id."""
        return int(self._ask(start=list(arguments), log=str(log), env=env, fault=fault or {}))

    def wait(self, pid: int, log: Path, seconds: float = 90.0) -> Ended:
        """Wait for the end of a command."""
        return Ended(self._ask(wait=pid, seconds=seconds), log.read_text(encoding="utf-8", errors="replace"))

    @staticmethod
    def signal(pid: int, number: signal.Signals) -> None:
        """Send a signal to a command that has not been waited for."""
        os.kill(pid, number)

    def close(self) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait()


@dataclass
class Place:
    """A run folder and a cache below one folder; the profile and the logs lie elsewhere, so that they are never in the way."""

    program: Program
    folder: Path
    notes: Path
    started: int = field(default=0)

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def start(self, *arguments: str, run: Path | None = None, fault: dict[str, Any] | None = None) -> tuple[int, Path]:
        """Start ``geep-bench run`` in this place, or the command that ``arguments`` give."""
        if not arguments:
            profile = self.notes / "tiny.toml"
            profile.write_text(PROFILE, encoding="utf-8")
            arguments = ("run", "--profile", str(profile), "--out", str(run or self.run))
        self.started += 1
        log = self.notes / f"log-{self.started}.txt"
        below = {"below": str(self.folder)} if fault else {}
        env = {"GEEP_BENCH_CACHE": str(self.cache)}
        return self.program.start(*arguments, log=log, env=env, fault={**below, **(fault or {})}), log

    def carry_out(self, *arguments: str, run: Path | None = None, fault: dict[str, Any] | None = None) -> Ended:
        """Run a command to its end."""
        return self.program.wait(*self.start(*arguments, run=run, fault=fault))

    def finished(self, run: Path | None = None) -> dict[str, bytes]:
        """Return the results stored so far, byte by byte."""
        return {path.name: path.read_bytes() for path in (run or self.run).glob("results/*.json")}


def facts(run: Path) -> dict[str, Any]:
    """Return all answers and counts of a run: per cell what :data:`COMPARED` names, and the rows of its samples."""
    found = {}
    for path in sorted(run.glob("results/*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        samples = pd.read_parquet(run / "samples" / f"{path.stem}.parquet")
        found[path.stem] = ({name: result.get(name) for name in COMPARED}, samples.to_dict("list"))
    return found


@dataclass(frozen=True)
class Undisturbed:
    """A run that nothing happened to.

    Attributes:
        place: where it lies; tests copy it and never change it.
        facts: its answers and counts.
        events: its number of storage events.
    """

    place: Place
    facts: dict[str, Any]
    events: int

    def copy_to(self, place: Place) -> Place:
        """Copy its run folder and cache."""
        shutil.copytree(self.place.folder, place.folder, dirs_exist_ok=True)
        return place


@pytest.fixture(scope="session")
def program() -> Iterator[Program]:
    """The server of processes."""
    made = Program()
    yield made
    made.close()


@pytest.fixture
def place(program: Program, tmp_path: Path) -> Place:
    """An empty place for a run."""
    (tmp_path / "place").mkdir()
    (tmp_path / "notes").mkdir()
    return Place(program, tmp_path / "place", tmp_path / "notes")


def new_place(program: Program, folder: Path) -> Place:
    """Return a place below ``folder`` whose folders exist."""
    place = Place(program, folder / "place", folder / "notes")
    for made in (place.folder, place.notes):
        made.mkdir()
    return place


@pytest.fixture(scope="session")
def undisturbed(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """A finished run with its cache."""
    folder = tmp_path_factory.mktemp("undisturbed")
    place = new_place(program, folder)
    counted = place.notes / "events"
    ended = place.carry_out(fault={"count": str(counted)})
    assert ended.code == 0, ended.log
    found = facts(place.run)
    assert len(found) == CELLS
    assert len({len(set(rows["confidence"])) for _, rows in found.values()} - {1}) > 0  # samples differ
    return Undisturbed(place, found, int(counted.read_text()))


def space(folder: Path) -> int:
    """Return the bytes that the files of a folder take on a disk of 4 KiB pages."""
    sizes = {(found := path.stat()).st_ino: found.st_size for path in folder.rglob("*") if path.is_file()}  # links once
    return sum(-(-size // 4096) * 4096 for size in sizes.values())


@dataclass
class SmallDisk:
    """A disk that is full too early, or read-only: a ``tmpfs`` where it can be mounted (as root).

    Elsewhere, files are limited in size instead, and permissions are taken away.
    """

    place: Place
    mounted: bool

    def _remount(self, *options: str) -> None:
        subprocess.run(["mount", "-o", ",".join(["remount", *options]), str(self.place.folder)], check=True)

    def carry_out(self, whole: Path, share: float, *arguments: str) -> Ended:
        """Run a command on a disk that holds this share of what a folder takes."""
        if self.mounted:
            self._remount(f"size={int(space(whole) * share)}")
            return self.place.carry_out(*arguments)
        largest = max(path.stat().st_size for path in whole.rglob("*") if path.is_file())
        return self.place.carry_out(*arguments, fault={"file_limit": int(largest * share)})

    def grown(self) -> Place:
        """Return the place after its disk got more space."""
        if self.mounted:
            self._remount("size=1g")
        return self.place

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """Make everything in the place read-only."""
        parts = [self.place.folder, *self.place.folder.rglob("*")]
        if self.mounted:
            self._remount("ro")
        else:
            for path in parts:
                path.chmod(path.stat().st_mode & ~0o222)
        try:
            yield
        finally:
            if self.mounted:
                self._remount("rw")
            else:
                for path in parts:
                    path.chmod(path.stat().st_mode | 0o200)


@pytest.fixture
def small_disk(place: Place) -> Iterator[SmallDisk]:
    """A place on a disk of its own."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=1g", "geep-bench-faults", str(place.folder)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    if os.geteuid() == 0 and not mounted:
        pytest.skip("root ignores permissions, and no tmpfs can be mounted here")
    yield SmallDisk(place, mounted)
    if mounted:
        subprocess.run(["umount", "-l", str(place.folder)], check=True)


@dataclass(frozen=True)
class Pretrained:
    """A backbone that ``geep-bench pretrain`` made, and its weights file.

    Its vocabulary was made before: two trainings of a vocabulary may break ties between words differently.
    """

    corpus: Path
    vocabulary: Path
    out: Path
    weights: bytes = b""

    def command(self, place: Place) -> list[str]:
        """Return the command that makes the same backbone in another place."""
        options = {
            "corpus": self.corpus,
            "lang": "en",
            "vocab-from": self.vocabulary,
            "layers": 2,
            "width": 16,
            "heads": 2,
        }
        options |= {"length": 16, "rows": 8, "steps": 4, "save-every": 0, "out": place.folder / "out"}
        return ["pretrain", *(str(part) for name, value in options.items() for part in (f"--{name}", value))]


@pytest.fixture(scope="session")
def pretrained(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Pretrained:
    """Four steps of pretraining on made-up sentences."""
    folder = tmp_path_factory.mktemp("pretrained")
    place = new_place(program, folder)
    rng, words = random.Random(0), "the a cat dog bird sees likes hears big small old new red blue house tree river"
    texts = [" ".join(rng.choices(words.split(), k=36)) for _ in range(120)]
    corpus = folder / "corpus.txt"
    corpus.write_text("\n\n".join(texts), encoding="utf-8")
    shards = [
        "--corpus",
        str(corpus),
        "--lang",
        "en",
        "--vocab",
        "80",
        "--length",
        "16",
        "--shards",
        str(folder / "vocabulary"),
    ]
    assert place.carry_out("pretrain", *shards, "--shards-only").code == 0
    made_here = Pretrained(corpus, folder / "vocabulary", place.folder / "out")
    ended = place.carry_out(*made_here.command(place))
    assert ended.code == 0, ended.log
    return replace(made_here, weights=(made_here.out / "model.safetensors").read_bytes())


@pytest.fixture(scope="session")
def fault_seed(request: pytest.FixtureRequest) -> int:
    """The seed of all random faults; the same in all workers of pytest-xdist."""
    if given := os.environ.get("FAULT_SEED"):
        return int(given)
    worker = getattr(request.config, "workerinput", None)
    return random.Random(worker["testrunuid"] if worker else None).randrange(10**6)


@pytest.fixture
def draw(request: pytest.FixtureRequest, fault_seed: int) -> random.Random:
    """Random numbers of one test, which depend on the seed and on the test's name."""
    return random.Random(f"{fault_seed} {request.node.name}")


@pytest.fixture
def tried(record_property: Callable[[str, object], None], fault_seed: int) -> Callable[[str], None]:
    """Return a function that counts a fault for the summary."""

    def count(fault: str) -> None:
        record_property("fault", (fault, fault_seed))

    return count


@pytest.fixture
def survives(undisturbed: Undisturbed, record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Return a function that checks a place after a fault: the same command again gives what an undisturbed run gives.

    It counts the cells that the fault cost: finished ones that are not the same any more, apart from ``damaged`` ones.
    """

    def check(place: Place, *, damaged: frozenset[str] = frozenset(), run: Path | None = None) -> None:
        before = place.finished(run)
        ended = place.carry_out(run=run)
        assert ended.code == 0, ended.log
        assert "Traceback" not in ended.log
        after = place.finished(run)
        lost = [name for name, content in before.items() if after.get(name) != content and name not in damaged]
        record_property("lost", len(lost))
        assert not lost
        assert facts(run or place.run) == undisturbed.facts
        assert ((run or place.run) / "report" / "index.html").read_text(encoding="utf-8").rstrip().endswith("</html>")

    return check


@pytest.fixture
def refused() -> Callable[[Ended], str]:
    """Return a function that checks that a command ended with exit code 2 and one line, which it returns."""

    def check(ended: Ended) -> str:
        assert ended.code == 2, ended.log
        assert "Traceback" not in ended.log, ended.log
        assert len(ended.lines()) == 1, ended.log
        return ended.lines()[0]

    return check


@pytest.fixture
def was_killed() -> Callable[[Ended], bool]:
    """Return a function that says whether a command was ended by SIGKILL; it cannot have ended with an error of its own."""

    def check(ended: Ended) -> bool:
        assert ended.code in (0, -signal.SIGKILL), ended.log
        return ended.code != 0

    return check
