"""Tables of the load study: the highest rate within the bound, latency over the rate, and measured beside expected."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from suites.studies.shared.study_page import Page, dataset_title, number, seconds

Row = Mapping[str, Any]
CANNOT = "cannot keep up"
AGREES = 0.10  # relative difference of measured and expected latencies
LATE = 0.10  # share of p99 that the generator may add
NEARLY = 0.9  # load above which small differences in the time of calls make long queues


def _server(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["scenario"] == "Server"]


def curves(rows: Sequence[Row]) -> Iterator[tuple[str, str, list[Row]]]:
    """Yield label, rule and rows by rate of every curve."""
    for (label, rule), some in itertools.groupby(_server(rows), key=lambda row: (row["label"], row["rule"])):
        yield label, rule, list(some)


def highest(curve: Sequence[Row]) -> Row | None:
    """Return the row with the highest rate within the bound."""
    return max((row for row in curve if row["meets"]), key=lambda row: row["rate"], default=None)


def load(row: Row) -> float:
    """Return the share of its capacity that a server used: busy, in calls as full as they can be."""
    return float(row["busy"] * row["mean_size"] / row["size"])


def off(row: Row, expected: str, what: str) -> float:
    """Return how far a measured latency lies from the expected one, as a share of the latter."""
    return float(row[what] / row[expected][what] - 1)


def _label(row: Row) -> str:
    return row["label"] + (" (bound)" if row["kind"] == "bound" else "")


def _highest_table(out: Page, rows: Sequence[Row], bound: float, reference: str) -> None:
    rules = list(dict.fromkeys(row["rule"] for row in _server(rows)))
    best = {(label, rule): highest(curve) for label, rule, curve in curves(rows)}
    theirs = {
        rule: found["rate"]
        for (label, rule), found in best.items()
        if found and next(row for row in rows if row["label"] == label)["method"] == reference
    }
    body = []
    for label in dict.fromkeys(row["label"] for row in rows):
        own = [row for row in rows if row["label"] == label]
        alone = {row["scenario"]: row for row in own if row["scenario"] != "Server"}
        single = alone["SingleStream"]
        cells = [f"{seconds(single['p50'])} / {seconds(single['p99'])}", number(alone["Offline"]["completed_per_s"])]
        for rule in rules:
            row = best.get((label, rule))
            over = f" {row['rate'] / theirs[rule]:.2f}x" if row and rule in theirs else ""
            cells.append(f"{number(row['rate'])}/s{over}" if row else "none")
        body.append([_label(own[0]), *cells])
    out.heading(f"{dataset_title(rows[0])}: highest rate with p99 within {seconds(bound)}; over {reference}")
    out.table(["method", "one at a time p50 / p99", "offline, samples/s", *rules], body)
    met = [row for row in best.values() if row]
    if not met:
        nearest = min(_server(rows), key=lambda row: (not row["keeps_up"], row["p99"]))
        out.text(
            f"no method keeps p99 within {seconds(bound)}: the best is {nearest['label']}, {nearest['rule']}, with "
            f"{seconds(nearest['p99'])} at {nearest['rate']:g}/s"
        )


def _curve_table(out: Page, rows: Sequence[Row]) -> None:
    shared = [rate for rate in sorted({row["rate"] for row in _server(rows)}) if _common(rows, rate)]
    out.heading(f"{dataset_title(rows[0])}: p50 / p99 by arriving queries/s (load of the server)", 3)
    body = []
    for label, rule, curve in curves(rows):
        by_rate = {row["rate"]: row for row in curve}
        body.append([label, rule, *(_latency(by_rate.get(rate)) for rate in shared)])
    out.table(["method", "calls", *(f"{rate:g}/s" for rate in shared)], body)
    notes = []
    if any(row["late"] > LATE * row["p99"] for row in _server(rows)):
        notes.append(f"^: the generator was late by more than {LATE:.0%} of p99, which counts")
    if any(row["labels_agree"] < 1 for row in rows):
        notes.append("!: labels depend on the samples of a call, as with methods that distribute exits over them")
    out.text(
        *notes,
        "load: share of the time that the server is busy, times how full its calls are",
        "window N: a call waits for N queries, which it sorts together; up to N: it takes what waits",
        f"{CANNOT}: the queue was still long after the last arrival, so higher rates were not tried",
    )


def _common(rows: Sequence[Row], rate: float) -> bool:
    """Return whether a rate was measured for more than one curve, or there is only one."""
    return sum(row["rate"] == rate for row in _server(rows)) > 1 or len(list(curves(rows))) == 1


def _latency(row: Row | None) -> str:
    if row is None:
        return "—"
    if not row["keeps_up"]:
        return f"{CANNOT} ({load(row):.0%})"
    marks = ("^" if row["late"] > LATE * row["p99"] else "") + ("" if row["labels_agree"] == 1 else "!")
    return f"{seconds(row['p50'])} / {seconds(row['p99'])}{marks} ({load(row):.0%})"


def _agreement(out: Page, rows: Sequence[Row]) -> None:
    """Add how far measured latencies lie from those that queueing predicts."""
    kept = [row for row in _server(rows) if row["keeps_up"]]
    out.heading(f"{dataset_title(rows[0])}: measured against computed latencies, same arrivals", 3)
    if not kept:
        out.text(f"nothing to compare: all methods {CANNOT.replace('cannot', 'could not')}")
        return
    some = [row for row in kept if load(row) < NEARLY]
    body = []
    for expected, title, rows_ in (
        ("expected", f"calls as long as under load, load below {NEARLY:.0%}", some),
        ("expected", "calls as long as under load, any load", kept),
        ("expected_idle", f"calls as long as without load, load below {NEARLY:.0%}", some),
    ):
        cells = []
        for what in ("mean", "p50", "p99"):
            offs = [off(row, expected, what) for row in rows_]
            within = sum(abs(one) <= AGREES for one in offs)
            cells.append(f"{within} of {len(offs)} (worst {max(offs, key=abs):+.0%})" if offs else "—")
        body.append([title, *cells])
    out.table([f"within {AGREES:.0%}", "mean", "p50", "p99"], body)
    slow = max(kept, key=lambda row: row["slower_than_idle"])
    windows = [row for row in kept if row["waits"] and row["size"] > 1]
    notes = [
        f"calls took up to {slow['slower_than_idle']:.2f} times as long as without load ({slow['label']}, {slow['rule']})"
    ]
    if windows:
        most = max(windows, key=lambda row: row["collecting"])
        notes.append(
            f"collecting a window adds (N - 1) / (2 rate) on average: at most {seconds(most['collecting'])} here "
            f"({most['rule']} at {most['rate']:g}/s), where a query waited {seconds(most['waiting'])} before its call"
        )
    out.text(*notes)


def load_page(rows: Sequence[Row], bound: float, reference: str, dtype: str) -> Page:
    """Return all tables.

    Args:
        bound: of p99, seconds.
    """
    out = Page("Latency under load", rows, dtype)
    for _, some in itertools.groupby(rows, key=lambda row: (row["dataset"], row["seed"])):
        mine = list(some)
        _highest_table(out, mine, bound, reference)
        _curve_table(out, mine)
        _agreement(out, mine)
    out.text(
        "latencies are LoadGen's, from the time at which a query was due; a run of seconds is no MLPerf result",
        f"the generator alone reaches {number(rows[0]['capacity'])} queries/s on this machine",
    )
    return out
