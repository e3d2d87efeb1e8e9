"""The controls on GEEP's weights: their differences from GEEP."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.controls.borrowed_geep import BorrowedGeep
from baselines.controls.constant_depth import ConstantControl, ConstantDepth, concave_hull
from baselines.controls.length_exits import LengthControl, LengthExits
from baselines.controls.oracle import AgreementOracle, Oracle
from baselines.controls.random_exits import RandomControl, RandomExits, content_hash
from baselines.controls.sequential_control import SequentialControl
from geep.method import FittedGeep
from harness.contracts import AnswersAtDepths, Execution, OperatingPoint
from harness.core.errors import ConfigError
from harness.core.tokens import Split, Task, TokenSet
from harness.encoder.backbone import Backbone
from harness.execution.executors import exit_logits, run_assigned, run_full
from harness.execution.exit_rules import Entropy, normalised_entropy
from harness.execution.sequential import run_sequential

CONTROLS = [ConstantControl, RandomControl, LengthControl, SequentialControl, Oracle]
Check = Callable[[BorrowedGeep, OperatingPoint, Execution, list[int]], None]


@pytest.fixture(scope="session")
def borrow(
    signal_task: Task, small_backbone: Backbone, scattered_geep: FittedGeep
) -> Callable[[type[Any]], BorrowedGeep]:
    """Fit a control on the scattered GEEP."""
    made: dict[type[Any], BorrowedGeep] = {}

    def fit(control: type[Any]) -> BorrowedGeep:
        if control not in made:
            teachers = {"geep": scattered_geep}
            made[control] = control().fit(signal_task, small_backbone, teachers, config={}, seed=0)
        return made[control]

    return fit


def students(geep: FittedGeep) -> list[OperatingPoint]:
    """Return GEEP's points that answer with a student."""
    return [point for point in geep.points if point.params["answer"] == "student"]


token_sets = st.lists(st.lists(st.integers(3, 39), min_size=1, max_size=15), min_size=1, max_size=30)


@pytest.mark.parametrize("control", CONTROLS[:-1])
def test_points_mirror_geeps(control: type[Any], borrow: Any, scattered_geep: FittedGeep, signal_task: Task) -> None:
    """Controls have GEEP's student points, by name, so that rows of a table can be compared."""
    points = borrow(control).operating_points(signal_task.dev)
    assert [point.name for point in points] == [point.name for point in students(scattered_geep)]
    assert [point.name for point in points] == ["speed=0.3", "speed=0.6", "budget=0.25", "budget=0.5", "budget=0.75"]
    assert control().point_names({"speeds": [0.3, 0.6]}) == [point.name for point in points]


@pytest.mark.parametrize("control", [RandomControl, LengthControl])
@given(rows=token_sets)
@settings(max_examples=25)
def test_histogram_equals_geeps(
    control: type[Any], rows: list[list[int]], borrow: Any, scattered_geep: FittedGeep
) -> None:
    """Random and length exits keep GEEP's histogram exactly, on any set of samples."""
    tokens = TokenSet.from_lists(rows, special=(0, 1, 2))
    for at in students(scattered_geep):
        ours = scattered_geep.assign(tokens, at=at)
        assert torch.equal(borrow(control).assign(tokens, at=at).sort().values, ours.sort().values)


@pytest.mark.parametrize("control", [RandomControl, LengthControl])
@given(rows=token_sets, data=st.data())
@settings(max_examples=25)
def test_exits_do_not_depend_on_arrival(
    control: type[Any], rows: list[list[int]], data: st.DataObject, borrow: Any, scattered_geep: FittedGeep
) -> None:
    """In another order every text gets the same exits; only copies of one text are interchangeable."""
    tokens = TokenSet.from_lists(rows, special=(0, 1, 2))
    order = data.draw(st.permutations(range(len(rows))))
    for at in students(scattered_geep):
        first = borrow(control).assign(tokens, at=at).tolist()
        second = borrow(control).assign(tokens.select(order), at=at).tolist()
        shuffled = [tuple(rows[i]) for i in order]
        assert Counter(zip(map(tuple, rows), first, strict=True)) == Counter(zip(shuffled, second, strict=True))


def test_random_exits_differ_from_geeps(borrow: Any, scattered_geep: FittedGeep, unseen: Split) -> None:
    """Random exits differ from GEEP's for many samples."""
    random = borrow(RandomControl)
    assert isinstance(random, RandomExits)
    for at in students(scattered_geep):
        assert not torch.equal(random.assign(unseen.tokens, at=at), scattered_geep.assign(unseen.tokens, at=at))


def test_random_numbers_are_independent_of_the_text() -> None:
    """The hash spreads evenly and is uncorrelated with length, first word and neighbours in the list."""
    rng = np.random.default_rng(0)
    rows = [rng.integers(5, 30000, size).tolist() for size in rng.integers(1, 60, 4000)]
    rank = content_hash(TokenSet.from_lists(rows)).numpy().argsort().argsort() / 4000
    for other in ([len(row) for row in rows], [row[0] for row in rows], np.roll(rank, 1)):
        assert abs(np.corrcoef(rank, other)[0, 1]) < 0.06
    numbers = content_hash(TokenSet.from_lists(rows)).numpy()
    assert len(np.unique(numbers)) == 4000
    assert np.abs(np.histogram(numbers, 10, (0, 2**31 - 1))[0] - 400).max() < 100


def test_hash_depends_on_word_order() -> None:
    """Texts of the same words in another order have another hash."""
    rows = [list(words) for words in product((5, 6, 7), repeat=4)]
    assert len(content_hash(TokenSet.from_lists(rows)).unique()) == 81


@given(rows=token_sets)
@settings(max_examples=25)
def test_longer_texts_exit_deeper(rows: list[list[int]], borrow: Any, scattered_geep: FittedGeep) -> None:
    """With exits by length, a longer text never exits before a shorter one."""
    control = borrow(LengthControl)
    assert isinstance(control, LengthExits)
    tokens = TokenSet.from_lists(rows, special=(0, 1, 2))
    for at in students(scattered_geep):
        exits = control.assign(tokens, at=at)
        by_length = {length: exits[tokens.lengths == length] for length in sorted(set(tokens.lengths.tolist()))}
        sizes = list(by_length.values())
        assert all(int(a.max()) <= int(b.min()) for a, b in zip(sizes[:-1], sizes[1:], strict=True))


counts = st.lists(st.integers(0, 9), min_size=2, max_size=8)


@given(right=counts, data=st.data())
def test_the_hull_is_the_least_concave_line_above(right: list[int], data: st.DataObject) -> None:
    """No depth lies above the line through the hull, its slopes fall, and it joins the first and the last depth."""
    gaps = data.draw(st.lists(st.integers(1, 3), min_size=len(right), max_size=len(right)))
    depths = np.cumsum(gaps).tolist()
    hull = concave_hull(depths, right)
    by_depth = dict(zip(depths, right, strict=True))
    assert (hull[0], hull[-1]) == (depths[0], depths[-1])
    heights = [by_depth[depth] for depth in hull]
    assert (np.interp(depths, hull, heights) >= np.array(right) - 1e-9).all()
    assert (np.diff(np.diff(heights) / np.diff(hull)) < 0).all()


def test_constant_depths_mix_two_depths_of_the_hull(borrow: Any, scattered_geep: FittedGeep, signal_task: Task) -> None:
    """The mix runs GEEP's mean layers on dev, is as good as any other two depths that do, and never looks at a sample."""
    control = borrow(ConstantControl)
    assert isinstance(control, ConstantDepth)
    dev = signal_task.dev
    said = exit_logits(scattered_geep.model, dev.tokens, Execution()).argmax(-1)
    right = {
        answer + 1: int((one == dev.labels).sum())
        for answer, one in zip(scattered_geep.model.answers, said, strict=True)
    }
    for at, mirrored in zip(control.operating_points(dev), students(scattered_geep), strict=True):
        mean = float(scattered_geep.assign(dev.tokens, at=mirrored).double().mean()) + 1
        shallow, deep, share = (at.params[name] for name in ("shallow", "deep", "share"))
        assert 0 <= share <= 1 and {shallow, deep} <= set(right)
        assert shallow + share * (deep - shallow) == pytest.approx(mean) == pytest.approx(at.params["dev_mean_layers"])
        for a, b in combinations(right, 2):
            if a <= mean <= b:
                other = (right[a] * (b - mean) + right[b] * (mean - a)) / (b - a) / len(dev)
                assert at.params["dev_accuracy"] >= other - 1e-9
        exits = Counter((control.assign(dev.tokens, at=at) + 1).tolist())
        assert exits == Counter({deep: round(share * len(dev)), shallow: len(dev) - round(share * len(dev))}) or (
            len(exits) == 1 and share in (0, 1)
        )
        found = control.predict(dev.tokens, at=at)
        assert found.work.rows("layer") / len(dev) == pytest.approx(mean, abs=0.5 * (deep - shallow) / len(dev) + 1e-9)


def test_sequential_equals_the_entropy_exit(
    borrow: Any, scattered_geep: FittedGeep, signal_task: Task, unseen: Split
) -> None:
    """The sequential control is FastBERT's rule on GEEP's weights; at speeds, at the threshold of GEEP's table."""
    control = borrow(SequentialControl)
    for at, mirrored in zip(control.operating_points(signal_task.dev), students(scattered_geep), strict=True):
        assert "budget" in at.params or at.params["speed"] == mirrored.params["speed"]
        found = control.predict(unseen.tokens, at=at)
        expected = run_sequential(scattered_geep.model, unseen.tokens, at.execution, Entropy(at.params["speed"]))
        np.testing.assert_array_equal(found.logits, expected.logits)
        np.testing.assert_array_equal(found.exit_layer, expected.exit_layer)
        assert found.work == expected.work


def test_sequential_runs_geeps_layers_at_budgets(borrow: Any, scattered_geep: FittedGeep, signal_task: Task) -> None:
    """At a budget, no other entropy threshold has mean layers on dev that are nearer to those of GEEP's point."""
    control, dev = borrow(SequentialControl), signal_task.dev
    entropies = normalised_entropy(exit_logits(scattered_geep.model, dev.tokens, Execution())[:-1]).unique()
    layers = [
        run_sequential(scattered_geep.model, dev.tokens, Execution(), Entropy(limit)).work.rows("layer") / 48
        for limit in (0.0, *((entropies[:-1] + entropies[1:]) / 2).tolist(), 1.0)
    ]
    points = control.operating_points(dev)
    assert sum("budget" in at.params for at in points) == 3
    for at, mirrored in zip(points, students(scattered_geep), strict=True):
        if "budget" in at.params:
            found = control.predict(dev.tokens, at=at).work.rows("layer") / 48
            assert found == pytest.approx(at.params["dev_mean_layers"])
            mean = mirrored.params["dev_mean_layers"]
            assert abs(found - mean) <= min(abs(other - mean) for other in layers) + 1e-6


def foreseen(oracle: BorrowedGeep, tokens: TokenSet, execution: Execution) -> OperatingPoint:
    """Return the oracle's point with its foresight, as the harness passes it."""
    assert isinstance(oracle, AgreementOracle)
    at = OperatingPoint("agree", execution=execution)
    return replace(at, foresight=oracle.foresee(tokens, at=at))


@pytest.mark.parametrize("execution", [Execution(), Execution(protocol="paper", max_length=16, batch_size=3)])
def test_oracle_agrees_with_full_depth(
    execution: Execution, borrow: Any, scattered_geep: FittedGeep, unseen: Split
) -> None:
    """Every label is that of full depth, no earlier answering layer gives it, and most samples exit early."""
    oracle = borrow(Oracle)
    found = oracle.predict(unseen.tokens, at=foreseen(oracle, unseen.tokens, execution))
    full = run_full(scattered_geep.model, unseen.tokens, execution).logits.argmax(1)
    np.testing.assert_array_equal(found.logits.argmax(1), full)
    answers = scattered_geep.model.answers
    said = exit_logits(scattered_geep.model, unseen.tokens, execution).argmax(-1).numpy()
    for n in range(40):
        agreeing = [layer for k, layer in enumerate(answers) if said[k, n] == full[n]]
        assert found.exit_layer[n] == min(agreeing)
    assert found.work.rows("layer") == (found.exit_layer + 1).sum() < 5 * 40


def test_oracle_is_the_cheapest_that_agrees(borrow: Any, scattered_geep: FittedGeep, unseen: Split) -> None:
    """No other assignment of four samples to answering layers agrees with full depth in fewer layers."""
    tokens = unseen.tokens.select(range(4))
    model = scattered_geep.model
    full = run_full(model, tokens, Execution()).logits.argmax(1)
    oracle = borrow(Oracle)
    cost = oracle.predict(tokens, at=foreseen(oracle, tokens, Execution())).work.rows("layer")
    costs = []
    for exits in product(model.answers, repeat=4):
        found = run_assigned(model, tokens, torch.tensor(exits, dtype=torch.int16), Execution())
        if (found.logits.argmax(1) == full).all():
            costs.append(found.work.rows("layer"))
    assert cost == min(costs)


def test_oracle_says_what_every_exit_answers(borrow: Any, scattered_geep: FittedGeep, unseen: Split) -> None:
    """Its layers are those that answer, and each layer's labels are those of all samples that exit there."""
    oracle = borrow(Oracle)
    assert isinstance(oracle, AnswersAtDepths)
    layers, labels = oracle.depth_answers(unseen.tokens, at=OperatingPoint("agree"))
    assert tuple(layers) == scattered_geep.model.answers
    for layer, said in zip(layers, labels, strict=True):
        exits = torch.full((len(unseen),), layer, dtype=torch.int16)
        found = run_assigned(scattered_geep.model, unseen.tokens, exits, Execution())
        np.testing.assert_array_equal(found.logits.argmax(1), said)


def test_oracle_needs_foresight(borrow: Any, unseen: Split, signal_task: Task) -> None:
    """Without foresight the oracle raises a ConfigError; its kind is bound."""
    oracle = borrow(Oracle)
    (at,) = oracle.operating_points(signal_task.dev)
    with pytest.raises(ConfigError, match="foresight"):
        oracle.predict(unseen.tokens, at=at)
    assert Oracle.kind == "bound"
    assert {control.kind for control in CONTROLS[:-1]} == {"control"}


@pytest.mark.parametrize("control", CONTROLS)
@given(data=st.data())
@settings(max_examples=15)
def test_predictions_depend_on_the_sample_alone(
    control: type[Any],
    data: st.DataObject,
    borrow: Any,
    executions: Any,
    same_however_run: Check,
    signal_task: Task,
) -> None:
    """Answers of every control are the same for every batch size, order, window, padding and executor."""
    fitted = borrow(control)
    at = data.draw(st.sampled_from(list(fitted.operating_points(signal_task.dev))))
    same_however_run(fitted, at, data.draw(executions), data.draw(st.permutations(range(40))))


@pytest.mark.parametrize("control", CONTROLS)
def test_round_trip(
    control: type[Any],
    borrow: Any,
    scattered_geep: FittedGeep,
    signal_task: Task,
    small_backbone: Backbone,
    unseen: Split,
    tmp_path: Path,
) -> None:
    """A control stores nothing; loaded with the same GEEP it predicts the same."""
    fitted = borrow(control)
    fitted.save(tmp_path)
    assert not list(tmp_path.glob("*.*"))
    loaded = control().load(tmp_path, signal_task, small_backbone, {"geep": scattered_geep})
    points = fitted.operating_points(signal_task.dev)
    assert list(loaded.operating_points(signal_task.dev)) == list(points)
    for at in points:
        if control is Oracle:
            at = foreseen(fitted, unseen.tokens, Execution())
        first, second = (model.predict(unseen.tokens, at=at) for model in (fitted, loaded))
        np.testing.assert_array_equal(first.logits, second.logits)
        np.testing.assert_array_equal(first.exit_layer, second.exit_layer)


@pytest.mark.parametrize("control", CONTROLS)
def test_settings_are_rejected(
    control: type[Any], scattered_geep: FittedGeep, signal_task: Task, small_backbone: Backbone
) -> None:
    """An unknown setting is refused in one line; training keys of a profile are accepted."""
    teachers = {"geep": scattered_geep}
    control().fit(signal_task, small_backbone, teachers, config={"epochs": 3, "head": "linear"}, seed=0)
    with pytest.raises(ConfigError, match="unknown key 'quantile'") as caught:
        control().fit(signal_task, small_backbone, teachers, config={"quantile": 0.5}, seed=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("control", CONTROLS)
def test_a_geep_that_assigns_exits_is_required(
    control: type[Any], trained_bert: Any, signal_task: Task, small_backbone: Backbone
) -> None:
    """A teacher that does not assign exits in advance is refused in one line."""
    with pytest.raises(ConfigError, match=f"{control.name} needs"):
        control().fit(signal_task, small_backbone, {"geep": trained_bert}, config={}, seed=0)


@pytest.mark.parametrize("control", [ConstantControl, RandomControl, LengthControl])
def test_exits_are_assigned_without_synchronisation(
    control: type[Any], borrow: Any, scattered_geep: FittedGeep, unseen: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Assigning works on tensors without values, so no control waits for the device."""
    fitted = borrow(control)
    at = fitted.operating_points(unseen)[0]
    monkeypatch.setattr(
        FittedGeep, "assign", lambda self, tokens, at: torch.empty(len(tokens), dtype=torch.int16, device="meta")
    )
    assert fitted.assign(unseen.tokens.to("meta"), at=at).shape == (40,)
