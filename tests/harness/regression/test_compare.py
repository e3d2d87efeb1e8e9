"""Comparison of two runs with fabricated cells: alarms, remarks and errors."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.core.errors import ResultError
from harness.regression.compare import Comparison, Limits, compare
from harness.regression.times import LEAST_PAIRS
from harness.results.packed_run import Machine, PackedCell, PackedRun
from harness.results.schema import Binding, Cell

HERE = Machine(cpu="a CPU", cores=2, torch_threads=2, torch="2.13")
ELSEWHERE = Machine(cpu="another CPU", cores=8, torch_threads=8, torch="2.13")
RIGHT = np.arange(400) >= 40
Maker = Callable[..., PackedCell]
Runner = Callable[..., PackedRun]


def bind(**change: Any) -> Binding:
    """Return what the cells of a run share, with some of it changed."""
    facts: dict[str, Any] = {"test_rows": "rows", "train_rows": "train", "backbone": "weights", "max_length": 64}
    facts |= {
        "training": {"epochs": "3"},
        "own": [],
        "fits": {"bert": "as in the profile"},
        "versions": {"geep": "1.1"},
        "precision": "float32",
        "fit_threads": 2,
    }
    return Binding(**{**facts, **change})


def worse(lost: int, won: int = 0) -> np.ndarray:
    """Return ``RIGHT`` with some samples lost and others won."""
    right = RIGHT.copy()
    right[40 : 40 + lost] = False
    right[:won] = True
    return right


def alarmed(found: Comparison) -> str:
    return " | ".join(found.alarms)


def test_a_run_is_no_worse_than_itself(make_cell: Maker, make_packed: Runner) -> None:
    """Equal runs have no change, no alarm and no possible significance."""
    run = make_packed(make_cell(), make_cell(method="bert"))
    found = compare(run, run)
    assert not found.alarms and not found.only_base and not found.only_new
    assert not any(change.moved for change in found.changes)
    assert all(change.p_adjusted is None and (change.wins, change.losses) == (0, 0) for change in found.changes)


@pytest.mark.parametrize(
    ("lost", "won", "alarm"),
    [(12, 0, True), (6, 0, False), (40, 38, False), (0, 30, False), (36, 12, True), (30, 20, False)],
    ids=["clear", "too few to tell", "chance", "better", "discordant but clear", "discordant"],
)
def test_accuracy_needs_significance(make_cell: Maker, make_packed: Runner, lost: int, won: int, alarm: bool) -> None:
    """Losses among 400 samples are an alarm unless wins outweigh them."""
    found = compare(make_packed(make_cell()), make_packed(make_cell(worse(lost, won))))
    assert bool(found.alarms) == alarm
    assert found.changes[0].difference == pytest.approx((won - lost) / 400)
    assert (found.changes[0].wins, found.changes[0].losses) == (won, lost)
    low, high = found.changes[0].interval or (1, -1)
    assert low <= found.changes[0].difference <= high


def test_accuracy_needs_more_than_the_margin(make_cell: Maker, make_packed: Runner) -> None:
    """A significant loss of 3 points is no alarm with a margin of 4; between machines the wider margin applies."""
    base, new = make_packed(make_cell()), make_packed(make_cell(worse(12)))
    assert "accuracy down by 3.00 points" in alarmed(compare(base, new))
    assert not compare(base, new, Limits(margin=0.04)).alarms
    abroad = make_packed(make_cell(worse(12)), machines=[ELSEWHERE])
    assert not compare(base, abroad).alarms
    assert "accuracy down" in alarmed(compare(base, make_packed(make_cell(worse(16)), machines=[ELSEWHERE])))


def test_many_cells_are_adjusted_only_if_they_changed(make_cell: Maker, make_packed: Runner) -> None:
    """Eight lost samples are an alarm among 87 unchanged cells, but not among 87 that changed as much by chance."""
    others = [f"m{number}" for number in range(87)]
    base = make_packed(make_cell(), *(make_cell(method=name) for name in others))
    still = make_packed(make_cell(worse(8)), *(make_cell(method=name) for name in others))
    moving = make_packed(make_cell(worse(8)), *(make_cell(worse(8, 8), method=name) for name in others))
    assert len(compare(base, still).alarms) == 1
    assert not compare(base, moving).alarms


def test_seeds_are_one_cell(make_cell: Maker, make_packed: Runner) -> None:
    """Two seeds are averaged, a sample counts once, and a seed of only one run is unmatched."""
    base = make_packed(*(make_cell(seed=seed) for seed in (0, 1, 2)))
    new = make_packed(make_cell(worse(12), seed=0), make_cell(worse(12), seed=1))
    found = compare(base, new)
    assert [change.seeds for change in found.changes] == [(0, 1)]
    assert (found.changes[0].losses, found.changes[0].difference) == (12, pytest.approx(-0.03))
    assert [cell.seed for cell in found.only_base] == [2]


@pytest.mark.parametrize("field", ["flops_full", "flops_linear", "mean_layers"])
def test_counts_must_not_rise_on_one_machine(make_cell: Maker, make_packed: Runner, field: str) -> None:
    """Any rise of a count is an alarm; a fall and rounding by JSON are not."""
    base = make_packed(make_cell(**{field: 3.0}))
    assert "up by 0.1 %" in alarmed(compare(base, make_packed(make_cell(**{field: 3.003}))))
    fallen = compare(base, make_packed(make_cell(**{field: 2.9})))
    assert not fallen.alarms and fallen.changes[0].moved
    assert not compare(base, make_packed(make_cell(**{field: 3.0 * (1 + 1e-15)}))).alarms


def test_counts_may_vary_between_machines(make_cell: Maker, make_packed: Runner) -> None:
    """Tuned exits may change by 30 %; a constant depth may change by one layer if it is tuned, else not at all."""

    def found(new: PackedCell, **old: Any) -> str:
        return alarmed(compare(make_packed(make_cell(**old)), make_packed(new, machines=[ELSEWHERE])))

    assert found(make_cell(mean_layers=3.8)) == ""
    assert "more than the 30 % that another fit is allowed" in found(make_cell(mean_layers=4.0))
    second, third = {"exits": [0, 400, 0, 0]}, {"exits": [0, 0, 400, 0]}
    assert found(make_cell(**second), **second) == ""
    assert "FLOPs (all) up" in found(make_cell(**second, flops_full=1.2e6), **second)
    assert found(make_cell(**third, mean_layers=3.0), **second, mean_layers=2.0) == ""


def sketch(confidence: float, layers: int = 3) -> dict[str, Any]:
    """Fields of a cell whose samples all have this confidence and exit after this layer."""
    packed = [np.full(64, confidence, dtype="<f4"), np.full(64, layers, dtype=np.uint8)]
    return dict(zip(("sketch", "sketch_exits"), (base64.b64encode(a.tobytes()).decode() for a in packed), strict=True))


def test_the_same_fit_has_the_same_cost_everywhere(make_cell: Maker, make_packed: Runner) -> None:
    """With equal confidences on another machine any rise is an alarm; other confidences on one machine allow for retraining."""
    base = make_packed(make_cell(**sketch(0.7)))
    dearer = make_cell(mean_layers=3.1, **sketch(0.7 + 1e-6))
    assert "layers up by 3.33 %" in alarmed(compare(base, make_packed(dearer, machines=[ELSEWHERE])))
    refitted = compare(base, make_packed(make_cell(mean_layers=3.1, **sketch(0.8))))
    assert not refitted.alarms and refitted.changes[0].same_fit is False
    assert any("1 cells have, or may have, other weights" in remark for remark in refitted.remarks)
    assert compare(base, make_packed(make_cell(mean_layers=4.0, **sketch(0.8)))).alarms


def test_different_exits_everywhere_do_not_excuse_a_rise(make_cell: Maker, make_packed: Runner) -> None:
    """If no sample exits at the same layer, the fit is unknown, and on one machine a rise is an alarm."""
    found = compare(
        make_packed(make_cell(**sketch(0.7))), make_packed(make_cell(mean_layers=3.5, **sketch(0.9, layers=4)))
    )
    assert found.changes[0].same_fit is None
    assert "layers up" in alarmed(found)


def test_cuda_is_not_reproducible(make_cell: Maker, make_packed: Runner) -> None:
    """Retraining on one GPU gives other weights: counts and accuracy have the limits of different machines."""
    base, new = make_packed(make_cell(device="cuda")), make_packed(make_cell(worse(12), device="cuda", mean_layers=3.5))
    assert not compare(base, new).alarms
    assert len(compare(make_packed(make_cell()), make_packed(make_cell(worse(12), mean_layers=3.5))).alarms) == 2


def test_counts_and_times_of_zero_are_reported(make_cell: Maker, make_packed: Runner) -> None:
    """A method without FLOPs in base, and passes with a time of 0, are reported without a division by 0."""
    nothing = {"flops_full": 0.0, "mean_layers": 0.0, "exits": [400]}
    found = compare(make_packed(make_cell(**nothing)), make_packed(make_cell(exits=[400]), machines=[ELSEWHERE]))
    assert "FLOPs (all) up from 0" in alarmed(found)
    still = make_packed(make_cell(round_seconds=[0.0], reference_seconds=[0.1]))
    assert any("have a time of 0" in remark for remark in compare(still, still).remarks)


@pytest.mark.parametrize("known", [True, False], ids=["with fingerprints", "of an older version"])
def test_seeds_on_other_rows_are_not_averaged(make_cell: Maker, make_packed: Runner, known: bool) -> None:
    """Seeds on other test rows are changes of their own, each with its own accuracy and test."""
    bound = [{"binding": number} if known else {} for number in (0, 1)]
    cells = [make_cell(seed=0, **bound[0]), make_cell(worse(0)[:300], seed=1, rows="4567", **bound[1])]
    run = make_packed(*cells, bindings=[bind(), bind(test_rows="300 rows")] if known else [])
    found = compare(run, run)
    assert [change.seeds for change in found.changes] == [(0,), (1,)]
    assert [change.accuracy for change in found.changes] == [(0.9, 0.9), (260 / 300, 260 / 300)]
    assert all(change.p is not None for change in found.changes)


def test_times_of_other_machines_are_not_compared(make_cell: Maker, make_packed: Runner) -> None:
    """Times of another machine, device or executor are refused in one line; the rest is compared."""
    cells = [make_cell(round_seconds=[0.1] * 30, reference_seconds=[0.2] * 30)]
    base = make_packed(*cells)
    found = compare(base, make_packed(*cells, machines=[ELSEWHERE]))
    (line,) = [remark for remark in found.remarks if remark.startswith("times")]
    assert "cpu a CPU against another CPU, cores 2 against 8" in line
    assert found.changes[0].time is None and found.changes[0].wins == 0
    cuda = make_cell(device="cuda", dtype="bfloat16", compute="graphs", executor="ladder")
    on_gpu = compare(base, make_packed(cuda))
    assert any("device cpu against cuda" in remark for remark in on_gpu.remarks)
    assert len(on_gpu.changes) == 1 and not on_gpu.only_base
    unknown = make_packed(*cells, machines=[Machine()])
    assert any("the machine is unknown" in remark for remark in compare(unknown, unknown).remarks)


def test_two_settings_are_not_mixed(make_cell: Maker, make_packed: Runner) -> None:
    """Cells with two dtypes in both runs match by dtype; with two dtypes in one run they have no match."""
    both = make_packed(make_cell(), make_cell(dtype="bfloat16"))
    assert [change.cell.dtype for change in compare(both, both).changes] == ["float32", "bfloat16"]
    with pytest.raises(ResultError, match="no cell in common"):
        compare(both, make_packed(make_cell(dtype="float16")))


UNLIKE: dict[str, tuple[dict[str, Any], str]] = {
    "texts": ({"test_rows": "corrected"}, "test rows"),
    "training rows": ({"train_rows": "fewer"}, "rows of train and dev"),
    "weights": ({"backbone": "other"}, "content of the backbone"),
    "length": ({"max_length": 32}, "max_length (64 and 32)"),
    "training": ({"training": {"epochs": "5"}}, "training.epochs (3 and 5)"),
    "precision": ({"precision": "bfloat16"}, "precision of training (float32 and bfloat16)"),
}


def test_other_settings_of_one_method_are_compared(make_cell: Maker, make_packed: Runner) -> None:
    """What a change of a method's own settings does is a fair question: its cells are compared, and a remark names it."""
    base = make_packed(make_cell(binding=0), bindings=[bind()])
    new = make_packed(make_cell(worse(40), binding=0), bindings=[bind(fits={"bert": "tuned"})])
    found = compare(base, new)
    assert [change.losses for change in found.changes] == [40] and not found.gaps
    assert any(remark.startswith("bert has other settings in") and remark.endswith(": 1") for remark in found.remarks)


@pytest.mark.parametrize("change", UNLIKE)
def test_cells_that_do_not_belong_together_are_gaps(make_cell: Maker, make_packed: Runner, change: str) -> None:
    """What differs is not compared; it is named, and the gate does not pass, although labels and counts are equal."""
    changed, words = UNLIKE[change]
    base = make_packed(make_cell(binding=0), make_cell(method="bert", binding=0), bindings=[bind()])
    new = make_packed(
        make_cell(worse(40), binding=1), make_cell(method="bert", binding=0), bindings=[bind(), bind(**changed)]
    )
    found = compare(base, new)
    assert [change.cell.method for change in found.changes] == ["bert"]
    (gap,) = found.gaps
    assert gap.startswith("ag_news geep full, seed 0: not compared") and words in gap
    assert found.alarms == [gap]
    with pytest.raises(ResultError, match=r"nothing to compare: .* differ in .*: use the same data and settings"):
        compare(base, make_packed(make_cell(binding=0), bindings=[bind(**changed)]))


def test_other_code_is_compared(make_cell: Maker, make_packed: Runner) -> None:
    """Two versions of a method are what a comparison is for; two seeds of different code are not averaged."""
    old, young = bind(), bind(versions={"geep": "1.2"})
    base = make_packed(make_cell(binding=0), make_cell(binding=0, seed=1), bindings=[old])
    assert not compare(base, make_packed(make_cell(binding=0), make_cell(binding=0, seed=1), bindings=[young])).alarms
    mixed = make_packed(make_cell(binding=0), make_cell(binding=1, seed=1), bindings=[old, young])
    assert [change.seeds for change in compare(base, mixed).changes] == [(0,), (1,)]


@pytest.mark.parametrize(
    ("changed", "words", "repeats"),
    [
        ({"fit_threads": 1}, "threads per fit (2 and 1)", False),
        ({"precision": None}, "precision of training (float32 and not recorded)", True),
        ({}, "", True),
    ],
)
def test_other_threads_per_fit_are_compared_as_another_machine(
    make_cell: Maker, make_packed: Runner, changed: dict[str, Any], words: str, repeats: bool
) -> None:
    """Fits on other threads have other rounding, hence the wider limit; a remark names them, and what one run did not record."""
    base = make_packed(make_cell(binding=0), make_cell(method="bert", binding=0), bindings=[bind()])
    new = make_packed(make_cell(binding=0), make_cell(method="bert", binding=0), bindings=[bind(**changed)])
    found = compare(base, new)
    assert not found.gaps and [change.repeats for change in found.changes] == [repeats, repeats]
    said = [remark for remark in found.remarks if remark.startswith("2 cells of made-up and made-up differ in")]
    assert bool(said) == bool(words) and all(words in remark for remark in said)


def test_seeds_measured_on_other_threads_are_not_averaged(make_cell: Maker, make_packed: Runner) -> None:
    """Seeds of a cell that were measured on one and on two threads are changes of their own."""
    machines = [HERE, HERE.model_copy(update={"torch_threads": 1})]
    run = make_packed(make_cell(seed=0), make_cell(seed=1, machine=1), make_cell(seed=2), machines=machines)
    assert [change.seeds for change in compare(run, run).changes] == [(0, 2), (1,)]


def test_a_base_without_fingerprints_is_compared_by_what_it_has(make_cell: Maker, make_packed: Runner) -> None:
    """One line says that rows could not be checked; number, labels and tokens of the rows must be equal, and answers are tested."""
    base, bindings = make_packed(make_cell(), make_cell(method="bert")), [bind()]
    same = make_packed(make_cell(binding=0), make_cell(method="bert", binding=0), bindings=bindings)
    found = compare(base, same)
    assert not found.alarms
    (line,) = [remark for remark in found.remarks if "could not be checked" in remark]
    assert "2 cells" in line and "number, labels and tokens" in line
    worsened = compare(base, make_packed(make_cell(worse(12), binding=0), make_cell(method="bert"), bindings=bindings))
    assert "accuracy down by 3.00 points" in alarmed(worsened)
    for other, words in (
        ({"rows": "4567"}, "labels of the test rows"),
        ({"tokens": 5000}, "tokens of the test rows (4000 and 5000)"),
        ({"correct": RIGHT[:300]}, "number of test rows (400 and 300)"),
    ):
        new = make_packed(make_cell(binding=0, **other), make_cell(method="bert", binding=0), bindings=bindings)
        assert words in alarmed(compare(base, new))


@pytest.mark.parametrize(
    ("there", "gap"),
    [
        (
            lambda cell: cell.method != "fastbert",
            "weibo fastbert: missing in made-up: a seed 0, a seed 1, b seed 0, b seed 1",
        ),
        (
            lambda cell: cell.dataset != "lcqmc",
            "lcqmc bert: missing in made-up: a seed 0, a seed 1, b seed 0, b seed 1",
        ),
        (lambda cell: cell.point != "b", "weibo bert: missing in made-up: b seed 0, b seed 1"),
        (lambda cell: cell.seed != 1, "weibo bert: missing in made-up: a seed 1, b seed 1"),
    ],
    ids=["method", "dataset", "point", "seed"],
)
def test_what_vanished_is_a_gap(make_cell: Maker, make_packed: Runner, there: Callable[[Cell], bool], gap: str) -> None:
    """A method, dataset, operating point or seed that only base has does not pass the gate; a new one does."""
    parts = itertools.product(("weibo", "lcqmc"), ("bert", "fastbert"), "ab", (0, 1))
    cells = [make_cell(dataset=d, method=m, point=p, seed=s) for d, m, p, s in parts]
    base, new = make_packed(*cells), make_packed(*(cell for cell in cells if there(cell.cell)))
    found = compare(base, new)
    assert gap in found.gaps and not found.regressions
    assert not compare(new, base).alarms


def test_damaged_cells_are_gaps(make_cell: Maker, make_packed: Runner) -> None:
    """Damaged or contradictory cells of either run do not pass the gate."""
    run = make_packed(make_cell())
    for base, new in ((run, make_packed(make_cell(), damaged=["x"])), (make_packed(make_cell(), damaged=["x"]), run)):
        assert compare(base, new).alarms == ["made-up: x"]


def test_without_rows_accuracy_is_compared_by_the_margin(make_cell: Maker, make_packed: Runner) -> None:
    """Answers that only base has are a gap; if base has none, a loss above the margin is an alarm, although it is not tested."""
    bare = {"bits": None, "rows": None}
    lost = compare(make_packed(make_cell()), make_packed(make_cell(**bare)))
    assert lost.changes[0].wins is None
    assert "no per-sample rows, so accuracy is not tested" in alarmed(lost)
    published = make_packed(make_cell(**bare))
    assert not compare(published, make_packed(make_cell(worse(2)))).alarms
    found = compare(published, make_packed(make_cell(worse(40))))
    assert "accuracy down by 10.00 points, not tested" in alarmed(found)
    assert any("not tested" in remark for remark in found.remarks)


def test_a_new_failure_is_a_regression(make_cell: Maker, make_packed: Runner) -> None:
    """A failed method is an alarm if it was measured in base."""
    cell = make_cell()
    base = make_packed(cell, make_cell(method="bert"))
    fit = cell.cell.model_copy(update={"point": "fit"})
    assert "geep fit, seed 0: failed" in alarmed(compare(base, make_packed(make_cell(method="bert"), failed=[fit])))
    new = cell.cell.model_copy(update={"method": "new"})
    assert not compare(base, make_packed(cell, make_cell(method="bert"), failed=[new])).alarms


def test_cells_of_several_commits_are_reported(make_cell: Maker, make_packed: Runner) -> None:
    """A run with cells of several versions of the code is reported."""
    found = compare(make_packed(make_cell()), make_packed(make_cell(), commits=["a", "b"]))
    assert any("several versions of the code (a, b)" in remark for remark in found.remarks)


def test_other_numbers_of_tokens_are_reported(make_cell: Maker, make_packed: Runner) -> None:
    """Another number of tokens of the same rows comes from the tokenizer; it is reported, because it changes FLOPs."""
    base, new = (make_packed(make_cell(binding=0, tokens=n), bindings=[bind()]) for n in (4000, 5000))
    found = compare(base, new)
    assert any("other numbers of tokens" in remark for remark in found.remarks)


def passes(rng: np.random.Generator, seconds: float, rounds: int, noise: float = 0.01) -> list[float]:
    return [float(value) for value in seconds * np.exp(rng.normal(0, noise, rounds))]


def timed(
    make_cell: Maker, make_packed: Runner, seed: int, slow: dict[str, float], rounds: int = 3, **change: Any
) -> PackedRun:
    """``bert`` and three methods on four datasets; ``slow`` multiplies a method's seconds."""
    rng = np.random.default_rng(seed)
    return make_packed(
        *(
            make_cell(
                method=method,
                dataset=dataset,
                round_seconds=passes(rng, 0.1 * slow.get(method, 1.0), rounds),
                reference_seconds=passes(rng, 0.2, rounds),
                **change,
            )
            for dataset in ("a", "b", "c", "d")
            for method in ("bert", "geep", "fastbert", "tinybert")
        )
    )


def test_a_slow_method_is_found(make_cell: Maker, make_packed: Runner) -> None:
    """10 % more time in one method is an alarm about that method alone, 10 % less is none, and the ratio is about 1 / 1.1."""
    base = timed(make_cell, make_packed, 1, {})
    found = compare(base, timed(make_cell, make_packed, 2, {"geep": 1.1}))
    assert found.alarms and all("geep" in alarm for alarm in found.alarms)
    (geep,) = [method for method in found.methods if method.name == "geep"]
    assert geep.ratio == pytest.approx(1 / 1.1, rel=0.02)
    assert "bert" not in [method.name for method in found.methods]
    assert not compare(base, timed(make_cell, make_packed, 3, {"geep": 0.9})).alarms


def test_points_beside_shared_passes_are_no_independent_evidence(make_cell: Maker, make_packed: Runner) -> None:
    """A fast moment of shared passes shows in all points: sixteen of them prove no more than one, passes of their own do."""

    def points(seed: int, fast: float, shared: bool) -> PackedRun:
        rng = np.random.default_rng(seed)
        beside = [passes(rng, 0.2 / fast, 3, 0.05) for _ in range(16)]
        return make_packed(
            *(
                make_cell(
                    method="geep",
                    point=f"budget={number}",
                    round_seconds=passes(rng, 0.1, 3, 0.05),
                    reference_seconds=[0.19 / fast, 0.2 / fast, 0.21 / fast] if shared else beside[number],
                )
                for number in range(16)
            )
        )

    def p_value(shared: bool) -> float:
        (method,) = compare(points(0, 1.0, shared), points(1, 1.08, shared)).methods
        return method.p

    assert p_value(shared=True) > 0.05 > 0.005 > p_value(shared=False)


def test_a_slow_method_within_the_limit_gives_no_alarm(make_cell: Maker, make_packed: Runner) -> None:
    """The caller chooses the limit, however significant a slow-down is."""
    base, new = timed(make_cell, make_packed, 1, {}, 30), timed(make_cell, make_packed, 2, {"geep": 1.1}, 30)
    assert compare(base, new).alarms
    assert not compare(base, new, Limits(slower=0.15)).alarms


def test_a_stall_is_not_a_slow_down(make_cell: Maker, make_packed: Runner) -> None:
    """A machine that stalls for two passes of three changes the median but not the best pass, and is no alarm."""
    base = timed(make_cell, make_packed, 1, {})
    new = timed(make_cell, make_packed, 2, {})
    stalled = [
        cell.model_copy(
            update={"round_seconds": [1.5 * cell.round_seconds[0], 1.5 * cell.round_seconds[1], cell.round_seconds[2]]}
        )
        if cell.cell.method == "geep"
        else cell
        for cell in new.cells
    ]
    assert not compare(base, make_packed(*stalled)).alarms


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.sampled_from([0.01, 0.05, 0.2]))
def test_noise_alone_gives_no_alarm(make_cell: Maker, make_packed: Runner, seed: int, noise: float) -> None:
    """With any noise, a run is not slower than an equal one, and the noise range encloses the ratio."""
    rng = np.random.default_rng(seed)

    def run() -> PackedRun:
        return make_packed(
            *(
                make_cell(
                    method=m,
                    dataset=d,
                    round_seconds=passes(rng, 1, 3, noise),
                    reference_seconds=passes(rng, 2, 3, noise),
                )
                for d in "abc"
                for m in ("bert", "geep", "fastbert")
            )
        )

    found = compare(run(), run())
    assert len(found.alarms) <= 1
    assert all(c.time.low <= c.time.ratio <= c.time.high for c in found.changes if c.time is not None)


def test_few_passes_give_no_comparison_of_times(make_cell: Maker, make_packed: Runner) -> None:
    """With too few A/A pairs the noise is unknown: times are not compared, and the remark gives advice."""
    cell = make_cell(round_seconds=[0.1, 0.2], reference_seconds=[0.2, 0.2])
    found = compare(make_packed(cell), make_packed(cell))
    assert any(f"({LEAST_PAIRS} are needed)" in remark for remark in found.remarks)
    assert found.changes[0].time is None


def test_results_without_passes_are_refused(make_cell: Maker, make_packed: Runner) -> None:
    """Results without stored passes are compared in everything but time."""
    found = compare(make_packed(make_cell()), make_packed(make_cell()))
    assert any("single passes were not stored" in remark for remark in found.remarks)
    other = compare(make_packed(make_cell(reference=None, round_seconds=[1.0])), make_packed(make_cell()))
    assert any("no common reference" in remark for remark in other.remarks)


def test_a_slower_reference_is_reported_without_an_alarm(make_cell: Maker, make_packed: Runner) -> None:
    """If everything is 20 % slower, no ratio changes, and the reference's own seconds are reported."""
    base = timed(make_cell, make_packed, 1, {})
    slow = [
        cell.model_copy(
            update={
                "round_seconds": [1.2 * s for s in cell.round_seconds],
                "reference_seconds": [1.2 * s for s in cell.reference_seconds],
            }
        )
        for cell in base.cells
    ]
    found = compare(base, make_packed(*slow))
    assert not found.alarms
    assert any("reference itself took 20.0 % more time" in remark for remark in found.remarks)
