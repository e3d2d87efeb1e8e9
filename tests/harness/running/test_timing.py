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
from harness.results.run_folder import RunFolder
from harness.results.schema import Result
from harness.running.content_keys import ContentKeys
from harness.running.grid import Grid, GridOutcome
from harness.running.measuring.pass_counts import PassCounts, count_passes
from harness.running.measuring.timing import TimingSettings
from harness.running.run_settings import Settings

SOME = TimingSettings(seeds=[0], untimed=["three"])
TOGETHER = TimingSettings(share_reference=True)


@pytest.fixture
def settings(grid_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Two seeds of one dataset; single samples run twice per cell: once for warm-up and once."""
    monkeypatch.setattr(diagnostics, "CALLS", 1)
    return timing(grid_settings, SOME, datasets=["ag_news"], seeds=[0, 1])


def timing(settings: Settings, chosen: TimingSettings, **profile: Any) -> Settings:
    return replace(settings, profile=settings.profile.model_copy(update={"timing": chosen, **profile}))


def run(settings: Settings) -> GridOutcome:
    return Grid(settings).execute()


def results(settings: Settings) -> dict[tuple[str, str, int], Result]:
    found = RunFolder.open(settings.out).results()
    return {(one.cell.method, one.cell.point, one.cell.seed): one for one in found}


def test_other_seeds_and_methods_have_answers_but_no_time(stage: Any, settings: Settings) -> None:
    """Cells that are not timed have accuracy, exits and FLOPs, and neither times nor latency; the others have all."""
    assert run(settings).measured == 12
    for (method, _, seed), result in results(settings).items():
        assert result.quality.n == sum(result.exit_histogram)
        assert result.cost.flops_linear > 0
        if seed == 0 and method != "three":
            assert result.speed is not None
            assert (result.speed.reference, result.speed.rounds, len(result.latency)) == ("one", 2, 1)
        else:
            assert (result.speed, result.speedup_factors, result.latency) == (None, None, [])
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

    class Position(plain.fitted):  # type: ignore[misc]
        def predict(self, tokens: TokenSet, *, at: OperatingPoint) -> Any:
            found = super().predict(tokens, at=at)
            return replace(found, logits=np.eye(found.logits.shape[1], dtype=np.float32)[np.arange(len(tokens)) % 2])

    stage.add("three", fitted=Position)
    run(settings)
    assert (results(settings)["three", "a", 0].checks.rounds_agree or 0) < 1


@pytest.mark.parametrize("chosen", [TimingSettings(), SOME, TOGETHER])
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
        own = sum(one.own + 2 * one.alone for one in mine) + 2 * len(timed)  # one warm-up a point
        if name == profile.reference:  # its passes beside others, with a warm-up for each group
            groups = 1 if profile.timing.share_reference else 2
            own += sum(one.reference for one in counts.values())
            own += groups * sum(profile.timing.times(*pair) for pair in counts)
        assert sum(call.startswith(name) for call in stage.passes) == own


def test_passes_by_hand() -> None:
    """Three rounds of four points: 12 own passes and 12 of the reference; shared 3, and 2 if the rounds end early."""
    default, lean = (
        TimingSettings(),
        TimingSettings(share_reference=True, tolerance=0.02, seeds=[0], untimed=["control"]),
    )
    assert count_passes(default, 3, "geep", 1, 4) == PassCounts(12, 12, 0, 4)
    assert count_passes(default, 3, "oracle", 0, 1, kind="bound") == PassCounts(3, 3, 4, 0)
    assert count_passes(lean, 3, "geep", 0, 4) == PassCounts(12, 3, 0, 4)
    assert count_passes(lean, 3, "geep", 0, 4, all_rounds=False) == PassCounts(8, 2, 0, 4)
    assert count_passes(lean, 3, "geep", 1, 4) == PassCounts(4, 0, 0, 0)
    assert count_passes(lean, 3, "control", 0, 4, kind="control") == PassCounts(5, 0, 0, 0)
    assert count_passes(lean, 3, "zero", 1, 4, answers_at_depths=True) == PassCounts(4, 0, 1, 0)
    assert PassCounts(8, 2, 1, 4).seconds(10.0, 0.5) == pytest.approx(72.0)


def test_points_of_a_method_share_the_passes_of_the_reference(stage: Any, settings: Settings) -> None:
    """With share_reference all points of a method have the same passes of the reference, and other methods have others."""
    settings = timing(settings, TOGETHER, seeds=[0])
    run(settings)
    beside = {key: tuple(one.speed.reference_seconds) for key, one in results(settings).items() if one.speed}
    for name in ("one", "two", "three"):
        assert beside[name, "a", 0] == beside[name, "b", 0]
    assert len(set(beside.values())) == 3


def test_a_failing_point_does_not_cost_its_neighbours(stage: Any, settings: Settings) -> None:
    """In rounds that points share, one that fails is recorded, and the others are measured without it."""
    settings = timing(settings, TOGETHER, seeds=[0])
    stage.raises["two b"] = RuntimeError("a plug-in's bug")
    outcome = run(settings)
    assert (outcome.measured, outcome.failed) == (5, 1)
    assert ("two", "a", 0) in results(settings)
    stage.raises.clear()
    assert (run(settings).measured, len(results(settings))) == (1, 6)


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
