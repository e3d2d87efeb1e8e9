"""The model card: README.md of a backbone folder, made from the facts of its run and from nothing else.

Accuracy is added when it has been measured, from what ``python -m suites.studies.depth --out depth.json`` wrote::

    python -m harness.pretraining.model_card BACKBONE --accuracy depth.json --control depth-untrained.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.core.command_line import exit_codes
from harness.core.errors import ResultError
from harness.core.files import write_atomic, write_json

FACTS = "pretraining.json"
CARD = "README.md"
LANGUAGES = {"en": "English", "zh": "Chinese"}
LICENCES = {
    "cc-by-sa-4.0": (
        "These weights were learnt from text under the Creative Commons Attribution-ShareAlike 4.0 International licence and are "
        "given under the same one: share and adapt them for any purpose, if you give credit to the authors of the text (see "
        "*Data*), link to the licence, say what you changed, and give what you make of them under the same licence. They come "
        "without warranty. The licence: <https://creativecommons.org/licenses/by-sa/4.0/legalcode>."
    ),
    "apache-2.0": (
        "These weights are given under the Apache License 2.0: <https://www.apache.org/licenses/LICENSE-2.0>. They come without "
        "warranty."
    ),
}
_UNSTATED = "Not stated. Find out what the terms of the texts above allow before you give these weights to anybody."


def _count(number: float) -> str:
    return f"{number:,.0f}"


def _table(rows: Sequence[tuple[str, Any]]) -> str:
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)])


def _perplexity(held: Mapping[str, Any]) -> str:
    if held["perplexity"] is None:
        return "No word of the held-out documents could be masked: they are too short."
    text = (
        f"Perplexity {held['perplexity']:.2f} on {_count(held['guesses'])} masked tokens of documents that were never trained on "
        f"(weights as written, in float16, computed in float32). Knowing how frequent words are, and nothing else: "
        f"{held['by_frequency']:.0f}."
    )
    if "by_layer" in held:
        layers = ", ".join(f"{value:.1f}" for value in held["by_layer"])
        text += f" Through the decoder after layers 1, 2, ...: {layers}."
    return text


def _accuracy(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return (
            "Not measured yet: run `python -m suites.studies.depth` with this backbone, "
            "then `python -m harness.pretraining.model_card`."
        )
    lines = [
        "| data set | rows | heads | last layer | first layer | gain | untrained: last layer | gain | by layer |",
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
        "Test accuracy in %, with heads at several depths, fine-tuned from this backbone, and from an untrained one of the same "
        "shape and vocabulary. Rows are those of train and test; a gain is last layer less first, in points.\n\n"
    ) + "\n".join(lines)


def _sources(facts: Mapping[str, Any]) -> str:
    lines = [facts["about"] or "What the texts are was not said (`--about`)."]
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
    """What a licence asks, by its name; a warning where none was named."""
    return LICENCES.get(licence, f"`{licence}`" if licence else _UNSTATED)


def render(facts: Mapping[str, Any]) -> str:
    """The card as Markdown, from what :mod:`harness.pretraining.pretrain_command` wrote down."""
    shape, recipe, train, run = facts["shape"], facts["recipe"], facts["train"], facts["run"]
    licence = facts["licence"]
    head = ["---", f"language: {facts['language']}", "library_name: transformers", "pipeline_tag: fill-mask"]
    head += [*([f"license: {licence}"] if licence else []), "tags: [bert, masked-lm, miniature]", "---"]
    steps, seconds = run["step"], max(run["seconds"], 1e-9)
    trained = [
        ("steps", _count(steps)),
        ("rows per step", f"{recipe['accumulate']} x {recipe['rows']} of {shape['max_positions']} tokens"),
        ("tokens seen", f"{_count(run['tokens'])} ({run['epochs']:.1f} times the corpus)"),
        ("objective", facts["objective"]),
        (
            "optimiser",
            f"AdamW, rate {recipe['learning_rate']:g}, warm-up {recipe['warmup']:.0%} of the steps, linear decay",
        ),
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
        (
            "of the device's matrix rate",
            f"{run['flops'] / seconds / run['peak']:.1%}" if run["peak"] and steps else "-",
        ),
        ("last training loss (nats)", f"{run['loss']:.3f}" if run["loss"] is not None else "-"),
    ]
    paired = train.get("pairs", 0)
    pairs = f"{_count(paired)} of them are pairs of texts, read together. " if paired else ""
    begun = facts["start"] or {}
    if paired:
        second = "The second segment was only seen in pairs, whose second texts may recur."
    elif begun.get("embeddings"):
        second = f"All training text was on the first segment; the second is that of `{begun['name']}`."
    else:
        second = "All training text was on the first segment; the second is a copy of it."
    untrained = "" if steps or begun else "\n**Untrained**: random weights, a control for what pretraining is worth.\n"
    return f"""{chr(10).join(head)}

# {LANGUAGES[facts["language"]]} miniature BERT, {shape["layers"]} x {shape["width"]}
{untrained}
{shape["layers"]} layers, width {shape["width"]}, {shape["heads"]} heads, inner width {shape["intermediate"]}, vocabulary of \
{_count(shape["vocab_size"])} WordPieces (lower-cased), at most {shape["max_positions"]} tokens; \
{_count(facts["parameters"])} parameters in float16, {_count(facts["bytes"])} bytes. Load it with `AutoModel`, \
`AutoModelForMaskedLM`, or `geep-bench run --backbone {facts["language"]}=FOLDER`.

## Data

{_sources(facts)}

{_count(train["documents"])} documents ({_count(train["characters"])} characters, {_count(train["tokens"])} tokens, \
{train["unknown"] / max(1, train["tokens"]):.2%} unknown) to train on; {_count(facts["heldout"]["documents"])} held out; \
{_count(train["repeats"])} repeats dropped. {pairs}No dev or test split of any data set.

## Recipe

{_table(trained)}

Documents are cut into pieces of at most {shape["max_positions"]} tokens; pieces that share a row do not see each other.

## Compute

{_table(compute)}

## Held-out perplexity

{_perplexity(facts["evaluation"])}

## Accuracy

{_accuracy(facts.get("accuracy", []))}

## Licence

{licence_text(licence)}

## Limits

* Small, and trained on little text: it knows less than BERT-base, and is made to study inference, not to be relied on.
* It repeats what its texts say, errors and prejudices included.
* Text beyond {shape["max_positions"]} tokens does not fit. {second}
* Lower-cased and without accents: it cannot tell names from words by their capitals.
"""


def write(folder: Path, facts: Mapping[str, Any]) -> None:
    """``pretraining.json`` and ``README.md`` into an existing folder."""
    text = render(facts)
    write_json(folder / FACTS, facts)
    write_atomic(folder / CARD, lambda place: place.write_text(text, encoding="utf-8"))


def add_accuracy(folder: Path, rows: Sequence[Mapping[str, Any]], control: Sequence[Mapping[str, Any]] = ()) -> None:
    """Add per-layer accuracies; a data set and method measured again replaces what was there.

    Args:
        rows: of ``suites.studies.depth``, with this backbone.
        control: the same with an untrained one.

    Raises:
        ResultError: the folder has no facts, or the rows are not what ``suites.studies.depth`` writes.
    """
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        rivals = {(row["dataset"], row["method"]): dict(row) for row in control}
        new = {key: {**row, "control": rivals.get(key)} for row in rows for key in [(row["dataset"], row["method"])]}
        old = [row for row in facts.get("accuracy", []) if (row["dataset"], row["method"]) not in new]
        write(folder, {**facts, "accuracy": [*old, *new.values()]})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultError(
            f"cannot add accuracies to {folder} ({error!r}): it needs a {FACTS} as geep-bench pretrain writes it, and rows as "
            "suites.studies.depth writes them"
        ) from error


def _rows(paths: Sequence[Path]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for path in paths:
        try:
            rows += json.loads(path.read_text(encoding="utf-8"))["rows"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ResultError(f"cannot read {path} ({error!r}): give what suites.studies.depth --out wrote") from error
    return rows


@exit_codes("model_card")
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.pretraining.model_card", description="Write a model card again."
    )
    parser.add_argument("folder", type=Path, help="backbone folder, as written by geep-bench pretrain")
    parser.add_argument(
        "--accuracy", type=Path, action="append", default=[], help="JSON of suites.studies.depth; may be repeated"
    )
    parser.add_argument("--control", type=Path, action="append", default=[], help="the same with an untrained backbone")
    args = parser.parse_args(arguments)
    add_accuracy(args.folder, _rows(args.accuracy), _rows(args.control))
    print(f"card: {args.folder / CARD}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
