"""Columns, notes and captions that several tables share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

from reports.analysis.cell_settings import ROW_SETTING
from reports.analysis.result_rows import ResultRow
from reports.analysis.time_ratios import WHY_MISSING
from reports.analysis.view import Group, View
from reports.notation.marks import Marked, data_tag, file_tag, footnotes, marked
from reports.notation.numbers import DASH, plain, whole
from reports.notation.table_formats import Column, Table

M = TypeVar("M", bound=Marked)
_HEADINGS = {
    **{name: name.capitalize() for name in ROW_SETTING},
    "batch_size": "Batch",
    "batch_tokens": "Tokens a batch",
    "dtype": "dtype",
    "compute": "Blocks run",
}
NO_REFERENCE = "no reference method was measured in this run under the same conditions"
UNTIMED = "not timed: measured for accuracy, exits and FLOPs only"
BOUND = "bound, not a method"
UNTRAINED = "nothing was trained for this row, or it uses the weights of another row"
IDENTITY = ("data", "language", "dataset", "kind", "method", "point", *ROW_SETTING, "seeds", "seed_list", "n")


class NamedRow(Marked, Protocol):
    """A row that shows a method."""

    @property
    def method(self) -> str: ...
    @property
    def kind(self) -> str: ...


def method_name(row: NamedRow) -> str:
    """Return the method as shown: a bound is named as one, and marks follow."""
    return marked(f"{row.method} ({BOUND})" if row.kind == "bound" else row.method, row.marks)


def setting_columns(view: View) -> list[Column[ResultRow]]:
    """Return the settings that tell the rows of this run apart."""
    return [
        Column(
            name,
            _HEADINGS[name],
            numeric=name == "batch_size",
            form=lambda value: DASH if value is None else str(value),
        )
        for name in view.varying
    ]


DATASET: Column[ResultRow] = Column("dataset", "Dataset", numeric=False)
METHOD: Column[ResultRow] = Column("method", "Method", lambda row: marked(row.method, row.marks), numeric=False)
POINT: Column[ResultRow] = Column("point", "Point", numeric=False)


def identity_columns(view: View) -> list[Column[ResultRow]]:
    """Return method, operating point and the settings that vary."""
    return [Column("method", "Method", method_name, numeric=False), POINT, *setting_columns(view)]


def why_no_speedup(rows: Sequence[ResultRow]) -> str:
    """Return why some of these rows may have no speed-up."""
    return NO_REFERENCE if all(row.timed for row in rows) else f"{UNTIMED}; or {NO_REFERENCE}"


# The A/A band, shown beside every ratio of times.
NOISE: Column[ResultRow] = Column(
    "noise_high", "A/A noise", lambda row: str(row.noise) if row.noise else DASH, missing=WHY_MISSING
)


def noise_notes(rows: Sequence[ResultRow]) -> list[str]:
    """Return the footnote on the A/A band of these rows."""
    bands = dict.fromkeys((row.label, row.noise) for row in rows if row.noise is not None)
    pairs = [band.pairs for _, band in bands if band is not None]
    if not pairs:
        return []
    count = whole(pairs[0]) if len(set(pairs)) == 1 else f"{whole(min(pairs))} to {whole(max(pairs))}"
    return [
        f"A/A noise: 10th to 90th percentile of the reference over itself in neighbouring rounds ({count} pairs, cells of a "
        "dataset pooled, both directions). A ratio inside this band is no evidence of a difference."
    ]


def from_text_column(rows: Sequence[ResultRow]) -> list[Column[ResultRow]]:
    """Return the column of speed from raw text; none if no row has it, as in older results."""
    if all(row.samples_per_s_from_text is None for row in rows):
        return []
    missing = "not timed, or measured by an older version"
    return [Column("samples_per_s_from_text", "From text, samples/s", missing=missing, form=plain)]


def from_text_note(rows: Sequence[ResultRow]) -> list[str]:
    """Return the footnote on that column."""
    if not from_text_column(rows):
        return []
    return [
        "From text: samples/s with tokenising before every pass, in the same batches and on as many threads; samples/s and "
        "speed-ups begin with ids on the device."
    ]


def reference_names(rows: Iterable[ResultRow]) -> str:
    """Return the names of the references of these rows."""
    return " and ".join(sorted({row.ratio_reference for row in rows if row.ratio_reference})) or "none"


def dataset_table(
    name: str,
    text: str,
    group: Group,
    rows: Sequence[M],
    columns: Sequence[Column[M]],
    csv: Sequence[str],
    notes: Sequence[str] = (),
    *,
    lowest: bool = True,
    split: str = "kind",
    values: Mapping[str, Callable[[M], object]] | None = None,
) -> Table[M]:
    """Return a table of one dataset; the caption adds the settings that all its rows share, and the notes the marks.

    ``lowest`` is that of :func:`reports.notation.marks.footnotes`; all others are those of :class:`Table`.
    """
    caption = f"{text}: {group.label}; {group.facts}"
    shown = [*notes, *footnotes(rows, lowest=lowest)]
    return Table(f"{name}-{group.slug}", caption, rows, columns, csv, shown, split, values or {})


def run_table(
    name: str,
    text: str,
    synthetic: bool,
    rows: Sequence[M],
    columns: Sequence[Column[M]],
    csv: Sequence[str],
    notes: Sequence[str] = (),
    *,
    lowest: bool = True,
    split: str = "label",
    values: Mapping[str, Callable[[M], object]] | None = None,
) -> Table[M]:
    """Return a table of the whole run, of real or of synthetic data; as :func:`dataset_table`."""
    shown = [*notes, *footnotes(rows, lowest=lowest)]
    return Table(name + file_tag(synthetic), text + data_tag(synthetic), rows, columns, csv, shown, split, values or {})
