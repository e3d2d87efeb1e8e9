"""``geep-bench distill``: general distillation of a student from a teacher on raw text.

::

    OUT/config.json, model*.safetensors, vocab.txt, ...     the student
    OUT/README.md, OUT/distillation.json                    its model card, and the facts in it
    OUT/training/                                           shards, plan, states and curve, as for ``geep-bench pretrain``

The method defines the student and its loss (:mod:`harness.pretraining.general_distillation`). Shards, masks, training loop and
states are those of pretraining.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import torch

from harness import registry
from harness.contracts import DistilsGenerally
from harness.core import clock
from harness.core.errors import BackboneError, ConfigError, MethodError, UnknownNameError
from harness.encoder.backbone import Backbone, content_of, load_backbone
from harness.encoder.families.family import Family
from harness.encoder.families.known_families import written_as
from harness.encoder.model import parameters_of
from harness.pretraining import export, model_card, plan
from harness.pretraining.evaluate import held_out_loss, perplexity
from harness.pretraining.general_distillation import EncoderDistillation, TableDistillation
from harness.pretraining.loop import Trainer
from harness.pretraining.recipe import PretrainRecipe
from harness.pretraining.text import shards, vocabulary

# Options that are settings of the method, which rejects those that it does not know.
SETTINGS = (
    "objective",
    "layers",
    "width",
    "intermediate",
    "matrix",
    "temperature",
    "alpha_ce",
    "alpha_mlm",
    "alpha_cos",
    "alpha_layers",
    "soft_on",
)


def _method(name: str) -> DistilsGenerally:
    methods = {one: registry.get(one) for one in registry.names()}
    able = {one: method for one, method in methods.items() if isinstance(method, DistilsGenerally)}
    if name not in methods:
        raise UnknownNameError("method", name, able)
    if name not in able:
        raise ConfigError(f"method '{name}' has no general distillation: choose one of {', '.join(able)}")
    return able[name]


def run(args: argparse.Namespace) -> int:
    """Run the command and return the exit code.

    Raises:
        GeepBenchError: an input is not valid, the loss is not finite, the disk is full, or the device does not exist.
    """
    if args.out is None:
        raise ConfigError("no output folder: name one for the student with --out DIR")
    began = clock.now()
    method = _method(args.method)
    device = plan.device_of(args)
    recipe = PretrainRecipe.from_options(args, **method.general_recipe)
    teacher = load_backbone(args.teacher, args.lang, device=device)
    try:
        family = written_as(teacher.family, teacher.shape)
    except BackboneError as error:
        raise ConfigError(f"teacher '{teacher.name}' has no students that can be written: {error}") from error
    longest = teacher.shape.max_positions
    if args.length > longest:
        raise ConfigError(f"--length {args.length}: the teacher has only {longest} positions: choose a smaller length")
    settings = {name: value for name in SETTINGS if (value := getattr(args, name)) is not None}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        # Before the shards, which take long, so that invalid settings are reported at once.
        model = method.general_distillation(teacher, config=settings, dropout=recipe.dropout)
    if not isinstance(model, EncoderDistillation | TableDistillation):
        raise MethodError(
            f"general_distillation of '{args.method}' returned a {type(model).__name__}, not a Distillation"
        )
    recipe = PretrainRecipe.from_options(args, **{**method.general_recipe, **model.recipe})
    work = args.work or args.out / "training"
    data = plan.shards_for(args, work, vocabulary.of_backbone(teacher))
    if data.length > longest:
        raise ConfigError(
            f"the shards in {data.folder} have rows of {data.length} tokens, but the teacher has only {longest} positions: "
            "name other shards"
        )
    asked = {
        "method": {"name": args.method, **settings},
        "teacher": content_of(args.teacher, args.lang),
        "shape": model.facts(),
        **plan.asked(args, recipe, data),
    }
    found = plan.carry_out(
        args, data, model, recipe, asked, work, size=model.size, device=device, compiled=False, began=began
    )
    if found is None:
        return plan.UNFINISHED
    _finish(args, data, teacher, model, found[0], family)
    return 0


def _finish(
    args: argparse.Namespace,
    data: shards.Shards,
    teacher: Backbone,
    model: EncoderDistillation | TableDistillation,
    trainer: Trainer,
    family: Family,
) -> None:
    """Evaluate the weights as they are written, and write the student's folder: an encoder as a model of a family, in float16."""
    share = trainer.recipe.mask_share
    if isinstance(model, TableDistillation):
        held: dict[str, Any] = {"loss": held_out_loss(model, data, share=share)}
        described = {"shape": model.facts(), "parameters": parameters_of(model.student)}
        names = model.save(args.out)
        export.write_tokenizer(args.out, data.tokenizer, teacher.shape.max_positions)
    else:
        export.round_to_half(model)
        held = {"loss": held_out_loss(model, data, share=share)}
        if model.words is not None:
            held |= {"words": perplexity(model.words, data, share=share, every=False)}
        student = model.words or model.encoder
        shape = replace(model.encoder.shape, dropout=teacher.shape.dropout)  # the dropout for fine-tuning
        described = export.described(student, shape, family)
        names = export.write(args.out, student, shape, data.tokenizer, family=family, one_segment=False)
    facts = {
        **described,
        "method": args.method,
        "teacher": {"name": teacher.name, **teacher.shape.to_dict()},
        "objective": model.objective,
        "evaluation": held,
    }
    written = model_card.publish("student", args, trainer, data, names, facts)
    print(f"held-out loss: {'-' if held['loss'] is None else format(held['loss'], '.4f')}")
    print(written)
