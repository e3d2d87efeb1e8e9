"""Options of ``geep-bench export`` and ``geep-bench predict``. Imports nothing heavy."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from harness.cli.argument_types import path, whole_number

EXPORT = """Write a measured cell as a model: weights (safetensors), tokenizer, tables and thresholds, settings, and a model card
with its figures. Its answers are compared with the stored ones. Methods that always run at full depth also get an ONNX graph.

  geep-bench export runs/quick --cell lcqmc--geep--speed=0.5--seed0--1a2b3c4d --out my-model
  geep-bench export runs/mine --cell 1a2b3c4d --out my-model --data DATA --backbone en=BACKBONE

The fit comes from the cache; if it is gone, it is made again. Results hold no paths, so give the same folders as for run."""

PREDICT = """Answer a file of texts of any size in constant memory.

  geep-bench predict my-model --in texts.csv --out answers.csv

The input is CSV or JSON lines with a column text (and text_pair for models of pairs). The output has the columns row, label,
probability and exit_layer. Run the same command again to resume: no row is lost or doubled. An output file of another model or of
other texts is refused. OUT.progress.json records the progress."""


def add_export_options(
    command: argparse.ArgumentParser, backbones: Callable[[str], dict[str, str]], setting: Callable[[str], Any]
) -> None:
    """Add the options of ``geep-bench export``.

    Args:
        backbones, setting: types of the options that it shares with ``run``.
    """
    command.add_argument("run", type=path, metavar="RUN", help="run folder")
    command.add_argument(
        "--cell", required=True, metavar="ID", help="the cell: name of its file in RUN/results, or the hash at its end"
    )
    command.add_argument("--out", type=path, required=True, metavar="DIR", help="folder to write; must not exist")
    command.add_argument("--data", type=path, metavar="DIR", help="local data of the run")
    command.add_argument(
        "--backbone", type=backbones, metavar="en=B,zh=B", help="backbone of the run, if it was a folder"
    )
    command.add_argument(
        "--set",
        type=setting,
        action="append",
        default=[],
        metavar="M.KEY=VALUE",
        help="a setting of the run whose value was a folder; repeatable",
    )
    command.add_argument(
        "--push-to-hub",
        metavar="OWNER/NAME",
        help="upload the model to this repository, which is made if it is missing",
    )
    command.add_argument("--public", action="store_true", help="with --push-to-hub: a new repository is public")


def add_predict_options(command: argparse.ArgumentParser) -> None:
    """Add the options of ``geep-bench predict``."""
    command.add_argument("model", type=path, metavar="DIR", help="exported model")
    command.add_argument("--in", type=path, required=True, dest="texts", metavar="FILE", help="texts: .csv or .jsonl")
    command.add_argument("--out", type=path, required=True, metavar="FILE", help="answers to write: .csv")
    command.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is a device")
    command.add_argument(
        "--batch-size", type=whole_number(1), metavar="N", help="samples per batch; default as measured"
    )
    command.add_argument(
        "--skip-empty", action="store_true", help="give rows without a text an empty answer instead of stopping there"
    )
    command.add_argument(
        "--exact-labels",
        action="store_true",
        help="write labels exactly as they are; default: an apostrophe in front of those that a spreadsheet would run as a formula",
    )
