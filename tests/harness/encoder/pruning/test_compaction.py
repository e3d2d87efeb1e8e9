"""Pruned models: compacted layers give the answers of masked ones, in every executor, and cost what is left of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.contracts import Execution, OperatingPoint
from harness.core.errors import BackboneError, ConfigError, MethodError
from harness.core.tokens import Split
from harness.core.work import LayerCost, Tally
from harness.encoder.device_kernels.packed_linear import can_pack
from harness.encoder.model import Encoder
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.pruning.compaction import compacted
from harness.encoder.pruning.masked_pass import MaskedPasses
from harness.encoder.pruning.unit_masks import EncoderMasks, LayerMasks, check_prunable
from harness.encoder.shape import EncoderShape
from harness.engines.choice import on_engine
from harness.execution.executors import exit_logits
from harness.execution.exit_rules import Entropy, normalised_entropy
from harness.execution.regrouping.rebatch import run_by_rule
from harness.execution.token_exits import TokenExits, run_token_exits
from harness.toolkit.fitted import FullDepth

SHAPE = EncoderShape(layers=3, width=12, heads=3, intermediate=10, vocab_size=40, max_positions=16, dropout=0.0)
PLAIN = Execution(batch_size=7, max_length=16)


def model_of(head: str = "fastbert", shape: EncoderShape = SHAPE) -> MultiExitModel:
    """Return a random model with a head after every layer, whose weights, biases and norms all matter."""
    torch.manual_seed(0)
    model = MultiExitModel(Encoder(shape), 3, range(shape.layers - 1), head)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.4, mean=1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return model.eval()


def drawn_masks(draw: Any, shape: EncoderShape, *, soft: bool) -> EncoderMasks:
    """Draw masks of all kinds; ``soft`` ones have values between 0 and 1 and remove dimensions of the states, too."""
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shares = st.sampled_from([0.0, 0.3, 0.7, 1.0])

    def mask(*size: int) -> torch.Tensor:
        kept = (torch.rand(size, generator=rng) < draw(shares)).float()
        return kept * torch.rand(size, generator=rng).clamp(min=0.2) if soft else kept

    units = (shape.heads, shape.head_width)
    layers = [LayerMasks(mask(*units), mask(*units), mask(shape.intermediate)) for _ in range(shape.layers)]
    if not soft:
        return EncoderMasks(tuple(layers))
    gated = tuple(LayerMasks(one.query, one.value, one.inner, mask(), mask()) for one in layers)
    hidden = mask(shape.width)
    hidden[:2] = 0.6  # something is left
    return EncoderMasks(gated, hidden)


def masked_logits(model: MultiExitModel, masks: EncoderMasks, tokens: Any) -> torch.Tensor:
    passes = MaskedPasses(model.encoder, masks)
    whole = exit_logits(model, tokens, PLAIN)
    passes.remove()
    return whole


@pytest.mark.parametrize(("soft", "head"), [(False, "fastbert"), (True, "fastbert"), (True, "linear")])
@given(data=st.data())
@settings(max_examples=5)
def test_compacted_logits_equal_masked_ones(data: st.DataObject, soft: bool, head: str, unseen: Split) -> None:
    """Every head of a compacted model answers as under the masks, whatever they remove; without masks, the model is as before."""
    model = model_of(head)
    masks, before = drawn_masks(data.draw, SHAPE, soft=soft), exit_logits(model, unseen.tokens, PLAIN)
    expected = masked_logits(model, masks, unseen.tokens)
    found = exit_logits(compacted(model, masks), unseen.tokens, PLAIN)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(exit_logits(model, unseen.tokens, PLAIN), before)


def some_masks(shape: EncoderShape = SHAPE) -> EncoderMasks:
    """Remove some units of the first layer, all attention of the second, all inner units of the third."""
    masks = EncoderMasks.full(Encoder(shape))
    first, second, third = masks.layers
    first.query[0, 1:], first.value[1], first.inner[:4] = 0, 0, 0
    second.value.zero_()
    third.inner.zero_()
    third.value[2, 2:] = 0
    return masks


@pytest.fixture(scope="module")
def small() -> MultiExitModel:
    return compacted(model_of(), some_masks())


def test_layers_have_sizes_of_their_own_and_say_what_is_gone(small: MultiExitModel) -> None:
    """A head without values goes with its queries; heads keep their own dimensions; what is gone is named."""
    sizes = small.encoder.shape.sizes
    assert sizes == (((1, 4), (4, 4), 6), ((), (), 10), ((4, 4, 4), (4, 4, 2), 0))
    assert [(size.heads, size.head_width, size.even) for size in sizes] == [(2, 4, False), (0, 0, True), (3, 4, False)]
    assert list(some_masks().gone()) == ["attention of layer 2", "inner units of layer 3"]
    assert [layer.qkv.weight.shape[0] for layer in small.encoder.layers] == [2 * 5 + 8, 0, 2 * 12 + 10]


def test_costs_are_those_of_what_is_left(small: MultiExitModel) -> None:
    """Multiply-accumulates of a layer are width x (2 per dimension of queries and of values + 2 per inner unit), per token."""
    cost, tally = small.cost(), Tally(1, 5, 5, 25)
    linear = [cost.of(f"layer.{index}").flops(tally, "linear") // 2 for index in range(3)]
    assert linear == [5 * 12 * 2 * (5 + 8 + 6), 5 * 12 * 2 * 10, 5 * 12 * 2 * (12 + 10)]
    whole = LayerCost(12, 10).flops(tally, "full")
    assert [whole - cost.of(f"layer.{i}").flops(tally, "full") > 0 for i in range(3)] == [True] * 3
    assert [cost.of(f"keys.{i}").flops(tally, "full") for i in range(3)] == [
        2 * 5 * 12 * (5 + 8),
        0,
        2 * 5 * 12 * (12 + 10),
    ]
    assert cost.params == sum(parameter.numel() for parameter in small.parameters())


def test_stored_and_loaded(small: MultiExitModel, tmp_path: Path, unseen: Split) -> None:
    """A stored model has the sizes of its layers in model.json, and loads with the same answers, bit for bit."""
    small.save(tmp_path)
    loaded = MultiExitModel.load(tmp_path)
    assert '"sizes"' in (tmp_path / "model.json").read_text()
    assert loaded.encoder.shape == small.encoder.shape
    found, expected = (exit_logits(model, unseen.tokens, PLAIN) for model in (loaded, small))
    assert torch.equal(found, expected)


@given(data=st.data())
@settings(max_examples=4)
def test_answers_do_not_depend_on_batches(
    data: st.DataObject,
    small: MultiExitModel,
    executions: Any,
    same_however_run: Callable[..., None],
) -> None:
    """In batches of any size and order, answers equal those of samples run one by one."""
    fitted = _whole(small)
    same_however_run(fitted, OperatingPoint("full"), data.draw(executions), data.draw(st.permutations(range(40))))


_made: dict[int, FullDepth] = {}


def _whole(model: MultiExitModel) -> FullDepth:
    return _made.setdefault(id(model), FullDepth(model))


@pytest.mark.skipif(not can_pack(torch.float32), reason="this build of torch has no packed weights")
def test_packed_int8_and_early_exits_run(small: MultiExitModel, unseen: Split) -> None:
    """Packed layers, exits by rule and tokens that leave give the eager answers; int8 layers nearly so."""
    packed, tokens = Execution(batch_size=7, compute="packed"), unseen.tokens
    fitted, at = FullDepth(small), OperatingPoint("full", execution=packed)
    eager = exit_logits(small, tokens, PLAIN)
    rule = Entropy(float(normalised_entropy(eager[0]).median()) - 1e-4)
    np.testing.assert_allclose(fitted.predict(tokens, at=at).logits, eager[-1], atol=1e-5)
    for execution in (packed, Execution(batch_size=7, compute="packed", rule_executor="rebatch")):
        ruled = run_by_rule(small, tokens, execution, rule)
        assert len(set(ruled.exit_layer.tolist())) > 1
        wanted = eager[torch.from_numpy(ruled.exit_layer.astype(int)), torch.arange(len(tokens))]
        np.testing.assert_allclose(ruled.logits, wanted, atol=1e-5)
    leaving = TokenExits.of(torch.arange(40) % 3, 3)
    ways = [run_token_exits(small, tokens, leaving, one).logits for one in (PLAIN, packed)]
    np.testing.assert_allclose(*ways, atol=1e-5)
    with pytest.raises(MethodError, match="runs layers of one size, and this model is pruned"):
        on_engine("onnx", fitted)
    int8 = on_engine("int8", fitted).predict(tokens, at=at).logits
    assert np.abs(int8 - eager[-1].numpy()).max() < 0.15 * float(eager[-1].abs().max())


def test_what_cannot_be_pruned_is_refused() -> None:
    """A pruned model, and one of another structure, are refused in one line; sizes that do not fit a shape, too."""
    with pytest.raises(ConfigError, match="grain: bert is pruned already"):
        check_prunable(compacted(model_of(), some_masks()).encoder.shape, "bert", "grain")
    with pytest.raises(ConfigError, match="differs in gated"):
        check_prunable(EncoderShape(2, 8, 2, 8, 40, gated=True), "x", "grain")
    for sizes in ([[[2], [2], 3]], [[[2], [2, 2], 3]] * 2, [[[2], [-1], 3]] * 2):
        with pytest.raises(BackboneError, match="do not fit 2 layers"):
            EncoderShape(2, 8, 2, 8, 40, sizes=sizes)  # type: ignore[arg-type]
