"""Exit 0 as a method: figures on dev equal a run, answered samples run nothing, others run as before, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geep.answer_first import FittedZero, GeepZero, smallest_safe_margin
from geep.label_table import UNREACHABLE
from geep.method import FittedGeep
from geep.one_look import GeepLook
from harness.contracts import AnswersAtDepths, CountsKeyHits, Execution, OperatingPoint, UsesUnlabelled
from harness.core.errors import ConfigError, ResultError
from harness.core.tokens import Split, Task
from harness.core.work import BEFORE
from harness.encoder.backbone import Backbone
from harness.execution.executors import run_full
from harness.measure.diagnostics import depth_answers
from harness.measure.passes import Contender
from harness.measure.validation import check_answers, check_work
from harness.toolkit.fitted import FullDepth, RunsOthers

Check = Callable[[FittedZero, OperatingPoint, Execution, list[int]], None]
CONFIG = {"speeds": [0.3, 0.6], "min_count": 1, "budgets": [0.25, 0.5, 1.0]}


@pytest.fixture(scope="session")
def geep_first(scattered_geep: FittedGeep, signal_task: Task, small_backbone: Backbone) -> FittedZero:
    """Return exit 0 on the scattered model, the others at GEEP's predicted exits."""
    return GeepZero().fit(signal_task, small_backbone, {"geep": scattered_geep}, config=CONFIG, seed=0)


@pytest.fixture(scope="session")
def look_first(scattered_geep: FittedGeep, signal_task: Task, small_backbone: Backbone) -> FittedZero:
    """Return exit 0 whose others look once."""
    given = {"geep": scattered_geep}
    look = GeepLook().fit(signal_task, small_backbone, given, config={"speeds": [0.3, 0.6], "bins": 4}, seed=0)
    return GeepZero().fit(signal_task, small_backbone, {"geep": look}, config=CONFIG, seed=0)


def some_answered(fitted: FittedZero, tokens: Any) -> OperatingPoint:
    """Return a point whose margin answers about half of the samples."""
    margin = int(fitted.table.posterior(tokens)[1].median())
    return replace(fitted.points[0], params={**fitted.points[0].params, "margin": margin})


def test_dev_figures_equal_a_run_on_dev(geep_first: FittedZero, look_first: FittedZero, signal_task: Task) -> None:
    """Accuracy, layers and the share answered, noted with every point, are those of a run on dev."""
    assert [point.name for point in geep_first.points] == GeepZero().point_names(CONFIG)
    for fitted in (geep_first, look_first):
        for at in fitted.operating_points(signal_task.dev):
            found = fitted.predict(signal_task.dev.tokens, at=at)
            right = found.logits.argmax(1) == signal_task.dev.labels.numpy()
            assert at.params["dev_accuracy"] == pytest.approx(right.mean())
            assert at.params["dev_mean_layers"] == pytest.approx(found.work.rows("layer") / 48)
            assert at.params["dev_answered"] == pytest.approx((found.exit_layer == BEFORE).mean())
        assert len({at.params["dev_answered"] for at in fitted.points}) > 1


def test_answered_samples_run_nothing_and_the_others_as_before(
    geep_first: FittedZero, look_first: FittedZero, unseen: Split
) -> None:
    """Answers come from the table where it is sure, else from the other method, whose work is that of the rest."""
    for fitted in (geep_first, look_first):
        at = some_answered(fitted, unseen.tokens)
        found, alone = fitted.predict(unseen.tokens, at=at), fitted.others.predict(unseen.tokens, at=at)
        posterior, margins = fitted.table.posterior(unseen.tokens)
        sure = (margins >= at.params["margin"]).numpy()
        assert 0 < sure.sum() < 40
        assert found.exit_layer.tolist() == np.where(sure, BEFORE, alone.exit_layer).tolist()
        np.testing.assert_array_equal(found.logits[sure], fitted.table.logits(posterior)[sure])
        np.testing.assert_allclose(found.logits[~sure], alone.logits[~sure], rtol=1e-3, atol=1e-4)
        assert found.work.rows("layer") == (found.exit_layer + 1).sum()
        rest = fitted.others.predict(unseen.tokens.select(np.flatnonzero(~sure)), at=at)
        assert found.work == rest.work
        assert fitted.executor == fitted.others.executor
        check_answers(found, 40)
        check_work(found, fitted.cost)


@pytest.mark.parametrize("margin", [0, UNREACHABLE])
def test_everybody_or_nobody(geep_first: FittedZero, look_first: FittedZero, unseen: Split, margin: int) -> None:
    """Without any sample left nothing runs, and the contract holds; without any answered it is the other method."""
    for fitted in (geep_first, look_first):
        at = replace(fitted.points[0], params={**fitted.points[0].params, "margin": margin})
        found = fitted.predict(unseen.tokens, at=at)
        check_work(found, fitted.cost)
        assert (found.exit_layer == BEFORE).all() == (margin == 0) == (not found.work.blocks)
        if margin:
            np.testing.assert_array_equal(found.logits, fitted.others.predict(unseen.tokens, at=at).logits)


@given(data=st.data())
@settings(max_examples=15)
def test_predictions_depend_on_the_sample_alone(
    data: st.DataObject, geep_first: FittedZero, look_first: FittedZero, executions: Any, same_however_run: Check
) -> None:
    """Answers and exits are the same for every batch size, order, window and padding."""
    fitted, at = data.draw(st.sampled_from([(f, point) for f in (geep_first, look_first) for point in f.points]))
    same_however_run(fitted, at, data.draw(executions), data.draw(st.permutations(range(40))))


def test_it_says_what_every_exit_would_answer(geep_first: FittedZero, unseen: Split) -> None:
    """Before layer 1 comes first, with the table's answer for every sample, sure or not; the last row is full depth."""
    at = geep_first.points[0]
    assert isinstance(geep_first, AnswersAtDepths) and isinstance(geep_first, CountsKeyHits)
    found = depth_answers(Contender(geep_first, at), unseen.tokens)
    assert found is not None and found.layers == (BEFORE, *geep_first.model.answers)
    assert found.labels[0].tolist() == geep_first.table.posterior(unseen.tokens)[0].argmax(1).tolist()
    full = run_full(geep_first.model, unseen.tokens, Execution()).logits.argmax(1)
    assert found.labels[-1].tolist() == full.tolist()
    hits, asked = geep_first.key_hits(unseen.tokens, at=at)
    words = int(unseen.tokens.lengths.sum()) - 40  # without [CLS]
    assert 0 < hits <= asked == 2 * words - 40  # tokens and bigrams


def test_it_borrows_all_weights(
    geep_first: FittedZero,
    scattered_geep: FittedGeep,
    signal_task: Task,
    small_backbone: Backbone,
    unseen: Split,
    tmp_path: Path,
) -> None:
    """It trains nothing and stores no weights; loaded with its GEEP it predicts the same."""
    assert geep_first.model is scattered_geep.model and geep_first.training is None
    geep_first.save(tmp_path)
    assert not list(tmp_path.rglob("model*"))
    again = GeepZero().load(tmp_path, signal_task, small_backbone, {"geep": scattered_geep})
    assert again.points == geep_first.points
    at = some_answered(geep_first, unseen.tokens)
    first, second = (fitted.predict(unseen.tokens, at=at) for fitted in (geep_first, again))
    np.testing.assert_array_equal(first.logits, second.logits)
    np.testing.assert_array_equal(first.exit_layer, second.exit_layer)
    for spoil in ("labels/labels.json", "labels/exit_table.json", "points.json"):
        (tmp_path / spoil).write_text("{", encoding="utf-8")
        with pytest.raises(ResultError):
            GeepZero().load(tmp_path, signal_task, small_backbone, {"geep": scattered_geep})


@given(st.lists(st.tuples(st.integers(-1, 5), st.booleans(), st.booleans()), max_size=25))
def test_the_margin_answers_as_many_as_full_depth_allows(rows: list[tuple[int, bool, bool]]) -> None:
    """At the chosen margin the table is at most one standard error worse than full depth; at no smaller one it is (by hand)."""
    margins, right, full = np.array([*zip(*rows, strict=True)] or [[], [], []])
    margins = margins.astype(np.int64)

    def allowed(margin: int) -> bool:
        change = (right.astype(float) - full)[margins >= margin]
        return bool(len(change)) and change.mean() + change.std() / np.sqrt(len(change)) >= -1e-9

    chosen = smallest_safe_margin(margins, right.astype(bool), full.astype(bool))
    expected = [margin for margin in sorted({*margins.tolist()}) if margin >= 0 and allowed(margin)]
    assert chosen == (expected[0] if expected else UNREACHABLE)


def test_a_table_that_is_never_as_good_answers_nobody() -> None:
    """Where every answer of the table is wrong and full depth is right, no margin is chosen."""
    always = np.ones(9, dtype=bool)
    assert smallest_safe_margin(np.arange(9), ~always, always) == UNREACHABLE
    assert smallest_safe_margin(np.arange(9), always, always) == 0
    assert smallest_safe_margin(np.full(9, -1), always, always) == UNREACHABLE  # texts without any key


def test_rows_that_fill_the_table(
    monkeypatch: pytest.MonkeyPatch,
    scattered_geep: FittedGeep,
    signal_task: Task,
    small_backbone: Backbone,
    unseen: Split,
) -> None:
    """Train, and rows without labels if there are any, at most as many of these as set; or one of both."""
    more = replace(signal_task, read_unlabelled=lambda: unseen.tokens)
    seen: list[int] = []

    def count(model: Any, tokens: Any, execution: Any) -> Any:
        seen.append(len(tokens))
        return run_full(model, tokens, execution)

    monkeypatch.setattr("geep.answer_first.run_full", count)

    def rows(task: Task, **config: Any) -> list[int]:
        seen.clear()
        GeepZero().fit(task, small_backbone, {"geep": scattered_geep}, config={**CONFIG, **config}, seed=0)
        return seen[:-1]  # the last is dev

    assert rows(signal_task) == [96]
    assert rows(more) == [96, 40]
    assert rows(more, most_rows=7) == [96, 7]
    assert rows(more, label_rows="train") == [96]
    assert rows(more, label_rows="unlabelled") == [40]
    with pytest.raises(ConfigError, match="dataset 'signal' has no rows without labels"):
        rows(signal_task, label_rows="unlabelled")
    method = GeepZero()
    assert isinstance(method, UsesUnlabelled)
    assert [method.uses_unlabelled(config) for config in ({}, {"label_rows": "train"})] == [True, False]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"label_rows": "test"}, "label_rows"),
        ({"ngram": 4}, "ngram"),
        ({"min_count": 0}, "min_count"),
        ({"smoothing": -1}, "smoothing"),
        ({"margin": 5}, "margin"),
    ],
)
def test_invalid_settings_are_rejected_in_one_line(
    config: dict[str, Any], words: str, scattered_geep: FittedGeep, signal_task: Task, small_backbone: Backbone
) -> None:
    """An unknown or impossible setting is a one-line ConfigError that names it."""
    with pytest.raises(ConfigError, match=words) as caught:
        GeepZero().fit(signal_task, small_backbone, {"geep": scattered_geep}, config=config, seed=0)
    assert "\n" not in str(caught.value)


def test_a_method_that_leaves_samples_out_is_required(
    scattered_geep: FittedGeep, signal_task: Task, small_backbone: Backbone
) -> None:
    """Full depth cannot leave samples out, and neither can nothing."""
    full = FullDepth(scattered_geep.model)
    assert not isinstance(full, RunsOthers)
    for teachers in ({"geep": full}, {}):
        with pytest.raises(ConfigError, match="geep-zero needs a method that can leave samples out"):
            GeepZero().fit(signal_task, small_backbone, teachers, config={}, seed=0)
