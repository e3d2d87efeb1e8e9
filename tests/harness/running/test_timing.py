"""Which cells are timed: others take one pass, say so, and are checked once per method."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from harness import registry
from harness.api import Run
from harness.contracts import OperatingPoint
from harness.core.errors import UnknownNameError
from harness.core.tokens import TokenSet
from harness.measure import diagnostics
from harness.regression.compare import compare
from harness.results.packed_run import pack
from harness.results.rows.answer_bits import from_bits
from harness.results.run_folder import RunFolder
from harness.results.schema import Result
from harness.running import grid
from harness.running.content_keys import ContentKeys
from harness.running.grid import Grid
from harness.running.measuring.pass_counts import PassCounts, count_passes
from harness.running.measuring.timing import TimingSettings
from harness.running.run_settings import Settings
from tests.harness.running.conftest import run

SOME = TimingSettings(seeds=[0], untimed=["three"])
TOGETHER = TimingSettings(share_reference=True)


@pytest.fixture
def settings(grid_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Two seeds of one dataset; single samples run twice per cell: once for warm-up and once."""
    monkeypatch.setattr(diagnostics, "CALLS", 1)
    return timing(grid_settings, SOME, datasets=["ag_news"], seeds=[0, 1])


def timing(settings: Settings, chosen: TimingSettings, **profile: Any) -> Settings:
    return replace(settings, profile=settings.profile.model_copy(update={"timing": chosen, **profile}))


def results(settings: Settings) -> dict[tuple[str, str, int], Result]:
    found = RunFolder.open(settings.out).results()
    return {(one.cell.method, one.cell.point, one.cell.seed): one for one in found}


def test_other_seeds_and_methods_have_answers_but_no_time(stage: Any, settings: Settings) -> None:
    """Cells that are not timed have accuracy, exits and FLOPs, and neither times nor latency; the others have all."""
    assert run(settings).measured == 12
    for (method, _, seed), result in results(settings).items():
        assert result.quality.n == sum(result.exit_histogram)
        assert result.cost.flops_linear > 0
        assert result.quality.calibration_error is not None
        if seed == 0 and method != "three":
            assert result.speed is not None and result.answers is not None
            rows = RunFolder.open(settings.out).samples(result.cell)["correct"]
            assert from_bits(result.answers.test, len(rows)).tolist() == rows.tolist()
            assert (result.speed.reference, result.speed.rounds, len(result.latency)) == ("one", 2, 1)
        else:
            assert (result.speed, result.speedup_factors, result.latency, result.answers) == (None, None, [], None)
    table = Run(settings.out).results()
    untimed = (table["seed"] == 1) | (table["method"] == "three")
    assert table["speedup"].isna().equals(untimed)
    assert table["accuracy"].notna().all()


def test_every_method_is_checked_in_the_first_seed(stage: Any, settings: Settings) -> None:
    """Timed cells have all checks; a method that is not timed has them at its first point; other seeds have none."""
    run(settings)
    for (method, point, seed), result in results(settings).items():
        checks = result.checks
        expected = (1.0, 1.0, True) if seed == 0 and (method != "three" or point == "a") else (None, None, None)
        assert (checks.rounds_agree, checks.batches_agree, checks.state_unchanged) == expected


def test_an_order_dependent_method_is_found_without_timing(stage: Any, settings: Settings) -> None:
    """A method that is not timed still fails the check of the order."""
    plain: Any = registry._registered["three"]

    class Position(plain.fitted):
        def predict(self, tokens: TokenSet, *, at: OperatingPoint) -> Any:
            found = super().predict(tokens, at=at)
            return replace(found, logits=np.eye(found.logits.shape[1], dtype=np.float32)[np.arange(len(tokens)) % 2])

    stage.add("three", fitted=Position)
    run(settings)
    assert (results(settings)["three", "a", 0].checks.rounds_agree or 0) < 1


@pytest.mark.parametrize("chosen", [TimingSettings(), SOME])
def test_the_passes_are_those_that_were_announced(stage: Any, settings: Settings, chosen: TimingSettings) -> None:
    """The estimate of passes equals the calls of every method, warm-up and single samples apart."""
    settings = timing(settings, chosen)
    run(settings)
    profile = settings.profile
    counts = {
        (name, seed): count_passes(profile.timing, profile.rounds, name, seed, points=2)
        for name in profile.methods
        for seed in profile.seeds
    }
    for name in profile.methods:
        mine = [counts[name, seed] for seed in profile.seeds]
        timed = [seed for seed in profile.seeds if profile.timing.times(name, seed)]
        own: float = sum(one.own + 2 * one.alone for one in mine) + 2 * len(timed)  # one warm-up a point
        if name == profile.reference:  # its passes beside others, with a warm-up for each of their points
            own += sum(one.reference for one in counts.values())
            own += 2 * sum(profile.timing.times(*pair) for pair in counts)
        assert sum(call.startswith(name) for call in stage.passes) == own


def test_shared_passes_of_the_reference_are_few(stage: Any, settings: Settings) -> None:
    """All six cells of a seed need two passes of the reference in two rounds, and one for warm-up, instead of eighteen."""
    settings = timing(settings, TOGETHER, seeds=[0], reference="three")
    run(settings)
    own = count_passes(TOGETHER, 2, "three", 0, points=2)
    assert sum(call.startswith("three") for call in stage.passes) == own.own + 2 * own.alone + 2 + 3
    assert sum(count_passes(TOGETHER, 2, name, 0, points=2).reference for name in settings.profile.methods) == 6 * 2 / 8


def test_passes_by_hand() -> None:
    """Three rounds of four points: 12 own passes, 4 over dev and 12 of the reference; of shared ones half as many as rounds."""
    default, lean = (
        TimingSettings(),
        TimingSettings(share_reference=True, tolerance=0.02, seeds=[0], untimed=["control"]),
    )
    assert count_passes(default, 3, "geep", 1, 4) == PassCounts(16, 12, 0, 4)
    assert count_passes(default, 3, "oracle", 0, 1, kind="bound") == PassCounts(3, 3, 4, 0)
    assert count_passes(lean, 3, "geep", 0, 4) == PassCounts(16, 1.5, 0, 4)
    assert count_passes(lean, 3, "geep", 0, 4, all_rounds=False) == PassCounts(12, 1, 0, 4)
    assert count_passes(lean, 3, "geep", 1, 4) == PassCounts(4, 0, 0, 0)
    assert count_passes(lean, 3, "control", 0, 4, kind="control") == PassCounts(5, 0, 0, 0)
    assert count_passes(lean, 3, "zero", 1, 4, answers_at_depths=True) == PassCounts(4, 0, 1, 0)
    assert PassCounts(8, 2, 1, 4).seconds(10.0, 0.5) == pytest.approx(72.0)


@pytest.mark.parametrize(("least", "groups"), [(8, 1), (3, 2)])
def test_cells_share_the_passes_of_the_reference(
    stage: Any, settings: Settings, monkeypatch: pytest.MonkeyPatch, least: int, groups: int
) -> None:
    """With share_reference methods wait until there are enough cells, those of another seed never mix, and none is forgotten."""
    monkeypatch.setattr(grid, "LEAST_TOGETHER", least)
    settings = timing(settings, TOGETHER)
    assert run(settings).measured == 12
    speeds = {key: one.speed for key, one in results(settings).items() if one.speed}
    for seed in (0, 1):
        beside = {key: tuple(one.reference_seconds) for key, one in speeds.items() if key[2] == seed}
        assert len({*beside.values()}) == groups
        assert all(beside[name, "a", seed] == beside[name, "b", seed] for name in ("one", "two", "three"))
        assert all(list(beside.values()).count(beside[key]) == speeds[key].together for key in beside)
    assert len({tuple(one.reference_seconds) for one in speeds.values()}) == 2 * groups
    assert (run(settings).measured, len(results(settings))) == (0, 12)


@pytest.mark.parametrize("where", ["one a", "three"])
def test_a_failing_cell_does_not_cost_its_neighbours(stage: Any, settings: Settings, where: str) -> None:
    """In rounds that cells share, one that fails is recorded, and the others are measured without it."""
    settings = timing(settings, TOGETHER, seeds=[0], reference="two" if where == "one a" else "one")
    stage.raises[where] = RuntimeError("a plug-in's bug")
    failed = 2 if where == "three" else 1
    outcome = run(settings)
    assert (outcome.measured, outcome.failed) == (6 - failed, failed)
    assert len(RunFolder.open(settings.out).failures()) == failed
    stage.raises.clear()
    assert (run(settings).measured, len(results(settings))) == (failed, 6)


def test_only_what_is_timed_otherwise_is_measured_again(stage: Any, settings: Settings) -> None:
    """Timing a further seed measures that seed again; rounds concern timed cells only; the defaults change no key."""
    run(settings)
    more = timing(settings, TimingSettings(seeds=[0, 1], untimed=["three"]))
    outcome = run(more)
    assert (outcome.measured, outcome.kept) == (6, 6)  # three is checked in seed 1 from now on
    outcome = run(timing(more, more.profile.timing, rounds=3))
    assert (outcome.measured, outcome.kept) == (8, 4)
    keys = [ContentKeys(timing(settings, one)).of("ag_news", "two", 1) for one in (TimingSettings(), SOME, TOGETHER)]
    assert len({*keys}) == 3
    assert keys[0] == ContentKeys(timing(settings, TimingSettings(seeds=[1]))).of("ag_news", "two", 1)


def test_times_are_compared_over_the_seeds_that_were_timed(stage: Any, settings: Settings) -> None:
    """Comparing a run with itself, cells without a timed seed are counted, and no time is made up for them."""
    run(settings)
    found = compare(pack(settings.out), pack(settings.out))
    assert not found.alarms
    assert any("times of 2 cells are not compared: no seed was timed in both runs" in line for line in found.remarks)


def test_a_typo_among_the_untimed_is_refused(stage: Any, settings: Settings) -> None:
    """A name in ``untimed`` that does not exist would have no effect otherwise."""
    with pytest.raises(UnknownNameError, match="thre"):
        Grid(timing(settings, TimingSettings(untimed=["thre"])))
