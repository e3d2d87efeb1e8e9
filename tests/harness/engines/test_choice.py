"""Which engines a method can use, and what an engine changes."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from baselines.early_exit.fastbert_faithful import ReleasedLoop
from geep.method import FittedGeep
from harness.contracts import EngineName, Execution, WholeModelEngine
from harness.core.errors import MethodError
from harness.encoder.device_kernels.int8_linear import Int8Linear
from harness.engines.choice import CHANGES, check_engine, execution_on, on_engine
from harness.toolkit.fitted import FullDepth


def test_an_engine_changes_what_it_names_and_nothing_else() -> None:
    """All other execution settings stay those of the run, and without an engine all of them do."""
    given = Execution(batch_size=7, window=3, dtype="bfloat16", compute="compiled", executor="exact-k")
    assert execution_on(None, given) == given
    found = {name: execution_on(name, given) for name in get_args(EngineName)}
    assert {(one.batch_size, one.window, one.executor) for one in found.values()} == {(7, 3, "exact-k")}
    assert {name: (one.dtype, one.compute) for name, one in found.items()} == {
        "eager": ("bfloat16", "eager"),
        "packed": ("bfloat16", "packed"),
        "compiled": ("bfloat16", "compiled"),
        "bfloat16": ("bfloat16", "compiled"),
        "int8": ("float32", "packed"),
        "int8-call": ("float32", "eager"),
        **dict.fromkeys(get_args(WholeModelEngine), ("float32", "eager")),
    }
    assert set(CHANGES) == set(get_args(EngineName))


@pytest.mark.parametrize("engine", ["packed", "int8", "int8-call", *get_args(WholeModelEngine)])
def test_engines_of_the_cpu_are_refused_elsewhere(engine: EngineName) -> None:
    """The error names the method, the engine, the device and what to do."""
    words = f"^geep-x: engine '{engine}' runs on the CPU only, not on cuda: use --device cpu"
    with pytest.raises(MethodError, match=words):
        check_engine(engine, "geep-x", "cuda", None)
    check_engine("compiled", "geep-x", "cuda", FittedGeep)


@pytest.mark.parametrize(
    ("engine", "kind", "words"),
    [
        (
            "onnx",
            FittedGeep,
            "runs full depth only, and this method decides where samples exit: "
            "use eager, packed, compiled, bfloat16, int8 or int8-call",
        ),
        (
            "compiled",
            ReleasedLoop,
            "cannot be, since this method always runs its blocks eager: use eager, packed, bfloat16, int8 or int8-call",
        ),
        (
            "int8",
            object,
            "needs a model of this project's encoder, and this method has a network of its own: use eager or bfloat16",
        ),
    ],
)
def test_an_engine_that_does_not_fit_the_method_is_refused(engine: EngineName, kind: type, words: str) -> None:
    """The error names the engines that fit."""
    if engine == "onnx":
        pytest.importorskip("onnxscript")
    with pytest.raises(MethodError) as caught:
        check_engine(engine, "x", "cpu", kind)
    assert str(caught.value) == f"x: engine '{engine}' {words}"


def test_only_int8_changes_the_model(trained_bert: FullDepth, trained_geep: FittedGeep) -> None:
    """For the others, the execution does it; a method keeps everything but its model."""
    for engine in ("eager", "packed", "compiled", "bfloat16"):
        assert on_engine(engine, trained_bert) is trained_bert
    found = on_engine("int8", trained_geep)
    assert isinstance(found, FittedGeep)
    assert found.points is trained_geep.points and found.tables is trained_geep.tables
    assert any(isinstance(module, Int8Linear) for module in found.model.modules())
    assert found.model.teacher.label.weight is trained_geep.model.teacher.label.weight  # heads are shared
    assert not any(isinstance(module, Int8Linear) for module in trained_geep.model.modules())
    assert torch.is_floating_point(next(trained_geep.model.parameters()))
