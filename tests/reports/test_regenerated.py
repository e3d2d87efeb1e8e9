"""Numbers that per-sample rows determine are recomputed from the rows and agree with the report to the last digit.

The code here is independent: plain loops over the Parquet rows, without the statistics of the project.

Determined by rows: test samples, accuracy with its interval, macro F1, spread over seeds, exit histograms, accuracy and
mean exit by difficulty, differences to controls (measured or expected) with interval, adjusted p-value and the verdict's
sign, wins, losses and p-values against rivals, whether a loss of accuracy stays within the margin in every seed, hits and
errors of predictors, differences to the sequential exit. Not determined by rows, and therefore not compared: FLOPs,
executed layers (an answer may run a layer more than its exit), heads, seconds and all numbers derived from them,
parameters, memory, training, dev accuracy, unseen tokens, checks. Limits of bootstraps are random, so only the normal
limits of paired ones are compared.

``GEEP_BENCH_RUN=FOLDER`` makes the same comparison for another run.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pyarrow.parquet as parquet
import pytest
from scipy.stats import t as student

from harness.running.record import quality
from reports.analysis.verdicts.control_tests import ControlTest
from reports.analysis.view import View, build_view
from reports.notation.table_formats import AnyTable
from reports.tables.catalogue import Contents
from tests.reports.plain_statistics import Rows, binomial_quantile, exact_p, holm, macro_f1, tango_lower, tau_b

Key = tuple[str, ...]  # method, point, then all other coordinates of a row


class Stored:
    """Rows of a run, read without the reports' reader: dataset -> (method, point) -> seed -> rows."""

    def __init__(self, path: Path) -> None:
        self.rows: dict[tuple[str, bool], dict[Key, dict[int, Rows]]] = defaultdict(lambda: defaultdict(dict))
        self.points: dict[tuple[str, str, str, int], tuple[dict[str, Any], float]] = {}  # parameters, mean layers
        self.settings: set[str] = set()
        for file in sorted((path / "results").glob("*.json")):
            result = json.loads(file.read_text(encoding="utf-8"))
            cell = result["cell"]
            rows = parquet.read_table(path / "samples" / f"{file.stem}.parquet").to_pylist()
            self.rows[cell["dataset"], result["synthetic"]][cell["method"], cell["point"]][cell["seed"]] = rows
            place = (cell["dataset"], cell["method"], cell["point"], cell["seed"])
            self.points[place] = result["params"], result["cost"]["mean_layers"]
            self.settings.add(json.dumps({k: cell[k] for k in ("backbone", "device", "dtype", "order", "batch_size")}))


def column(table: AnyTable, heading: str) -> int:
    return next(i for i, c in enumerate(table.columns) if c.heading == heading)


def shown(table: AnyTable, heading: str) -> dict[Key, str]:
    """Return cells of a column by (method, point)."""
    at = column(table, heading)
    return {(r.method, r.point): row[at] for r, row in zip(table.rows, table.cells, strict=True)}


def accuracy(rows: Rows) -> float:
    return sum(row["label"] == row["prediction"] for row in rows) / len(rows)


def interval(rows: Rows) -> tuple[float, float]:
    n, p = len(rows), accuracy(rows)
    return binomial_quantile(0.025, n, p) / n, binomial_quantile(0.975, n, p) / n


def percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f}"


def signed(value: float) -> str:
    text = f"{100 * value:+.2f}"
    return text.replace("-", "−") if float(text) else "0.00"


def tenth(value: float) -> str:
    text = f"{100 * value:+.1f}"
    return text.replace("-", "−") if float(text) else "0.0"


def p_text(value: float | None) -> str:
    return "—" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"


def over_seeds(accuracies: Sequence[float]) -> str:
    n = len(accuracies)
    if n < 2:
        return f"— ({n}; —)"
    sd = stdev(accuracies)
    half = student.ppf(0.975, n - 1) * sd / n**0.5
    low, high = max(0, fmean(accuracies) - half), min(1, fmean(accuracies) + half)
    return f"{percent(sd, 2)} ({n}; {percent(low)}–{percent(high)})"


def compare(path: Path) -> int:
    """Compare everything and return the number of compared table cells."""
    stored, view = Stored(path), build_view(path)
    contents = Contents(view)
    compared = 0
    for group in view.groups:
        cells = stored.rows[group.dataset, group.synthetic]
        tables = {block.kind.name: block.tables[0] for block in contents.datasets[group.slug]}
        expected: dict[tuple[str, str], Mapping[Key, str]] = {}
        expected["details", "Test samples"] = {k: f"{min(len(r) for r in s.values()):,}" for k, s in cells.items()}
        expected["details", "Macro F1 %"] = {k: percent(fmean(map(macro_f1, s.values()))) for k, s in cells.items()}
        accuracies = {k: [accuracy(r) for r in s.values()] for k, s in cells.items()}
        limits = {k: [fmean(ends) for ends in zip(*map(interval, s.values()), strict=True)] for k, s in cells.items()}
        expected["results", "Accuracy % (95 % interval)"] = {
            k: f"{percent(fmean(a))} ({percent(limits[k][0])}–{percent(limits[k][1])})" for k, a in accuracies.items()
        }
        if max(row.seeds for row in view.rows) > 1:
            expected["results", "± (seeds; 95 % of their mean)"] = {k: over_seeds(a) for k, a in accuracies.items()}
        expected |= difficulty(cells) if "difficulty" in tables else {}
        for (name, heading), values in expected.items():
            assert shown(tables[name], heading) == dict(values), (group.label, heading)
            compared += len(values)
        summary = next(t for t in contents.named("summary") if (t.name == "summary-synthetic") == group.synthetic)
        mine = [row for r, row in zip(summary.rows, summary.cells, strict=True) if r.slug == group.slug]
        at = column(summary, "Accuracy % (95 % interval)")
        assert sorted(row[at] for row in mine) == sorted(expected["results", "Accuracy % (95 % interval)"].values())
        paper = next(
            t
            for t in contents.named("papers")
            if any(c.group == group.dataset for c in t.columns) and (("synthetic" in t.name) == group.synthetic)
        )
        for key, text in shown(paper, f"{group.dataset} Acc. %").items():
            assert text == (percent(fmean(accuracies[key]), 2) if key in accuracies else "—")
            compared += 1
        for record in view.of(group):
            rows = [row for r in cells[record.method, record.point].values() for row in r]
            counts = Counter(row["exit_layer"] for row in rows)
            assert {i: n for i, n in enumerate(record.histogram, start=1) if n} == dict(counts)
            compared += 1
        compared += verdicts(view, contents, group.slug, cells, stored) + predictors(tables, cells)
    return compared + rivals(contents.named("rivals"), stored)


def difficulty(cells: Mapping[Key, dict[int, Rows]]) -> dict[tuple[str, str], dict[Key, str]]:
    """Compare the table by true difficulty, with rows of all seeds together."""
    expected: dict[tuple[str, str], dict[Key, str]] = defaultdict(dict)
    for key, seeds in cells.items():
        rows = [row for same in seeds.values() for row in same if row["difficulty"] >= 0]
        for level in {row["difficulty"] for row in rows}:
            part = [row for row in rows if row["difficulty"] == level]
            expected["difficulty", f"Difficulty {level} accuracy %"][key] = percent(accuracy(part))
            mean = fmean(row["exit_layer"] for row in part)
            expected["difficulty", f"Difficulty {level} exit layer"][key] = f"{mean:.2f}"
    return expected


def paired(ours: dict[int, Rows], theirs: dict[int, Rows]) -> tuple[float, int, int]:
    """Return the mean difference in accuracy and the test rows won and lost, over the seeds of both sides."""
    balance: Counter[int] = Counter()
    differences = []
    for seed in sorted(ours.keys() & theirs.keys()):
        right = {row["index"]: row["correct"] for row in theirs[seed]}
        deltas = {row["index"]: row["correct"] - right[row["index"]] for row in ours[seed]}
        balance.update(deltas)
        differences.append(fmean(deltas.values()))
    return fmean(differences), sum(v > 0 for v in balance.values()), sum(v < 0 for v in balance.values())


def expected(test: ControlTest, cells: Mapping[Key, dict[int, Rows]], stored: Stored, seed: int) -> dict[int, float]:
    """Return the value of a control for each test row: measured, or expected from the bits of the oracle's rows."""
    oracle = {row["index"]: row for row in cells["oracle", "agree"][seed]}
    if test.control_row is not None:
        rows = cells[test.control_row.method, test.control_row.point][seed]
        return {row["index"]: value(test, row, oracle[row["index"]]) for row in rows}
    bits = {i: row["right_layers" if test.measure == "accuracy" else "agreeing_layers"] for i, row in oracle.items()}
    if test.control == "random exits":
        exits = Counter(row["exit_layer"] for row in cells[test.method, test.point][seed])
        total = sum(exits.values())
        shares = {layer: count / total for layer, count in exits.items()}
    else:
        mixes, _ = stored.points[test.dataset, "control-constant", test.base, seed]
        _, layers = stored.points[test.dataset, test.method, test.point, seed]
        deeper = (layers - mixes["shallow"]) / (mixes["deep"] - mixes["shallow"])
        shares = {mixes["shallow"]: 1 - deeper, mixes["deep"]: deeper}
    return {i: sum(share * (mask >> (layer - 1) & 1) for layer, share in shares.items()) for i, mask in bits.items()}


def value(test: ControlTest, row: dict[str, Any], oracle: dict[str, Any]) -> bool:
    return row["correct"] if test.measure == "accuracy" else row["prediction"] == oracle["prediction"]


def verdicts(view: View, contents: Contents, slug: str, cells: Mapping[Key, dict[int, Rows]], stored: Stored) -> int:
    """Compare the table of controls: every test of a dataset, and its part in the pooled table."""
    (table,) = [t for t in contents.named("controls") if slug in {r.slug for r in t.rows}]
    lines = [pair for pair in zip(table.rows, table.cells, strict=True) if pair[0].slug == slug and not pair[0].reason]
    found = []
    families = defaultdict(list)
    for number, (test, _) in enumerate(lines):
        totals: dict[int, list[float]] = defaultdict(list)
        for seed, rows in cells[test.method, test.point].items():
            theirs, oracle = (
                expected(test, cells, stored, seed),
                {r["index"]: r for r in cells["oracle", "agree"][seed]},
            )
            for row in rows:
                totals[row["index"]].append(value(test, row, oracle[row["index"]]) - theirs[row["index"]])
        deltas = [0.0 if abs(delta := fmean(each)) < 1e-9 else delta for each in totals.values()]
        wins, losses = sum(d > 0 for d in deltas), sum(d < 0 for d in deltas)
        error = stdev(deltas) / len(deltas) ** 0.5
        p = exact_p(wins, losses)
        if test.control_row is None:
            p = float(2 * student.sf(abs(fmean(deltas)) / error, len(deltas) - 1)) if wins + losses >= 10 else None
        found.append(
            (
                fmean(deltas),
                error,
                len(deltas),
                p,
                0.0 if test.control_row is None else min(1, 2 ** (1 - wins - losses)),
            )
        )
        if p is not None and test.equal_layers:
            families[test.method, test.measure].append(number)
    adjusted: dict[int, float | None] = {}
    for same in families.values():
        adjusted |= zip(same, holm([found[i][3] for i in same], [found[i][4] for i in same]), strict=True)
    for number, ((test, row), (mean, error, n, _, _)) in enumerate(zip(lines, found, strict=True)):
        at = {c.heading: text for c, text in zip(table.columns, row, strict=True)}
        half = student.ppf(0.975, n - 1) * error
        # Means such as 0.25 points are rounded either way, so the numbers are compared and then their text.
        assert [test.difference, test.low, test.high] == pytest.approx([mean, mean - half, mean + half], abs=1e-9), row
        shown = f"{tenth(test.difference)} ({tenth(test.low)} to {tenth(test.high)})"
        assert at["Difference, points (95 % interval)"] == shown, row
        assert at["p adjusted"] == p_text(adjusted.get(number)), row
        if (p := adjusted.get(number)) is not None and p < 0.05 and at["Verdict"] != "keeps up":
            assert at["Verdict"] == ("ahead" if mean > 0 else "behind")
        else:
            assert at["Verdict"] not in ("ahead", "behind")
    for pooled in view.pooled:
        if len(pooled.sets) == 1 and pooled.sets[0] in {test.label for test, _ in lines}:
            key = (pooled.method, pooled.point, pooled.control, pooled.measure)
            (mean,) = [
                m
                for (t, _), (m, *_) in zip(lines, found, strict=True)
                if (t.method, t.point, t.control, t.measure) == key
            ]
            assert pooled.difference == pytest.approx(mean)
    return 3 * len(lines)


def rivals(tables: list[AnyTable], stored: Stored) -> int:
    """Compare the tables against rivals: tests, families, intervals, bounds."""
    compared = 0
    for table in tables:
        tests, families = [], defaultdict(list)
        lines = [pair for pair in zip(table.rows, table.cells, strict=True) if pair[0].rival_point is not None]
        for i, (r, _) in enumerate(lines):
            cells = stored.rows[r.dataset, r.synthetic]
            ours, theirs = cells[r.method, r.point], cells[r.rival, r.rival_point]
            tests.append((ours, theirs, paired(ours, theirs)))
            families[r.method, r.rival].append(i)
        p_values = [exact_p(wins, losses) for _, _, (_, wins, losses) in tests]
        least = [min(1, 2 ** (1 - wins - losses)) for _, _, (_, wins, losses) in tests]
        adjusted = {
            i: p
            for same in families.values()
            for i, p in zip(same, holm([p_values[i] for i in same], [least[i] for i in same]), strict=True)
        }
        for i, ((r, row), (ours, theirs, found)) in enumerate(zip(lines, tests, strict=True)):
            at = {c.heading: text for c, text in zip(table.columns, row, strict=True)}
            assert at["Test rows"] == f"{len({x['index'] for s in ours.keys() & theirs.keys() for x in ours[s]}):,}"
            assert at["Accuracy difference, points (95 % interval)"].startswith(signed(found[0]) + " (")
            assert (at["p exact"], at["p adjusted"]) == (p_text(p_values[i]), p_text(adjusted[i]))
            balance: Counter[int] = Counter()
            bounds, seeds = [], sorted(ours.keys() & theirs.keys())
            for seed in seeds:
                balance.update({x["index"]: x["correct"] / len(seeds) for x in ours[seed]})
                balance.subtract({x["index"]: x["correct"] / len(seeds) for x in theirs[seed]})
                _, wins, losses = paired({0: ours[seed]}, {0: theirs[seed]})
                bounds.append(tango_lower(wins, losses, len(ours[seed])))
            error = math.sqrt(sum((v - found[0]) ** 2 for v in balance.values())) / len(balance)
            limits = [found[0] - 1.96 * error, found[0] + 1.96 * error]
            assert [r.difference_low, r.difference_high] == pytest.approx(limits, abs=0.25 * error + 1e-9)
            if at["At worst: accuracy, points"] != "—":
                assert r.judgement.lowest_difference == pytest.approx(min(bounds), abs=1e-9)
                assert r.judgement.not_worse == (min(bounds) > -0.005)
            compared += 5
    return compared


def predictors(tables: Mapping[str, AnyTable], cells: Mapping[Key, dict[int, Rows]]) -> int:
    """Compare the table of predicted exits."""
    if "predictor" not in tables:
        return 0
    table = tables["predictor"]
    for record, row in zip(table.rows, table.cells, strict=True):
        mine, other = cells[record.method, record.point], cells["control-sequential", record.compared_with]
        at = {c.heading: text for c, text in zip(table.columns, row, strict=True)}
        pairs, taus, early, late = [], [], [], []
        for seed in sorted(mine.keys() & other.keys()):
            left = {r["index"]: r for r in other[seed]}
            both = [(r, left[r["index"]]) for r in mine[seed] if r["predicted_exit"] > 0]
            these = [(b["exit_layer"], a["predicted_exit"]) for a, b in both]
            taus.append(tau_b(these))
            pairs += these
            for found, sign in ((early, -1), (late, 1)):
                moved = [
                    a["correct"] - b["correct"] for a, b in both if sign * (a["predicted_exit"] - b["exit_layer"]) > 0
                ]
                found.append(sum(moved) / len(mine[seed]))
        n, known = len(pairs), [tau for tau in taus if tau is not None]
        assert at["Kendall tau-b"] == (f"{fmean(known):.2f}".replace("-", "−") if known else "—")
        assert at["Hits %"] == percent(sum(a == b for a, b in pairs) / n)
        assert record.agreement.within_one == pytest.approx(sum(abs(a - b) <= 1 for a, b in pairs) / n)
        assert at["Too early %"] == percent(sum(b < a for a, b in pairs) / n)
        assert at["Too late %"] == percent(sum(b > a for a, b in pairs) / n)
        assert record.accuracy_vs_sequential == pytest.approx(paired(mine, other)[0])
        assert record.agreement.cost_early == pytest.approx(fmean(early))
        assert record.agreement.cost_late == pytest.approx(fmean(late))
    return 9 * len(table.rows)


@pytest.fixture(scope="module")
def run_path(fabricator: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a run with three classes, the harness's stored quality, and two seeds on one dataset."""
    made = fabricator(tmp_path_factory.mktemp("runs") / "consistent")
    made.plausible([("a_b & <c>", "en")], n=120)
    made.plausible([("weibo", "zh")], seeds=(0, 1), n=120, synthetic=False)
    path, run = made.path, made.run
    for result in run.results():
        frame = run.samples(result.cell)
        frame["label"] = frame["index"] % 3
        frame["prediction"] = (frame["label"] + ~frame["correct"]) % 3
        exact = quality(frame["prediction"].to_numpy(), frame["label"].to_numpy())
        run.save(result.model_copy(update={"quality": exact}), frame)
    return path


def test_tables_follow_from_rows_alone(run_path):
    """Hundreds of printed numbers, recomputed from Parquet rows by independent code, are the same strings."""
    assert compare(run_path) > 500


def test_the_given_run_follows_from_rows_alone():
    """The run that the environment names passes the same comparison."""
    path = os.environ.get("GEEP_BENCH_RUN")
    if not path:
        pytest.skip("GEEP_BENCH_RUN names no run folder to compare")
    assert compare(Path(path)) > 0
