"""The parser of ``geep-bench``. :mod:`harness.cli.main` holds the commands."""

from __future__ import annotations

import argparse
from typing import Any

from harness import __version__
from harness.cli.argument_types import OneLineParser, names, path, whole_number
from harness.cli.cluster_options import add_cluster_options
from harness.cli.deploy_options import EXPORT, PREDICT, add_export_options, add_predict_options
from harness.cli.raw_text_options import DISTILL, PRETRAIN, add_distill_options, add_pretrain_options
from harness.core.text_formats import parse_toml

EXAMPLES = """examples:
  geep-bench run --profile quick                      embedded data, CPU, no network; minutes
  geep-bench run --profile mini --data my-data --backbone en=my-backbone --datasets ag_news
  geep-bench run --profile quick --methods bert,geep --datasets lcqmc --seeds 0,1,2
  geep-bench report runs/quick                        make the report of a run folder again
  geep-bench choose runs/quick --max-loss 1.0         what to deploy, with the evidence
  geep-bench compare runs/before runs/after --gate
  geep-bench export runs/quick --cell ID --out my-model
  geep-bench predict my-model --in texts.csv --out answers.csv
  geep-bench list methods
  geep-bench flops --backbone bert-base-uncased --labels 2 --seq-len 128 --json
  geep-bench pretrain --corpus wiki.txt.zst --lang en --minutes 60 --out my-backbone
  geep-bench distill distilbert --teacher my-backbone --corpus wiki.txt.zst --lang en --layers 6 --out my-student

Run the same command again to resume; finished cells are not run again (unless --fresh).
Exit codes: 0 done; 1 cells failed, compare --gate found something worse or missing, or choose can recommend no cell;
2 invalid input (the message says how to correct it)."""


def _seeds(text: str) -> list[int]:
    try:
        return [whole_number(0)(part) for part in names(text)]
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of whole numbers such as 0,1,2") from None


def _share(text: str) -> float:
    """Read a percentage or points of accuracy: ``"5"`` -> 0.05."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 100:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 0 to 100")
    return number / 100


def _above_zero(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0")
    return number


def _confidence(text: str) -> float:
    number = _above_zero(text)
    if not 0.5 <= number < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 0.5 to below 1, such as 0.95")
    return number


def backbones(text: str) -> dict[str, str]:
    """Read ``"en=A,zh=B"`` as one backbone per language; a name without language is used for both."""
    found = {}
    for part in names(text):
        language, separator, place = part.partition("=")
        if not separator:
            found.update({"en": part, "zh": part})
        elif language in ("en", "zh") and place:
            found[language] = place
        else:
            raise argparse.ArgumentTypeError(f"'{part}' is not en=DIR_OR_ID or zh=DIR_OR_ID")
    return found


def setting(text: str) -> tuple[str, str, Any]:
    """Read ``"METHOD.SETTING=VALUE"`` as method, key and value; a value that is not TOML, or is a date, is text."""
    left, separator, right = text.partition("=")
    table, _, key = left.strip().rpartition(".")
    if not separator or not table or not key or not right.strip():
        raise argparse.ArgumentTypeError(f"'{text}' is not METHOD.SETTING=VALUE, e.g. bert.epochs=2")
    try:
        value = parse_toml(f"value = {right}")["value"]
    except ValueError:
        value = None
    return table, key, value if isinstance(value, bool | int | float | str | list | dict) else right.strip()


def add_run_options(run: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the options of ``geep-bench run``; the studies of ``suites`` take them as well."""
    run.add_argument(
        "--profile", default="quick", metavar="P", help="name (see 'list profiles') or TOML file; default quick"
    )
    run.add_argument("--methods", type=names, metavar="a,b", help="methods to measure")
    run.add_argument("--datasets", type=names, metavar="x,y", help="datasets to measure them on")
    run.add_argument(
        "--data", type=path, metavar="DIR", help="local data: DIR/<name>/{train,dev,test}.{parquet,csv,tsv,jsonl}"
    )
    run.add_argument(
        "--backbone", type=backbones, metavar="en=B,zh=B", help="backbone per language: folder, hub id or 'embedded'"
    )
    run.add_argument(
        "--set",
        type=setting,
        action="append",
        default=[],
        metavar="M.KEY=VALUE",
        help="set KEY in the profile's table [method.M], or for all methods in [training] with M = training; M.like=NAME defines "
        "a variant, which is measured, too; repeatable",
    )
    run.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is a device")
    run.add_argument("--batch-size", type=whole_number(1), metavar="N", help="samples per batch")
    run.add_argument(
        "--batch-tokens", type=whole_number(1), metavar="N", help="at most N tokens per batch, padding included"
    )
    run.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16"), help="number type of weights and hidden states"
    )
    run.add_argument(
        "--compute",
        choices=("auto", "eager", "packed", "compiled", "graphs", "compiled-graphs"),
        help="how layers and heads are run; auto: CUDA graphs on a GPU, packed weights on a CPU",
    )
    run.add_argument("--seeds", type=_seeds, metavar="0,1", help="training seeds")
    run.add_argument("--max-train", type=whole_number(1), metavar="N", help="at most N train rows (stratified, seed 0)")
    run.add_argument("--max-dev", type=whole_number(1), metavar="N", help="at most N dev rows (stratified, seed 0)")
    run.add_argument("--max-test", type=whole_number(1), metavar="N", help="at most N test rows (stratified, seed 0)")
    run.add_argument(
        "--max-unlabelled",
        type=whole_number(0),
        metavar="N",
        help="at most N texts without labels, for methods that use them: rows beyond --max-train, DIR/<name>/unlabelled.*",
    )
    run.add_argument("--max-length", type=whole_number(8), metavar="N", help="at most N tokens per sample")
    run.add_argument("--rounds", type=whole_number(1), metavar="N", help="timed passes per cell")
    run.add_argument(
        "--workers",
        type=whole_number(1),
        metavar="N",
        help="fit in N processes (CPU only), each with 1/N of the threads unless --fit-threads is given; with --fit-only, methods "
        "of all datasets and seeds in parallel",
    )
    run.add_argument("--fit-threads", type=whole_number(1), metavar="N", help="threads of every fit (CPU only)")
    run.add_argument(
        "--tuned",
        type=path,
        action="append",
        default=[],
        metavar="FILE",
        help="train with the best settings of a search (suites.studies.search), which is stored with the results; repeatable",
    )
    run.add_argument("--out", type=path, metavar="DIR", help="run folder; default runs/<profile>")
    run.add_argument("--fit-only", action="store_true", help="fit and cache only; measure later, on a quiet machine")
    run.add_argument("--fresh", action="store_true", help="fit and measure everything again")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    top = OneLineParser(
        prog="geep-bench",
        description="Compare methods for efficient BERT inference: accuracy, FLOPs and throughput from one pass over real data.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"geep-bench {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=OneLineParser)

    run = commands.add_parser(
        "run",
        help="fit, measure and report",
        description="Fit the methods of a profile, measure them on its datasets, and write a report. Options replace values of "
        "the profile.",
    )
    add_run_options(run)
    run.add_argument(
        "--dry-run",
        action="store_true",
        help="print what is cached and stored, and estimate the time of the rest (probes for about a minute); start nothing",
    )

    add_cluster_options(run)

    report = commands.add_parser("report", help="make the report of a run folder again")
    report.add_argument("run", type=path, metavar="RUN", help="run folder")

    choosing = commands.add_parser(
        "choose",
        help="name the fastest cell that is not worse than the reference",
        description="Name the fastest method and operating point that is not worse than the reference by more than the allowed "
        "loss, per dataset and over all: chosen on dev, confirmed once on test. Exit code 1: for some dataset no cell meets the "
        "limits on p99 and size, or none that does is shown to lose less.",
    )
    choosing.add_argument("run", type=path, metavar="RUN", help="run folder")
    choosing.add_argument(
        "--max-loss",
        type=_share,
        default=0.01,
        metavar="POINTS",
        help="points of accuracy that may be lost against the reference; default 1",
    )
    choosing.add_argument(
        "--max-p99-ms",
        type=_above_zero,
        metavar="MS",
        help="99 %% of calls with a single sample take at most this long",
    )
    choosing.add_argument(
        "--max-mb", type=_above_zero, metavar="MB", help="size on disk, with the weights of other methods that it uses"
    )
    choosing.add_argument(
        "--confidence",
        type=_confidence,
        default=0.95,
        metavar="C",
        help="confidence that less is lost; default 0.95",
    )

    comparing = commands.add_parser(
        "compare",
        help="compare two runs and find regressions",
        description="Compare two runs: accuracy on the same samples, FLOPs, layers and speed-up over the reference.",
    )
    comparing.add_argument("base", type=path, metavar="BASE", help="run folder or packed run")
    comparing.add_argument("new", type=path, metavar="NEW", help="run folder or packed run")
    comparing.add_argument(
        "--gate", action="store_true", help="exit with 1 if something got worse, is missing or cannot be compared"
    )
    comparing.add_argument(
        "--margin",
        type=_share,
        metavar="POINTS",
        help="points of accuracy that may be lost; default 0.5, and 3 between different machines",
    )
    comparing.add_argument(
        "--slower",
        type=_share,
        metavar="PERCENT",
        help="slow-down relative to the reference that is allowed; default 5",
    )

    packing = commands.add_parser("pack", help="pack a run into one small file, as a reference for compare")
    packing.add_argument("run", type=path, metavar="RUN", help="run folder")
    packing.add_argument("file", type=path, metavar="FILE", help="packed run to write")

    publishing = commands.add_parser(
        "publish",
        help="copy a run, small enough to publish and complete",
        description="Copy a run folder with the per-sample rows of all cells in one small file. Reports can be made from the copy, "
        "and a run with --out and a copy of it continues; fits are not included.",
    )
    publishing.add_argument("run", type=path, metavar="RUN", help="run folder")
    publishing.add_argument("--out", type=path, required=True, metavar="DIR", help="folder to write; new or empty")

    raw = argparse.RawDescriptionHelpFormatter
    add_export_options(
        commands.add_parser("export", help="write a measured cell as a model", description=EXPORT, formatter_class=raw),
        backbones,
        setting,
    )
    add_predict_options(
        commands.add_parser(
            "predict", help="answer a file of texts with an exported model", description=PREDICT, formatter_class=raw
        )
    )

    listing = commands.add_parser("list", help="list methods, datasets, backbones or profiles")
    listing.add_argument("what", choices=("methods", "datasets", "backbones", "profiles"), help="what to list")
    listing.add_argument(
        "--profile",
        metavar="P",
        help="with 'methods': the variants of this profile only; default: of all installed ones",
    )

    flops = commands.add_parser("flops", help="FLOPs of one sample in closed form, in both conventions")
    flops.add_argument("--backbone", required=True, metavar="ID", help="known name (offline), folder or hub id")
    flops.add_argument("--labels", type=whole_number(1), default=2, metavar="N", help="classes (default 2)")
    flops.add_argument("--seq-len", type=whole_number(1), default=128, metavar="T", help="tokens, padding included")
    flops.add_argument(
        "--exit",
        type=whole_number(1),
        metavar="K",
        help="exit after layer K (counted from 1) instead of the last",
    )
    flops.add_argument("--json", action="store_true", help="print one JSON object")

    add_pretrain_options(
        commands.add_parser(
            "pretrain", help="pretrain a backbone on raw text", description=PRETRAIN, formatter_class=raw
        )
    )
    add_distill_options(
        commands.add_parser("distill", help="distil a student on raw text", description=DISTILL, formatter_class=raw)
    )
    return top
