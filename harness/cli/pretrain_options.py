"""Options of ``geep-bench pretrain``; imports nothing heavy, so that ``--help`` stays quick."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.cli.argument_types import positive_number, whole_number

DESCRIPTION = """Pretrain a backbone of your own: masked words, from raw text to a folder that --backbone and AutoModel load.

  geep-bench pretrain --corpus wiki.txt.zst,train.parquet --lang en --minutes 60 --out my-backbone
  geep-bench pretrain --shards my-shards --steps 0 --out untrained     the same shape and vocabulary, as a control

The same command again goes on where it was stopped or killed, exactly. Exit code 3: --stop-after came first."""


def paths(text: str) -> list[Path]:
    found = [Path(part.strip()) for part in text.split(",") if part.strip()]
    if not found:
        raise argparse.ArgumentTypeError("give at least one file")
    return found


def length(text: str) -> int:
    if (number := whole_number(1)(text)) < 8:
        raise argparse.ArgumentTypeError(f"'{text}': rows hold at least 8 tokens")
    return number


def _seconds(text: str) -> float:
    return 0.0 if text.strip() == "0" else positive_number(text)


def add(parser: argparse.ArgumentParser) -> None:
    """Add them to a parser."""
    data = parser.add_argument_group("data")
    data.add_argument(
        "--corpus", type=paths, metavar="FILE,FILE", help=".txt (.gz, .zst), or .parquet/.csv/.tsv/.jsonl with text"
    )
    data.add_argument("--lang", choices=("en", "zh"), help="language of the corpus; needed to make shards")
    data.add_argument(
        "--shards", type=Path, metavar="DIR", help="token ids: read if they are there, else written there"
    )
    data.add_argument("--shards-only", action="store_true", help="make the shards and stop")
    data.add_argument("--vocab", type=whole_number(1), default=20_000, metavar="N", help="WordPieces; default 20000")
    data.add_argument("--vocab-from", type=Path, metavar="DIR", help="take the vocabulary of this folder instead")
    data.add_argument("--length", type=length, default=128, metavar="T", help="tokens of a row; default 128")
    data.add_argument("--about", default="", metavar="TEXT", help="for the model card: what the texts are, and whose")
    data.add_argument("--licence", default="", metavar="ID", help="for the model card, e.g. cc-by-sa-4.0")

    shape = parser.add_argument_group("model")
    shape.add_argument("--layers", type=whole_number(1), default=12, metavar="N")
    shape.add_argument("--width", type=whole_number(1), default=256, metavar="N")
    shape.add_argument("--heads", type=whole_number(1), metavar="N", help="default: width / 64")
    shape.add_argument("--intermediate", type=whole_number(1), metavar="N", help="default: 4 x width")
    shape.add_argument(
        "--init-from",
        type=Path,
        metavar="DIR",
        help="start from evenly spread layers of this backbone; of one vocabulary: and from all else it has",
    )

    add_amount(parser)

    recipe = parser.add_argument_group("recipe")
    recipe.add_argument("--rows", type=int, default=256, metavar="N", help="rows on the device at a time; default 256")
    recipe.add_argument("--accumulate", type=int, default=1, metavar="N", help="such batches per step; default 1")
    recipe.add_argument("--learning-rate", type=float, default=5e-4, metavar="R")
    recipe.add_argument("--warmup", type=float, default=0.06, metavar="S", help="share of the steps; default 0.06")
    recipe.add_argument("--weight-decay", type=float, default=0.01, metavar="W")
    recipe.add_argument("--clip", type=float, default=1.0, metavar="G", help="norm of the gradient; default 1")
    recipe.add_argument("--mask-share", type=float, default=0.15, metavar="S", help="of the tokens; default 0.15")
    recipe.add_argument("--dropout", type=float, default=0.0, metavar="P", help="while pretraining; default 0")
    recipe.add_argument("--multi-exit", action="store_true", help="learn to guess words from every layer")
    recipe.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    recipe.add_argument("--seed", type=int, default=0, metavar="N")

    run = add_run(parser)
    run.add_argument("--compile", choices=("auto", "on", "off"), default="auto", help="torch.compile; auto: on CUDA")


def add_amount(parser: argparse.ArgumentParser) -> None:
    """How long to train."""
    amount = parser.add_argument_group("how much").add_mutually_exclusive_group()
    amount.add_argument(
        "--steps", type=int, metavar="N", help="optimiser steps (default 10000); 0: an untrained control"
    )
    amount.add_argument("--tokens", type=positive_number, metavar="N", help="as many steps as see N tokens, e.g. 1e9")
    amount.add_argument(
        "--minutes", type=positive_number, metavar="M", help="as many steps as fit, by the measured rate"
    )


def add_run(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Where, and how often to save."""
    run = parser.add_argument_group("run")
    run.add_argument("--out", type=Path, metavar="DIR", help="the backbone's folder")
    run.add_argument("--work", type=Path, metavar="DIR", help="where shards and states lie; default OUT/training")
    run.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    run.add_argument(
        "--save-every", type=_seconds, default=60.0, metavar="S", help="seconds between states; 0: every step"
    )
    run.add_argument(
        "--stop-after", type=positive_number, metavar="M", help="minutes after which to save the state and stop"
    )
    run.add_argument("--fresh", action="store_true", help="throw the states away and start anew (shards are kept)")
    return run
