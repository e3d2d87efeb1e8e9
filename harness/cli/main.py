"""``geep-bench``: run, report, compare, pack, list, flops, pretrain, distill."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from harness import registry
from harness.cli.run_options import parser
from harness.core.command_line import exit_codes
from harness.core.errors import ConfigError, MethodError, format_error
from harness.running import profile

if TYPE_CHECKING:
    from harness.running.settings import Settings


def _hook(name: str) -> Any:
    """A function of the reports, found through the entry-point group ``geep.reporters``."""
    points = {point.name: point for point in entry_points(group="geep.reporters")}
    if name not in points:
        raise ConfigError(
            f"no reporter '{name}' is installed: install the project with 'pip install -e .', and delete an older "
            "geep_bench.egg-info from this folder"
        )
    return points[name].load()


def settings_of(args: argparse.Namespace) -> Settings:
    """Return the settings of a parsed ``run`` command."""
    from harness.running.settings import make_settings

    plain = ("out", "data", "device", "fresh")
    keys = ("methods", "datasets", "seeds", "max_train", "max_test", "rounds", "fit_processes")
    return make_settings(
        args.profile,
        overrides=args.set,
        backbones=args.backbone,
        execution={key: getattr(args, key) for key in ("batch_size", "batch_tokens", "dtype", "compute")},
        **{key: getattr(args, key) for key in (*plain, *keys)},
    )


def _run(args: argparse.Namespace) -> int:
    from harness.results.run_folder import RunFolder
    from harness.running.grid import Grid

    settings = settings_of(args)
    if args.fit_only:
        ready, failed = Grid(settings).fit()
        print(f"fits: {ready} ready, {failed} failed; run the same command without --fit-only to measure")
        return 1 if failed else 0
    outcome = Grid(settings).execute()
    if outcome.failed and not RunFolder.open(settings.out).results():
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
    from harness.regression import compare
    from harness.results import packed_run

    limits = compare.Limits()
    if args.margin is not None:
        limits = replace(limits, margin=args.margin, margin_elsewhere=args.margin)
    if args.slower is not None:
        limits = replace(limits, slower=args.slower)
    found = compare.compare(packed_run.load(args.base), packed_run.load(args.new), limits)
    print(_hook("comparison")(found), end="")
    return 1 if args.gate and found.alarms else 0


def _pack(args: argparse.Namespace) -> int:
    from harness.results import packed_run

    run = packed_run.pack(args.run)
    packed_run.write(run, args.file)
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
            rows.append((name, "broken", format_error(error)))
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
    from harness.encoder.flops import closed_form

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
    from harness.pretraining import pretrain_command

    return pretrain_command.run(args)


def _distill(args: argparse.Namespace) -> int:
    from harness.pretraining import distill_command

    return distill_command.run(args)


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


@exit_codes("geep-bench", resumes=True)
def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    # The libraries' progress bars do not concern our work.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    args = parser().parse_args(arguments)
    return COMMANDS[args.command](args)


if __name__ == "__main__":
    sys.exit(main())
