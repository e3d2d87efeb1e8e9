"""Profile ``twelve``: all twelve sets, with weights that it shares with ``twelve-layers``."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from harness.contracts import LearnsInStages
from harness.core.tokens import Task
from harness.data.cards import CARDS
from harness.encoder.backbone import Backbone
from harness.running import profile
from harness.running.fits.fit_keys import FitKeys
from harness.running.measuring.pass_counts import passes_of
from harness.running.measuring.timing import TimingSettings
from harness.running.profile import Profile
from harness.running.run_settings import make_settings

CORE = (
    "bert",
    "distilbert",
    "distilbert-3l",
    "tinybert",
    "fastbert",
    "geep",
    "geep-joint",
    "joint-verified",
    "joint-random",
)


def keys(chosen: Profile, task: Task, backbone: Backbone, seed: int) -> FitKeys:
    """Return the keys of fits on made-up data, which is all that the two profiles have to share."""
    prepared: Any = SimpleNamespace(task=task, unlabelled_rows="")
    return FitKeys(make_settings(chosen, device="cpu"), seed, prepared, backbone)


def test_weights_have_the_keys_of_twelve_layers(signal_task: Task, small_backbone: Backbone) -> None:
    """All methods of both profiles, so that hours of fits serve both; with another rate the keys differ."""
    twelve, layers = profile.load("twelve"), profile.load("twelve-layers")
    backbone = replace(small_backbone, tokenizer_fingerprint="made up")
    shared = [name for name in twelve.methods if name in layers.methods]
    assert {*CORE} - {*shared} == {"distilbert", "distilbert-3l", "tinybert"} and len(shared) >= 13
    for seed in (0, 2):
        one, other = (keys(chosen, signal_task, backbone, seed) for chosen in (twelve, layers))
        assert {name: one.weights(name) for name in shared} == {name: other.weights(name) for name in shared}
        assert {name: one.fit(name) for name in shared} == {name: other.fit(name) for name in shared}
    changed = keys(twelve.with_settings([("training", "learning_rate", 1e-5)]), signal_task, backbone, 0)
    assert not {changed.weights(name) for name in shared} & {one.weights(name) for name in shared}


def test_data_are_cut_as_in_twelve_layers() -> None:
    """All twelve sets, and what decides their rows and token ids is the same."""
    twelve, layers = profile.load("twelve"), profile.load("twelve-layers")
    assert {*twelve.datasets} == {*CARDS} and {*layers.datasets} <= {*CARDS}
    cut = {
        "max_length",
        "max_train",
        "max_dev",
        "max_test",
        "dev_share",
        "max_unlabelled",
        "rows",
        "fit_threads",
        "execution",
    }
    assert twelve.model_dump(include=cut) == layers.model_dump(include=cut)


def test_core_rows_have_three_seeds() -> None:
    """The others have the first one."""
    twelve = profile.load("twelve")
    assert twelve.seeds == [0, 1, 2]
    assert all(twelve.seeds_of(name) == [0, 1, 2] for name in CORE)
    few = [name for name in twelve.methods if twelve.seeds_of(name) == [0]]
    assert few == ["bert-truncated", "bert-truncated-3l", "bert-int8", "fastbert-faithful", "deebert", "elasticbert"]


def test_every_trained_method_has_equally_many_valid_trials() -> None:
    """Those of twelve-layers, and each own trial changes settings that its method has."""
    twelve, layers = profile.load("twelve"), profile.load("twelve-layers")
    plan, other = twelve.search, layers.search
    assert plan is not None and other is not None
    assert (plan.datasets, plan.trials) == (other.datasets, other.trials)
    assert all(plan.own[name] == other.own[name] for name in {*plan.own} & {*other.own})
    trained = [name for name in twelve.fits(twelve.methods) if isinstance(twelve.method_of(name), LearnsInStages)]
    assert {"distilbert-3l", "tinybert", "bert-truncated-3l", "geep-joint"} <= {*trained}
    for name in trained:
        trials = plan.own.get(name, plan.trials)
        assert len({str(one) for one in trials}) == len(plan.trials) == 4
        for trial in trials:
            changed = twelve.with_settings((name, key, value) for key, value in trial.items())
            assert not changed.problems([name])


def test_measuring_is_affordable() -> None:
    """With points at half the depth, it takes under 175 passes at full depth a set; timing every cell takes 800 and more.

    What is not timed are controls and bounds, and seeds beside the first.
    """
    twelve = profile.load("twelve")

    def full_passes(chosen: Profile, *, all_rounds: bool = False) -> float:
        pairs = [(name, seed) for name in chosen.methods for seed in chosen.seeds_of(name)]
        return sum(passes_of(chosen, *pair, all_rounds=all_rounds).full_passes(0.5) for pair in pairs)

    assert full_passes(twelve) < 175 and full_passes(twelve, all_rounds=True) < 240
    assert full_passes(twelve.model_copy(update={"timing": TimingSettings(), "rounds": 3})) > 800
    assert {twelve.method_of(name).kind for name in twelve.timing.untimed} == {"control", "bound"}
    assert all(twelve.timing.times(name, 0) for name in twelve.methods if twelve.method_of(name).kind == "method")
