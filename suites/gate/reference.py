"""Profile ``quick`` against the reference that is committed: the gate of ``tox -e regression``.

::

    python -m suites.gate.reference                        run, or go on, and compare with suites/expected/quick.json
    python -m suites.gate.reference --write                run, or go on, and make the reference anew

Everything is fitted and measured by the code as it is: run folder and cache of fits are named by a hash of the sources, so that
nothing from before an edit is mistaken for its result, and a run that was killed goes on as long as nothing was edited. Options
that this command does not know go to ``geep-bench run``.

It takes :data:`ROUNDS` timed rounds where the profile takes fewer: with three, 10 % more time in the four cells of one method
is caught in 15 of 20 cases on a quiet machine, with seven in 20 of 20 (``python -m suites.gate.power --real DIR``).

Both sides must come about the same way: a process that has just trained measures otherwise than one that found its fits in a
cache (``bert`` 14 % slower, ``tinybert`` 10 % more so), which the gate would call a regression. Make the reference in one go.

The reference was made on one machine. On another one, times are not compared, and retraining gives other weights: there the
gate sees gross damage to accuracy, FLOPs and layers only (:class:`harness.regression.compare.Limits`).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.cli import main as cli

ROOT = Path(__file__).resolve().parents[2]
# What a result follows from; pages and tests have no part in it.
SOURCES = ("harness", "geep", "baselines", "suites/profiles")
ROUNDS = 7
SUFFIXES = {".py", ".cu", ".cpp", ".h", ".toml"}


def expected(profile: str) -> Path:
    """The committed reference of a profile."""
    return Path(__file__).resolve().parents[1] / "expected" / f"{profile}.json"


def sources_key(root: Path = ROOT) -> str:
    """12 hex digits that change with any source file that results follow from, and with the pinned versions."""
    digest = hashlib.sha256()
    files = [path for folder in SOURCES for path in (root / folder).rglob("*") if path.suffix in SUFFIXES]
    for path in sorted(path for path in [*files, root / "constraints.txt"] if path.is_file()):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code: 0 nothing got worse, 1 something did or cells failed, 2 unusable input."""
    parser = argparse.ArgumentParser(prog="python -m suites.gate.reference", description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--write", action="store_true", help="make the reference instead of comparing with it")
    parser.add_argument("--out", type=Path, help="run folder; default runs/regression/<hash of the sources>")
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, metavar="N", help=f"timed passes per cell; default {ROUNDS}"
    )
    args, more = parser.parse_known_args(arguments)
    out = args.out or Path("runs") / "regression" / sources_key()
    os.environ["GEEP_BENCH_CACHE"] = str(out.resolve() / "cache")
    ran = cli.main(["run", "--profile", args.profile, "--rounds", str(args.rounds), "--out", str(out), *more])
    if ran > 1:
        return ran
    reference = str(expected(args.profile))
    then = cli.main(["pack", str(out), reference] if args.write else ["compare", reference, str(out), "--gate"])
    return max(ran, then)


if __name__ == "__main__":
    sys.exit(main())
