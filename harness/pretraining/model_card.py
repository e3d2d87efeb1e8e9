"""Model cards: README.md of a backbone folder, rendered from the stored facts of its run only.

Accuracies are added once they have been measured with ``python -m suites.studies.depth --out depth.json``::

    python -m harness.pretraining.model_card BACKBONE --accuracy depth.json --control depth-untrained.json
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from harness.core.command_line import exit_codes
from harness.core.environment import environment_facts
from harness.core.errors import ResultError
from harness.core.files import write_json, write_text
from harness.encoder.model import parameters_of
from harness.encoder.shape import EncoderShape
from harness.pretraining.loop import Trainer
from harness.pretraining.text.shards import Shards

FACTS = "pretraining.json"
CARD = "README.md"
LANGUAGES = {"en": "English", "zh": "Chinese"}
LICENCES = {
    "cc-by-sa-4.0": (
        "These weights were trained on text under the Creative Commons Attribution-ShareAlike 4.0 International licence and are "
        "published under the same licence. You may share and adapt them for any purpose if you credit the authors of the text "
        "(see *Data*), link to the licence, state your changes, and use the same licence. They come without warranty. "
        "The licence: <https://creativecommons.org/licenses/by-sa/4.0/legalcode>."
    ),
    "apache-2.0": (
        "These weights are published under the Apache License 2.0: <https://www.apache.org/licenses/LICENSE-2.0>. They come "
        "without warranty."
    ),
}
_UNSTATED = "Not stated. Check what the terms of the texts above allow before you share these weights."


def _count(number: float) -> str:
    return f"{number:,.0f}"


def _table(rows: Sequence[tuple[str, Any]]) -> str:
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)])


def _perplexity(held: Mapping[str, Any]) -> str:
    if held["perplexity"] is None:
        return "Not measured: the held-out documents are too short to mask a word."
    text = (
        f"Perplexity {held['perplexity']:.2f} on {_count(held['guesses'])} masked tokens of held-out documents (float16 weights, "
        f"computed in float32). From word frequencies alone: {held['by_frequency']:.0f}."
    )
    if "by_layer" in held:
        layers = ", ".join(f"{value:.1f}" for value in held["by_layer"])
        text += f" With the decoder after layers 1, 2, ...: {layers}."
    return text


def _accuracy(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return (
            "Not measured yet: run `python -m suites.studies.depth` with this backbone, "
            "then `python -m harness.pretraining.model_card`."
        )
    lines = [
        "| dataset | rows | heads | last layer | first layer | gain | untrained: last layer | gain | by layer |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in rows:
        found = [100 * value for value in row["accuracy"]]
        layers = " ".join(f"{layer}: {value:.1f}" for layer, value in zip(row["layers"], found, strict=True))
        control = row.get("control")
        rival = f"{100 * control['accuracy'][-1]:.1f} | {control['gain_points']:+.1f}" if control else "- | -"
        lines.append(
            f"| {row['dataset']} | {_count(row['train_rows'])} / {_count(row['test_rows'])} | {row['method']} | {found[-1]:.1f} | "
            f"{found[0]:.1f} | {row['gain_points']:+.1f} | {rival} | {layers} |"
        )
    return (
        "Test accuracy in % with heads at several depths, fine-tuned from this backbone and from an untrained one of the same "
        "shape and vocabulary. Rows are of train and test; the gain is last minus first layer, in points.\n\n"
    ) + "\n".join(lines)


def common_facts(
    args: argparse.Namespace,
    trainer: Trainer,
    data: Shards,
    model: nn.Module,
    shape: EncoderShape,
    names: Sequence[str],
) -> dict[str, Any]:
    """Return the facts that the cards of backbones and students share.

    Args:
        model: as written.
        names: files of its weights in ``args.out``.
    """
    machine, progress = environment_facts(), trainer.progress
    cpu = f"{machine['cpu']}, {machine['torch_threads']} threads"
    return {
        "language": data.facts["language"],
        "licence": args.licence,
        "about": args.about,
        "sources": data.facts["sources"],
        "train": data.facts["train"],
        "shape": shape.to_dict(),
        "parameters": parameters_of(model),
        "bytes": sum((args.out / name).stat().st_size for name in names),
        "recipe": trainer.recipe.model_dump(),
        "run": {**vars(progress), "loss": progress.loss if math.isfinite(progress.loss) else None},
        "device": machine["gpu"]["name"] if trainer.device.type == "cuda" else cpu,
        "fingerprint": machine,
    }


def folder_line(folder: Path, facts: Mapping[str, Any], names: Sequence[str]) -> str:
    """Return the folder with the size and the number of its weight files, for the terminal."""
    return f"{folder} ({facts['bytes'] / 2**20:.1f} MiB in {len(names)} file{'s' if len(names) > 1 else ''})"


def front_matter(facts: Mapping[str, Any], tags: str, *more: str) -> str:
    """Return the YAML header of a card."""
    licence = [f"license: {facts['licence']}"] if facts["licence"] else []
    lines = [f"language: {facts['language']}", "library_name: transformers", *more, *licence, f"tags: {tags}"]
    return "\n".join(["---", *lines, "---"])


def data_sources(facts: Mapping[str, Any]) -> str:
    """Return the description of the texts and the list of their files."""
    lines = [facts["about"] or "No description was given (`--about`)."]
    lines += [f"* `{one['name']}`: {_count(one['bytes'])} bytes, SHA-256 `{one['sha256']}`" for one in facts["sources"]]
    return "\n".join(lines)


def _start(start: Mapping[str, Any] | None) -> str:
    if not start:
        return "random"
    layers = ", ".join(str(layer + 1) for layer in start["layers"])
    return f"layers {layers} of `{start['name']}`, its embeddings {'too' if start['embeddings'] else 'not'}" + (
        ", and its masked-word head" if start.get("head") else ""
    )


def licence_text(licence: str) -> str:
    """Return the terms of a licence by its name; a warning without a name."""
    return LICENCES.get(licence, f"`{licence}`" if licence else _UNSTATED)


def render(facts: Mapping[str, Any]) -> str:
    """Return the card of a backbone as Markdown, from the facts of :mod:`harness.pretraining.pretrain_command`."""
    shape, recipe, train, run = facts["shape"], facts["recipe"], facts["train"], facts["run"]
    steps, seconds = run["step"], max(run["seconds"], 1e-9)
    reached = run["flops"] / seconds
    warm_up = f"warm-up {recipe['warmup']:.0%}"
    trained = [
        ("steps", _count(steps)),
        ("rows per step", f"{recipe['accumulate']} x {recipe['rows']} of {shape['max_positions']} tokens"),
        ("tokens", f"{_count(run['tokens'])} ({run['epochs']:.1f} epochs)"),
        ("objective", facts["objective"]),
        ("optimiser", f"AdamW, learning rate {recipe['learning_rate']:g}, {warm_up} of the steps, linear decay"),
        ("weight decay, clipping, dropout", f"{recipe['weight_decay']:g}, {recipe['clip']:g}, {recipe['dropout']:g}"),
        ("masked", f"{recipe['mask_share']:.0%} of the tokens, {facts['masking']}"),
        ("start", _start(facts["start"])),
        ("seed", recipe["seed"]),
    ]
    compute = [
        ("device", facts["device"]),
        ("precision", "bfloat16 products, float32 weights" if run["bf16"] else "float32"),
        ("hours", f"{run['seconds'] / 3600:.2f}"),
        ("tokens per second", _count(run["tokens"] / seconds)),
        ("FLOPs of the model's matrix products", f"{run['flops']:.3g}"),
        ("share of the device's matrix rate", f"{reached / run['peak']:.1%}" if run["peak"] and steps else "-"),
        ("last training loss (nats)", f"{run['loss']:.3f}" if run["loss"] is not None else "-"),
    ]
    paired = train.get("pairs", 0)
    pairs = f"{_count(paired)} of them are pairs of texts. " if paired else ""
    begun = facts["start"] or {}
    if paired:
        second = "The second segment occurs only in pairs, and their second texts may repeat."
    elif begun.get("embeddings"):
        second = f"All training text was in the first segment; the second is that of `{begun['name']}`."
    else:
        second = "All training text was in the first segment; the second is a copy of it."
    untrained = "" if steps or begun else "\n**Untrained**: random weights, as a control for pretraining.\n"
    return f"""{front_matter(facts, "[bert, masked-lm, miniature]", "pipeline_tag: fill-mask")}

# {LANGUAGES[facts["language"]]} miniature BERT, {shape["layers"]} x {shape["width"]}
{untrained}
{shape["layers"]} layers, width {shape["width"]}, {shape["heads"]} heads, inner width {shape["intermediate"]}, vocabulary of \
{_count(shape["vocab_size"])} WordPieces (lower-cased), at most {shape["max_positions"]} tokens; \
{_count(facts["parameters"])} parameters in float16, {_count(facts["bytes"])} bytes. Load it with `AutoModel`, \
`AutoModelForMaskedLM`, or `geep-bench run --backbone {facts["language"]}=FOLDER`.

## Data

{data_sources(facts)}

{_count(train["documents"])} documents ({_count(train["characters"])} characters, {_count(train["tokens"])} tokens, \
{train["unknown"] / max(1, train["tokens"]):.2%} unknown) for training; {_count(facts["heldout"]["documents"])} held out; \
{_count(train["repeats"])} duplicates removed. {pairs}No dev or test split of any dataset.

## Recipe

{_table(trained)}

Documents are cut into pieces of at most {shape["max_positions"]} tokens; attention does not cross pieces in the same row.

## Compute

{_table(compute)}

## Held-out perplexity

{_perplexity(facts["evaluation"])}

## Accuracy

{_accuracy(facts.get("accuracy", []))}

## Licence

{licence_text(facts["licence"])}

## Limits

* Small, and trained on little text: it is weaker than BERT-base, and meant for studies of inference, not for production.
* It reproduces errors and prejudices of its texts.
* At most {shape["max_positions"]} tokens per text. {second}
* Lower-cased and without accents: capital letters do not distinguish names from words.
"""


def write(folder: Path, name: str, facts: Mapping[str, Any], text: str) -> None:
    """Write the facts as the JSON file ``name``, and the card, into an existing folder."""
    write_json(folder / name, facts)
    write_text(folder / CARD, text)


def add_accuracy(folder: Path, rows: Sequence[Mapping[str, Any]], control: Sequence[Mapping[str, Any]] = ()) -> None:
    """Add per-layer accuracies; they replace older ones of the same dataset and method.

    Args:
        rows: of ``suites.studies.depth``, with this backbone.
        control: rows with an untrained backbone.

    Raises:
        ResultError: the folder has no facts, or the rows do not come from ``suites.studies.depth``.
    """
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        rivals = {(row["dataset"], row["method"]): dict(row) for row in control}
        new = {key: {**row, "control": rivals.get(key)} for row in rows for key in [(row["dataset"], row["method"])]}
        old = [row for row in facts.get("accuracy", []) if (row["dataset"], row["method"]) not in new]
        facts["accuracy"] = [*old, *new.values()]
        write(folder, FACTS, facts, render(facts))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultError(
            f"cannot add accuracies to {folder} ({error!r}): give a folder with the {FACTS} of geep-bench pretrain, and rows of "
            "suites.studies.depth"
        ) from error


def _rows(paths: Sequence[Path]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for path in paths:
        try:
            rows += json.loads(path.read_text(encoding="utf-8"))["rows"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ResultError(f"cannot read {path} ({error!r}): give a file of suites.studies.depth") from error
    return rows


@exit_codes("model_card")
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.pretraining.model_card", description="Write a model card again."
    )
    parser.add_argument("folder", type=Path, help="backbone folder, as written by geep-bench pretrain")
    parser.add_argument("--accuracy", type=Path, action="append", default=[], help="JSON of suites.studies.depth")
    parser.add_argument("--control", type=Path, action="append", default=[], help="the same with an untrained backbone")
    args = parser.parse_args(arguments)
    add_accuracy(args.folder, _rows(args.accuracy), _rows(args.control))
    print(f"model card: {args.folder / CARD}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
