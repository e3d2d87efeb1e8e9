"""Which tables a report holds: every module of this package may declare some, as ``TABLES``."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import reports.tables
from reports.analysis.view import Group, View
from reports.notation.table_formats import AnyTable

Section = Literal["sets", "controls", "areas", "summary", "checks", "papers"]


@dataclass(frozen=True)
class RunTables:
    """Tables about the whole run, real and synthetic data apart.

    Attributes:
        name: of the kind of table.
        section: part of the page that they stand in.
        place: lower numbers come first.
        make: the tables; none where the run has nothing to show.
        heading: of a block that is closed at first, where ``{rows}`` is the number of table rows; empty: always open.
    """

    name: str
    section: Section
    place: int
    make: Callable[[View], Sequence[AnyTable]]
    heading: str = ""


@dataclass(frozen=True)
class DatasetTable:
    """A table about one dataset.

    Attributes:
        name: of the kind of table.
        place: lower numbers come first.
        heading: of its block, which is closed at first, where ``{label}`` is the dataset.
        make: the table; None where the dataset has nothing to show.
        figures: role of the figures that stand above it.
        in_markdown: whether ``report.md`` contains it.
    """

    name: str
    place: int
    heading: str
    make: Callable[[View, Group], AnyTable | None]
    figures: str = ""
    in_markdown: bool = True


class Block(NamedTuple):
    """Tables that stand together, how they were declared, and their heading, filled in."""

    kind: RunTables | DatasetTable
    heading: str
    tables: Sequence[AnyTable]


def declared() -> list[RunTables | DatasetTable]:
    """Return the declarations of all modules, in the order of their places."""
    found: list[RunTables | DatasetTable] = []
    for module in sorted(module.name for module in pkgutil.walk_packages(reports.tables.__path__, "reports.tables.")):
        found += getattr(importlib.import_module(module), "TABLES", ())
    return sorted(found, key=lambda one: one.place)


@dataclass
class Contents:
    """Every table of a report, made once and used by all formats.

    Attributes:
        blocks: tables about the run.
        datasets: slug -> blocks about this dataset.
    """

    view: View
    blocks: list[Block] = field(default_factory=list)
    datasets: dict[str, list[Block]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kinds = declared()
        for kind in kinds:
            if isinstance(kind, RunTables) and (tables := kind.make(self.view)):
                heading = kind.heading.format(rows=sum(len(table.rows) for table in tables))
                self.blocks.append(Block(kind, heading, tables))
        for group in self.view.groups:
            own = self.datasets.setdefault(group.slug, [])
            for kind in kinds:
                if isinstance(kind, DatasetTable) and (table := kind.make(self.view, group)) and table.rows:
                    heading = kind.heading.format(label=group.label)
                    own.append(Block(kind, heading, [table]))

    def section(self, name: Section) -> list[Block]:
        """Return the blocks of a section of the page."""
        return [block for block in self.blocks if getattr(block.kind, "section", "") == name]

    def named(self, name: str, group: Group | None = None) -> list[AnyTable]:
        """Return the tables of one kind, about the run or about one dataset."""
        blocks = self.datasets[group.slug] if group else self.blocks
        return [table for block in blocks if block.kind.name == name for table in block.tables]

    @property
    def all(self) -> list[AnyTable]:
        """Every table that is written to ``report/tables/``."""
        return [
            table for blocks in (self.blocks, *self.datasets.values()) for block in blocks for table in block.tables
        ]
