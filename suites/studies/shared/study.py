"""What all studies share: a command line that extends ``geep-bench run``, resuming, progress, and tables at the end."""

from __future__ import annotations

import argparse
import itertools
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from tqdm import tqdm

from harness.cli.argument_types import OneLineParser, comma_separated, whole_number
from harness.cli.main import settings_of
from harness.cli.run_options import add_run_options
from harness.contracts import Execution
from harness.core.command_line import exit_codes
from harness.core.digest import digest_of
from harness.core.environment import environment_facts
from harness.core.errors import ConfigError
from harness.core.files import content_key, write_text
from harness.running.content_keys import ContentKeys
from harness.running.fits.fit_keys import CHASSIS_VERSION
from harness.running.run_settings import Settings, validate_settings
from harness.running.session import Session
from harness.running.task import unlabelled_identity
from suites.studies.shared.resume_file import ResumeFile
from suites.studies.shared.study_methods import StudyMethod, StudySamples
from suites.studies.shared.study_page import Page
from suites.studies.shared.sweep import SIZES, sweep


def study_parser(name: str, doc: str | None) -> OneLineParser:
    """Return a parser with the options of ``geep-bench run``; a study may replace some of them with its own."""
    parser = OneLineParser(
        prog=f"python -m suites.studies.{name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        conflict_handler="resolve",
    )
    add_run_options(parser.add_argument_group("options of geep-bench run"))
    return parser


def settings_from(args: argparse.Namespace, **changes: Any) -> Settings:
    """Return checked settings from the options of ``geep-bench run`` in ``args``; a study's ``--out`` is no run folder.

    Raises:
        GeepBenchError: an option or a name is not valid.
    """
    settings = settings_of(argparse.Namespace(**{**vars(args), "out": None, **changes}))
    validate_settings(settings)
    return settings


def add_batch_sizes(parser: OneLineParser) -> None:
    """Add the option that :meth:`Study.sweep` reads."""
    sizes = comma_separated(whole_number(1))
    parser.add_argument("--batch-sizes", type=sizes, default=list(SIZES), metavar="1,2,4", help="sizes of the sweep")


class Study(ABC):
    """A study that measures datasets in turn, stores every finished part, and ends with tables.

    Attributes:
        name: of the module, for messages and default file names.
        options: arguments on which stored parts depend; a file made with others is refused.
        reads_unlabelled: whether it learns from texts without labels itself, whatever its methods do.
        rows: results so far.
    """

    name: ClassVar[str]
    options: ClassVar[tuple[str, ...]]
    reads_unlabelled: ClassVar[bool] = False

    def __init__(self, settings: Settings, args: argparse.Namespace, stored: ResumeFile, bar: Any) -> None:
        self.settings, self.args, self.stored, self.bar = settings, args, stored, bar
        self.rows: list[dict[str, Any]] = []
        self._steps = 0

    @classmethod
    @abstractmethod
    def add_options(cls, parser: OneLineParser) -> None:
        """Add the study's own options."""

    @classmethod
    def check(cls, settings: Settings, args: argparse.Namespace) -> None:
        """Raise :class:`ConfigError` where options do not fit together."""
        if args.markdown == args.out:
            raise ConfigError(f"--markdown and --out both name {args.out}: give two files")

    @classmethod
    def steps(cls, settings: Settings, args: argparse.Namespace) -> int:
        """Return the number of steps of the progress bar."""
        return len(settings.profile.datasets) * len(settings.profile.seeds)

    @abstractmethod
    def page(self) -> Page:
        """Return all tables."""

    @abstractmethod
    def execute(self) -> None:
        """Measure everything that is not stored yet."""

    def results(self) -> dict[str, Any]:
        """Return what the JSON file holds beside the parts."""
        return {"rows": self.rows}

    def exit_code(self) -> int:
        """Return 0, or 1 if the results show something wrong."""
        return 0

    def samples(
        self, dataset: str, seed: int, methods: Sequence[str] | Callable[[Session], Sequence[str]], batch_size: int
    ) -> StudySamples:
        """Load one dataset and fit the methods; ``batch_size`` is that of untimed passes."""
        self.describe(f"{dataset}: loading")
        session = Session(self.settings, dataset, seed)
        chosen = methods(session) if callable(methods) else methods
        return StudySamples(session, chosen, self.args.speed, self.args.samples, batch_size)

    def sweep(self, where: str, samples: StudySamples, execution: Execution, seed: int) -> list[dict[str, Any]]:
        """Return the best batch size of every method, see :func:`suites.studies.shared.sweep.sweep`; each is stored."""
        found = []
        for entry in samples.entries:
            part = f"{where}/sweep/{entry.label}"
            if part not in self.stored:
                tell = self.describe(f"{where} sweep {entry.label}")
                sizes, rounds = self.args.batch_sizes, self.args.rounds
                self.stored.store(part, sweep(entry, samples.tokens, execution, sizes, rounds, seed, tell))
            found.append({"label": entry.label, **self.stored[part]})
        return found

    def facts(self, dataset: str, seed: int, entry: StudyMethod | None = None) -> dict[str, Any]:
        """Return the columns that identify a row."""
        source = self.settings.source
        row = {"dataset": dataset, "seed": seed, "source": source, "synthetic": source == "embedded"}
        return row if entry is None else {**row, "label": entry.label, "method": entry.method, "kind": entry.kind}

    def describe(self, what: str) -> Callable[[str], None]:
        """Show what is running; returns a function that shows details behind it."""
        self.bar.set_description(what)
        return self.bar.set_postfix_str

    def advance(self, what: str, steps: int = 1) -> None:
        """Count finished steps; without a terminal a line is printed instead of the bar."""
        self.bar.update(steps)
        self._steps += steps
        if self.bar.disable:
            print(f"[{self._steps}/{self.bar.total}] {what}", file=sys.stderr, flush=True)

    @classmethod
    def main(cls, doc: str | None, arguments: Sequence[str] | None) -> int:
        """Run the study from its command line and return the exit code."""
        return exit_codes(cls.name, resumes=True)(cls._main)(doc, arguments)

    @classmethod
    def _main(cls, doc: str | None, arguments: Sequence[str] | None) -> int:
        args, settings = cls._read(doc, arguments)
        options = {name: getattr(args, name) for name in cls.options}
        asked = asked_for(settings, reads_unlabelled=cls.reads_unlabelled, **options)
        stored = ResumeFile(args.out, cls.name, asked, fresh=settings.fresh)
        with tqdm(total=cls.steps(settings, args), desc=cls.name, disable=None) as bar:
            study = cls(settings, args, stored, bar)
            study.execute()
        stored.finish(**study.results())
        page = study.page()
        write_text(args.markdown, page.as_markdown)
        print(page.for_terminal)
        print(f"\nrows: {args.out}, tables: {args.markdown}")
        return study.exit_code()

    @classmethod
    def _read(cls, doc: str | None, arguments: Sequence[str] | None) -> tuple[argparse.Namespace, Settings]:
        parser = study_parser(cls.name, doc)
        count = whole_number(1)
        parser.add_argument(
            "--samples", type=whole_number(2), metavar="N", help="only N test samples, drawn with seed 0"
        )
        parser.add_argument("--rounds", type=count, metavar="N", help="timed rounds; default: the profile's")
        parser.add_argument(
            "--speed", type=float, metavar="S", help="speed of operating points; default 0.5, or the first"
        )
        parser.add_argument("--out", type=Path, metavar="JSON", help="results; a stopped run resumes from this file")
        parser.add_argument("--markdown", type=Path, metavar="FILE", help="tables; default: the JSON's name with .md")
        parser.add_argument("--batch-size", help=argparse.SUPPRESS)
        cls.add_options(parser)
        args = parser.parse_args(arguments)
        if args.batch_size is not None:
            raise ConfigError(f"a study has no --batch-size: use --fixed or --batch-sizes (see {parser.prog} --help)")
        settings = settings_from(args, rounds=None)
        speeds = settings.profile.speeds
        if args.speed is None:
            args.speed = 0.5 if 0.5 in speeds else speeds[0]
        args.rounds, args.named = args.rounds or settings.profile.rounds, args.methods
        args.out = args.out or Path("runs") / (settings.profile.name or "run") / f"{cls.name}.json"
        args.markdown = args.markdown or args.out.with_suffix(".md")
        cls.check(settings, args)
        return args, settings


class DatasetStudy(Study):
    """A study whose stored parts are datasets with a seed."""

    @abstractmethod
    def measure(self, dataset: str, seed: int) -> list[dict[str, Any]]:
        """Return the rows of one dataset and seed, to be stored."""

    def complete(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Add to stored rows what follows from them without another pass."""
        return rows

    def execute(self) -> None:
        """Measure everything that is not stored yet."""
        for dataset, seed in itertools.product(self.settings.profile.datasets, self.settings.profile.seeds):
            part = f"{dataset}/seed{seed}"
            if part not in self.stored:
                self.stored.store(part, self.measure(dataset, seed), instead_of=f"{part}/")
            self.rows += self.complete(self.stored[part])
            self.advance(part)


def asked_for(settings: Settings, *, reads_unlabelled: bool = False, **options: Any) -> dict[str, Any]:
    """Return everything that results depend on, readable, and as one key of the rest.

    Args:
        reads_unlabelled: results depend on texts without labels even if no method learns from them.
    """
    profile, machine = settings.profile, environment_facts()
    names = profile.in_order([*profile.methods, profile.reference])
    keys = ContentKeys(settings)
    named = {name: content for name in names if (content := profile.named_content(name)) is not None}
    backbones = [backbone for dataset in profile.datasets if (backbone := keys.backbone(dataset))]
    # As in keys of cells, only if they are used, so that files of other studies stay valid; rows of a split are in its identity.
    used = reads_unlabelled or any(map(profile.uses_unlabelled, names))
    own = {dataset: unlabelled_identity(dataset, settings.source, settings.data) for dataset in profile.datasets * used}
    unlabelled = {dataset: digest for dataset, digest in own.items() if digest not in ("", digest_of((), Path()))}
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
            [(profile.identity(name), profile.version(name), profile.config(name)) for name in names],
            [keys.identity(dataset) for dataset in profile.datasets],
            profile.model_dump(mode="json"),
            *[part for part in (named, backbones, unlabelled) if part],
        ),
    }
