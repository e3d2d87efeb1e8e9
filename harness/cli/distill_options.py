"""Options of ``geep-bench distill``; imports nothing heavy, so that ``--help`` stays quick."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.cli.argument_types import whole_number
from harness.cli.pretrain_options import add_amount, add_run, length, paths

DESCRIPTION = """General distillation: a small student learns from a pretrained teacher on raw text, as DistilBERT and TinyBERT do.

  geep-bench distill distilbert --teacher bert-base-uncased --corpus wiki.txt.zst --lang en --layers 6 --out my-distilbert
  geep-bench distill tinybert --teacher bert-base-uncased --corpus wiki.txt.zst --lang en --layers 4 --width 312 --out my-tinybert

The folder that comes out is a backbone (--backbone en=DIR) and a student (student = "DIR" in a profile's [method.NAME]).
The same command again goes on where it was stopped or killed, exactly. Exit code 3: --stop-after came first."""


def add(parser: argparse.ArgumentParser) -> None:
    """Add them to a parser."""
    parser.add_argument("method", metavar="METHOD", help="distilbert or tinybert, or a plug-in's that can do it")
    parser.add_argument("--teacher", required=True, metavar="DIR_OR_ID", help="pretrained, not fine-tuned")
    data = parser.add_argument_group("data")
    data.add_argument(
        "--corpus", type=paths, metavar="FILE,FILE", help=".txt (.gz, .zst), or .parquet/.csv/.tsv/.jsonl with text"
    )
    data.add_argument("--lang", choices=("en", "zh"), required=True, help="language of the corpus")
    data.add_argument(
        "--shards", type=Path, metavar="DIR", help="token ids: read if they are there, else written there"
    )
    data.add_argument("--length", type=length, default=128, metavar="T", help="tokens of a row; default 128")
    data.add_argument("--about", default="", metavar="TEXT", help="for the card: what the texts are, and whose")
    data.add_argument("--licence", default="", metavar="ID", help="for the card, e.g. apache-2.0")

    student = parser.add_argument_group("student", "what it is and learns; defaults are the method's, as published")
    student.add_argument("--layers", type=whole_number(1), metavar="N")
    student.add_argument("--width", type=whole_number(1), metavar="N", help="tinybert")
    student.add_argument("--intermediate", type=whole_number(1), metavar="N", help="tinybert")
    student.add_argument("--temperature", type=float, metavar="T", help="distilbert: of soft words; default 2")
    student.add_argument("--alpha-ce", type=float, metavar="A", help="distilbert: weight of soft words; default 5")
    student.add_argument("--alpha-mlm", type=float, metavar="A", help="distilbert: weight of masked words; default 2")
    student.add_argument("--alpha-cos", type=float, metavar="A", help="distilbert: weight of the cosine; default 1")
    student.add_argument(
        "--soft-on", choices=("all", "masked"), help="distilbert: tokens whose soft words are learnt; default all"
    )

    add_amount(parser)

    recipe = parser.add_argument_group("recipe", "rates and the like are the method's, as published, unless said")
    recipe.add_argument("--rows", type=int, metavar="N", help="rows on the device at a time; default 256")
    recipe.add_argument("--accumulate", type=int, metavar="N", help="such batches per step; default 1")
    recipe.add_argument("--learning-rate", type=float, metavar="R")
    recipe.add_argument("--warmup", type=float, metavar="S", help="share of the steps")
    recipe.add_argument("--weight-decay", type=float, metavar="W")
    recipe.add_argument("--clip", type=float, metavar="G", help="norm of the gradient")
    recipe.add_argument("--mask-share", type=float, metavar="S", help="of the tokens; default 0.15")
    recipe.add_argument("--dropout", type=float, metavar="P", help="of the student while it learns")
    recipe.add_argument("--precision", choices=("auto", "float32", "bfloat16"))
    recipe.add_argument("--seed", type=int, metavar="N")
    add_run(parser)
