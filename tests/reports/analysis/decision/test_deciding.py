"""The cell to deploy: what is chosen on dev and confirmed on test in made-up runs, and what cannot be decided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness.results.rows.answer_bits import to_bits
from harness.results.schema import AnswerBits, Cell, Checks, Cost, Latency, Quality, Resources, Result, Speed
from reports.analysis.decision.answer_loss import StoredAnswers, loss_of
from reports.analysis.decision.deciding import ACCURACIES, DEV, HALVES, Decision, Requirements, decide
from reports.analysis.decision.decision_words import headline
from reports.analysis.result_rows import average_over_seeds, with_ratios

N = 1000
Sides = tuple[np.ndarray, np.ndarray]  # correctness on dev and on test


def changed(rng: np.random.Generator, right: np.ndarray, worse: float, discordant: float) -> np.ndarray:
    """Return other answers, of which a share is discordant, with ``worse`` more losses than wins in expectation; 0..1."""
    draw = rng.random(len(right))
    lose = draw < (discordant + worse) / 2 / right.mean()
    win = draw < (discordant - worse) / 2 / (1 - right.mean())
    return np.where(right, ~lose, win)


def result(
    method: str, sides: Sides, seconds: float, *, dataset: str = "a", bits: bool = True, seed: int = 0, **change: Any
) -> Result:
    """Return a cell; the reference takes a second. Further coordinates and fields go by name."""
    dev, test = sides
    n, share = len(test), float(test.mean())
    coordinates: dict[str, Any] = {
        "method": method,
        "dataset": dataset,
        "seed": seed,
        "point": "full",
        "source": "local",
        "backbone": "made-up",
        "protocol": "modern",
        "order": "length",
        "executor": "made-up",
        "batch_size": 32,
        "device": "cpu",
        "dtype": "float32",
    }
    cost: dict[str, Any] = {
        "flops_linear": 1.0,
        "flops_full": 1.0,
        "params": 1,
        "mean_layers": 6.0,
        "mean_heads": 1.0,
        "depth": 6,
    }
    times: dict[str, Any] = {"samples_per_s": n / seconds, "rounds": 1, "reference": "bert", "speedup": 1 / seconds}
    times |= dict.fromkeys(("seconds", "seconds_p10", "seconds_p90"), seconds)
    return Result(
        **{
            "cell": Cell.model_validate(coordinates | {k: change.pop(k) for k in [*change] if k in Cell.model_fields}),
            "kind": "method",
            "synthetic": False,
            "language": "en",
            "params": {},
            "quality": Quality(accuracy=share, accuracy_low=share, accuracy_high=share, macro_f1=share, n=n),
            "cost": Cost.model_validate(cost | {"valid_token_ratio": 1.0}),
            "speed": Speed.model_validate(times),
            "training": None,
            "checks": Checks(),
            "exit_histogram": [0, 0, 0, 0, 0, n],
            "answers": AnswerBits(dev=to_bits(dev), dev_rows=len(dev), test=to_bits(test)) if bits else None,
            "fingerprint": {},
            **change,
        }
    )


def made_up(rng: np.random.Generator, worse: float, discordant: float, dev: Sides | None = None) -> Sides:
    bases = dev or (rng.random(N) < 0.88, rng.random(N) < 0.88)
    left, right = (changed(rng, base, worse, discordant) for base in bases)
    return left, right


def decisions(results: Sequence[Result], read: Any = None, **asked: Any) -> list[Decision]:
    rows = average_over_seeds(results, dict.fromkeys([one.cell for one in results], ""))
    rows = with_ratios([replace(row, slug=row.dataset, label=row.dataset) for row in rows])
    return decide(rows, StoredAnswers(results, read), Requirements(**asked))


def simulated(number: int, quick: float, equal: float = 0.0, discordant: float = 0.03) -> Decision:
    """Return the decision of a run with a very fast method that is worse by ``quick``, and a fast one by ``equal``."""
    rng = np.random.default_rng([23, number])
    bert = rng.random(N) < 0.88, rng.random(N) < 0.88
    cells = [
        result("bert", bert, 1.0),
        result("quick", made_up(rng, quick, max(discordant, quick), bert), 0.3),
        result("equal", made_up(rng, equal, max(discordant, equal), bert), 0.5),
    ]
    (found,) = decisions(cells, max_loss=0.015)
    return found


def test_power_of_the_choice() -> None:
    """In 20 runs of 1,000 rows, 3 % of them discordant: 3 points worse is never chosen, equal at least 15 times."""
    named = [one.recommended.name if (one := simulated(i, 0.03)).recommended else "" for i in range(20)]
    assert "quick" not in named
    assert named.count("equal") >= 15


def test_a_loss_at_the_limit_is_rarely_confirmed() -> None:
    """Where all faster methods lose exactly what is allowed, at most about 5 % of 100 runs name one of them."""
    named = [simulated(i, 0.015, 0.015).confirmed for i in range(100)]
    assert sum(named) <= 10  # more is less likely than 2 %, if 5 % is right


def test_test_rows_do_not_choose() -> None:
    """Whatever test says about any method, the one that is put to the test is the same."""
    rng = np.random.default_rng(1)
    bert = rng.random(N) < 0.88, rng.random(N) < 0.88
    sides = {"quick": made_up(rng, 0.0, 0.03, bert), "equal": made_up(rng, 0.0, 0.02, bert)}
    chosen = set()
    for shuffled in (False, True):
        cells = [result("bert", bert, 1.0)]
        for seconds, (name, (dev, test)) in zip((0.3, 0.5), sides.items(), strict=True):
            cells.append(result(name, (dev, rng.permutation(test) if shuffled else test), seconds))
        (found,) = decisions(cells)
        chosen.add(found.chosen.name if found.chosen else "")
    assert len(chosen) == 1 and "" not in chosen


def test_the_fastest_of_equal_answers_at_its_best_batch_size() -> None:
    """With the answers of the reference everywhere, the lowest time wins, each method at its own best batch size."""
    same = (np.arange(N) < 880, np.arange(N) < 880)
    cells = [
        result("bert", same, 1.0),
        result("one", same, 0.6),
        result("two", same, 0.9),
        result("two", same, 0.4, batch_size=128, executor="made-up"),
    ]
    (found,) = decisions(cells)
    assert found.confirmed and found.recommended is not None and found.runner_up is not None
    assert found.recommended.name == "two" and found.runner_up.name == "one"
    assert found.recommended.rows["a"].batch_size == 128
    assert found.recommended.time == pytest.approx(0.4)
    assert "use two" in headline(found) and "2.50× as fast" in headline(found)


def bounded(p99: float, size: int) -> dict[str, Any]:
    return {
        "latency": [Latency(batch_size=1, n=100, p50=p99, p90=p99, p99=p99)],
        "resources": Resources(disk_bytes=size),
    }


def test_bounds_on_latency_and_size() -> None:
    """Cells beyond a bound are not chosen; where none keeps to it, the nearest is named and nothing is recommended."""
    same = (np.arange(N) < 880, np.arange(N) < 880)
    cells = [
        result("bert", same, 1.0, **bounded(0.02, 90_000_000)),
        result("big", same, 0.2, **bounded(0.01, 200_000_000)),
        result("small", same, 0.5, **bounded(0.03, 30_000_000)),
        result("unknown", same, 0.1),
    ]
    (found,) = decisions(cells, max_bytes=100e6)
    assert found.recommended is not None and found.recommended.name == "small"
    (found,) = decisions(cells, max_p99=0.025)
    assert found.recommended is not None and found.recommended.name == "big"
    (found,) = decisions(cells, max_p99=0.005)
    assert found.recommended is None and found.nearest is not None and found.nearest.name == "big"
    assert "nearest is big, with p99 10.0 ms" in headline(found)
    (found,) = decisions(cells, max_bytes=1e6)
    assert found.recommended is None and found.nearest is not None and found.nearest.name == "small"
    # The reference is out of bounds, and what keeps to them is slower: still better than nothing.
    slow = [*cells[:1], result("slow", same, 1.4, **bounded(0.01, 1_000_000))]
    (found,) = decisions(slow, max_bytes=2e6)
    assert found.recommended is not None and found.recommended.name == "slow"


def test_what_is_open_says_how_many_rows_would_decide() -> None:
    """Ten percent discordant rows of 1,000 cannot show 1 point; about as many rows as the formula says can."""
    found = next(one for i in range(20) if not (one := simulated(i, 0.3, 0.0, 0.1)).confirmed and one.more_rows)
    assert found.test is not None and found.more_rows is not None
    se = found.test.se * (N / (N + found.more_rows)) ** 0.5
    assert found.test.difference - 2.4865 * se == pytest.approx(-0.015, abs=1e-4)
    assert f"bout {found.more_rows:,} more test rows" in headline(found)
    assert found.recommended is not None and found.recommended.name == "bert"


def test_results_without_dev_answers_are_judged_on_halves_of_test() -> None:
    """Older results choose on even rows and confirm on odd ones; without per-sample rows nothing is decided."""
    right = np.arange(2 * N) % 8 > 0
    even_only = right & (np.arange(2 * N) % 2 == 0)  # perfect where it is chosen, wrong where it is confirmed
    cells = [
        result("bert", (right, right), 1.0, bits=False),
        result("equal", (right, right), 0.5, bits=False),
    ]
    answers = {cells[0].cell: right, cells[1].cell: right}

    def read(cell: Cell) -> pd.DataFrame:
        return pd.DataFrame({"correct": answers[cell]})

    (found,) = decisions(cells, read)
    assert (found.basis, found.confirmed) == (HALVES, True)
    assert found.test is not None and found.test.rows == N
    answers[cells[1].cell] = even_only
    (found,) = decisions(cells, read)
    assert found.chosen is not None and not found.confirmed and found.more_rows is None
    (found,) = decisions(cells)
    assert (found.basis, found.confirmed, found.chosen) == (ACCURACIES, False, None)
    assert "not decided" in headline(found).lower() and "equal" in headline(found)


def test_cells_without_dev_answers_beside_newer_ones_are_counted() -> None:
    """A cell that was measured before results had answers for dev is left out, and counted."""
    same = (np.arange(N) < 880, np.arange(N) < 880)
    cells = [result("bert", same, 1.0), result("old", same, 0.2, bits=False), result("new", same, 0.5)]
    (found,) = decisions(cells)
    assert (found.basis, found.left_out) == (DEV, 1)
    assert found.recommended is not None and found.recommended.name == "new"


def test_all_sets_together_need_a_cell_on_every_set() -> None:
    """Over two sets a method takes part that both have; its time is the geometric mean and its loss the mean of both."""
    right = np.arange(N) < 880
    better = np.arange(N) < 890
    cells = [
        *(result("bert", (right, right), 1.0, dataset=name) for name in "ab"),
        result("both", (right, right), 0.25, dataset="a"),
        result("both", (better, better), 0.5, dataset="b"),
        result("one-set", (right, right), 0.1, dataset="a"),
    ]
    together, a, b = decisions(cells)
    assert (together.label, together.sets) == ("", ("a", "b"))
    assert together.recommended is not None and together.recommended.name == "both"
    assert together.recommended.time == pytest.approx(0.125**0.5)
    assert together.test is not None and together.test.difference == pytest.approx(0.005)
    assert a.recommended is not None and a.recommended.name == "one-set"
    assert b.recommended is not None and b.recommended.name == "both"


def test_seeds_of_a_row_are_no_rows() -> None:
    """Three seeds with the same answers give the bound of one: a row under several seeds counts once."""
    one = np.where(np.arange(N) < 15, -1.0, np.where(np.arange(N) < 30, 1.0, 0.0))
    alone, again = loss_of([one], 0.05), loss_of([one / 1.0000001], 0.05)
    assert alone.rows == again.rows == N
    assert again.worst == pytest.approx(alone.worst, abs=0.0015)
    assert (alone.wins, alone.losses, alone.difference) == (15, 15, 0)
