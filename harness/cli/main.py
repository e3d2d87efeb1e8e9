"""``geep-bench``: run, report, choose, compare, pack, publish, export, predict, list, flops, pretrain, distill.

Commands import what they need when they are called, so that ``--help`` is quick.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.cli.cluster_options import cluster_options
from harness.cli.run_options import parser
from harness.core.command_line import exit_codes

if TYPE_CHECKING:
    from harness.running.run_settings import Settings


def settings_of(args: argparse.Namespace) -> Settings:
    """Return the settings of a parsed ``run`` command."""
    from harness.running.run_settings import make_settings

    plain = ("out", "data", "device", "fresh", "tuned")
    limits = ("max_train", "max_dev", "max_test", "max_unlabelled", "max_length")
    keys = ("methods", "datasets", "seeds", "rounds", "workers", "fit_threads", *limits)
    return make_settings(
        args.profile,
        overrides=args.set,
        backbones=args.backbone,
        execution={key: getattr(args, key) for key in ("batch_size", "batch_tokens", "dtype", "compute")},
        **{key: getattr(args, key) for key in (*plain, *keys)},
    )


def _run(args: argparse.Namespace) -> int:
    from harness import api

    cluster = cluster_options(args)
    if args.dry_run and cluster is not None:
        print(api.forecast_on(settings_of(args), cluster), end="")
        return 0
    if args.dry_run:
        from harness.running.fits.dry_run import forecast

        print(forecast(settings_of(args)), end="")
        return 0
    run = api.execute(settings_of(args), fit_only=args.fit_only, cluster=cluster)
    outcome = run.outcome
    assert outcome is not None
    if args.fit_only:
        print(f"fits: {outcome.fitted} ready, {outcome.failed} failed; omit --fit-only to measure")
    elif outcome.failed and run.results().empty:
        print(f"cells: none measured, {outcome.failed} failed; for the reasons see above or {run.path / 'failures'}")
    else:
        page = run.report()
        print(api.reporter("summary")(run.path))
        print(f"cells: {outcome.measured} measured, {outcome.kept} kept from before, {outcome.failed} failed")
        if outcome.seconds:
            share = 1 - outcome.predicting / outcome.seconds
            print(f"measuring: {outcome.seconds:.1f} s, of which the harness itself {share:.1%}")
        print(f"report: {page}")
    return 1 if outcome.failed else 0


def _report(args: argparse.Namespace) -> int:
    from harness import api

    page = api.open_run(args.run).report()
    print(api.reporter("summary")(args.run))
    print(f"report: {page}")
    return 0


def _choose(args: argparse.Namespace) -> int:
    from harness import api

    found = api.reporter("choice")(
        args.run,
        max_loss=args.max_loss,
        confidence=args.confidence,
        max_p99=None if args.max_p99_ms is None else args.max_p99_ms / 1000,
        max_bytes=None if args.max_mb is None else args.max_mb * 1e6,
    )
    print(found.text, end="")
    return 0 if found.complete else 1


def _compare(args: argparse.Namespace) -> int:
    from harness import api

    found = api.compare(args.base, args.new, margin=args.margin, slower=args.slower)
    print(api.reporter("comparison")(found), end="")
    return 1 if args.gate and found.alarms else 0


def _pack(args: argparse.Namespace) -> int:
    from harness.results import packed_run

    run = packed_run.pack(args.run)
    packed_run.write(run, args.file)
    for problem in run.problems:
        print(problem, file=sys.stderr)
    print(f"packed {len(run.cells)} cells into {args.file} ({args.file.stat().st_size / 1024:.0f} KiB)")
    return 0


def _publish(args: argparse.Namespace) -> int:
    from harness.results.published_run import publish

    made = publish(args.run, args.out)
    if without := made.cells - made.with_rows:
        print(f"{without} of {made.cells} cells have no usable per-sample rows", file=sys.stderr)
    print(f"published: {args.out} ({made.cells} cells, {made.bytes / 2**20:.1f} MiB)")
    return 0


def _export(args: argparse.Namespace) -> int:
    from harness.deploy.exporting import export
    from harness.deploy.hub_upload import push_to_hub

    made = export(args.run, args.cell, args.out, data=args.data, backbones=args.backbone, overrides=args.set)
    if made.onnx:
        print(f"no ONNX graph: {made.onnx}", file=sys.stderr)
    if not made.agreement.same:
        print("the model does not give all answers of its cell; its card says so", file=sys.stderr)
    print(f"stored answers: {made.agreement}")
    print(f"model: {made.folder}")
    if args.push_to_hub:
        print(f"uploaded: {push_to_hub(made.folder, args.push_to_hub, private=not args.public)}")
    return 0


def _predict(args: argparse.Namespace) -> int:
    from harness import load_classifier
    from harness.deploy.predicting import predict_file

    classify = load_classifier(args.model, device=args.device, batch_size=args.batch_size)
    done = predict_file(classify, args.texts, args.out, skip_empty=args.skip_empty, exact_labels=args.exact_labels)
    print(f"answers: {args.out} ({done.rows:,} rows, {done.new:,} of them now)")
    return 0


def _list(args: argparse.Namespace) -> int:
    from harness.core.terminal_table import terminal_table

    rows = _rows(args.what, args.profile)
    print(terminal_table([""] * len(rows[0]), rows, left=len(rows[0])), end="")
    return 0


def _rows(what: str, profile: str | None = None) -> list[tuple[str, ...]]:
    if what == "methods":
        from harness import api

        return [tuple(row) for row in api.list_methods(profile)[["name", "kind", "description"]].to_numpy()]
    if what == "datasets":
        from harness.data.cards import CARDS

        return [(card.name, card.language, f"{card.num_labels} classes", card.title) for card in CARDS.values()]
    if what == "profiles":
        from harness.running import profile as profiles

        found = [profiles.load(name) for name in profiles.names()]
        return [(one.name, one.source, one.title) for one in found]
    from harness.encoder.backbone import EMBEDDED, shape_of
    from harness.encoder.shape import KNOWN_SHAPES

    shapes = {EMBEDDED: shape_of(EMBEDDED), **KNOWN_SHAPES}
    return [
        *((n, f"{s.layers} layers", f"width {s.width}", f"vocabulary {s.vocab_size}") for n, s in shapes.items()),
        ("FOLDER or hub id", "a checkpoint of a known family, in safetensors", "", ""),
    ]


def _flops(args: argparse.Namespace) -> int:
    from harness.encoder.backbone import shape_of
    from harness.encoder.flops import closed_form

    shape = shape_of(args.backbone)
    one = closed_form(shape, args.labels, args.seq_len, exit_layer=args.exit)
    every = closed_form(shape, args.labels, args.seq_len, exit_layer=args.exit, heads="every")
    layers = args.exit or shape.layers
    if args.json:
        facts = {"backbone": args.backbone, "labels": args.labels, "seq_len": args.seq_len, "layers": layers, **one}
        print(json.dumps({**facts, "linear_every_head": every["linear"], "full_every_head": every["full"]}))
        return 0
    print(
        f"{args.backbone}, {args.seq_len} tokens, {args.labels} labels, {layers} of {shape.layers} layers, FLOPs a sample"
    )
    for title, kind in (
        ("linear layers only, as FastBERT counts", "linear"),
        ("every matrix product executed", "full"),
    ):
        print(f"  {title:40} one head {one[kind]:>18,}   a head per layer {every[kind]:>18,}")
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
    "choose": _choose,
    "compare": _compare,
    "pack": _pack,
    "publish": _publish,
    "export": _export,
    "predict": _predict,
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
