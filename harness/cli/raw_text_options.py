"""Options of ``geep-bench pretrain`` and ``geep-bench distill``, which learn from raw text. Imports nothing heavy."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.cli.argument_types import path, positive_number, whole_number

PRETRAIN = """Pretrain a backbone of your own: masked words, from raw text to a folder that --backbone and AutoModel load.

  geep-bench pretrain --corpus wiki.txt.zst,train.parquet --lang en --minutes 60 --out my-backbone
  geep-bench pretrain --shards my-shards --steps 0 --out untrained     the same shape and vocabulary, as a control

Run the same command again to resume exactly. Exit code 3: stopped by --stop-after."""

DISTILL = """General distillation: a small student learns from a pretrained teacher on raw text, as DistilBERT,
CompactBioBERT, TinyBERT and CMOW/CBOW-Hybrid do.

  geep-bench distill distilbert --teacher bert-base-uncased --corpus wiki.txt.zst --lang en --layers 6 --out my-distilbert
  geep-bench distill tinybert --teacher bert-base-uncased --corpus wiki.txt.zst --lang en --layers 4 --width 312 --out my-tinybert

The resulting folder is a backbone (--backbone en=DIR) and a student (student = "DIR" in a profile's [method.NAME]); that of
cmow-hybrid, which has no layers, a student only.
Run the same command again to resume exactly. Exit code 3: stopped by --stop-after."""

# What pretraining uses if an option is not given; distillation then uses the method's own recipe.
RECIPE = {
    "rows": 256,
    "accumulate": 1,
    "learning_rate": 5e-4,
    "warmup": 0.06,
    "weight_decay": 0.01,
    "clip": 1.0,
    "mask_share": 0.15,
    "dropout": 0.0,
    "precision": "auto",
    "seed": 0,
}


def paths(text: str) -> list[Path]:
    """Read ``"a,b"`` as paths."""
    found = [path(part.strip()) for part in text.split(",") if part.strip()]
    if not found:
        raise argparse.ArgumentTypeError("give at least one file")
    return found


def length(text: str) -> int:
    """Read the number of tokens in a row."""
    if (number := whole_number(1)(text)) < 8:
        raise argparse.ArgumentTypeError(f"'{text}': rows hold at least 8 tokens")
    return number


def _seconds(text: str) -> float:
    return 0.0 if text.strip() == "0" else positive_number(text)


def add_pretrain_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``geep-bench pretrain``."""
    data = _add_data(parser, language_required=False)
    data.add_argument("--shards-only", action="store_true", help="write the token ids and stop")
    data.add_argument(
        "--vocab",
        type=whole_number(1),
        default=20_000,
        metavar="N",
        help="size of the WordPiece vocabulary; default 20000",
    )
    data.add_argument(
        "--vocab-from", type=path, metavar="DIR", help="use the vocabulary of this folder instead of a new one"
    )

    shape = parser.add_argument_group("model")
    shape.add_argument("--layers", type=whole_number(1), metavar="N", help="default 12, or those of --init-from")
    shape.add_argument("--width", type=whole_number(1), metavar="N", help="default 256, or that of --init-from")
    shape.add_argument(
        "--heads", type=whole_number(1), metavar="N", help="default: width / 64, or those of --init-from"
    )
    shape.add_argument(
        "--intermediate", type=whole_number(1), metavar="N", help="default: 4 x width, or that of --init-from"
    )
    shape.add_argument(
        "--init-from",
        type=path,
        metavar="DIR",
        help="start from evenly spread layers of this backbone and, if the vocabularies are equal, from its other weights",
    )

    _add_amount(parser)
    recipe = _add_recipe(parser, RECIPE)
    recipe.add_argument("--multi-exit", action="store_true", help="learn to predict masked words after every layer")
    run = _add_run(parser)
    run.add_argument(
        "--compile", choices=("auto", "on", "off"), default="auto", help="torch.compile; default auto: on CUDA"
    )


def add_distill_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``geep-bench distill``."""
    parser.add_argument(
        "method", metavar="METHOD", help="a method with general distillation: distilbert, tinybert, cmow-hybrid"
    )
    parser.add_argument("--teacher", required=True, metavar="DIR_OR_ID", help="pretrained, not fine-tuned")
    _add_data(parser, language_required=True)

    student = parser.add_argument_group("student", "defaults are the method's, as published")
    student.add_argument(
        "--objective",
        choices=("distilbert", "compactbert"),
        help="distilbert: recipe of DistilBERT, or of CompactBioBERT, which also learns attention and states of all layers",
    )
    student.add_argument("--layers", type=whole_number(1), metavar="N", help="layers of the student")
    student.add_argument(
        "--width",
        type=whole_number(1),
        metavar="N",
        help="tinybert: width of the student; cmow-hybrid: of a token's vector, default 400",
    )
    student.add_argument(
        "--matrix",
        type=whole_number(1),
        metavar="N",
        help="cmow-hybrid: rows and columns of a token's matrices; default 20",
    )
    student.add_argument(
        "--intermediate", type=whole_number(1), metavar="N", help="tinybert: width of its inner layers"
    )
    student.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help="distilbert, cmow-hybrid: temperature of the teacher's and the student's softmax; default 2 (compactbert: 1)",
    )
    student.add_argument(
        "--alpha-ce",
        type=float,
        metavar="A",
        help="distilbert, cmow-hybrid: weight of the loss against the teacher; default 5",
    )
    student.add_argument(
        "--alpha-mlm",
        type=float,
        metavar="A",
        help="distilbert, cmow-hybrid: weight of the masked-word loss; default 2 (compactbert: 1)",
    )
    student.add_argument(
        "--alpha-cos", type=float, metavar="A", help="distilbert: weight of the cosine loss; default 1"
    )
    student.add_argument(
        "--alpha-layers", type=float, metavar="A", help="compactbert: weight of attention and states; default 3"
    )
    student.add_argument(
        "--soft-on",
        choices=("all", "masked"),
        help="distilbert, cmow-hybrid: tokens on which the student learns the teacher's words; default all (compactbert: masked)",
    )

    _add_amount(parser)
    _add_recipe(parser, {}, "defaults are the method's, as published")
    _add_run(parser)


def _add_data(parser: argparse.ArgumentParser, *, language_required: bool) -> argparse._ArgumentGroup:
    data = parser.add_argument_group("data")
    data.add_argument(
        "--corpus", type=paths, metavar="FILE,FILE", help=".txt (.gz, .zst), or .parquet/.csv/.tsv/.jsonl with text"
    )
    data.add_argument(
        "--lang",
        choices=("en", "zh"),
        required=language_required,
        help="language of the corpus" + ("" if language_required else "; needed with --corpus"),
    )
    data.add_argument(
        "--shards", type=path, metavar="DIR", help="folder of token ids: read if it exists, else written first"
    )
    data.add_argument("--length", type=length, default=128, metavar="T", help="tokens per row; default 128")
    data.add_argument("--about", default="", metavar="TEXT", help="for the model card: source and owner of the texts")
    data.add_argument("--licence", default="", metavar="ID", help="for the model card, e.g. cc-by-sa-4.0")
    return data


def _add_amount(parser: argparse.ArgumentParser) -> None:
    amount = parser.add_argument_group("how much").add_mutually_exclusive_group()
    amount.add_argument(
        "--steps", type=int, metavar="N", help="optimiser steps (default 10000); 0: an untrained control"
    )
    amount.add_argument("--tokens", type=positive_number, metavar="N", help="as many steps as N tokens need, e.g. 1e9")
    amount.add_argument(
        "--minutes", type=positive_number, metavar="M", help="as many steps as fit into M minutes, by the measured rate"
    )


def _add_recipe(
    parser: argparse.ArgumentParser, defaults: Mapping[str, Any], title: str | None = None
) -> argparse._ArgumentGroup:
    recipe = parser.add_argument_group("recipe", title)
    recipe.add_argument("--rows", type=int, metavar="N", help="rows per batch; default 256")
    recipe.add_argument("--accumulate", type=int, metavar="N", help="batches per optimiser step; default 1")
    recipe.add_argument("--learning-rate", type=float, metavar="R", help="peak learning rate")
    recipe.add_argument("--warmup", type=float, metavar="S", help="warm-up, as a share of the steps")
    recipe.add_argument("--weight-decay", type=float, metavar="W", help="weight decay of AdamW")
    recipe.add_argument("--clip", type=float, metavar="G", help="largest norm of the gradient")
    recipe.add_argument("--mask-share", type=float, metavar="S", help="share of the tokens to mask; default 0.15")
    recipe.add_argument("--dropout", type=float, metavar="P", help="dropout while training")
    recipe.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        help="of matrix products; auto: bfloat16 where the hardware has it",
    )
    recipe.add_argument("--seed", type=int, metavar="N", help="seed of weights, order and masks")
    for action in recipe._group_actions:
        if action.dest in defaults:
            action.default = defaults[action.dest]
            if "default" not in (action.help or ""):
                action.help = "; ".join(filter(None, (action.help, f"default {action.default}")))
    return recipe


def _add_run(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    run = parser.add_argument_group("run")
    run.add_argument("--out", type=path, metavar="DIR", help="folder of the resulting model")
    run.add_argument(
        "--work", type=path, metavar="DIR", help="folder of token ids and training states; default OUT/training"
    )
    run.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is a device")
    run.add_argument(
        "--save-every", type=_seconds, default=60.0, metavar="S", help="seconds between stored states; 0: every step"
    )
    run.add_argument("--stop-after", type=positive_number, metavar="M", help="save the state and stop after M minutes")
    run.add_argument("--fresh", action="store_true", help="delete the states and start again (token ids are kept)")
    return run
