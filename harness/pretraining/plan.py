"""What a run on raw text is to do, kept beside it, so that the same command goes on and another one is refused."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from harness.core import clock
from harness.core.errors import ConfigError, DeviceError, ResultError
from harness.core.files import write_json
from harness.encoder.masked_words import MaskedWordModel
from harness.encoder.model import parameters_of
from harness.pretraining import snapshot
from harness.pretraining.general_distillation import Distillation
from harness.pretraining.loop import Trainer, steps_for
from harness.pretraining.recipe import PretrainRecipe
from harness.pretraining.text import corpus, shards, vocabulary
from harness.pretraining.text.batches import Stream

UNFINISHED = 3
DEFAULT_STEPS = 10_000


def check_device(device: str) -> None:
    """Complain about a device that is not there.

    Raises:
        DeviceError: this machine has none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            "--device cuda: this machine has no usable CUDA device: leave --device out, or say --device cpu"
        )


def amount(args: argparse.Namespace) -> dict[str, Any]:
    """How much is to be done, by the option that says so."""
    given = {"minutes": args.minutes, "tokens": args.tokens, "steps": args.steps}
    name, value = next(((key, value) for key, value in given.items() if value is not None), ("steps", DEFAULT_STEPS))
    return {name: value}


def shards_for(
    args: argparse.Namespace, work: Path | None, say: Callable[[str], None], tokenizer: Tokenizer | None = None
) -> shards.Shards:
    """The shards that were asked for, made if they are not there.

    Args:
        say: tells what takes long.
        tokenizer: whose ids they hold; one that is given by --vocab-from, or trained, where it is ``None``.

    Raises:
        ConfigError, DataError: the corpus or the shards cannot be used, or are others than those that were asked for.
    """
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
        sources = [corpus.corpus_file(path) for path in args.corpus]
        given = tokenizer or (vocabulary.load(args.vocab_from) if args.vocab_from else None)
        vocab = args.vocab if given is None else given.get_vocab_size()
        say(f"tokenising {', '.join(one.path.name for one in sources)} (once)")
        shards.make(sources, folder, language=args.lang, vocab=vocab, length=args.length, tokenizer=given)
    found = shards.Shards.open(folder)
    if args.lang and args.lang != found.facts["language"]:
        raise ConfigError(f"--lang {args.lang}, but the shards in {folder} are {found.facts['language']}: name others")
    if tokenizer and vocabulary.fingerprint(tokenizer) != found.facts["vocabulary"]:
        raise ConfigError(
            f"the shards in {folder} hold ids of another vocabulary than the teacher's: name another folder with --shards or "
            "--out"
        )
    if args.corpus:
        if "pairs" not in found.facts["train"] and any(corpus.corpus_file(path).form != "txt" for path in args.corpus):
            say(
                f"the shards in {folder} are of a version that read the texts of a pair one by one; delete them for pairs"
            )
        asked = sorted(
            (one["name"], one["sha256"]) for one in (corpus.corpus_file(path).facts() for path in args.corpus)
        )
        if asked != sorted((one["name"], one["sha256"]) for one in found.facts["sources"]):
            raise ConfigError(
                f"the shards in {folder} were made from other files: name another folder with --shards or --out"
            )
    return found


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


def load(work: Path, asked: dict[str, Any]) -> dict[str, Any] | None:
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


def forget(work: Path) -> None:
    for path in [work / "plan.json", work / "curve.jsonl", *snapshot.files(work)]:
        path.unlink(missing_ok=True)


def steps_of(args: argparse.Namespace, trainer: Trainer, data: shards.Shards) -> tuple[int, float | None]:
    """Steps to do, and seconds per step where they were measured."""
    if args.minutes is not None:
        seconds = trainer.seconds_per_step()
        return steps_for(args.minutes, seconds), seconds
    if args.tokens is not None:
        per_row = data.train_tokens() / trainer.stream.rows
        return max(1, math.ceil(args.tokens / (per_row * args.rows * args.accumulate))), None
    return DEFAULT_STEPS if args.steps is None else args.steps, None


def carry_out(
    args: argparse.Namespace,
    data: shards.Shards,
    model: MaskedWordModel | Distillation,
    recipe: PretrainRecipe,
    asked: dict[str, Any],
    work: Path,
    *,
    device: str,
    compiled: bool,
    began: float,
    say: Callable[[str], None],
) -> tuple[Trainer, bool] | None:
    """Train to the end, from the newest state if there is one.

    Args:
        model: on the CPU, as it starts; moved to ``device`` and trained in place.
        asked: what has to be the same for a run to go on.
        work: where plan, states and curve lie.
        began: when the command did, in seconds.

    Returns:
        The trainer, and whether it was at its end already; ``None`` where --stop-after came first.

    Raises:
        GeepBenchError: the run that is there is another one, the loss is not finite, or the disk or the memory is full.
    """
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResultError(f"cannot write {work}: {error.strerror}: choose another folder with --out") from error
    if args.fresh:
        forget(work)
    plan = load(work, asked)
    model.to(device)
    stream = Stream(data, size=recipe.rows, share=recipe.mask_share, seed=recipe.seed, device=device)
    trainer = Trainer(model, stream, replace(recipe, steps=plan["steps"] if plan else 0), work, compiled=compiled)
    try:
        done = plan is not None and trainer.resume() and trainer.progress.step >= plan["steps"]
        if not done and args.steps != 0:
            trainer.prepare()
        if plan is None:
            steps, seconds = steps_of(args, trainer, data)
            plan = {"asked": asked, "steps": steps, "measured_seconds_per_step": seconds}
            write_json(work / "plan.json", plan)
            trainer.curve.cut(0)
        trainer.recipe = replace(recipe, steps=plan["steps"])
        shape = model.encoder.shape
        say(
            f"{shape.layers} x {shape.width}, {parameters_of(model):,} parameters, {data.length * stream.rows:,} tokens an "
            f"epoch; step {trainer.progress.step:,} of {plan['steps']:,} on {device}"
        )
        if trainer.progress.step < plan["steps"]:
            limit = 60 * args.stop_after - (clock.now() - began) if args.stop_after else math.inf
            if not trainer.train(save_every=args.save_every, stop_after=limit):
                at = f"{trainer.progress.step:,} of {plan['steps']:,}"
                say(f"stopped at step {at}; the same command goes on from there")
                return None
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            f"the device's memory ran out with --rows {args.rows}: halve it and double --accumulate (with --fresh)"
        ) from error
    return trainer, done
