"""Compare profile ``quick`` with the committed reference: the gate of ``tox -e regression``.

::

    python -m suites.gate.reference             run, or resume, and compare with suites/expected/quick.json
    python -m suites.gate.reference --write     run, or resume, and replace the reference

The names of run folder and fit cache contain a hash of the sources, so that no result from before an edit is used; a stopped run
resumes as long as nothing was edited. Unknown options go to ``geep-bench run``.

There are :data:`ROUNDS` timed rounds and :data:`TEST_ROWS` test rows, more than in the profile: with three rounds, 10 % more time
in the four cells of one method is detected in 15 of 20 cases on a quiet machine, with seven in 20 of 20
(``python -m suites.gate.power --real DIR``).

Make the reference in one go: a process that has just trained is slower than one with cached fits (``bert`` by 14 %,
``tinybert`` by 10 % more), which the gate would report as a regression.

The reference was made on one machine. On another one, times are not compared and retrained weights differ, so that the gate
detects only gross changes in accuracy, FLOPs and layers (:class:`harness.regression.compare.Limits`).
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
# Sources on which results depend.
SOURCES = ("harness", "geep", "baselines", "suites/profiles")
ROUNDS, TEST_ROWS = 7, 1000
SUFFIXES = {".py", ".cu", ".cpp", ".h", ".toml"}


def expected(profile: str) -> Path:
    """Return the path of a profile's committed reference."""
    return Path(__file__).resolve().parents[1] / "expected" / f"{profile}.json"


def sources_key(root: Path = ROOT) -> str:
    """Return 12 hex digits that change with the sources on which results depend and with the pinned versions."""
    digest = hashlib.sha256()
    files = [path for folder in SOURCES for path in (root / folder).rglob("*") if path.suffix in SUFFIXES]
    for path in sorted(path for path in [*files, root / "constraints.txt"] if path.is_file()):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 no regression, 1 a regression or failed cells, 2 bad input."""
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
    ran = cli.main(
        [
            "run",
            "--profile",
            args.profile,
            "--rounds",
            str(args.rounds),
            "--max-test",
            str(TEST_ROWS),
            "--out",
            str(out),
            *more,
        ]
    )
    if ran > 1:
        return ran
    reference = str(expected(args.profile))
    then = cli.main(["pack", str(out), reference] if args.write else ["compare", reference, str(out), "--gate"])
    return max(ran, then)


if __name__ == "__main__":
    sys.exit(main())
