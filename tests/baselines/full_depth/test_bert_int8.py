"""BERT in int8: rounding errors, independence of rows, size on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from baselines.full_depth.bert_int8 import SCALES, BertInt8, CallLinear, Int8Linear, Quantised
from harness.contracts import Execution, OperatingPoint
from harness.core.errors import ConfigError, MethodError, ResultError
from harness.core.tokens import Split, Task
from harness.encoder.backbone import Backbone
from harness.measure.resources import SavedState
from harness.toolkit.fitted import FullDepth

Check = Callable[[FullDepth, OperatingPoint, Execution, list[int]], None]
FULL = OperatingPoint("full")


@pytest.fixture(scope="module")
def quantised(trained_bert: FullDepth, signal_task: Task, small_backbone: Backbone) -> Quantised:
    return BertInt8().fit(signal_task, small_backbone, {"bert": trained_bert}, config={}, seed=0)


def rows_of(draw: Any, rows: int, width: int) -> torch.Tensor:
    seed = draw(st.integers(0, 2**31))
    sizes = 10.0 ** torch.tensor(draw(st.lists(st.integers(-6, 4), min_size=rows, max_size=rows)))
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * sizes[:, None]


@given(data=st.data())
@settings(max_examples=40)
def test_rounding_stays_within_its_bound(data: st.DataObject) -> None:
    """The error of each product is at most half a step of either side: |x w - x' w'| <= (s_x |w| + s_w |x| + s_x s_w / 2) / 2."""
    rows, width, outputs = (data.draw(st.integers(least, 20)) for least in (1, 2, 1))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    linear = nn.Linear(width, outputs)
    x = rows_of(data.draw, rows, width)
    with torch.inference_mode():
        off = (Int8Linear(linear)(x).double() - linear.double()(x.double())).abs()
    w = linear.weight.detach().abs()
    step_x, step_w = x.double().abs().amax(1, keepdim=True) / 127, w.amax(1) / 127
    bound = (step_x * w.sum(1) + step_w * x.double().abs().sum(1, keepdim=True) + width * step_x * step_w / 2) / 2
    scale = (x.double().abs() @ w.T) + linear.bias.detach().abs()
    assert (off <= bound + 1e-5 * scale + 1e-12).all()


@given(data=st.data())
@settings(max_examples=40)
def test_a_row_does_not_depend_on_others(data: st.DataObject) -> None:
    """The result of a row is the same, bit for bit, alone and beside rows of any size."""
    linear = Int8Linear(nn.Linear(9, 5))
    x = rows_of(data.draw, data.draw(st.integers(2, 40)), 9)
    i = data.draw(st.integers(0, len(x) - 1))
    with torch.inference_mode():
        assert torch.equal(linear(x)[i], linear(x[i : i + 1])[0])


def test_zeros_are_kept() -> None:
    """Rows and outputs that are all 0 do not divide by 0."""
    linear = nn.Linear(6, 3)
    with torch.no_grad():
        linear.weight[1].zero_()
    with torch.inference_mode():
        found = Int8Linear(linear)(torch.zeros(2, 6))
    assert torch.equal(found, linear.bias.detach().expand(2, 3))


def test_answers_are_nearly_berts(quantised: Quantised, trained_bert: FullDepth, unseen: Split) -> None:
    """Logits change by a small part of their spread, few labels change, and layers and heads are as many."""
    ours, theirs = (fitted.predict(unseen.tokens, at=FULL) for fitted in (quantised, trained_bert))
    assert 0 < np.abs(ours.logits - theirs.logits).max() < 0.2 * theirs.logits.std()
    assert (ours.logits.argmax(1) == theirs.logits.argmax(1)).mean() > 0.9
    assert (ours.work.rows("layer"), ours.work.rows("head")) == (5 * 40, 40)


def test_all_linear_layers_are_quantised_and_bert_does_not_change(
    quantised: Quantised, trained_bert: FullDepth
) -> None:
    """All linear layers are int8, heads included; parameters are as many as bert's, which keeps its weights."""
    kinds = [type(module) for module in quantised.model.modules()]
    assert nn.Linear not in kinds and kinds.count(Int8Linear) == 5 * 4 + 2
    assert any(isinstance(module, nn.Linear) for module in trained_bert.model.modules())
    assert quantised.cost == trained_bert.cost
    assert quantised.training == trained_bert.training


@given(data=st.data())
@settings(max_examples=15)
def test_batches_equal_batch_1(
    data: st.DataObject, quantised: Quantised, executions: Any, same_however_run: Check
) -> None:
    """Answers in batches of any size, order and padding equal those of samples run one by one."""
    same_however_run(quantised, FULL, data.draw(executions), data.draw(st.permutations(range(40))))


def test_a_compiled_run_gives_the_same_answers(quantised: Quantised, unseen: Split) -> None:
    """A compiled run compiles these blocks, too; some roundings may differ."""
    eager, compiled = (
        quantised.predict(unseen.tokens, at=replace(FULL, execution=Execution(compute=way)))
        for way in ("eager", "compiled")
    )
    np.testing.assert_allclose(compiled.logits, eager.logits, atol=0.05 * float(eager.logits.std()))


def test_round_trip_and_size(
    quantised: Quantised,
    trained_bert: FullDepth,
    signal_task: Task,
    small_backbone: Backbone,
    unseen: Split,
    tmp_path: Path,
) -> None:
    """A loaded model has the same logits; its int8 weights take a quarter of bert's bytes, without shared memory."""
    quantised.save(tmp_path)
    loaded = BertInt8().load(tmp_path, signal_task, small_backbone, {"bert": trained_bert})
    np.testing.assert_array_equal(
        loaded.predict(unseen.tokens, at=FULL).logits, quantised.predict(unseen.tokens, at=FULL).logits
    )
    assert loaded.training == quantised.training
    ours, theirs = SavedState.of(quantised), SavedState.of(trained_bert)
    assert ours.weights
    linear = [m for m in trained_bert.model.modules() if isinstance(m, nn.Linear)]
    saved = sum(3 * m.weight.numel() - 4 * m.out_features for m in linear)  # bytes; scales cost some
    assert theirs.size - ours.size == pytest.approx(saved, abs=5000)  # names in the file header
    assert BertInt8().point_names({}) == ["full"]


@pytest.fixture(scope="module")
def by_call(trained_bert: FullDepth, signal_task: Task, small_backbone: Backbone) -> Quantised:
    return BertInt8().fit(signal_task, small_backbone, {"bert": trained_bert}, config={"scales": "call"}, seed=0)


def test_one_scale_for_all_rows_is_close_to_bert(by_call: Quantised, trained_bert: FullDepth, unseen: Split) -> None:
    """``scales = "call"`` uses torch's kernel on the same weights and always runs eagerly."""
    at = replace(FULL, execution=Execution(compute="compiled"))
    ours, theirs = by_call.predict(unseen.tokens, at=at), trained_bert.predict(unseen.tokens, at=FULL)
    assert 0 < np.abs(ours.logits - theirs.logits).mean() < 0.05 * theirs.logits.std()
    assert by_call.compute == "eager"
    assert (ours.work.rows("layer"), ours.work.rows("head")) == (5 * 40, 40)


def test_with_one_scale_rows_affect_each_other() -> None:
    """A row beside a much larger one is rounded to 0, so answers depend on the batch."""
    torch.manual_seed(0)
    linear = nn.Linear(8, 3)
    row = torch.randn(1, 8)
    with torch.inference_mode():
        alone, among = CallLinear(linear)(row)[0], CallLinear(linear)(torch.cat([row, 1e4 * row]))[0]
        exact = linear(row)[0]
    assert (alone - exact).abs().max() < 0.05 < (among - exact).abs().max()


def test_the_kind_of_scales_is_stored(
    by_call: Quantised,
    trained_bert: FullDepth,
    signal_task: Task,
    small_backbone: Backbone,
    unseen: Split,
    tmp_path: Path,
) -> None:
    """The kind of scales is stored with the weights; a damaged file is a ResultError."""
    by_call.predict(unseen.tokens, at=FULL)  # packed weights are not part of the stored ones
    by_call.save(tmp_path)
    loaded = BertInt8().load(tmp_path, signal_task, small_backbone, {"bert": trained_bert})
    assert type(loaded) is type(by_call)
    np.testing.assert_array_equal(
        loaded.predict(unseen.tokens, at=FULL).logits, by_call.predict(unseen.tokens, at=FULL).logits
    )
    for text in ('"row"', "{"):
        (tmp_path / SCALES).write_text(text)
        with pytest.raises(ResultError, match="run again"):
            BertInt8().load(tmp_path, signal_task, small_backbone, {"bert": trained_bert})


def test_a_cpu_with_wrong_products_is_rejected(
    trained_bert: FullDepth, signal_task: Task, small_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums that saturate at 16 bits are an error before anything is measured."""
    exact = torch._int_mm
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: exact(a, b).clamp(-(2**15), 2**15 - 1))
    with pytest.raises(MethodError, match="not exact on this CPU"):
        BertInt8().fit(signal_task, small_backbone, {"bert": trained_bert}, config={}, seed=0)


def test_an_unsupported_run_fails_its_own_cells(
    quantised: Quantised,
    trained_bert: FullDepth,
    signal_task: Task,
    small_backbone: Backbone,
    unseen: Split,
    tmp_path: Path,
) -> None:
    """Another device or dtype is a MethodError of one line, so that only this method fails."""
    elsewhere = replace(small_backbone, device="cuda")
    for act in (
        lambda: BertInt8().fit(signal_task, elsewhere, {"bert": trained_bert}, config={}, seed=0),
        lambda: BertInt8().load(tmp_path, signal_task, elsewhere, {"bert": trained_bert}),
    ):
        with pytest.raises(MethodError, match="bert-int8 runs on the CPU only, not on cuda: use --device cpu"):
            act()
    with pytest.raises(MethodError, match="--dtype float32"):
        quantised.predict(unseen.tokens, at=replace(FULL, execution=Execution(dtype="bfloat16")))
    with pytest.raises(ConfigError, match='scales = "row" is not allowed: give one of "token", "call"'):
        BertInt8().fit(signal_task, small_backbone, {"bert": trained_bert}, config={"scales": "row"}, seed=0)
    with pytest.raises(ConfigError, match="unknown key 'bits'"):
        BertInt8().fit(signal_task, small_backbone, {"bert": trained_bert}, config={"bits": 4}, seed=0)
