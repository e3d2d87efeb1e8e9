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
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from harness.encoder.backbone import default_device
from harness.encoder.model import parameters_of
from harness.encoder.shape import EncoderShape
from harness.errors import ConfigError, DeviceError, ResultError
from harness.fingerprint import fingerprint
from harness.measure import clock
from harness.pretraining import card, corpus, export, shards, snapshot, start, vocabulary
from harness.pretraining.batches import Stream
from harness.pretraining.evaluate import perplexity
from harness.pretraining.loop import Trainer, steps_for
from harness.pretraining.recipe import PretrainRecipe
from harness.store import write_json

UNFINISHED = 3
DEFAULT_STEPS = 10_000


def _say(text: str) -> None:
    print(f"pretrain: {text}", file=sys.stderr, flush=True)


def _shards(args: argparse.Namespace, work: Path | None) -> shards.Shards:
    """The shards that were asked for, made if they are not there."""
    folder = args.shards or (work / "shards" if work else None)
    if folder is None:
        raise ConfigError("--shards-only: say where to with --shards DIR")
    if not (folder / "shards.json").is_file():
        if not args.corpus:
            raise ConfigError(
                f"no shards in {folder}: give raw text with --corpus FILE[,FILE], or shards with --shards DIR"
            )
        if not args.lang:
            raise ConfigError("--corpus needs --lang en or --lang zh: characters are counted and masked differently")
        if folder.exists():
            raise ConfigError(f"{folder} is there, but holds no shards: name another folder with --shards")
        sources = [corpus.source(path) for path in args.corpus]
        given = vocabulary.load(args.vocab_from) if args.vocab_from else None
        _say(f"tokenising {', '.join(one.path.name for one in sources)} (once)")
        shards.make(sources, folder, language=args.lang, vocab=args.vocab, length=args.length, tokenizer=given)
    found = shards.Shards.open(folder)
    if args.lang and args.lang != found.facts["language"]:
        raise ConfigError(f"--lang {args.lang}, but the shards in {folder} are {found.facts['language']}: name others")
    if args.corpus:
        asked = sorted((one["name"], one["sha256"]) for one in (corpus.source(path).facts() for path in args.corpus))
        if asked != sorted((one["name"], one["sha256"]) for one in found.facts["sources"]):
            raise ConfigError(
                f"the shards in {folder} were made from other files: name another folder with --shards or --out"
            )
    return found


def _recipe(args: argparse.Namespace, steps: int) -> PretrainRecipe:
    given = {field.name: getattr(args, field.name) for field in fields(PretrainRecipe) if field.name != "steps"}
    return PretrainRecipe(steps=steps, **given)


def _asked(
    args: argparse.Namespace, data: shards.Shards, shape: EncoderShape, recipe: PretrainRecipe
) -> dict[str, Any]:
    """What has to be the same for a run to go on."""
    amount = {"minutes": args.minutes, "tokens": args.tokens, "steps": args.steps}
    name, value = next(((key, value) for key, value in amount.items() if value is not None), ("steps", DEFAULT_STEPS))
    return {
        "shape": shape.to_dict(),
        "recipe": {key: value for key, value in recipe.to_dict().items() if key != "steps"},
        "amount": {name: value},
        "shards": data.fingerprint,
        "init_from": args.init_from.resolve().name if args.init_from else None,
    }


def _same(old: dict[str, Any], new: dict[str, Any], work: Path) -> None:
    """Complain about the first thing in which a plan differs from what is asked now."""

    def flat(tree: dict[str, Any]) -> dict[str, Any]:
        parts = {key: value for key, value in tree.items() if not isinstance(value, dict)}
        for key, value in tree.items():
            if isinstance(value, dict):
                parts |= {f"{key}: {name}": inner for name, inner in value.items()}
        return parts

    before, now = flat(old), flat(new)
    for key in dict.fromkeys([*now, *before]):
        if before.get(key) != now.get(key):
            raise ConfigError(
                f"{work} holds a run with {key} = {before.get(key)}, asked for is {now.get(key)}: name another folder with "
                "--out, or start anew with --fresh"
            )


def _plan(work: Path, asked: dict[str, Any]) -> dict[str, Any] | None:
    """The plan of a run that was begun, if it is the one that is asked for."""
    path = work / "plan.json"
    if not path.is_file():
        if snapshot.files(work):
            raise ResultError(f"{work} holds states but no plan.json: name another folder with --out, or say --fresh")
        return None
    try:
        plan: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        _same(plan["asked"], asked, work)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResultError(f"{path} is damaged ({error!r}): start anew with --fresh") from error
    return plan


def _forget(work: Path) -> None:
    for path in [work / "plan.json", work / "curve.jsonl", *snapshot.files(work)]:
        path.unlink(missing_ok=True)


def _steps(args: argparse.Namespace, trainer: Trainer, data: shards.Shards) -> tuple[int, float | None]:
    """Steps to do, and seconds per step where they were measured."""
    if args.minutes is not None:
        seconds = trainer.seconds_per_step()
        return steps_for(args.minutes, seconds), seconds
    if args.tokens is not None:
        per_row = data.train_tokens() / trainer.stream.rows
        return max(1, math.ceil(args.tokens / (per_row * args.rows * args.accumulate))), None
    return DEFAULT_STEPS if args.steps is None else args.steps, None


def run(args: argparse.Namespace) -> int:
    """The command; returns the exit code.

    Raises:
        GeepBenchError: an input cannot be used, the loss is not finite, the disk is full, or there is no such device.
    """
    if args.out is None and not args.shards_only:
        raise ConfigError("say where the backbone shall go with --out DIR (or make shards only, with --shards-only)")
    began = clock.now()
    device = args.device or default_device()
    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            "--device cuda: this machine has no usable CUDA device: leave --device out, or say --device cpu"
        )
    recipe = _recipe(args, args.steps or 0)
    work = args.work or (args.out / "training" if args.out else None)
    if not args.shards_only:  # before anything that takes long
        start.shape_for(args.layers, args.width, args.heads, args.intermediate, args.vocab, args.length)
    data = _shards(args, work)
    if args.shards_only:
        facts = data.facts
        print(
            f"shards: {data.folder}, {facts['train']['tokens']:,} tokens of {facts['train']['documents']:,} documents"
        )
        return 0
    assert work is not None
    shape = start.shape_for(args.layers, args.width, args.heads, args.intermediate, data.vocab_size, data.length)
    try:
        return _train(args, data, shape, recipe, work, device, began)
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            f"the device's memory ran out with --rows {args.rows}: halve it and double --accumulate (with --fresh)"
        ) from error


def _train(
    args: argparse.Namespace,
    data: shards.Shards,
    shape: EncoderShape,
    recipe: PretrainRecipe,
    work: Path,
    device: str,
    began: float,
) -> int:
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResultError(f"cannot write {work}: {error.strerror}: choose another folder with --out") from error
    if args.fresh:
        _forget(work)
    asked = _asked(args, data, shape, recipe)
    plan = _plan(work, asked)
    model = start.fresh(shape, recipe.dropout, recipe.seed)
    origin: dict[str, Any] | None = None
    if args.init_from:
        layers, same = start.take_from(model, args.init_from, vocabulary.words(data.tokenizer))
        origin = {"name": args.init_from.resolve().name, "layers": layers, "embeddings": same}
    model.to(device)
    stream = Stream(data, size=recipe.rows, share=recipe.mask_share, seed=recipe.seed, device=device)
    compiled = args.compile == "on" or (args.compile == "auto" and device == "cuda")
    trainer = Trainer(model, stream, replace(recipe, steps=plan["steps"] if plan else 0), work, compiled=compiled)
    done = plan is not None and trainer.resume() and trainer.progress.step >= plan["steps"]
    if not done and args.steps != 0:
        trainer.prepare()
    if plan is None:
        steps, seconds = _steps(args, trainer, data)
        plan = {"asked": asked, "steps": steps, "measured_seconds_per_step": seconds}
        write_json(work / "plan.json", plan)
        trainer.curve.cut(0)
    trainer.recipe = replace(recipe, steps=plan["steps"])
    _say(
        f"{shape.layers} x {shape.width}, {parameters_of(model):,} parameters, {data.length * stream.rows:,} tokens an epoch; "
        f"step {trainer.progress.step:,} of {plan['steps']:,} on {device}"
    )
    if trainer.progress.step < plan["steps"]:
        limit = 60 * args.stop_after - (clock.now() - began) if args.stop_after else math.inf
        if not trainer.train(save_every=args.save_every, stop_after=limit):
            _say(f"stopped at step {trainer.progress.step:,} of {plan['steps']:,}; the same command goes on from there")
            return UNFINISHED
    _finish(args, data, shape, trainer, origin, done)
    return 0


def _finish(
    args: argparse.Namespace,
    data: shards.Shards,
    shape: EncoderShape,
    trainer: Trainer,
    origin: dict[str, Any] | None,
    kept: bool,
) -> None:
    """Round, measure, write.

    Args:
        kept: the weights were there before, so that what else is known of them still holds.
    """
    model, recipe, progress = trainer.model, trainer.recipe, trainer.progress
    export.round_to_half(model)
    held = perplexity(model, data, share=recipe.mask_share, every=recipe.multi_exit)
    names = export.write(args.out, model, shape, data.tokenizer)  # with the dropout that fine-tuning is used to
    machine = fingerprint()
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
    card.write(args.out, facts)
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
    path = folder / card.FACTS
    if not path.is_file():
        return {}
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ResultError(f"{path} is damaged ({error}): delete it") from error
    return found
