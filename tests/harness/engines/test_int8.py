"""Int8 layers: rounding errors, independence of rows; fits of every kind on int8, whose answers are nearly the float ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from baselines.controls.constant_depth import ConstantControl
from baselines.distilled.distilbert import DistilBert
from baselines.early_exit.cascadebert import CascadeBert
from baselines.early_exit.fastbert import FastBert
from baselines.early_exit.hashee import HashEE
from geep.method import FittedGeep
from geep.one_look import GeepLook
from geep.verified_exits import GeepVerified
from harness.contracts import EngineName, Execution, Fitted, Foresees, OperatingPoint, Predictions
from harness.core.errors import MethodError
from harness.core.tokens import Split, Task, TokenSet
from harness.encoder.backbone import Backbone
from harness.encoder.device_kernels import int8_linear
from harness.encoder.device_kernels.int8_linear import CallLinear, Int8Linear, activation_steps
from harness.encoder.device_kernels.packed_linear import can_pack, plus
from harness.engines.choice import engine_notes, execution_on, on_engine
from harness.engines.int8 import check_exact, quantised
from harness.measure.resources import SavedState
from harness.toolkit.fitted import FittedModel, FullDepth

Check = Callable[..., None]
FULL = OperatingPoint("full")

pytestmark = pytest.mark.skipif(not can_pack(torch.float32), reason="this build of torch has no int8 products")


@pytest.fixture(scope="module")
def on_int8(trained_bert: FullDepth) -> FullDepth:
    found = on_engine("int8", trained_bert)
    assert isinstance(found, FullDepth)
    return found


def rows_of(draw: Any, rows: int, width: int) -> torch.Tensor:
    seed = draw(st.integers(0, 2**31))
    sizes = 10.0 ** torch.tensor(draw(st.lists(st.integers(-6, 4), min_size=rows, max_size=rows)))
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * sizes[:, None]


@given(data=st.data())
@settings(max_examples=40)
def test_rounding_stays_within_its_bound(data: st.DataObject) -> None:
    """The error of each product is at most half a step of either side: |x w - x' w'| <= (s_x |w| + s_w |x| + s_x s_w / 2) / 2.

    A step of an activation is 1/127 of its row's largest value, or 1/63 on CPUs where sums would overflow.
    """
    rows, width, outputs = (data.draw(st.integers(least, 20)) for least in (1, 2, 1))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    linear = nn.Linear(width, outputs)
    x = rows_of(data.draw, rows, width)
    with torch.inference_mode():
        off = (Int8Linear.of(linear)(x).double() - linear.double()(x.double())).abs()
    w = linear.weight.detach().abs()
    step_x, step_w = x.double().abs().amax(1, keepdim=True) / activation_steps(), w.amax(1) / 127
    bound = (step_x * w.sum(1) + step_w * x.double().abs().sum(1, keepdim=True) + width * step_x * step_w / 2) / 2
    scale = (x.double().abs() @ w.T) + linear.bias.detach().abs()
    assert (off <= bound + 1e-5 * scale + 1e-12).all()


@given(data=st.data())
@settings(max_examples=40)
def test_a_row_does_not_depend_on_others(data: st.DataObject) -> None:
    """The result of a row is the same, bit for bit, alone and beside rows of any size."""
    linear = Int8Linear.of(nn.Linear(9, 5))
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
        found = Int8Linear.of(linear)(torch.zeros(2, 6))
    assert torch.equal(found, linear.bias.detach().expand(2, 3))


def test_answers_are_nearly_the_float_ones(on_int8: FullDepth, trained_bert: FullDepth, unseen: Split) -> None:
    """Logits change by a small part of their spread, few labels change, and layers and heads are as many."""
    ours, theirs = (fitted.predict(unseen.tokens, at=FULL) for fitted in (on_int8, trained_bert))
    assert 0 < np.abs(ours.logits - theirs.logits).max() < 0.2 * theirs.logits.std()
    assert (ours.logits.argmax(1) == theirs.logits.argmax(1)).mean() > 0.9
    assert (ours.work.rows("layer"), ours.work.rows("head")) == (5 * 40, 40)


def test_layers_are_int8_and_the_fit_does_not_change(on_int8: FullDepth, trained_bert: FullDepth) -> None:
    """Layers are int8 and heads are not; cost and training are the fit's, which keeps its weights."""
    kinds = [type(module) for module in on_int8.model.encoder.modules()]
    assert nn.Linear not in kinds and kinds.count(Int8Linear) == 5 * 4
    assert not any(isinstance(module, Int8Linear) for module in on_int8.model.teacher.modules())
    assert not any(isinstance(module, Int8Linear) for module in trained_bert.model.modules())
    assert (on_int8.cost, on_int8.training) == (trained_bert.cost, trained_bert.training)
    assert quantised(trained_bert.model) is on_int8.model  # one int8 model for all methods that share weights
    assert on_int8.model.encoder.word.weight is trained_bert.model.encoder.word.weight


def test_int8_weights_take_a_quarter_of_the_bytes(on_int8: FullDepth, trained_bert: FullDepth) -> None:
    """As stored, int8 weights of layers take a quarter of the bytes."""
    ours, theirs = SavedState.of(on_int8), SavedState.of(trained_bert)
    linear = [m for m in trained_bert.model.encoder.layers.modules() if isinstance(m, nn.Linear)]
    saved = sum(3 * m.weight.numel() - 4 * m.out_features for m in linear)  # bytes; scales cost some
    assert ours.weights and theirs.size - ours.size == pytest.approx(saved, abs=5000)  # names in the file header


@given(data=st.data())
@settings(max_examples=8)
def test_batches_equal_batch_1(
    data: st.DataObject, on_int8: FullDepth, executions: Any, same_however_run: Check
) -> None:
    """Answers in batches of any size, order and padding equal those of samples run one by one."""
    execution = replace(data.draw(executions), compute="packed")
    same_however_run(on_int8, FULL, execution, data.draw(st.permutations(range(40))), rounded=True)


@contextmanager
def wrong_above(monkeypatch: pytest.MonkeyPatch, most: int) -> Iterator[None]:
    """A CPU whose sums of products saturate above ``most``."""
    exact = int8_linear._products
    with monkeypatch.context() as patch:
        patch.setattr(int8_linear, "_products", lambda *given: exact(*given).clamp(-most, most))
        activation_steps.cache_clear()
        yield
    activation_steps.cache_clear()


def run_on(engine: EngineName | None, fitted: Fitted, at: OperatingPoint, tokens: TokenSet) -> Predictions:
    """Predict as a run does: on the engine, with what it changes of the execution, and with exits that are foreseen."""
    ours = fitted if engine is None else on_engine(engine, fitted)
    at = replace(at, execution=execution_on(engine, at.execution))
    if isinstance(ours, Foresees):
        at = replace(at, foresight=ours.foresee(tokens, at=at))
    return ours.predict(tokens, at=at)


@pytest.fixture(scope="module")
def family(
    signal_task: Task, small_backbone: Backbone, trained_bert: FullDepth, trained_geep: FittedGeep, quick: Any
) -> dict[str, FittedModel]:
    """One trained method for every executor."""
    bert, geep, speeds = {"bert": trained_bert}, {"geep": trained_geep}, {"speeds": [0.75, 0.85]}

    def fit(method: Any, teachers: dict[str, Any], **own: Any) -> FittedModel:
        return cast(FittedModel, method.fit(signal_task, small_backbone, teachers, config=own, seed=0))

    return {
        "geep": trained_geep,
        "geep-verified": fit(GeepVerified(), geep, **speeds),
        "geep-look1": fit(GeepLook(), geep, **speeds),
        "control-constant": fit(ConstantControl(), geep, **speeds),
        "fastbert": fit(FastBert(), bert, **quick, distill_epochs=2, **speeds),
        "distilbert": fit(DistilBert(), bert, **quick),
        "cascadebert": fit(CascadeBert(), bert, **{**quick, "epochs": 1}, folds=2, budgets=[0.5]),
        "hashee": fit(HashEE(), {}, **{**quick, "epochs": 1}, buckets=3),
    }


NAMES = ("geep", "geep-verified", "geep-look1", "control-constant", "fastbert", "distilbert", "cascadebert", "hashee")
WAYS: dict[str, dict[str, Any]] = {"geep": {"executor": "exact-k"}, "fastbert": {"rule_executor": "rebatch"}}


HALF = pytest.mark.skipif(not can_pack(torch.bfloat16), reason="this CPU has no bfloat16 products")


@pytest.mark.parametrize("engine", ["int8", "int8-call", pytest.param("bfloat16", marks=HALF)])
@pytest.mark.parametrize("name", NAMES)
def test_every_executor_runs_on_few_bits(
    name: str, engine: EngineName, family: dict[str, FittedModel], signal_task: Task, unseen: Split
) -> None:
    """At the fit's own points, labels and layers are those of the float weights, with few exceptions."""
    fitted = cast(Fitted, family[name])
    for own in {}, *([WAYS[name]] if name in WAYS else []):
        execution = Execution(compute="packed", **own)
        for point in fitted.operating_points(signal_task.dev):
            at = replace(point, execution=execution)
            found, expected = (run_on(one, fitted, at, unseen.tokens) for one in (engine, None))
            assert np.abs(found.logits - expected.logits).max() > 0
            assert (found.logits.argmax(1) == expected.logits.argmax(1)).mean() >= 0.85
            assert found.work.rows("layer") == pytest.approx(expected.work.rows("layer"), rel=0.1)


@pytest.mark.parametrize("name", ["geep", "geep-verified", "geep-look1", "fastbert", "cascadebert", "hashee"])
def test_batches_of_early_exits_equal_batch_1(
    name: str, family: dict[str, FittedModel], signal_task: Task, unseen: Split
) -> None:
    """With a scale per row, exits and answers do not depend on the batch, but for a rounding now and then; with one per call
    they do."""
    alone = Execution(batch_size=1, order="arrival", max_length=16)
    together = (
        Execution(batch_size=40, max_length=16),
        Execution(7, order="arrival", window=16, executor="exact-k", rule_executor="rebatch", max_length=16),
        Execution(batch_size=16, protocol="paper", max_length=16),
    )

    def equal(engine: EngineName) -> float:
        """Return the share of samples that have the same exit and logits at batch size 1."""
        fitted, same = cast(Fitted, family[name]), []
        for point in fitted.operating_points(signal_task.dev):
            one = run_on(engine, fitted, replace(point, execution=alone), unseen.tokens)
            for execution in together:
                found = run_on(engine, fitted, replace(point, execution=execution), unseen.tokens)
                near = np.isclose(found.logits, one.logits, rtol=1e-4, atol=1e-4).all(1)
                same.append(near & (found.exit_layer == one.exit_layer))
                if engine == "int8":
                    assert (found.logits.argmax(1) == one.logits.argmax(1)).mean() >= 0.97
        return float(np.mean(same))

    assert equal("int8") > 0.95
    assert equal("int8-call") < 0.8


def test_with_one_scale_rows_affect_each_other() -> None:
    """A row beside a much larger one is rounded to 0, so answers depend on the batch."""
    torch.manual_seed(0)
    linear = nn.Linear(8, 3)
    row = torch.randn(1, 8)
    with torch.inference_mode():
        alone, among = CallLinear.of(linear)(row)[0], CallLinear.of(linear)(torch.cat([row, 1e4 * row]))[0]
        exact = linear(row)[0]
    assert (alone - exact).abs().max() < 0.05 < (among - exact).abs().max()


@pytest.mark.parametrize("kind", [Int8Linear, CallLinear])
def test_a_part_of_a_layer_gives_some_of_its_outputs(kind: type[Int8Linear]) -> None:
    """Outputs of a part are those of the whole layer, and the part is made once."""
    layer, x = kind.of(nn.Linear(8, 6)), torch.randn(4, 8)
    with torch.inference_mode():
        assert torch.equal(layer.part(slice(2, None))(x), layer(x)[:, 2:])
    assert layer.part(slice(2, None)) is layer.part(slice(2, None))


@pytest.mark.parametrize("kind", [Int8Linear, CallLinear])
@pytest.mark.parametrize("bias", [True, False])
def test_a_residual_is_added(kind: type[Int8Linear], *, bias: bool) -> None:
    """The sum is that of the two, with and without a bias, and the residual stays as it is."""
    layer, x, residual = kind.of(nn.Linear(8, 6, bias=bias)), torch.randn(4, 8), torch.randn(4, 6)
    before = residual.clone()
    with torch.inference_mode():
        torch.testing.assert_close(plus(layer, x, residual, nn.Identity()), residual + layer(x))
    assert torch.equal(residual, before)


def test_a_cpu_with_wrong_products_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums that saturate at 16 bits are an error before anything is measured."""
    with wrong_above(monkeypatch, 2**12), pytest.raises(MethodError, match="not exact on this CPU"):
        check_exact()


def test_a_cpu_whose_sums_overflow_loses_a_bit(monkeypatch: pytest.MonkeyPatch, trained_bert: FullDepth) -> None:
    """Activations have 7 bits there, sums are exact again, and readers are told; rows stay independent."""
    linear, x = nn.Linear(64, 32), torch.randn(5, 64)
    with wrong_above(monkeypatch, 64 * 127 * 63), torch.inference_mode():
        check_exact()
        assert activation_steps() == 63
        (note,) = engine_notes("int8")
        assert note.startswith("int8: activations have 7 bits") and engine_notes("int8-call") == []
        found = Int8Linear.of(linear)(x)
        assert all(torch.equal(Int8Linear.of(linear)(x[i : i + 1])[0], found[i]) for i in range(5))
        assert 0 < float((found - linear(x)).abs().max()) < 0.05
    assert engine_notes(None) == engine_notes("eager") == []
