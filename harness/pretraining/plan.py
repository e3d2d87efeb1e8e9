"""The plan of a run on raw text. It is stored with the run, so that only the same command can resume it."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from harness.core import clock
from harness.core.errors import ConfigError, DeviceError, ResultError
from harness.core.files import content_key, write_json
from harness.core.text_formats import read_json
from harness.encoder.backbone import default_device
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


def device_of(args: argparse.Namespace) -> str:
    """Return the device that the options name; by default CUDA where there is one.

    Raises:
        DeviceError: this machine has no CUDA device.
    """
    device: str = args.device or default_device()
    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceError("--device cuda: this machine has no usable CUDA device: use --device cpu")
    return device


def _progress(args: argparse.Namespace, text: str) -> None:
    print(f"{args.command}: {text}", file=sys.stderr, flush=True)


def asked(args: argparse.Namespace, recipe: PretrainRecipe, data: shards.Shards) -> dict[str, Any]:
    """Return the settings that pretraining and distillation share, and that a command must repeat to resume a run."""
    given = {"minutes": args.minutes, "tokens": args.tokens, "steps": args.steps}
    name, value = next(((key, value) for key, value in given.items() if value is not None), ("steps", DEFAULT_STEPS))
    return {"recipe": recipe.model_dump(exclude={"steps"}), "amount": {name: value}, "shards": data.fingerprint}


def shards_for(args: argparse.Namespace, work: Path | None, tokenizer: Tokenizer | None = None) -> shards.Shards:
    """Open the shards that the options name; make them first if they do not exist.

    Args:
        tokenizer: of their token ids; ``None`` to use --vocab-from, or to train one.

    Raises:
        ConfigError, DataError: the corpus or the shards are not valid, or do not match the options.
    """
    folder = args.shards or (work / "shards" if work else None)
    if folder is None:
        raise ConfigError("--shards-only needs a folder: name it with --shards DIR")
    named = "the teacher" if tokenizer else f"--vocab-from {args.vocab_from}"
    given = tokenizer or (vocabulary.load(args.vocab_from) if args.vocab_from else None)
    if not (folder / "shards.json").is_file():
        if not args.corpus:
            raise ConfigError(f"no shards in {folder}: give text with --corpus FILE[,FILE], or --shards DIR")
        if not args.lang:
            raise ConfigError("--corpus needs --lang en or --lang zh: the languages are masked differently")
        if folder.exists():
            raise ConfigError(f"{folder} exists, but has no shards: name another folder with --shards")
        sources = [corpus.corpus_file(path) for path in args.corpus]
        vocab = args.vocab if given is None else given.get_vocab_size()
        _progress(args, f"tokenising {', '.join(one.path.name for one in sources)} (once)")
        shards.make(sources, folder, language=args.lang, vocab=vocab, length=args.length, tokenizer=given)
    found = shards.Shards.open(folder)
    if args.lang and args.lang != found.facts["language"]:
        raise ConfigError(f"--lang {args.lang}, but the shards in {folder} are {found.facts['language']}: name others")
    if given and vocabulary.fingerprint(given) != found.facts["vocabulary"]:
        raise ConfigError(f"the shards in {folder} have another vocabulary than {named}: name another --shards")
    if args.corpus:
        if "pairs" not in found.facts["train"] and any(corpus.corpus_file(path).form != "txt" for path in args.corpus):
            _progress(args, f"the shards in {folder} were made without pairs of texts; delete them to use pairs")
        wanted = sorted(
            (one["name"], one["sha256"]) for one in (corpus.corpus_file(path).facts() for path in args.corpus)
        )
        if wanted != sorted((one["name"], one["sha256"]) for one in found.facts["sources"]):
            raise ConfigError(f"the shards in {folder} were made from other files: name another --shards")
    return found


def _same(old: dict[str, Any], new: dict[str, Any], work: Path) -> None:
    """Check that a plan has the settings that are asked for now; the error names the first difference."""

    def flat(tree: dict[str, Any]) -> dict[str, Any]:
        parts = {key: value for key, value in tree.items() if not isinstance(value, dict)}
        inner = {key: value for key, value in tree.items() if isinstance(value, dict)}
        return parts | {f"{key}: {name}": value for key, table in inner.items() for name, value in table.items()}

    before, now = flat(old), flat(new)
    for key in dict.fromkeys([*now, *before]):
        if before.get(key) != now.get(key):
            raise ConfigError(
                f"{work} has a run with {key} = {before.get(key)}, but {now.get(key)} was asked for: name another folder with "
                "--out, or start again with --fresh"
            )


def load(work: Path, asked: dict[str, Any]) -> dict[str, Any] | None:
    """Read the plan of a run that has begun; ``None`` if there is none.

    Raises:
        ConfigError: it has other settings.
        ResultError: it is damaged or missing.
    """
    path = work / "plan.json"
    if not path.is_file():
        if snapshot.files(work):
            raise ResultError(f"{work} has states but no plan.json: name another folder with --out, or use --fresh")
        return None
    try:
        plan: dict[str, Any] = read_json(path)
        # Plans of earlier versions have no checksum.
        if plan.pop("checksum", None) not in (None, content_key(plan)):
            raise ValueError("it does not have its stored checksum")
        _same(plan["asked"], asked, work)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResultError(f"{path} is damaged ({error!r}): start again with --fresh") from error
    return plan


def _steps(args: argparse.Namespace, trainer: Trainer, data: shards.Shards) -> tuple[int, float | None]:
    """Return the number of steps, and the seconds per step if they were measured."""
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
    size: str,
    device: str,
    compiled: bool,
    began: float,
) -> tuple[Trainer, bool] | None:
    """Train to the end, starting from the newest state if there is one.

    Args:
        model: with initial weights on the CPU; moved to ``device`` and trained in place.
        asked: settings that must be the same to resume a run.
        work: folder of plan, states and curve.
        size: the model's dimensions, for the terminal.
        began: start of the command, in seconds.

    Returns:
        The trainer, and whether an earlier call had finished the training; ``None`` if --stop-after ended this one.

    Raises:
        GeepBenchError: ``work`` has another run, the loss is not finite, or the disk or the memory is full.
    """
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResultError(f"cannot write {work}: {error.strerror}: choose another folder with --out") from error
    if args.fresh:  # shards are kept
        for path in [work / "plan.json", work / "curve.jsonl", *snapshot.files(work)]:
            path.unlink(missing_ok=True)
    plan = load(work, asked)
    model.to(device)
    stream = Stream(data, size=recipe.rows, share=recipe.mask_share, seed=recipe.seed, device=device)
    trainer = Trainer(
        model, stream, recipe.model_copy(update={"steps": plan["steps"] if plan else 0}), work, compiled=compiled
    )
    try:
        done = plan is not None and trainer.resume() and trainer.progress.step >= plan["steps"]
        if not done and args.steps != 0:
            trainer.prepare()
        if plan is None:
            steps, seconds = _steps(args, trainer, data)
            plan = {"asked": asked, "steps": steps, "measured_seconds_per_step": seconds}
            write_json(work / "plan.json", {**plan, "checksum": content_key(plan)})
            trainer.cut_curve(0)
        trainer.recipe = recipe.model_copy(update={"steps": plan["steps"]})
        _progress(
            args,
            f"{size}, {parameters_of(model):,} parameters, {data.length * stream.rows:,} tokens per "
            f"epoch; step {trainer.progress.step:,} of {plan['steps']:,} on {device}",
        )
        if trainer.progress.step < plan["steps"]:
            limit = 60 * args.stop_after - (clock.now() - began) if args.stop_after else math.inf
            if not trainer.train(save_every=args.save_every, stop_after=limit):
                at = f"{trainer.progress.step:,} of {plan['steps']:,}"
                _progress(args, f"stopped at step {at}; run the same command again to resume")
                return None
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            f"the device's memory is full with --rows {args.rows}: halve it and double --accumulate (with --fresh)"
        ) from error
    return trainer, done
