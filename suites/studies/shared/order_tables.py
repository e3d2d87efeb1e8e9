"""Tables of the study of orders."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from suites.studies.shared.ordering import MEANING, ORDERS
from suites.studies.shared.study_page import Page, dataset_title, number

Row = Mapping[str, Any]
PROTOCOLS = {"modern": "packed, no padding in linear layers", "paper": "every sample padded to {pad_to} tokens"}

BUSY = "THE MACHINE WAS BUSY WITH OTHER WORK: these times are not reliable; measure again on a quiet machine (--fresh)"


def times(ratio: Mapping[str, float] | None, noise: float) -> str:
    """Format a ratio as ``1.23x``, with ``~`` if it lies within the noise or its rounds (p10 to p90) include 1."""
    if ratio is None:
        return "—"
    middle = ratio["median"]
    open_ = 1 / noise <= middle <= noise or ratio["p10"] < 1 < ratio["p90"]
    return f"{middle:.2f}x{'~' if open_ and middle != 1 else ''}"  # 1: a ratio to itself


def _method(row: Row) -> str:
    return row["label"] + (" (bound)" if row["kind"] == "bound" and row["order"] != "oracle" else "")


class _Notes:
    """Reasons for empty cells; each is printed once, under a letter."""

    def __init__(self) -> None:
        self._letters: dict[str, str] = {}

    def mark(self, reason: str) -> str:
        letter = self._letters.setdefault(reason, chr(ord("a") + len(self._letters)))
        return f"— {letter}"

    def lines(self) -> list[str]:
        return [f"— {letter}: {reason}" for reason, letter in self._letters.items()]


def _by_label(rows: Sequence[Row]) -> Iterator[dict[str, Row]]:
    for _, group in itertools.groupby(rows, key=lambda row: row["label"]):
        yield {row["order"]: row for row in group}


def throughput(rows: Sequence[Row], notes: _Notes) -> tuple[list[str], list[list[str]]]:
    """Return the table of samples/s by order, with the gain over arrival."""
    heads = ["method", "batch", "layers", "arrival", *(f"{order}" for order in ORDERS[1:])]
    body = []
    for cells in _by_label(rows):
        first = cells["arrival"]
        line = [_method(first), str(first["batch_size"]), f"{first['mean_layers']:.2f}"]
        for order in ORDERS:
            row = cells[order]
            if row["skipped"] is not None:
                line.append(notes.mark(row["skipped"]))
                continue
            gain = "" if order == "arrival" else f" {times(row['over_arrival'], row['noise'])}"
            wrong = "" if row["labels_agree"] == 1 else " !"
            line.append(number(row["samples_per_s"]) + gain + wrong)
        body.append(line)
    return heads, body


def fastest(cells: Mapping[str, Row]) -> Row:
    """Return the method's fastest order; the oracle does not count, because no method can have it."""
    return min(
        (row for order, row in cells.items() if order != "oracle" and row["skipped"] is None),
        key=lambda row: row["seconds"]["median"],
    )


def speedups(rows: Sequence[Row], reference: str) -> tuple[list[str], list[list[str]]] | None:
    """Return the table of speed-ups (wall time) over the reference: in the same order, and fastest against fastest."""
    groups = {next(iter(cells.values()))["label"]: cells for cells in _by_label(rows)}
    rival = next((cells for cells in groups.values() if cells["arrival"]["method"] == reference), None)
    if rival is None:
        return None
    rivals_best = fastest(rival)
    heads = ["method", *ORDERS, "best over best", "(orders)"]
    body = []
    for cells in groups.values():
        line = [_method(cells["arrival"])]
        for order in ORDERS:
            line.append(times(cells[order].get("over_reference"), cells[order]["noise"]))
        mine = fastest(cells)
        ratio = rivals_best["seconds"]["median"] / mine["seconds"]["median"]
        body.append([*line, f"{ratio:.2f}x", f"{mine['order']} / {rivals_best['order']}"])
    return heads, body


def glance(rows: Sequence[Row], reference: str) -> tuple[list[str], list[list[str]]]:
    """Return the table of every method in its fastest order: at the common batch size, and at its own best one.

    Both are shown because a method must not lose by a batch size that suits another (docs/explanation/fair-comparison.md).
    """
    groups: dict[str, dict[str, dict[str, Row]]] = {}
    for row in rows:
        groups.setdefault(row["label"], {}).setdefault(row["regime"], {})[row["order"]] = row
    regimes = list(dict.fromkeys(row["regime"] for row in rows))
    heads, body = ["method"], []
    for regime in regimes:
        heads += [f"{'common' if regime == 'fixed' else 'best'} batch size", "order", "samples/s", f"over {reference}"]
    rival = next((cells for cells in groups.values() if _first(cells)["method"] == reference), None)
    for cells in groups.values():
        line = [_method(_first(cells))]
        for regime in regimes:
            mine = fastest(cells[regime])
            over = "—"
            if rival is not None:
                over = f"{fastest(rival[regime])['seconds']['median'] / mine['seconds']['median']:.2f}x"
            line += [str(mine["batch_size"]), mine["order"], number(mine["samples_per_s"]), over]
        body.append(line)
    return heads, body


def _first(cells: Mapping[str, Mapping[str, Row]]) -> Row:
    return next(iter(cells.values()))["arrival"]


def _ordering_cost(rows: Sequence[Row]) -> list[str]:
    lines = []
    for order in ("length", "predicted"):
        ran = [row for row in rows if row["order"] == order and row["skipped"] is None]
        if ran:
            most = max(ran, key=lambda row: row["predicting_share"] + row["sorting_share"])
            lines.append(
                f"ordering by {order} took at most {most['predicting_share'] + most['sorting_share']:.1%} of a pass "
                f"(predicting {most['predicting_share']:.1%}, sorting there and back {most['sorting_share']:.1%}; "
                f"{most['label']})"
            )
    return lines


def _agreement(rows: Sequence[Row]) -> str:
    ran = [row for row in rows if row["skipped"] is None]
    wrong = [row for row in ran if row["labels_agree"] < 1]
    if not wrong:
        return f"labels: the same in every order and round ({ran[0]['samples']} samples)"
    worst = min(wrong, key=lambda row: row["labels_agree"])
    return (
        f"labels: NOT the same in every order, marked !: {len(wrong)} of {len(ran)} cells, the worst {worst['label']} "
        f"{worst['order']} with {1 - worst['labels_agree']:.2%} of {worst['samples']} samples"
    )


def _block(out: Page, rows: Sequence[Row], reference: str) -> None:
    first = rows[0]
    how = PROTOCOLS[first["protocol"]].format(**first)
    size = (
        f"batch {first['batch_size']} for all methods" if first["regime"] == "fixed" else "each at its best batch size"
    )
    out.heading(f"{dataset_title(first)}: {how}; {size}")
    notes = _Notes()
    out.text("samples/s, and the gain over the method's own arrival order:")
    out.table(*throughput(rows, notes))
    ratios = speedups(rows, reference)
    if ratios is not None:
        out.text(f"wall-clock speed-up over {reference} in the same order (own: over {reference} sorted by length):")
        out.table(*ratios)
        still = [row for row in rows if row["method"] == reference and row["skipped"] and row["order"] == "length"]
        if still:
            out.text(f"no order changes the work of {reference} here: its arrival order stands for all")
    pair = first["again"]
    out.text(
        *notes.lines(),
        f"noise {first['noise'] - 1:.1%}: the A/A pair's ratio was {pair['median']:.3f} (p10 {pair['p10']:.3f}, "
        f"p90 {pair['p90']:.3f}), and most ratios to arrival varied by {first['wobble'] - 1:.1%} from round to round; ratios "
        "marked ~ lie within the noise, or have rounds on both sides of 1",
        *([BUSY] if first["noise"] > 1.2 else []),
        *_ordering_cost(rows),
        _agreement(rows),
    )


def _sweeps(out: Page, sweeps: Sequence[Row]) -> None:
    for _, group in itertools.groupby(sweeps, key=lambda found: (found["dataset"], found["seed"], found["protocol"])):
        found = list(group)
        sizes = sorted({tried["batch_size"] for one in found for tried in one["tried"]})
        out.heading(f"{dataset_title(found[0])}, {found[0]['protocol']}: samples/s by batch size, sorted by length", 3)
        body = []
        notes = _Notes()
        for one in found:
            rates = {tried["batch_size"]: tried["samples_per_s"] for tried in one["tried"]}
            cells = [
                number(rates[size]) + ("*" if size == one["best"] else "")
                if size in rates
                else notes.mark(one["ended"])
                for size in sizes
            ]
            body.append([one["label"], *cells])
        out.table(["method", *map(str, sizes)], body)
        out.text("*: the fastest", *notes.lines())


def page(rows: Sequence[Row], sweeps: Sequence[Row], reference: str, dtype: str) -> Page:
    """Return all tables."""
    out = Page("Orders of samples x methods", rows, dtype)
    out.text(
        *(f"{order}: {meaning}" for order, meaning in MEANING.items()),
        "under the first four, methods that sort by exit (ladder, exact-k, verified) get one batch at a time, and sort "
        "within it",
        "oracle: the method's own exits where it finds them on the way; for the others the sequential exits of geep's weights",
    )
    for _, some in itertools.groupby(rows, key=lambda row: (row["dataset"], row["seed"], row["protocol"])):
        both = list(some)
        for _, block in itertools.groupby(both, key=lambda row: row["regime"]):
            _block(out, list(block), reference)
        how = PROTOCOLS[both[0]["protocol"]].format(**both[0])
        out.heading(f"{dataset_title(both[0])}, {how}: every method in its fastest order", 3)
        out.table(*glance(both, reference))
    _sweeps(out, sweeps)
    return out
