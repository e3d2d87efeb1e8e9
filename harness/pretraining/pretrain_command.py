"""``geep-bench pretrain``: options in, a backbone folder out.

::

    OUT/config.json, model*.safetensors, vocab.txt, ...     the backbone
    OUT/README.md, OUT/pretraining.json                     its card, and the facts that it is made from
    OUT/training/shards/                                    token ids, unless --shards names another place
    OUT/training/plan.json                                  what is being trained; a second call must ask for the same
    OUT/training/state-*.safetensors, curve.jsonl           the newest states; losses by step

What is in ``training`` is needed to go on, and by nobody who uses the backbone.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from harness.core import clock
from harness.core.environment import environment_facts
from harness.core.errors import ConfigError, ResultError
from harness.encoder.backbone import default_device
from harness.encoder.masked_words import MaskedWordModel
from harness.encoder.model import parameters_of
from harness.encoder.shape import EncoderShape
from harness.pretraining import export, model_card, plan, start
from harness.pretraining.evaluate import perplexity
from harness.pretraining.loop import Trainer
from harness.pretraining.plan import UNFINISHED
from harness.pretraining.recipe import PretrainRecipe
from harness.pretraining.text import shards, vocabulary


def _say(text: str) -> None:
    print(f"pretrain: {text}", file=sys.stderr, flush=True)


def _recipe(args: argparse.Namespace, steps: int) -> PretrainRecipe:
    given = {field.name: getattr(args, field.name) for field in fields(PretrainRecipe) if field.name != "steps"}
    return PretrainRecipe(steps=steps, **given)


def _asked(
    args: argparse.Namespace, data: shards.Shards, shape: EncoderShape, recipe: PretrainRecipe
) -> dict[str, Any]:
    """What has to be the same for a run to go on."""
    return {
        "shape": shape.to_dict(),
        "recipe": {key: value for key, value in recipe.to_dict().items() if key != "steps"},
        "amount": plan.amount(args),
        "shards": data.fingerprint,
        "init_from": args.init_from.resolve().name if args.init_from else None,
    }


def run(args: argparse.Namespace) -> int:
    """The command; returns the exit code.

    Raises:
        GeepBenchError: an input cannot be used, the loss is not finite, the disk is full, or there is no such device.
    """
    if args.out is None and not args.shards_only:
        raise ConfigError("say where the backbone shall go with --out DIR (or make shards only, with --shards-only)")
    began = clock.now()
    device = args.device or default_device()
    plan.check_device(device)
    recipe = _recipe(args, args.steps or 0)
    work = args.work or (args.out / "training" if args.out else None)
    if not args.shards_only:  # before anything that takes long
        start.shape_for(args.layers, args.width, args.heads, args.intermediate, args.vocab, args.length)
    data = plan.shards_for(args, work, _say)
    if args.shards_only:
        facts = data.facts
        print(
            f"shards: {data.folder}, {facts['train']['tokens']:,} tokens of {facts['train']['documents']:,} documents"
        )
        return 0
    assert work is not None
    shape = start.shape_for(args.layers, args.width, args.heads, args.intermediate, data.vocab_size, data.length)
    model = start.fresh(shape, recipe.dropout, recipe.seed)
    origin: dict[str, Any] | None = None
    if args.init_from:
        origin = start.take_from(model, args.init_from, vocabulary.words(data.tokenizer))
    found = plan.carry_out(
        args,
        data,
        model,
        recipe,
        _asked(args, data, shape, recipe),
        work,
        device=device,
        compiled=args.compile == "on" or (args.compile == "auto" and device == "cuda"),
        began=began,
        say=_say,
    )
    if found is None:
        return UNFINISHED
    _finish(args, data, shape, model, found[0], origin, found[1])
    return 0


def _finish(
    args: argparse.Namespace,
    data: shards.Shards,
    shape: EncoderShape,
    model: MaskedWordModel,
    trainer: Trainer,
    origin: dict[str, Any] | None,
    kept: bool,
) -> None:
    """Round, measure, write.

    Args:
        kept: the weights were there before, so that what else is known of them still holds.
    """
    recipe, progress = trainer.recipe, trainer.progress
    export.round_to_half(model)
    held = perplexity(model, data, share=recipe.mask_share, every=recipe.multi_exit)
    two = data.paired or (origin is not None and origin["embeddings"])
    # The shape is that with the dropout that fine-tuning is used to.
    names = export.write(args.out, model, shape, data.tokenizer, one_segment=not two)
    machine = environment_facts()
    cpu = f"{machine['cpu']}, {machine['torch_threads']} threads"
    before = _facts(args.out) if kept else {}
    facts = {
        "language": data.facts["language"],
        "licence": args.licence,
        "about": args.about,
        "sources": data.facts["sources"],
        "train": data.facts["train"],
        "heldout": data.facts["heldout"],
        "shape": shape.to_dict(),
        "parameters": parameters_of(model),
        "bytes": sum((args.out / name).stat().st_size for name in names),
        "recipe": recipe.to_dict(),
        "objective": "masked words from every layer, mean of the losses" if recipe.multi_exit else "masked words",
        "masking": "runs of characters" if data.facts["language"] == "zh" else "whole words",
        "start": origin,
        "run": {
            **vars(progress),
            "loss": progress.loss if math.isfinite(progress.loss) else None,
            "epochs": progress.step * recipe.accumulate / trainer.stream.per_epoch,
            "flops": progress.step * trainer.flops_per_step(),
            "peak": trainer.peak or before.get("run", {}).get("peak"),
            "bf16": trainer.bf16,
            "compiled": trainer.compiled,
        },
        "device": machine["gpu"]["name"] if trainer.device.type == "cuda" else cpu,
        "fingerprint": machine,
        "evaluation": held,
        "accuracy": before.get("accuracy", []),
    }
    model_card.write(args.out, facts)
    said = (
        "-"
        if held["perplexity"] is None
        else f"{held['perplexity']:.2f} (by frequency alone {held['by_frequency']:.0f})"
    )
    print(f"held-out perplexity: {said}")
    print(
        f"backbone: {args.out} ({facts['bytes'] / 2**20:.1f} MiB in {len(names)} file{'s' if len(names) > 1 else ''})"
    )


def _facts(folder: Path) -> dict[str, Any]:
    """What was written about a backbone before; nothing, if that is gone."""
    path = folder / model_card.FACTS
    if not path.is_file():
        return {}
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ResultError(f"{path} is damaged ({error}): delete it") from error
    return found
