"""``geep-bench distill``: a teacher and raw text in, a student's folder out.

::

    OUT/config.json, model*.safetensors, vocab.txt, ...     the student
    OUT/README.md, OUT/distillation.json                    its card, and the facts that it is made from
    OUT/training/                                           shards, plan, states and curve, as ``geep-bench pretrain`` has them

What the student learns is the method's (:mod:`harness.pretraining.general_distillation`); shards, masks, loop and states are those
that backbones are pretrained with.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import torch

from harness import registry
from harness.contracts import DistilsGenerally
from harness.core import clock
from harness.core.environment import environment_facts
from harness.core.errors import ConfigError, MethodError, UnknownNameError
from harness.core.files import write_atomic, write_json
from harness.encoder.backbone import Backbone, content_of, default_device, load_backbone
from harness.encoder.model import parameters_of
from harness.pretraining import export, model_card, plan
from harness.pretraining.evaluate import held_out_loss, perplexity
from harness.pretraining.general_distillation import Distillation
from harness.pretraining.loop import Trainer
from harness.pretraining.plan import UNFINISHED
from harness.pretraining.recipe import PretrainRecipe
from harness.pretraining.text import shards, vocabulary

FACTS = "distillation.json"
# Options that are settings of the method, which rejects those that it does not know.
SETTINGS = ("layers", "width", "intermediate", "temperature", "alpha_ce", "alpha_mlm", "alpha_cos", "soft_on")


def _say(text: str) -> None:
    print(f"distill: {text}", file=sys.stderr, flush=True)


def able() -> list[str]:
    """Names of the methods whose students learn on raw text."""
    return [name for name in registry.names() if isinstance(registry.get(name), DistilsGenerally)]


def _method(name: str) -> DistilsGenerally:
    if name not in registry.names():
        raise UnknownNameError("method", name, able())
    method = registry.get(name)
    if not isinstance(method, DistilsGenerally):
        raise ConfigError(f"method '{name}' has no general distillation: choose one of {', '.join(able())}")
    return method


def _recipe(args: argparse.Namespace, method: DistilsGenerally) -> PretrainRecipe:
    """Defaults, the method's on top, and what was said on top of that."""
    names = [field.name for field in fields(PretrainRecipe) if hasattr(args, field.name)]
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    return PretrainRecipe(**{**method.general_recipe, **given})


def run(args: argparse.Namespace) -> int:
    """The command; returns the exit code.

    Raises:
        GeepBenchError: an input cannot be used, the loss is not finite, the disk is full, or there is no such device.
    """
    if args.out is None:
        raise ConfigError("say where the student shall go with --out DIR")
    began = clock.now()
    method = _method(args.method)
    device = args.device or default_device()
    plan.check_device(device)
    recipe = _recipe(args, method)
    teacher = load_backbone(args.teacher, args.lang, device=device)
    if args.length > teacher.shape.max_positions:
        raise ConfigError(
            f"--length {args.length}: the teacher knows {teacher.shape.max_positions} positions: lower it"
        )
    settings = {name: value for name in SETTINGS if (value := getattr(args, name)) is not None}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        # Before the shards, which take long: a setting that makes no sense is told at once.
        model = method.general_distillation(teacher, config=settings, dropout=recipe.dropout)
    if not isinstance(model, Distillation):
        raise MethodError(
            f"method '{args.method}': general_distillation returned a {type(model).__name__}: return a Distillation"
        )
    work = args.work or args.out / "training"
    data = plan.shards_for(args, work, _say, vocabulary.of_backbone(teacher))
    if data.length > teacher.shape.max_positions:
        raise ConfigError(
            f"rows of {data.length} tokens in {data.folder}, the teacher knows {teacher.shape.max_positions} positions: "
            "name other shards"
        )
    asked = {
        "method": {"name": args.method, **settings},
        "teacher": content_of(args.teacher, args.lang),
        "shape": model.encoder.shape.to_dict(),
        "recipe": {key: value for key, value in recipe.to_dict().items() if key != "steps"},
        "amount": plan.amount(args),
        "shards": data.fingerprint,
    }
    found = plan.carry_out(args, data, model, recipe, asked, work, device=device, compiled=False, began=began, say=_say)
    if found is None:
        return UNFINISHED
    _finish(args, data, teacher, model, found[0])
    return 0


def _finish(
    args: argparse.Namespace,
    data: shards.Shards,
    teacher: Backbone,
    model: Distillation,
    trainer: Trainer,
) -> None:
    """Round, measure, write."""
    recipe, progress = trainer.recipe, trainer.progress
    export.round_to_half(model)
    held: dict[str, Any] = {"loss": held_out_loss(model, data, share=recipe.mask_share)}
    if model.words is not None:
        held |= {"words": perplexity(model.words, data, share=recipe.mask_share, every=False)}
    shape = replace(model.encoder.shape, dropout=teacher.shape.dropout)  # that which fine-tuning is used to
    names = export.write(args.out, model.words or model.encoder, shape, data.tokenizer, one_segment=False)
    machine = environment_facts()
    cpu = f"{machine['cpu']}, {machine['torch_threads']} threads"
    facts = {
        "method": args.method,
        "teacher": {"name": teacher.name, **teacher.shape.to_dict()},
        "language": data.facts["language"],
        "licence": args.licence,
        "about": args.about,
        "sources": data.facts["sources"],
        "train": data.facts["train"],
        "shape": shape.to_dict(),
        "parameters": parameters_of(model.words or model.encoder),
        "bytes": sum((args.out / name).stat().st_size for name in names),
        "objective": model.objective,
        "recipe": recipe.to_dict(),
        "run": {**vars(progress), "loss": progress.loss if math.isfinite(progress.loss) else None},
        "device": machine["gpu"]["name"] if trainer.device.type == "cuda" else cpu,
        "fingerprint": machine,
        "evaluation": held,
    }
    write_json(args.out / FACTS, facts)
    text = render(facts)
    write_atomic(args.out / model_card.CARD, lambda place: place.write_text(text, encoding="utf-8"))
    loss = "-" if held["loss"] is None else f"{held['loss']:.4f}"
    print(f"held-out loss: {loss}")
    print(f"student: {args.out} ({facts['bytes'] / 2**20:.1f} MiB in {len(names)} file{'s' if len(names) > 1 else ''})")


def render(facts: Mapping[str, Any]) -> str:
    """The card as Markdown."""
    shape, teacher, recipe, run = facts["shape"], facts["teacher"], facts["recipe"], facts["run"]
    licence, held = facts["licence"], facts["evaluation"]
    head = ["---", f"language: {facts['language']}", "library_name: transformers"]
    head += [*([f"license: {licence}"] if licence else []), "tags: [bert, distillation]", "---"]
    found = "-" if held["loss"] is None else f"{held['loss']:.4f}"
    words = held.get("words") or {}
    guessed = f", perplexity {words['perplexity']:.2f} on masked words" if words.get("perplexity") else ""
    sources = "\n".join(
        f"* `{one['name']}`: {one['bytes']:,} bytes, SHA-256 `{one['sha256']}`" for one in facts["sources"]
    )
    about = facts["about"] or "What the texts are was not said (`--about`)."
    untrained = "" if run["step"] else "\n**Untrained**: as it started, a control for what distillation is worth.\n"
    return f"""{chr(10).join(head)}

# {facts["method"]} student of `{teacher["name"]}`, {shape["layers"]} x {shape["width"]}
{untrained}
General distillation on raw text: {shape["layers"]} layers, width {shape["width"]}, {shape["heads"]} heads, inner width \
{shape["intermediate"]} ({facts["parameters"]:,} parameters in float16) learnt from {teacher["layers"]} x {teacher["width"]}, \
which was not fine-tuned; same vocabulary. Not fine-tuned itself: start from it with `geep-bench run --backbone \
{facts["language"]}=FOLDER`, or as `student` of a method.

* objective: {facts["objective"]}
* {run["step"]:,} steps of {recipe["accumulate"]} x {recipe["rows"]} rows, {run["tokens"]:,} tokens seen; rate \
{recipe["learning_rate"]:g}, warm-up {recipe["warmup"]:.0%}, {recipe["mask_share"]:.0%} masked, seed {recipe["seed"]}
* {facts["device"]}, {run["seconds"] / 3600:.2f} hours
* on documents that were held out: loss {found}{guessed}

## Data

{about}
{sources}

No dev or test split of any data set.

## Licence

{model_card.licence_text(licence)} The teacher's own terms hold beside it.
"""
