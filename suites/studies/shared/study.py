"""Command lines of suites that take the options of ``geep-bench run`` beside their own."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harness.cli.main import parser, settings_of
from harness.core.environment import environment_facts
from harness.core.errors import ConfigError
from harness.core.files import content_key
from harness.running.session import CHASSIS_VERSION
from harness.running.settings import Settings, validate_settings
from harness.running.task import source_identity


class Options(argparse.ArgumentParser):
    """argparse that complains in one line."""

    def error(self, message: str) -> Any:
        raise ConfigError(f"{message} (see {self.prog} --help)")


def whole(least: int) -> Callable[[str], int]:
    """A whole number of at least ``least``."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least {least}")
        return number

    return read


def wholes(least: int) -> Callable[[str], list[int]]:
    """``"1,2,4"``: whole numbers of at least ``least``, each once, as given."""
    return lambda text: list(dict.fromkeys(whole(least)(part.strip()) for part in text.split(",")))


def positive(text: str) -> float:
    """A number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"'{text.strip()}' is not a number above 0")
    return number


def positives(text: str) -> list[float]:
    """``"10,0.5"``: numbers above 0, each once, as given."""
    return list(dict.fromkeys(positive(part) for part in text.split(",")))


def choices(*known: str) -> Callable[[str], list[str]]:
    """``"a,b"``: out of ``known``, each once, as given."""

    def read(text: str) -> list[str]:
        found = [part.strip() for part in text.split(",")]
        wrong = [part for part in found if part not in known]
        if wrong:
            raise argparse.ArgumentTypeError(f"'{wrong[0]}' is not one of {', '.join(known)}")
        return list(dict.fromkeys(found))

    return read


def suite_options(module: str, doc: str) -> Options:
    """The options that these suites share."""
    own = Options(
        prog=f"python -m {module}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    own.add_argument("--samples", type=whole(2), metavar="N", help="only N test samples, drawn with seed 0")
    own.add_argument("--rounds", type=whole(1), metavar="N", help="timed rounds; default: the profile's")
    own.add_argument(
        "--speed", type=float, metavar="S", help="operating points at this speed; default 0.5, or the first"
    )
    own.add_argument("--out", type=Path, metavar="JSON", help="results, and where a stopped run goes on")
    own.add_argument("--markdown", type=Path, metavar="FILE", help="tables for people; default: beside the JSON, .md")
    return own


def read(own: Options, arguments: Sequence[str] | None) -> tuple[argparse.Namespace, Settings]:
    """Own options, with ``methods`` where they were named, and settings from all the others.

    Raises:
        GeepBenchError: an option or a name that makes no sense.
    """
    args, rest = own.parse_known_args(arguments)
    given = parser().parse_args(["run", *rest])
    if given.batch_size is not None:
        raise ConfigError(f"--batch-size is not for this suite: it takes --batch-sizes (see {own.prog} --help)")
    settings = settings_of(given)
    validate_settings(settings)
    args.methods = given.methods
    speeds = settings.profile.speeds
    if args.speed is None:
        args.speed = 0.5 if 0.5 in speeds else speeds[0]
    args.rounds = args.rounds or settings.profile.rounds
    name = own.prog.rpartition(".")[2]
    args.out = args.out or Path("runs") / (settings.profile.name or "run") / f"{name}.json"
    args.markdown = args.markdown or args.out.with_suffix(".md")
    if args.markdown == args.out:
        raise ConfigError(f"--markdown and --out both name {args.out}: give two files")
    return args, settings


def asked(settings: Settings, **options: Any) -> dict[str, Any]:
    """What results follow from, to tell whether kept ones are still these: readable, and a key of all of it."""
    profile, machine = settings.profile, environment_facts()
    names = profile.in_order([*profile.methods, profile.reference])
    return {
        "cpu": machine["cpu"],
        "gpu": (machine["gpu"] or {}).get("name"),
        "threads": machine["torch_threads"],
        "profile": profile.name,
        "source": settings.source,
        "methods": profile.methods,
        "datasets": profile.datasets,
        "seeds": profile.seeds,
        "device": settings.device,
        "dtype": settings.dtype,
        "max_length": profile.max_length,
        **options,
        "key": content_key(
            CHASSIS_VERSION,
            [(profile.identity(name), profile.method_of(name).version, profile.config(name)) for name in names],
            [source_identity(name, settings.source, settings.data) for name in profile.datasets],
            profile.model_dump(mode="json"),
        ),
    }
