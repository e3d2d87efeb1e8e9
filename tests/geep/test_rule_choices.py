"""Assignment rules: cut points give the wanted histogram, prices the changes of exits, and all points come from dev."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geep import method as geep_method
from geep.exit_table import ExitTable
from geep.exit_table.columns import TableColumns
from geep.exit_table.rules import UNIT, Cuts, Expected, Quantiles
from geep.method import TUNING, FittedGeep, Geep, GeepSettings
from geep.predictor import DevView, agreement_table
from geep.rule_choices import cut_points, prices, sequential_histograms, two_depths
from geep.table_rows import folds_of
from geep.verified_exits import EVERY, GeepVerified, look_layers
from harness.contracts import Execution
from harness.core.errors import ConfigError
from harness.core.tokens import Split, Task, TokenSet
from harness.encoder.backbone import Backbone
from harness.execution.executors import exit_logits

ANSWERS = (0, 1, 2, 4)


def texts(count: int, seed: int) -> TokenSet:
    rng = np.random.default_rng(seed)
    return TokenSet.from_lists([rng.integers(0, 9, size).tolist() for size in rng.integers(1, 6, count)], special=(0,))


@st.composite
def tables(draw: st.DrawFn, agreement: bool) -> tuple[ExitTable, TokenSet]:
    """Draw a frozen table of five layers, and samples."""
    seed = draw(st.integers(0, 1 << 30))
    rng, seen = np.random.default_rng(seed), texts(12, seed)
    table = ExitTable(TableColumns(agreement=5) if agreement else 5)
    if agreement:
        flags = torch.from_numpy(rng.random((12, 5)) < 0.5)
        flags[:, 3], flags[:, 4] = False, True  # layer 3 has no head
        table.insert(seen, flags)
    else:
        table.insert(seen, rng.choice(ANSWERS, 12))
    table.freeze(smoothing=draw(st.sampled_from([0, 2])))
    return table, texts(draw(st.integers(1, 20)), seed + 1)


@settings(max_examples=40)
@given(tables(agreement=False), st.data())
def test_cut_points_give_the_wanted_histogram(case: tuple[ExitTable, TokenSet], data: st.DataObject) -> None:
    """Samples with smaller expected exits leave first; only equal ones may move a count, and layers without a head get none."""
    table, dev = case
    wanted = np.bincount(data.draw(st.lists(st.integers(0, 3), min_size=len(dev), max_size=len(dev))), minlength=4)
    exits = table.assign(dev, cut_points(table, dev, ANSWERS, wanted[None]))[:, 0].numpy()
    sums = table.distribution(dev).numpy()
    expected = np.where(sums.sum(1) > 0, (sums * np.arange(5)).sum(1) * UNIT // np.maximum(sums.sum(1), 1), 4 * UNIT)
    order = np.argsort(expected, kind="stable")
    assert (np.diff(exits[order]) >= 0).all() and set(exits.tolist()) <= set(ANSWERS)
    ties = max(np.bincount(np.unique(expected, return_inverse=True)[1]))
    keyless = int((sums.sum(1) == 0).sum())  # those run all layers, whatever the cut points are
    taken = np.searchsorted(ANSWERS, exits)
    below = np.array([(taken <= place).sum() for place in range(3)])
    assert (np.abs(below - wanted.cumsum()[:3]) <= max(ties // 2, keyless)).all()
    for place in np.flatnonzero(
        np.abs(below - wanted.cumsum()[:3])
    ):  # a group of equal samples lies across the wanted cut
        at = int(wanted.cumsum()[place])
        assert keyless or expected[order][at - 1] == expected[order][at]


@settings(max_examples=40)
@given(tables(agreement=True))
def test_prices_are_between_all_changes_of_exits(case: tuple[ExitTable, TokenSet]) -> None:
    """Every assignment that some price gives is given by one of the prices; exits deepen as prices fall."""
    table, dev = case
    found = prices(table, dev, ANSWERS)
    mine = table.assign(dev, Expected(found)).numpy()
    assert (np.diff(mine.astype(int), axis=1) >= 0).all()
    every = table.assign(dev, Expected(tuple(range(0, UNIT + 1, 97)))).numpy()
    assert {column.tobytes() for column in every.T} <= {column.tobytes() for column in mine.T}
    assert not (every == 3).any()


def test_too_many_prices_are_thinned() -> None:
    """The number of prices is limited, and the ends stay."""
    table = ExitTable(TableColumns(agreement=5))
    seen = texts(60, 3)
    flags = torch.from_numpy(np.random.default_rng(0).random((60, 5)) < 0.5)
    flags[:, 4] = True
    table.insert(seen, flags)
    table.freeze()
    few = prices(table, texts(50, 4), (0, 1, 2, 3, 4), most=5)
    assert 3 <= len(few) <= 7 and few[0] == UNIT and few[-1] == 0


@given(st.integers(1, 40), st.lists(st.floats(1, 5), min_size=1, max_size=3))
def test_mixes_of_two_depths_stay_within_the_layers(samples: int, layers: list[float]) -> None:
    """Every mix uses at most the wanted mean layers and less than one sample's step below them."""
    for histogram in two_depths(samples, ANSWERS, layers):
        assert histogram.sum() == samples and (histogram > 0).sum() <= 2
        mean = float(histogram @ (np.array(ANSWERS) + 1)) / samples
        assert any(mean <= wanted + 1e-6 and wanted - mean < 4 / samples + 1e-6 for wanted in layers)


def test_sequential_histograms_begin_with_the_speeds() -> None:
    """The first histogram is that of the given speed; the cheapest and the deepest ones are among the others."""
    entropy = np.array([[0.9, 0.2], [0.5, 0.6], [0.4, 0.4]], dtype=np.float32)
    found = sequential_histograms(entropy, [0.55]).tolist()
    assert found[0] == [1, 1, 0]
    assert [2, 0, 0] in found and [0, 0, 2] in found


def test_agreement_is_counted_without_labels(scattered_geep: FittedGeep, signal_task: Task) -> None:
    """A row is the share of samples whose answer after each layer is that of the last one; a layer without a head has none."""
    model, tokens = scattered_geep.model, signal_task.train.tokens
    logits = exit_logits(model, tokens, TUNING)
    table = agreement_table(tokens, logits, model.answers, model.depth, ngram=1, min_count=1, smoothing=0)
    said = logits.argmax(-1)
    keys, counts = table.counts()
    for key, row in list(zip(keys.tolist(), counts.tolist(), strict=True))[:5]:
        rows = [n for n in range(len(tokens)) for at in range(tokens.offsets[n], tokens.offsets[n + 1])
                if (1 << 60) + (int(tokens.ids[at]) << 40) == key]  # fmt: skip
        wanted = [sum(int(said[place, n] == said[-1, n]) for n in rows) for place in range(len(model.answers))]
        assert [row[layer] for layer in model.answers] == wanted
        assert row[3] == 0 and row[4] == len(rows)


@pytest.fixture(scope="module")
def ruled(scattered_geep: FittedGeep, signal_task: Task, quick: Mapping[str, Any]) -> Mapping[str, FittedGeep]:
    """Return GEEP's choices under every rule, for one set of weights."""
    weights = FittedGeep(scattered_geep.model, None)
    config = {**quick, "speeds": [0.3, 0.6], "min_count": 1}
    rules = ("quantile", "cuts", "expected")
    return {rule: Geep().choose(weights, signal_task, config={**config, "rule": rule}, seed=0) for rule in rules}


@pytest.mark.parametrize("rule", ["quantile", "cuts", "expected"])
def test_a_point_does_on_dev_what_it_says(rule: str, ruled: Mapping[str, FittedGeep], signal_task: Task) -> None:
    """Mean layers and accuracy of every point, run on dev, are the stored ones; names do not depend on the rule."""
    fitted, dev = ruled[rule], signal_task.dev
    assert [point.name for point in fitted.points] == [point.name for point in ruled["quantile"].points]
    for point in fitted.points:
        found = fitted.predict(dev.tokens, at=replace(point, execution=Execution()))
        layers = found.exit_layer + 1
        if point.params["answer"] == "shared":
            layers = layers + (found.exit_layer < fitted.model.depth - 1)
        assert (found.logits.argmax(1) == dev.labels.numpy()).mean() == pytest.approx(point.params["dev_accuracy"])
        assert layers.mean() == pytest.approx(point.params["dev_mean_layers"])
        assert set(found.exit_layer.tolist()) <= set(fitted.model.answers)


def test_cuts_have_the_histogram_of_the_sequential_exit(ruled: Mapping[str, FittedGeep], signal_task: Task) -> None:
    """At a speed, dev has as many mean layers as the sequential exit, up to samples with equal expected exits."""
    fitted, dev = ruled["cuts"], signal_task.dev
    logits = exit_logits(fitted.model, dev.tokens, TUNING)
    view = DevView.of(logits, dev.labels, fitted.model.answers, fitted.model.depth)
    for point in fitted.points:
        if point.name in ("speed=0.3", "speed=0.6"):
            budget = view.sequential_layers(point.params["speed"])
            assert abs(point.params["dev_mean_layers"] - budget) < 0.25


def test_the_published_rule_is_the_default(ruled: Mapping[str, FittedGeep], quick: Mapping[str, Any]) -> None:
    """Without a setting the rule is the quantile, and its points have the parameters that they always had."""
    assert GeepSettings().rule == "quantile"
    assert list(ruled["quantile"].points[0].params) == [
        "speed",
        "quantile",
        "answer",
        "dev_mean_layers",
        "dev_accuracy",
    ]
    assert isinstance(ruled["cuts"].points[0].params["cuts"], list)


@pytest.mark.parametrize("rule", ["cuts", "expected"])
def test_fits_under_other_rules_are_loaded(
    rule: str, ruled: Mapping[str, FittedGeep], signal_task: Task, small_backbone: Backbone, tmp_path: Path
) -> None:
    """A loaded fit assigns the same exits and counts the same hits; a table of agreement is stored once."""
    fitted = ruled[rule]
    fitted.save(tmp_path)
    assert len(list(tmp_path.glob("table-*"))) == (1 if rule == "expected" else len(fitted.tables))
    back = Geep().load(tmp_path, signal_task, small_backbone, {})
    for point in fitted.points:
        tokens = signal_task.dev.tokens
        assert torch.equal(back.assign(tokens, at=point), fitted.assign(tokens, at=point))
        assert back.key_hits(tokens, at=point) == fitted.key_hits(tokens, at=point)


def test_verified_looks_follow_prices(
    ruled: Mapping[str, FittedGeep], signal_task: Task, small_backbone: Backbone, quick: Mapping[str, Any]
) -> None:
    """On a table of agreement, later looks are never shallower, and every stored point runs as dev said."""
    geep, dev = ruled["expected"], signal_task.dev
    table = geep.tables[0.3]
    for looks in (1, 3, EVERY):
        at = look_layers(table, dev.tokens, geep.model.answers, 9000, looks)
        assert (at[:, 1:] >= at[:, :-1]).all()
    verified = GeepVerified().fit(signal_task, small_backbone, {"geep": geep}, config=dict(quick), seed=0)
    for point in verified.points:
        found = verified.predict(dev.tokens, at=replace(point, execution=Execution()))
        assert found.exit_layer.mean() + 1 == pytest.approx(point.params["dev_mean_layers"])


def test_a_rule_without_its_columns_or_rows_is_refused(signal_task: Task) -> None:
    """Tables of other columns, wrong numbers of cut points and a dev set without rows are named in one line."""
    exits, agreement = ExitTable(5), ExitTable(TableColumns(agreement=5))
    dev = signal_task.dev.tokens
    exits.insert(dev, torch.zeros(len(dev), dtype=torch.int64))
    agreement.insert(dev, torch.ones(len(dev), 5, dtype=torch.bool))
    for table in (exits, agreement):
        table.freeze()
    for act, word in (
        (lambda: exits.assign(dev, Expected((3,))), "rule 'expected' reads agreement, the rows hold exits"),
        (lambda: agreement.assign(dev, Quantiles((500,))), "rule 'quantile' reads exits, the rows hold agreement"),
        (lambda: exits.assign(dev, Cuts(((1, 2, 3),))), "has 4 numbers for 5 exits"),
        (lambda: Cuts(((3, 2),)), "must not fall"),
        (lambda: Cuts(((3, 5 * UNIT),)), "lie in 0"),
        (lambda: Expected((UNIT + 1,)), "price 65537"),
        (lambda: cut_points(exits, dev.select([]), ANSWERS, np.zeros((1, 4), dtype=np.int64)), "dev, which has 0 rows"),
        (lambda: cut_points(exits, dev, ANSWERS, np.zeros((1, 4), dtype=np.int64)), "for histograms of 0"),
    ):
        with pytest.raises(ConfigError, match=word) as caught:
            act()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("columns", "observed", "word"), [
    ({"exits": 3, "labels": 2}, ([0],), "1 observations of each sample: this table counts exits and labels"),
    ({"labels": 2}, ([2],), "label 2 is not in 0..1"),
    ({"agreement": 2}, ([1],), "give bools"),
    ({"agreement": 2}, ([[True, False]],), "the last layer does not agree with itself"),
])  # fmt: skip
def test_wrong_observations_are_refused(columns: dict, observed: tuple, word: str) -> None:
    """The message says what the table counts, or which value is wrong."""
    table = ExitTable(TableColumns(**columns))
    with pytest.raises(ConfigError, match=word):
        table.insert([torch.tensor([1])], *observed)
    assert table.stats()["samples"] == 0


@pytest.mark.parametrize(("columns", "word"), [
    ({}, "outside 1..24"), ({"exits": 25}, "num_layers=25"), ({"exits": 3, "agreement": 3}, "make two tables"),
    ({"agreement": 24, "labels": 37}, "room for 36"),
])  # fmt: skip
def test_impossible_columns_are_refused(columns: dict, word: str) -> None:
    """A row holds up to 60 columns, and either exits or agreement."""
    with pytest.raises(ConfigError, match=word):
        TableColumns(**columns)


def test_folds_observe_every_row_on_a_model_without_it(
    signal_task: Task,
    small_backbone: Backbone,
    quick: Mapping[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Each fold trains on the others; the cost of all trainings is counted; the answering model is that of all rows."""
    config = {**quick, "speeds": [0.85], "epochs": 1, "folds": 2}
    geep, alike = Geep(), {**config, "folds": 0}
    weights = geep.train_weights(signal_task, small_backbone, {}, config=config, seed=0)
    plain = geep.train_weights(signal_task, small_backbone, {}, config=alike, seed=0)
    for one, two in zip(weights.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(one, two)
    assert isinstance(weights, FittedGeep) and weights.training is not None and plain.training is not None
    assert weights.training.sample_passes == 2 * plain.training.sample_passes
    assert weights.training.exit_scores == plain.training.exit_scores
    weights.save(tmp_path)
    back = Geep().load(tmp_path, signal_task, small_backbone, {})
    assert back.crossed is not None and weights.crossed is not None and torch.equal(back.crossed, weights.crossed)
    (learn, others), _ = folds_of(signal_task.train, 2, 0)
    fewer = replace(signal_task, train=learn)
    alone = geep.train_weights(fewer, small_backbone, {}, config=alike, seed=0)
    found = exit_logits(alone.model, signal_task.train.tokens.select(others), TUNING)
    torch.testing.assert_close(weights.crossed[:, others], found)
    seen: list[torch.Tensor] = []
    built = geep_method.build_table

    def watching(tokens: TokenSet, observed: torch.Tensor, *args: Any, **options: Any) -> ExitTable:
        seen.append(observed)
        return built(tokens, observed, *args, **options)

    monkeypatch.setattr(geep_method, "build_table", watching)
    geep.choose(back, signal_task, config=config, seed=0)
    assert torch.equal(seen[0], back.crossed)


@given(folds=st.integers(2, 10), seed=st.integers(0, 5))
@settings(max_examples=15)
def test_folds_cover_all_rows_once(folds: int, seed: int, signal_task: Task) -> None:
    """Every row is in exactly one fold, and that fold's training does not have it."""
    others = []
    for learn, index in folds_of(signal_task.train, folds, seed):
        assert len(learn) + len(index) == len(signal_task.train)
        others += index.tolist()
    assert sorted(others) == list(range(len(signal_task.train)))


@pytest.mark.parametrize(("given_settings", "word"), [
    ({"table_rows": "cross_fitted"}, "set folds, e.g. to 5"), ({"folds": 1}, "two parts of train or more"),
    ({"folds": 3, "table_rows": "train"}, 'table_rows = "train" does not use'),
    ({"folds": 3, "holdout": 0.2}, 'table_rows = "holdout" does not use'),
    ({"folds": 11}, "less than or equal to 10"), ({"rule": "sum"}, "quantile"),
])  # fmt: skip
def test_settings_that_do_not_go_together_are_refused(given_settings: dict, word: str) -> None:
    """The message says what to set."""
    with pytest.raises(ValueError, match=word):
        GeepSettings(**given_settings)


def test_more_folds_than_rows_are_refused(signal_task: Task) -> None:
    """A fold needs a row."""
    one = Split(signal_task.train.tokens.select([0]), signal_task.train.labels[:1])
    with pytest.raises(ConfigError, match="folds = 2 are more than the 1 rows of train"):
        list(folds_of(one, 2, 0))
