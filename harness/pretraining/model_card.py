"""Model cards: README.md of a backbone folder, rendered from the stored facts of its run only.

Accuracies are added once they have been measured with ``python -m suites.studies.depth --out depth.json``::

    python -m harness.pretraining.model_card BACKBONE --accuracy depth.json --control depth-untrained.json
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import UndefinedError

from harness.core.command_line import exit_codes
from harness.core.environment import environment_facts
from harness.core.errors import ResultError
from harness.core.files import fill_template, write_json, write_text
from harness.core.text_formats import read_json
from harness.pretraining.loop import Trainer
from harness.pretraining.text.shards import Shards

FACTS = {"backbone": "pretraining.json", "student": "distillation.json"}
CARD = "README.md"


def publish(
    kind: str,
    args: argparse.Namespace,
    trainer: Trainer,
    data: Shards,
    names: Sequence[str],
    more: Mapping[str, Any],
) -> str:
    """Write facts and card of a backbone or student beside its weights.

    Args:
        kind: ``"backbone"`` or ``"student"``.
        names: of the files of weights.
        more: facts beside those that backbones and students share; those of the ``run`` are added to the shared ones.

    Returns:
        The folder with the size and the number of its weight files, for the terminal.

    Raises:
        ResultError: the folder cannot be written.
    """
    machine, progress = environment_facts(), trainer.progress
    cpu = f"{machine['cpu']}, {machine['torch_threads']} threads"
    size = sum((args.out / name).stat().st_size for name in names)
    run = {**vars(progress), "loss": progress.loss if math.isfinite(progress.loss) else None}
    facts = {
        **{name: data.facts[name] for name in ("language", "sources", "train")},
        "licence": args.licence,
        "about": args.about,
        "bytes": size,
        "recipe": trainer.recipe.model_dump(),
        "device": machine["gpu"]["name"] if trainer.device.type == "cuda" else cpu,
        "fingerprint": machine,
        **more,
        "run": run | more.get("run", {}),
    }
    write(args.out, kind, facts)
    return f"{kind}: {args.out} ({size / 2**20:.1f} MiB in {len(names)} file{'s' if len(names) > 1 else ''})"


def render(kind: str, facts: Mapping[str, Any]) -> str:
    """Return the card of a backbone or student as Markdown, from the facts of its run."""
    return fill_template(__file__, f"{kind}.md.j2", dict(facts), count="{:,.0f}".format) + "\n"


def write(folder: Path, kind: str, facts: Mapping[str, Any]) -> None:
    """Write facts and card of a backbone or student into an existing folder."""
    write_json(folder / FACTS[kind], facts)
    write_text(folder / CARD, render(kind, facts))


def add_accuracy(folder: Path, rows: Sequence[Mapping[str, Any]], control: Sequence[Mapping[str, Any]] = ()) -> None:
    """Add per-layer accuracies; they replace older ones of the same dataset and method.

    Args:
        rows: of ``suites.studies.depth``, with this backbone.
        control: rows with an untrained backbone.

    Raises:
        ResultError: the folder has no facts, or the rows do not come from ``suites.studies.depth``.
    """
    try:
        facts = read_json(folder / FACTS["backbone"])
        rivals = {(row["dataset"], row["method"]): dict(row) for row in control}
        new = {key: {**row, "control": rivals.get(key)} for row in rows for key in [(row["dataset"], row["method"])]}
        old = [row for row in facts.get("accuracy", []) if (row["dataset"], row["method"]) not in new]
        facts["accuracy"] = [*old, *new.values()]
        write(folder, "backbone", facts)
    except (OSError, ValueError, KeyError, TypeError, UndefinedError) as error:
        raise ResultError(
            f"cannot add accuracies to {folder} ({error!r}): give a folder with the {FACTS['backbone']} of geep-bench "
            "pretrain, and rows of suites.studies.depth"
        ) from error


def _rows(paths: Sequence[Path]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for path in paths:
        try:
            rows += read_json(path)["rows"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ResultError(f"cannot read {path} ({error!r}): give a file of suites.studies.depth") from error
    return rows


@exit_codes("model_card")
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.pretraining.model_card", description="Write a model card again."
    )
    parser.add_argument("folder", type=Path, help="backbone folder, as written by geep-bench pretrain")
    parser.add_argument("--accuracy", type=Path, action="append", default=[], help="JSON of suites.studies.depth")
    parser.add_argument("--control", type=Path, action="append", default=[], help="the same with an untrained backbone")
    args = parser.parse_args(arguments)
    add_accuracy(args.folder, _rows(args.accuracy), _rows(args.control))
    print(f"model card: {args.folder / CARD}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
