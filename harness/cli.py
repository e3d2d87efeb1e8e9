"""``geep-bench``: run, report, compare, pack, list, flops, pretrain, distill."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from harness import __version__, profile, registry
from harness.errors import ConfigError, GeepBenchError, MethodError, told
from harness.pretraining import distill_options, options

EXAMPLES = """examples:
  geep-bench run --profile quick                      embedded data, CPU, no network; minutes
  geep-bench run --profile mini --data my-data --backbone en=my-backbone --datasets ag_news
  geep-bench run --profile quick --methods bert,geep --datasets lcqmc --seeds 0,1,2
  geep-bench report runs/quick                        make the report again from a run folder
  geep-bench compare suites/expected/quick.json runs/quick --gate
  geep-bench list methods
  geep-bench flops --backbone bert-base-uncased --labels 2 --seq-len 128 --json
  geep-bench pretrain --corpus wiki.txt.zst --lang en --minutes 60 --out my-backbone
  geep-bench distill distilbert --teacher my-backbone --corpus wiki.txt.zst --lang en --layers 6 --out my-student

A run goes on where it was stopped; finished cells are not run again (unless --fresh).
Exit codes: 0 done, 1 some cells failed or (compare --gate) got worse, 2 unusable input (one line says what and how to mend it)."""


class _Parser(argparse.ArgumentParser):
    """argparse that ends in our own exception, so that there is one way to complain."""

    def error(self, message: str) -> Any:
        raise ConfigError(f"{message} (see {self.prog} --help)")


def names(text: str) -> list[str]:
    """``"a,b"`` -> its names, each once."""
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        raise argparse.ArgumentTypeError("give at least one name")
    return list(dict.fromkeys(found))


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(part) for part in names(text)]
    except ValueError:
        seeds = [-1]
    if min(seeds) < 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of whole numbers such as 0,1,2")
    return seeds


def _count(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return number


def _share(text: str) -> float:
    """``"5"`` (percent, or points of accuracy) -> 0.05."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 100:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 0 to 100")
    return number / 100


def backbones(text: str) -> dict[str, str]:
    """``"en=A,zh=B"`` -> backbone per language; a bare name serves both."""
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


def parser() -> argparse.ArgumentParser:
    """The command line, all of it."""
    top = _Parser(
        prog="geep-bench",
        description="Efficient BERT inference, refereed: accuracy, FLOPs and throughput from one pass over real data.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"geep-bench {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)

    run = commands.add_parser("run", help="fit, measure and report", description="Fit, measure and report.")
    run.add_argument(
        "--profile", default="quick", metavar="P", help="name (see 'list profiles') or TOML file; default quick"
    )
    run.add_argument("--methods", type=names, metavar="a,b", help="measure these methods only")
    run.add_argument("--datasets", type=names, metavar="x,y", help="on these datasets only")
    run.add_argument(
        "--data", type=Path, metavar="DIR", help="local data: DIR/<name>/{train,dev,test}.{parquet,csv,tsv,jsonl}"
    )
    run.add_argument(
        "--backbone", type=backbones, metavar="en=B,zh=B", help="backbone per language: folder, hub id or 'embedded'"
    )
    run.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    run.add_argument("--batch-size", type=_count, metavar="N", help="samples per batch")
    run.add_argument("--batch-tokens", type=_count, metavar="N", help="a batch also ends before it holds more tokens")
    run.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), help="of weights and hidden states")
    run.add_argument(
        "--compute",
        choices=("auto", "eager", "compiled", "graphs", "compiled-graphs"),
        help="how blocks are run; auto: CUDA graphs where there is a device, else eager",
    )
    run.add_argument("--seeds", type=_seeds, metavar="0,1", help="training seeds")
    run.add_argument("--max-train", type=_count, metavar="N", help="at most N train rows (stratified, seed 0)")
    run.add_argument("--max-test", type=_count, metavar="N", help="at most N test rows (stratified, seed 0)")
    run.add_argument("--rounds", type=_count, metavar="N", help="timed passes per cell")
    run.add_argument("--out", type=Path, metavar="DIR", help="run folder; default runs/<profile>")
    run.add_argument("--fresh", action="store_true", help="fit and measure again what is there already")

    report = commands.add_parser("report", help="make the report of a run folder again")
    report.add_argument("run", type=Path, metavar="RUN")

    comparing = commands.add_parser(
        "compare",
        help="what changed between two runs, and is any of it a regression",
        description="What changed between two runs: accuracy on the same samples, FLOPs, layers, speed-up over the reference.",
    )
    comparing.add_argument("base", type=Path, metavar="BASE", help="run folder or packed reference")
    comparing.add_argument("new", type=Path, metavar="NEW", help="run folder or packed reference")
    comparing.add_argument("--gate", action="store_true", help="exit with 1 where something got worse")
    comparing.add_argument(
        "--margin",
        type=_share,
        metavar="POINTS",
        help="accuracy that may be lost beside chance; default 0.5, and 3 between different machines",
    )
    comparing.add_argument(
        "--slower", type=_share, metavar="PERCENT", help="time that may be added, relative to the reference; default 5"
    )

    packing = commands.add_parser("pack", help="a run in one small file, to compare others with")
    packing.add_argument("run", type=Path, metavar="RUN")
    packing.add_argument("file", type=Path, metavar="FILE")

    listing = commands.add_parser("list", help="what there is to choose from")
    listing.add_argument("what", choices=("methods", "datasets", "backbones", "profiles"))
    listing.add_argument(
        "--profile",
        metavar="P",
        help="with 'methods': the variants of this profile only; default: of all installed ones",
    )

    flops = commands.add_parser("flops", help="FLOPs of one sample in closed form, in both conventions")
    flops.add_argument("--backbone", required=True, metavar="ID", help="known name (offline), folder or hub id")
    flops.add_argument("--labels", type=_count, default=2, metavar="N")
    flops.add_argument("--seq-len", type=_count, default=128, metavar="T", help="tokens, padding included")
    flops.add_argument(
        "--exit", type=_count, metavar="K", help="leave after layer K (counted from 1) instead of the last"
    )
    flops.add_argument("--json", action="store_true", help="print one JSON object")

    options.add(
        commands.add_parser(
            "pretrain",
            help="a backbone of your own, from raw text",
            description=options.DESCRIPTION,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )
    distill_options.add(
        commands.add_parser(
            "distill",
            help="a student of your own, from a teacher and raw text",
            description=distill_options.DESCRIPTION,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )
    return top


def _hook(name: str) -> Any:
    """A function of the reports, found through the entry-point group ``geep.reporters``."""
    points = {point.name: point for point in entry_points(group="geep.reporters")}
    if name not in points:
        raise ConfigError(f"no reporter '{name}' is installed: install the project with 'pip install -e .'")
    return points[name].load()


def settings_of(args: argparse.Namespace) -> Any:
    """Profile and overrides of a parsed ``run`` command, as :class:`harness.bench.Settings`."""

    from harness.bench import Settings
    from harness.encoder.backbone import default_device

    chosen = profile.load(args.profile)
    changes: dict[str, Any] = {
        key: value
        for key in ("methods", "datasets", "seeds", "max_train", "max_test", "rounds")
        if (value := getattr(args, key)) is not None
    }
    way = {
        key: value
        for key in ("batch_size", "batch_tokens", "dtype", "compute")
        if (value := getattr(args, key)) is not None
    }
    if way:
        changes["execution"] = chosen.execution.model_copy(update=way)
    if args.backbone:
        changes["backbones"] = {**chosen.backbones, **args.backbone}
    chosen = chosen.model_copy(update=changes)
    return Settings(
        profile=chosen,
        out=args.out or Path("runs") / (chosen.name or "run"),
        data=args.data,
        device=args.device or default_device(),
        fresh=args.fresh,
    )


def _run(args: argparse.Namespace) -> int:
    from harness.grid import Grid
    from harness.store import Run

    settings = settings_of(args)
    outcome = Grid(settings).execute()
    if outcome.failed and not Run.open(settings.out).results():
        print(f"cells: none measured, {outcome.failed} failed; why is told above, and in {settings.out / 'failures'}")
        return 1
    page = _hook("report")(settings.out, progress=sys.stderr.isatty())
    print(_hook("summary")(settings.out))
    print(f"cells: {outcome.measured} measured, {outcome.kept} kept from before, {outcome.failed} failed")
    if outcome.seconds:
        share = 1 - outcome.predicting / outcome.seconds
        print(f"measuring: {outcome.seconds:.1f} s, of which the harness itself {share:.1%}")
    print(f"report: {page}")
    return 1 if outcome.failed else 0


def _report(args: argparse.Namespace) -> int:
    page = _hook("report")(args.run, progress=sys.stderr.isatty())
    print(_hook("summary")(args.run))
    print(f"report: {page}")
    return 0


def _compare(args: argparse.Namespace) -> int:
    from harness import compare, packed

    limits = compare.Limits()
    if args.margin is not None:
        limits = replace(limits, margin=args.margin, margin_elsewhere=args.margin)
    if args.slower is not None:
        limits = replace(limits, slower=args.slower)
    found = compare.compare(packed.load(args.base), packed.load(args.new), limits)
    print(_hook("comparison")(found), end="")
    return 1 if args.gate and found.alarms else 0


def _pack(args: argparse.Namespace) -> int:
    from harness import packed

    run = packed.pack(args.run)
    packed.write(run, args.file)
    for problem in run.problems:
        print(problem, file=sys.stderr)
    print(f"packed {len(run.cells)} cells into {args.file} ({args.file.stat().st_size / 1024:.0f} KiB)")
    return 0


def _list(args: argparse.Namespace) -> int:
    for row in _rows(args.what, args.profile):
        print("  ".join(row).rstrip())
    return 0


def _method_rows(named: str | None) -> list[tuple[str, ...]]:
    """Registered methods, broken plug-ins among them, then variants."""
    rows: list[tuple[str, ...]] = []
    for name in registry.names():
        try:
            method = registry.get(name)
        except MethodError as error:
            rows.append((name, "broken", told(error)))
        else:
            rows.append((name, method.kind, (type(method).__doc__ or "").strip().partition("\n")[0]))
    for chosen in [profile.load(name) for name in ([named] if named else profile.names())]:
        for name in chosen.variants:
            own = ", ".join(f"{key} = {json.dumps(value)}" for key, value in chosen.method[name].items())
            rows.append((name, "variant", f"{own} (profile {chosen.name})"))
    return rows


def _rows(what: str, named: str | None = None) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]]
    if what == "methods":
        rows = _method_rows(named)
    elif what == "datasets":
        from harness.data.cards import CARDS

        rows = [(c.name, c.language, f"{c.num_labels} classes", c.title) for c in CARDS.values()]
    elif what == "profiles":
        found = [profile.load(name) for name in profile.names()]
        rows = [(p.name, p.source, p.title) for p in found]
    else:
        from harness.encoder.backbone import EMBEDDED, shape_of
        from harness.encoder.shape import KNOWN_SHAPES

        shapes = {EMBEDDED: shape_of(EMBEDDED), **KNOWN_SHAPES}
        rows = [(n, f"{s.layers} layers", f"width {s.width}", f"vocabulary {s.vocab_size}") for n, s in shapes.items()]
        rows.append(("FOLDER or hub id", "any BERT-shaped checkpoint in safetensors", ""))
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(max(map(len, rows)))]
    return [tuple(part.ljust(widths[i]) for i, part in enumerate(row)) for row in rows]


def _flops(args: argparse.Namespace) -> int:
    from harness.encoder.backbone import shape_of
    from harness.measure.flops import closed_form

    shape = shape_of(args.backbone)
    one = closed_form(shape, args.labels, args.seq_len, exit_layer=args.exit)
    every = closed_form(shape, args.labels, args.seq_len, exit_layer=args.exit, heads="every")
    facts = {
        "backbone": args.backbone,
        "labels": args.labels,
        "seq_len": args.seq_len,
        "layers": args.exit or shape.layers,
        **one,
        "linear_every_head": every["linear"],
        "full_every_head": every["full"],
    }
    if args.json:
        print(json.dumps(facts))
        return 0
    print(
        f"{args.backbone}, {args.seq_len} tokens, {args.labels} labels, {facts['layers']} of {shape.layers} layers, FLOPs a sample"
    )
    print(
        f"  linear layers only, as FastBERT counts   one head {one['linear']:>18,}   a head per layer {every['linear']:>18,}"
    )
    print(
        f"  every matrix product executed            one head {one['full']:>18,}   a head per layer {every['full']:>18,}"
    )
    return 0


def _pretrain(args: argparse.Namespace) -> int:
    from harness.pretraining import command

    return command.run(args)


def _distill(args: argparse.Namespace) -> int:
    from harness.pretraining import distill

    return distill.run(args)


COMMANDS = {
    "run": _run,
    "report": _report,
    "compare": _compare,
    "pack": _pack,
    "list": _list,
    "flops": _flops,
    "pretrain": _pretrain,
    "distill": _distill,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    # Progress bars of the libraries underneath say nothing about our work.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        args = parser().parse_args(arguments)
        code = COMMANDS[args.command](args)
        sys.stdout.flush()
        return code
    except GeepBenchError as error:
        # Some messages quote what a library said, in several lines.
        print(f"geep-bench: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("geep-bench: stopped; run the same command again to go on from what is finished", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes
        return 0


if __name__ == "__main__":
    sys.exit(main())
