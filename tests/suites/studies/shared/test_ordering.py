"""Sorting samples around a method: its input and output, the timed phases, and orders without effect."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.controls.oracle import AgreementOracle
from baselines.controls.sequential_control import SequentialGeep
from geep.method import FittedGeep
from geep.verified_exits import FittedVerified
from harness.contracts import Execution, Fitted, OperatingPoint, Predictions
from harness.core import clock
from harness.core.errors import ConfigError
from harness.core.tokens import Split, Task, TokenSet
from harness.core.work import Work
from harness.running.profile import load
from harness.toolkit.fitted import FullDepth
from suites.studies.orders import facts_of, timed_in_order
from suites.studies.shared.ordering import ORDERS, PREDICTING, SORTING, InOrder, around, execution_for, pointless
from suites.studies.shared.study_methods import StudyMethod, StudySamples, point_at

SPEED = 0.6


class Session:
    """The part of a session that :class:`StudySamples` uses, with methods that are fitted already."""

    def __init__(self, task: Task, test: Split, fitted: dict[str, Fitted]) -> None:
        self.prepared = SimpleNamespace(test=test, task=task)
        self.settings = SimpleNamespace(execution=Execution(max_length=16), profile=load("quick"))
        self._fitted = fitted

    def fitted(self, name: str) -> Fitted:
        return self._fitted[name]

    fit = fitted  # no method here runs on an engine of its own

    def points(self, name: str) -> list[OperatingPoint]:
        return list(self._fitted[name].operating_points(self.prepared.task.dev))


@pytest.fixture(scope="module")
def samples(signal_task: Task, unseen: Split, trained_bert: FullDepth, scattered_geep: FittedGeep) -> StudySamples:
    """Return full depth, predicted, verified and sequential exits and the oracle on 40 samples."""
    points = [OperatingPoint(f"speed={s:g}/once", {**_LOOK, "speed": s}) for s in scattered_geep.tables]
    fitted: dict[str, Any] = {
        "bert": trained_bert,
        "geep": scattered_geep,
        "geep-verified": FittedVerified(scattered_geep.model, None, points, scattered_geep.tables),
        "control-sequential": SequentialGeep(scattered_geep.model, None, geep=scattered_geep),
        "oracle": AgreementOracle(scattered_geep.model, None, geep=scattered_geep),
    }
    return StudySamples(Session(signal_task, unseen, fitted), list(fitted), SPEED, None, 8)  # type: ignore[arg-type]


_LOOK = {"mode": "once", "looks": 1, "quantile": 500, "end": 4, "threshold": 0.6}


def entry(samples: StudySamples, start: str) -> StudyMethod:
    return next(one for one in samples.entries if one.label.startswith(start))


def test_every_method_has_an_entry_per_executor(samples: StudySamples) -> None:
    """Exits known in advance run on the ladder and in batches of equal exits; controls and bounds take the run's executor."""
    assert [one.label for one in samples.entries] == [
        "bert",
        "geep speed=0.6 ladder",
        "geep speed=0.6 exact-k",
        "geep-verified speed=0.6/once",
        "control-sequential speed=0.6 shrink",
        "oracle agree ladder",
    ]
    assert [one.kind for one in samples.entries] == ["method"] * 4 + ["control", "bound"]


def test_an_unknown_speed_is_an_error() -> None:
    """The message names the speeds that the method has."""
    points = [OperatingPoint("a", {"speed": 0.1}), OperatingPoint("b", {"speed": 0.5})]
    assert point_at("m", points, 0.5).name == "b"
    assert point_at("m", [OperatingPoint("full")], 0.5).name == "full"
    with pytest.raises(ConfigError, match=r"'m' has no point at speed 0.3: it has 0.1, 0.5"):
        point_at("m", points, 0.3)


@settings(max_examples=30)
@given(
    which=st.integers(0, 5),
    order=st.sampled_from(ORDERS),
    protocol=st.sampled_from(["modern", "paper"]),
    size=st.integers(1, 50),
    seed=st.integers(0, 10**6),
)
def test_no_order_changes_an_answer(
    samples: StudySamples, which: int, order: str, protocol: Any, size: int, seed: int
) -> None:
    """Labels and exits belong to the right samples under any order, arrival, batch size and method."""
    one = samples.entries[which]
    numbers = np.random.default_rng(seed).permutation(len(samples))
    execution = Execution(batch_size=size, protocol=protocol, max_length=16)
    done = timed_in_order(order, one, samples, execution)(samples.tokens.select(numbers), numbers)
    probe = samples.probes[one.label]
    np.testing.assert_array_equal(done.predictions.logits.argmax(1), probe.labels[numbers])
    np.testing.assert_array_equal(done.predictions.exit_layer, probe.exits[numbers])
    if probe.predicted is not None:
        np.testing.assert_array_equal(done.predictions.predicted_exit, probe.predicted[numbers])
    assert facts_of(done, numbers, probe.labels)["differ"] == []


class Recorder:
    """A method that records the order of its samples and answers with the first id."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.now = 0.0

    def predict(self, tokens: TokenSet, *, at: OperatingPoint) -> Predictions:
        self.seen = tokens.ids[tokens.offsets[:-1]].tolist()
        self.now += 5
        if at.foresight is not None:
            assert at.foresight.tolist() == [word % 5 for word in self.seen]
        logits = np.eye(100, dtype=np.float32)[self.seen]
        return Predictions(logits, np.array(self.seen, dtype=np.int16), Work(), phases={"layers": 5.0})


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=30), data=st.data())
def test_the_method_sees_the_order_and_the_caller_does_not(lengths: list[int], data: st.DataObject) -> None:
    """Samples run longest or deepest first with stable ties; answers, exits and foresight stay with their samples."""
    tokens = TokenSet.from_lists([[i] * length for i, length in enumerate(lengths)])
    count = len(lengths)
    exits = data.draw(st.lists(st.integers(0, 4), min_size=count, max_size=count))
    held = torch.tensor(exits, dtype=torch.int16)
    for key, sorter in (
        (lengths, InOrder(Recorder(), 5, 9)),  # type: ignore[arg-type]
        (exits, InOrder(Recorder(), 5, 9, exits=held)),  # type: ignore[arg-type]
        (exits, InOrder(Recorder(), 5, 9, predict_exits=lambda some: held)),  # type: ignore[arg-type]
    ):
        foresight = torch.arange(count, dtype=torch.int16) % 5
        found = sorter.predict(tokens, at=OperatingPoint("p", foresight=foresight))
        assert sorter.fitted.seen == sorted(range(count), key=lambda i: -key[i])  # type: ignore[attr-defined]
        assert found.logits.argmax(1).tolist() == found.exit_layer.tolist() == list(range(count))


def test_prediction_time_is_shown_separately(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time to predict the order is a phase beside those of the method."""
    recorder = Recorder()
    monkeypatch.setattr(clock, "now", lambda: recorder.now)

    def predict(tokens: TokenSet) -> torch.Tensor:
        recorder.now += 3
        return torch.zeros(len(tokens), dtype=torch.int16)

    sorter = InOrder(recorder, 5, 9, predict_exits=predict)  # type: ignore[arg-type]
    found = sorter.predict(TokenSet.from_lists([[1], [2]]), at=OperatingPoint("p"))
    assert found.phases == {"layers": 5.0, PREDICTING: 3.0, SORTING: 0.0}


def test_the_predicted_order_comes_from_the_predictor(samples: StudySamples) -> None:
    """A method that predicts nothing is ordered by the predictor's exits at the chosen speed."""
    sorter = around("predicted", entry(samples, "bert"), samples, None)
    assert sorter is not None and sorter.predict_exits is not None
    fitted, point = samples.predictor
    assert point.params["speed"] == SPEED
    np.testing.assert_array_equal(sorter.predict_exits(samples.tokens), fitted.assign(samples.tokens, at=point))
    assert around("arrival", entry(samples, "geep"), samples, None) is None
    assert around("own", entry(samples, "geep"), samples, None) is None


def test_the_oracle_uses_the_methods_exits(samples: StudySamples) -> None:
    """The oracle uses own exits of sequential methods and bounds, and sequential exits for others."""
    sequential = samples.probes[entry(samples, "control-sequential").label].exits
    for start, exits in (
        ("bert", sequential),
        ("geep speed", sequential),
        ("geep-verified", samples.probes["geep-verified speed=0.6/once"].exits),
        ("control-sequential", sequential),
        ("oracle", samples.probes["oracle agree ladder"].exits),
    ):
        np.testing.assert_array_equal(samples.foreseen(entry(samples, start))[0], exits)
    assert "sequential" in samples.foreseen(entry(samples, "bert"))[1]
    assert samples.foreseen(entry(samples, "geep-verified"))[1] == "its own exits"


def test_a_given_order_decides_the_batches(samples: StudySamples) -> None:
    """A method that sorts by exit receives one batch at a time, and all samples only under its own order."""
    base = Execution(batch_size=7)
    assert execution_for("length", base, sorts=True) == replace(base, order="arrival", window=7)
    assert execution_for("length", base, sorts=False) == replace(base, order="arrival", window=0)
    assert execution_for("own", base, sorts=True) == replace(base, order="length", window=0)


def test_orders_without_effect_are_skipped(samples: StudySamples) -> None:
    """Batches of one, a single batch, equal work and a missing own order are skipped with a reason."""
    bert, geep = entry(samples, "bert"), entry(samples, "geep speed")
    some = Execution(batch_size=8)
    assert pointless("length", bert, samples, some) is None
    assert "by length" in str(pointless("own", bert, samples, some))
    assert pointless("own", geep, samples, some) is None
    assert "of one" in str(pointless("oracle", geep, samples, replace(some, batch_size=1)))
    assert "one batch" in str(pointless("predicted", geep, samples, replace(some, batch_size=40)))
    assert pointless("predicted", geep, samples, replace(some, batch_size=40, batch_tokens=99)) is None
    padded = replace(some, protocol="paper")
    assert "same padded length" in str(pointless("length", bert, samples, padded))
    assert pointless("length", geep, samples, padded) is None
    for size in (1, 8, 40):
        assert pointless("arrival", bert, samples, replace(some, batch_size=size)) is None


def test_a_draw_of_samples_is_reproducible(samples: StudySamples) -> None:
    """A draw of samples is reproducible and keeps their labels."""
    session: Any = samples.session
    few, again = (StudySamples(session, ["bert"], SPEED, 10, 4) for _ in range(2))
    assert len(few) == len(few.labels) == 10
    assert few.tokens.ids.tolist() == again.tokens.ids.tolist()
    test = session.prepared.test
    rows = [row.tolist() for row in torch.split(few.tokens.ids, few.tokens.lengths.tolist())]
    all_rows = [row.tolist() for row in torch.split(test.tokens.ids, test.tokens.lengths.tolist())]
    assert few.labels.tolist() == [int(test.labels[all_rows.index(row)]) for row in rows]
