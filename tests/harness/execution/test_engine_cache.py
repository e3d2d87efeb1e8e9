"""Engines are compiled once, keep weights in the run's type while those are valid, and are freed with the model."""

from __future__ import annotations

import copy
import gc
import shutil
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo
from torch import nn
from torch._dynamo.utils import counters

from harness.contracts import Execution
from harness.core.errors import ConfigError
from harness.core.tokens import TokenSet
from harness.encoder.device_kernels import varlen
from harness.encoder.device_kernels.packed_linear import can_pack
from harness.encoder.layout import Layout
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.shape import EncoderShape
from harness.execution import engine, engine_cache
from harness.execution.engine_cache import engine_for
from harness.execution.executors import run_assigned, run_full
from harness.execution.exit_rules import Entropy
from harness.execution.sequential import run_sequential

N, DEPTH = 23, 4
SHAPE = EncoderShape(layers=DEPTH, width=32, heads=4, intermediate=48, vocab_size=50, max_positions=16)
EXITS = torch.arange(N, dtype=torch.int16) % DEPTH


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """Record the types of all model copies."""
    made: list[torch.dtype] = []
    real = engine_cache.model_copy

    def model_copy(model: MultiExitModel, dtype: torch.dtype, **more: Any) -> MultiExitModel:
        made.append(dtype)
        return real(model, dtype, **more)

    monkeypatch.setattr(engine_cache, "model_copy", model_copy)
    return made


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Reset the compiler; it traces and guards but generates no code, which would be slow."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    with torch._dynamo.config.patch(recompile_limit=8):
        engine.compiled_after_attention.cache_clear()
        torch._dynamo.reset()
        counters.clear()
        yield
        engine.compiled_after_attention.cache_clear()
        torch._dynamo.reset()


def compiled() -> int:
    """Return the graphs that the compiler has made."""
    return counters["stats"]["unique_graphs"]


def run_all(model: MultiExitModel, tokens: TokenSet, execution: Execution) -> list[np.ndarray]:
    """Return the logits of three executors."""
    return [
        run_full(model, tokens, execution).logits,
        run_assigned(model, tokens, EXITS, execution, answer="shared").logits,
        run_sequential(model, tokens, execution, Entropy(0.93)).logits,
    ]


def test_one_graph_serves_all_layers_and_all_batches(
    compiler: None, make_model: Callable[..., MultiExitModel], tokens: TokenSet
) -> None:
    """There is one graph per weight type, for every layer, number of rows, layout and model of that shape."""
    for number, dtype in enumerate(("float32", "bfloat16")):
        execution = Execution(batch_size=5, dtype=dtype, compute="compiled", max_length=12)  # type: ignore[arg-type]
        run_full(make_model(shape=SHAPE), tokens, execution)
        assert compiled() == number + 1
        with torch.compiler.set_stance("fail_on_recompile"):
            for batch_size in (2, 23):
                for protocol in ("modern", "paper"):
                    how = replace(execution, batch_size=batch_size, protocol=protocol)  # type: ignore[arg-type]
                    run_all(make_model(shape=SHAPE, seed=batch_size), tokens, how)
        assert compiled() == number + 1


def test_a_process_may_use_many_widths(
    compiler: None, make_model: Callable[..., MultiExitModel], tokens: TokenSet
) -> None:
    """Teachers, students and weight types of a whole run exceed torch's default limit of eight compiled variants."""
    for width in range(4, 44, 4):
        shape = replace(SHAPE, layers=1, width=width, heads=1, intermediate=8)
        run_full(make_model(shape=shape), tokens, Execution(compute="compiled"))
    assert compiled() == 10


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler on the PATH")
def test_compiled_blocks_equal_eager_ones(make_model: Callable[..., MultiExitModel], tokens: TokenSet) -> None:
    """Generated code gives the same logits up to rounding."""
    torch._dynamo.reset()
    engine.compiled_after_attention.cache_clear()
    model, execution = make_model(shape=SHAPE), Execution(batch_size=7)
    before = compiled()
    for found, expected in zip(
        run_all(model, tokens, replace(execution, compute="compiled")), run_all(model, tokens, execution), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    assert compiled() == before + 1


def test_compiled_blocks_run_in_graphs(
    compiler: None, like_cuda: Any, make_model: Callable[..., MultiExitModel], tokens: TokenSet
) -> None:
    """Compiled blocks in graphs give the same logits, with one compiled function."""
    model, execution = make_model(shape=SHAPE), Execution(batch_size=7)
    expected = run_all(model, tokens, execution)
    for found, wanted in zip(
        run_all(model, tokens, replace(execution, compute="compiled-graphs")), expected, strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)
    assert compiled() == 1
    assert like_cuda.recorded


@pytest.mark.parametrize("protocol", ["modern", "paper"])
def test_bfloat16_is_near_and_not_equal(
    make_model: Callable[..., MultiExitModel], tokens: TokenSet, protocol: Any
) -> None:
    """Logits stay float32 and show the rounding error of bfloat16, which proves that it was used."""
    model, execution = make_model(shape=SHAPE), Execution(batch_size=7, protocol=protocol, max_length=12)
    expected = run_full(model, tokens, execution).logits
    found = run_full(model, tokens, replace(execution, dtype="bfloat16")).logits
    assert found.dtype == np.float32
    assert 1e-4 < np.abs(found - expected).mean() / np.abs(expected).mean() < 5e-2


CHANGES: dict[str, Callable[[MultiExitModel], Any]] = {
    "a step": lambda model: model.encoder.layers[2].up.weight.add_(0.01),  # type: ignore[union-attr, operator]
    "loaded": lambda model: model.load_state_dict({name: w * 1.01 for name, w in model.state_dict().items()}),
    "other data": lambda model: setattr(model.teacher.label.bias, "data", model.teacher.label.bias.data + 0.01),
    "another parameter": lambda model: setattr(model.teacher.label, "bias", nn.Parameter(torch.ones(model.labels))),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("compute", ["eager", "graphs"])
def test_weights_are_copied_once_and_after_each_change(
    like_cuda: Any,
    copies: list[torch.dtype],
    make_model: Callable[..., MultiExitModel],
    tokens: TokenSet,
    compute: Any,
    change: str,
) -> None:
    """Passes of all shapes share a copy until the weights change; then they use the new weights, and the old copy is freed."""
    model, execution = make_model(shape=SHAPE), Execution(batch_size=7, dtype="bfloat16", compute="eager")
    if compute == "graphs":
        execution = replace(execution, dtype="float32", compute="graphs")
    for batch_size in (7, 7, 5):
        run_all(model, tokens, replace(execution, batch_size=batch_size))
    assert copies == [engine.DTYPES[execution.dtype]]
    before = run_full(model, tokens, execution).logits
    old = weakref.ref(engine_for(model, execution, 12).model)
    with torch.no_grad():
        CHANGES[change](model)
    after = run_full(model, tokens, execution).logits
    run_full(model, tokens, execution)
    assert len(copies) == 2
    gc.collect()
    assert old() is None
    fresh = run_full(copy.deepcopy(model), tokens, execution).logits
    np.testing.assert_array_equal(after, fresh)
    assert np.abs(after - before).max() > 1e-4


def test_a_moved_model_is_copied_again(make_model: Callable[..., MultiExitModel]) -> None:
    """Moving a model keeps the versions of its weights but changes the device of its engine."""
    model, execution = make_model(shape=SHAPE), Execution(dtype="bfloat16")
    assert engine_for(model, execution).model.encoder.device.type == "cpu"
    model.to("meta")
    assert engine_for(model, execution).model.encoder.device.type == "meta"


@pytest.mark.parametrize("training", [False, True])
def test_copies_need_no_gradients_and_do_not_change_the_model(
    make_model: Callable[..., MultiExitModel], training: bool
) -> None:
    """A copy of a model in training mode does not train; types and gradients of the model's weights do not change."""
    model = make_model(shape=SHAPE).train(training)
    made = engine_for(model, Execution(dtype="bfloat16")).model
    assert made is not model and not made.training
    assert not any(weight.requires_grad for weight in made.parameters())
    assert model.training == training
    assert all(weight.requires_grad and weight.dtype == torch.float32 for weight in model.parameters())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("compute", ["eager", "packed", "compiled", "graphs", "compiled-graphs"])
def test_models_are_freed(
    compiler: None,
    like_cuda: Any,
    monkeypatch: pytest.MonkeyPatch,
    make_model: Callable[..., MultiExitModel],
    tokens: TokenSet,
    compute: Any,
    dtype: Any,
) -> None:
    """The cache of a model does not keep the model alive and is freed with it."""
    if compute == "packed" and not can_pack(getattr(torch, dtype)):
        pytest.skip(f"this CPU runs no packed weights in {dtype}")
    monkeypatch.setattr(varlen, "HALF", (torch.float32, torch.bfloat16))
    model = make_model(shape=SHAPE)
    run_full(model, tokens, Execution(batch_size=7, dtype=dtype, compute=compute))
    kept = [weakref.ref(made) for one in engine_cache._prepared.values() for made in one.engines.values()]
    assert bool(kept) == (dtype == "bfloat16" or "graphs" in compute or compute == "packed")
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert [made() for made in kept] == [None] * len(kept)


def test_engines_are_freed_at_once(like_cuda: Any, make_model: Callable[..., MultiExitModel], tokens: TokenSet) -> None:
    """Graphs and buffers of old weights are freed when new ones exist, but not during a capture."""

    class Forgetful:
        def record(self, run: Callable[[], None]) -> Callable[[], None]:
            return lambda: None

    model, execution = make_model(shape=SHAPE), Execution(batch_size=7, compute="graphs")
    made = engine_for(model, execution, 12)
    made._recorder = Forgetful()  # type: ignore[attr-defined]
    run_all(model, tokens, execution)
    gone = weakref.ref(made)
    del made
    gc.disable()
    try:
        with torch.no_grad():
            model.encoder.norm.bias.add_(1.0)
        engine_for(model, execution, 12)
        assert gone() is None
    finally:
        gc.enable()


def test_only_the_last_buffers_are_kept(
    like_cuda: Any, make_model: Callable[..., MultiExitModel], tokens: TokenSet
) -> None:
    """Every batch size has its own buffers and graphs; those of the last two sizes are kept."""
    model = make_model(shape=SHAPE)
    made = [engine_cache.engine_for(model, Execution(batch_size=size, compute="graphs"), 12) for size in (1, 2, 3)]
    again = [engine_cache.engine_for(model, Execution(batch_size=size, compute="graphs"), 12) for size in (3, 2)]
    assert again == [made[2], made[1]]
    assert engine_cache.engine_for(model, Execution(batch_size=1, compute="graphs"), 12) is not made[0]


def test_layouts_are_freed_at_once(tokens: TokenSet) -> None:
    """Masks and indices on a device are freed without the garbage collector, with and without prefixes."""
    gc.disable()
    try:
        layout = Layout(np.array([5, 3, 2]), None, "cpu")
        _, part = layout.slice(torch.zeros(10, 1), 0, 2)
        assert part.root is layout and layout.prefix(2) is part
        seen = [weakref.ref(layout), weakref.ref(part)]
        del layout
        assert seen[0]() is part.root, "a prefix needs its root layout"
        del part
        assert [one() for one in seen] == [None, None]
    finally:
        gc.enable()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_autocast_around_a_pass_changes_nothing(
    make_model: Callable[..., MultiExitModel], tokens: TokenSet, dtype: Any
) -> None:
    """The execution's type is used, not the caller's autocast type."""
    model, execution = make_model(shape=SHAPE), Execution(batch_size=7, dtype=dtype)
    expected = run_all(model, tokens, execution)
    with torch.autocast("cpu", dtype=torch.float16):
        for found, wanted in zip(run_all(model, tokens, execution), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("compute", ["graphs", "compiled-graphs"])
def test_graphs_need_a_device(make_model: Callable[..., MultiExitModel], tokens: TokenSet, compute: Any) -> None:
    """The one-line error says what to choose instead, and the command line exits with code 2."""
    with pytest.raises(
        ConfigError, match=f"compute '{compute}' needs a CUDA device: choose eager or compiled"
    ) as caught:
        run_full(make_model(shape=SHAPE), tokens, Execution(compute=compute))
    assert caught.value.exit_code == 2


def test_packed_float32_runs_without_graphs_and_warns_once(
    like_cuda: Any, monkeypatch: pytest.MonkeyPatch, make_model: Callable[..., MultiExitModel], tokens: TokenSet
) -> None:
    """Three passes warn once, even with all warnings enabled, and the answers are the same."""
    monkeypatch.setattr(varlen, "HALF", ())
    engine_cache.warn_without_graphs.cache_clear()
    model, execution = make_model(shape=SHAPE), Execution(batch_size=7)
    expected = run_full(model, tokens, execution).logits
    with warnings.catch_warnings(record=True) as text:
        warnings.simplefilter("always")
        for _ in range(3):
            found = run_full(model, tokens, replace(execution, compute="graphs")).logits
            np.testing.assert_array_equal(found, expected)
    assert [str(one.message) for one in text] == [
        "no CUDA graphs for packed batches of float32 with heads (8, 8) wide: running without them"
    ]
    assert not like_cuda.recorded
    run_full(model, tokens, replace(execution, compute="graphs", protocol="paper", max_length=12))
    assert like_cuda.recorded, "padded batches have graphs in every type"


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_flash_attention_needs_ampere(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: bool
) -> None:
    """On an older GPU, packed batches use a grid instead of failing."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    varlen._new_enough.cache_clear()
    try:
        assert varlen.fits(torch.device("cuda", 0), torch.bfloat16, 64) == expected
        assert not varlen.fits(torch.device("cuda", 0), torch.float32, 64)
        assert varlen.fits(torch.device("cuda", 0), torch.bfloat16, 26) == expected
        assert not varlen.fits(torch.device("cuda", 0), torch.bfloat16, 264)
        assert not varlen.fits(torch.device("cuda", 0), torch.bfloat16, 64, dropout=0.1)
    finally:
        varlen._new_enough.cache_clear()
