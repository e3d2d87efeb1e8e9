"""``geep-bench pretrain``: pretrain a backbone on raw text.

::

    OUT/config.json, model*.safetensors, vocab.txt, ...     the backbone
    OUT/README.md, OUT/pretraining.json                     its model card, and the facts in it
    OUT/training/shards/                                    token ids, unless --shards names another folder
    OUT/training/plan.json                                  the settings of the run, which a second call must repeat
    OUT/training/state-*.safetensors, curve.jsonl           the newest states; losses by step

``OUT/training`` is needed only to resume.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from harness.core import clock
from harness.core.errors import ConfigError, ResultError
from harness.core.text_formats import read_json
from harness.encoder.checkpoint import content_of, read_shape
from harness.encoder.families.bert_family import BERT
from harness.encoder.families.family import Family
from harness.encoder.masked_words import MaskedWordModel
from harness.encoder.shape import EncoderShape
from harness.pretraining import export, model_card, plan, start
from harness.pretraining.evaluate import perplexity
from harness.pretraining.loop import Trainer
from harness.pretraining.recipe import PretrainRecipe
from harness.pretraining.text import shards, vocabulary


def run(args: argparse.Namespace) -> int:
    """Run the command and return the exit code.

    Raises:
        GeepBenchError: an input is not valid, the loss is not finite, the disk is full, or the device does not exist.
    """
    if args.out is None and not args.shards_only:
        raise ConfigError("no output folder: name one for the backbone with --out DIR (or use --shards-only)")
    began = clock.now()
    device = plan.device_of(args)
    recipe = PretrainRecipe.from_options(args)
    work = args.work or (args.out / "training" if args.out else None)
    if not args.shards_only:  # checked before anything that takes long
        sizes = args.layers, args.width, args.heads, args.intermediate
        theirs = read_shape(args.init_from) if args.init_from else None
        start.shape_for(*sizes, args.vocab, args.length, theirs)
    data = plan.shards_for(args, work)
    if args.shards_only:
        facts = data.facts["train"]
        print(f"shards: {data.folder}, {facts['tokens']:,} tokens of {facts['documents']:,} documents")
        return 0
    assert work is not None
    shape = start.shape_for(*sizes, data.vocab_size, data.length, theirs)
    origin = start.Origin.of(args.init_from, vocabulary.words(data.tokenizer)) if args.init_from else None
    shape = origin.shaped(shape) if origin else shape
    model = start.fresh(shape, recipe.dropout, recipe.seed)
    taken = start.take_from(model, origin) if origin else None
    asked = {
        "shape": shape.to_dict(),
        **plan.asked(args, recipe, data),
        "init_from": f"{args.init_from.resolve().name} ({content_of(args.init_from)})" if args.init_from else None,
    }
    compiled = args.compile == "on" or (args.compile == "auto" and device == "cuda")
    size = f"{shape.layers} x {shape.width}"
    found = plan.carry_out(
        args, data, model, recipe, asked, work, size=size, device=device, compiled=compiled, began=began
    )
    if found is None:
        return plan.UNFINISHED
    _finish(args, data, shape, model, found[0], taken, found[1], origin.family if origin else BERT)
    return 0


def _finish(
    args: argparse.Namespace,
    data: shards.Shards,
    shape: EncoderShape,
    model: MaskedWordModel,
    trainer: Trainer,
    origin: dict[str, Any] | None,
    finished_before: bool,
    family: Family,
) -> None:
    """Round the weights to float16, evaluate them, and write the backbone's folder.

    Args:
        origin: facts about the weights that training started from.
        finished_before: an earlier call finished the training, so that its facts about these weights still hold.
        family: that the folder is of.
    """
    recipe, progress = trainer.recipe, trainer.progress
    export.round_to_half(model)
    held = perplexity(model, data, share=recipe.mask_share, every=recipe.multi_exit)
    second_used = data.paired or (origin is not None and origin["embeddings"])
    before = _facts(args.out) if finished_before else {}
    facts = {
        **export.described(model, shape, family),
        "heldout": data.facts["heldout"],
        "objective": "masked words from every layer, mean of the losses" if recipe.multi_exit else "masked words",
        "masking": "runs of characters" if data.facts["language"] == "zh" else "whole words",
        "start": origin,
        "length": data.length,
        "run": {
            "epochs": progress.step * recipe.accumulate / trainer.stream.per_epoch,
            "flops": progress.step * trainer.flops_per_step(),
            "peak": trainer.peak or before.get("run", {}).get("peak"),
            "bf16": trainer.bf16,
            "compiled": trainer.compiled,
        },
        "evaluation": held,
        "accuracy": before.get("accuracy", []),
    }
    names = export.write(args.out, model, shape, data.tokenizer, family=family, one_segment=not second_used)
    written = model_card.publish("backbone", args, trainer, data, names, facts)
    known = "-" if held["perplexity"] is None else "{perplexity:.2f} (from word frequencies alone: {by_frequency:.0f})"
    print(f"held-out perplexity: {known.format(**held)}")
    print(written)


def _facts(folder: Path) -> dict[str, Any]:
    """Return the facts of an earlier call; empty if there are none."""
    path = folder / model_card.FACTS["backbone"]
    try:
        return dict(read_json(path)) if path.is_file() else {}
    except ValueError as error:
        raise ResultError(f"{path} is damaged ({error}): delete it") from error
