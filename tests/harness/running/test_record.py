"""Accuracy as stored."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.contracts import Predictions
from harness.core.tokens import Split, TokenSet
from harness.core.work import BEFORE, Work
from harness.measure.diagnostics import DepthAnswers
from harness.results.rows.answer_bits import from_bits
from harness.results.schema import Training
from harness.running.record import answer_bits, depth_bits, loyalty, quality, sample_rows, training_conditions
from harness.toolkit.training import TrainingReport


def test_quality_by_hand() -> None:
    """Five samples of three classes: accuracy 3/5, F1 2/3, 4/5 and 0."""
    found = quality(np.array([0, 0, 1, 1, 1]), np.array([0, 2, 1, 1, 0]))
    assert found.accuracy == pytest.approx(0.6)
    assert found.macro_f1 == pytest.approx((1 / 2 + 4 / 5 + 0) / 3)
    assert found.n == 5
    assert found.accuracy_low <= 0.6 <= found.accuracy_high


def test_quality_of_one_row() -> None:
    """A test split of one row gives a result."""
    found = quality(np.array([1]), np.array([1]))
    assert (found.accuracy, found.accuracy_low, found.accuracy_high, found.macro_f1, found.n) == (1, 1, 1, 1, 1)


@given(st.data())
def test_masks_say_which_layers_are_right_and_which_agree(data: st.DataObject) -> None:
    """Bit i is that of layer i + 1, bit 62 that of before layer 1; what cannot answer has none, and 62 layers fit."""
    n = data.draw(st.integers(1, 6))
    layers = (*sorted(data.draw(st.sets(st.integers(BEFORE, 60), max_size=5))), 61)
    said = np.array([data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)) for _ in layers])
    labels = np.array(data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)))
    found = depth_bits(DepthAnswers(layers, said), labels)
    for sample in range(n):
        answers = dict(zip(layers, said[:, sample], strict=True))
        for name, wanted in (("right_layers", labels[sample]), ("agreeing_layers", said[-1, sample])):
            bits = [layer for layer in range(63) if int(found[name][sample]) >> layer & 1]
            assert bits == sorted(62 if layer == BEFORE else layer for layer, one in answers.items() if one == wanted)
            assert found[name].dtype == np.int64


@given(st.lists(st.integers(BEFORE, 3), min_size=1, max_size=8), st.booleans())
def test_stored_exits_count_from_1(exits: list[int], predicts: bool) -> None:
    """Exit -1 is stored as layer 0; a prediction of it as -1, because 0 is no prediction."""
    n, layers = len(exits), np.array(exits, dtype=np.int16)
    logits = np.zeros((n, 2), dtype=np.float32)
    measured = SimpleNamespace(predictions=Predictions(logits, layers, Work(), layers if predicts else None))
    test = Split(TokenSet.from_lists([[1]] * n), torch.zeros(n, dtype=torch.int64))
    rows = sample_rows(measured, SimpleNamespace(test=test, difficulty=np.zeros(n)))  # type: ignore[arg-type]
    assert rows["exit_layer"].tolist() == [layer + 1 for layer in exits]
    assert rows["exit_layer"].dtype == rows["predicted_exit"].dtype == np.int16
    wanted = [-1 if layer == BEFORE else layer + 1 for layer in exits] if predicts else [0] * n
    assert rows["predicted_exit"].tolist() == wanted


def test_conditions_of_training_are_stored() -> None:
    """A report says under which conditions it was trained; zeros and empty values of older fits are stored as unknown."""
    report = TrainingReport(
        1.0, 10, 100, 10, epochs=5, exit_scores=(0.5, 0.75), precision="bfloat16", threads=2, torch="2.13.0"
    )
    assert training_conditions(report, 40) == {
        "epochs": 5,
        "exit_scores": [0.5, 0.75],
        "dev_rows": 40,
        "precision": "bfloat16",
        "threads": 2,
        "torch": "2.13.0",
    }
    older = training_conditions(TrainingReport(1.0, 10, 100, 10), 40)
    unknown = dict.fromkeys(("epochs", "dev_rows", "precision", "threads", "torch"))
    assert older == {**unknown, "exit_scores": []}
    assert Training(seconds=1.0, steps=10, layer_passes=100, **older).exit_scores == []


def test_a_plug_in_need_not_report_conditions() -> None:
    """A report of a plug-in with the required parts only gives a record in which the rest is unknown."""
    required = SimpleNamespace(
        seconds=1.0, steps=10, layer_passes=100, sample_passes=10, dev_scores=(), best_epoch=None, flops=0.0
    )
    assert training_conditions(required, 40) == {}
    more = SimpleNamespace(**vars(required), epochs=3, exit_scores=(), precision="float32", threads=1)
    assert training_conditions(more, 40)["threads"] == 1 and training_conditions(more, 40)["torch"] is None


def test_loyalty_by_hand() -> None:
    """Same answers are fully loyal; certain and opposite ones not at all; the divergence of (1, 0) and (1/2, 1/2) is 0.311 bits."""
    sure, other, undecided = np.float32([[99, 0]]), np.float32([[0, 99]]), np.float32([[0, 0]])
    same = loyalty(np.vstack([sure, undecided]), np.vstack([sure, undecided]), "bert")
    assert (same.reference, same.label_loyalty, same.probability_loyalty) == ("bert", 1, pytest.approx(1))
    apart = loyalty(np.vstack([sure, sure]), np.vstack([other, other]), "bert")
    assert (apart.label_loyalty, apart.probability_loyalty) == (0, pytest.approx(0))
    half = loyalty(sure, undecided, "bert")
    assert half.label_loyalty == 1 and half.probability_loyalty == pytest.approx(1 - 0.3112781**0.5)


@given(st.integers(0, 2**31), st.floats(0.1, 30))
def test_loyalty_is_symmetric_and_between_0_and_1(seed: int, scale: float) -> None:
    """For any logits, and 1 only for equal distributions."""
    draw = np.random.default_rng(seed)
    one, other = (draw.normal(0, scale, (7, 4)).astype(np.float32) for _ in range(2))
    found, back = loyalty(one, other, "bert"), loyalty(other, one, "bert")
    assert 0 <= found.probability_loyalty < 1 and 0 <= found.label_loyalty <= 1
    assert found.probability_loyalty == pytest.approx(back.probability_loyalty)
    shifted = loyalty(one, one + 3, "bert")
    assert shifted.probability_loyalty == pytest.approx(1, abs=1e-3)


def test_a_result_knows_which_rows_of_dev_and_test_are_right() -> None:
    """The bits of both splits are those of the predictions, in file order, for row counts that fill no byte."""

    def split(labels: list[int]) -> Split:
        return Split(TokenSet.from_lists([[1]] * len(labels)), torch.tensor(labels))

    def said(labels: list[int]) -> Predictions:
        return Predictions(np.eye(2, dtype=np.float32)[labels], np.zeros(len(labels), np.int16), Work())

    prepared = SimpleNamespace(task=SimpleNamespace(dev=split([0, 1, 1])), test=split([1] * 11))
    found = answer_bits(said([1] * 5 + [0] * 6), prepared, said([0, 0, 1]))  # type: ignore[arg-type]
    assert found.dev_rows == 3
    assert from_bits(found.dev, 3).tolist() == [True, False, True]
    assert from_bits(found.test, 11).tolist() == [True] * 5 + [False] * 6
    with pytest.raises(ValueError, match="do not fit"):
        from_bits(found.test, 17)
