"""The device path is checked without a device: synchronisations, devices of tensors, fixed memory.

Tensors on the device ``meta`` have no values, so code that reads one (``item``, boolean masks, ``nonzero``) raises.
:class:`OneDevice` rejects operations that mix devices or move data outside the executors' copies. The few intended
copies to the host return what the same pass copied on the CPU.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness.contracts import Execution, Predictions
from harness.core.tokens import TokenSet
from harness.encoder import transfer
from harness.encoder.device_kernels import varlen
from harness.encoder.model import Encoder, ExitGate, ExitPolicy, HaltingGate
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.shape import EncoderShape
from harness.execution import engine_cache, graphs, run_pass
from harness.execution.cascade import run_cascade
from harness.execution.executors import run_assigned, run_full
from harness.execution.exit_rules import (
    Confidence,
    Entropy,
    Learned,
    Patience,
    PatienceConfidence,
    PatienceSimilarity,
    Policy,
    QExit,
    Static,
)
from harness.execution.regrouping import look_once
from harness.execution.regrouping.look_once import run_look_once
from harness.execution.regrouping.rebatch import run_rebatched
from harness.execution.sequential import run_faithful, run_sequential
from harness.execution.token_exits import TokenExits, run_token_exits
from harness.execution.verified import run_verified

N, DEPTH = 23, 4
RULE = Entropy(0.97)
HASHED = {device: TokenExits.of(torch.arange(50) % DEPTH, DEPTH).to(device) for device in ("cpu", "meta")}
SHAPE = EncoderShape(layers=DEPTH, width=32, heads=4, intermediate=48, vocab_size=50, max_positions=16)
GATE, POLICY, HALTING = ExitGate(SHAPE.width), ExitPolicy(SHAPE.width, DEPTH - 1), HaltingGate(SHAPE.width).eval()
GATES = {"cpu": (GATE, POLICY, HALTING), "meta": copy.deepcopy(nn.ModuleList([GATE, POLICY, HALTING])).to("meta")}


def by_answer(logits: Tensor, lengths: Tensor) -> Tensor:
    """Choose an exit by the label at the look and the length."""
    return ((logits.argmax(-1) + lengths) % DEPTH).to(torch.int16)


class OneDevice(TorchDispatchMode):
    """Reject operations on more than one device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        devices = {tensor.device.type for tensor in tensors if tensor.dim()}
        if func is torch.ops.aten._to_copy.default and kwargs.get("device") is not None:
            devices.add(kwargs["device"].type)
        assert len(devices) <= 1, f"{func} from and to {sorted(devices)}"
        return func(*args, **kwargs)


class Arrived:
    """A copy to the host whose values are already known."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def wait(self) -> np.ndarray:
        return self.values


class Twice:
    """A recorder that runs the function while recording, as a real one may, and again on every replay."""

    def __init__(self, *_: Any) -> None: ...

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        run()
        return run


RUNS: dict[str, Callable[[MultiExitModel, TokenSet, Tensor, Execution], Predictions]] = {
    "full": lambda model, tokens, exits, execution: run_full(model, tokens, execution),
    "ladder": lambda model, tokens, exits, execution: run_assigned(model, tokens, exits, execution),
    "exact-k": lambda model, tokens, exits, execution: run_assigned(
        model, tokens, exits, replace(execution, executor="exact-k")
    ),
    "shared": lambda model, tokens, exits, execution: run_assigned(model, tokens, exits, execution, answer="shared"),
    "shrink": lambda model, tokens, exits, execution: run_sequential(model, tokens, execution, RULE),
    "patience": lambda model, tokens, exits, execution: run_sequential(model, tokens, execution, Patience(1)),
    "sure twice": lambda model, tokens, exits, execution: run_sequential(
        model, tokens, execution, PatienceConfidence(0.97, 2)
    ),
    "calibrated": lambda model, tokens, exits, execution: run_sequential(
        model, tokens, execution, Confidence(0.5, (0.5, 2.0, 1.0, 1.0))
    ),
    "learned": lambda model, tokens, exits, execution: run_sequential(
        model, tokens, execution, Learned(0.5, GATES[tokens.device.type][0])
    ),
    "policy": lambda model, tokens, exits, execution: run_sequential(
        model, tokens, execution, Policy(0.5, GATES[tokens.device.type][1])
    ),
    "q-exit": lambda model, tokens, exits, execution: run_sequential(
        model, tokens, execution, QExit(0.75, GATES[tokens.device.type][2])
    ),
    "similar": lambda model, tokens, exits, execution: run_sequential(
        model, tokens, execution, PatienceSimilarity(0.1, 1)
    ),
    "static": lambda model, tokens, exits, execution: run_sequential(model, tokens, execution, Static(1)),
    "rebatch": lambda model, tokens, exits, execution: run_rebatched(model, tokens, execution, RULE),
    "rebatch patience": lambda model, tokens, exits, execution: run_rebatched(model, tokens, execution, Patience(1)),
    "verified": lambda model, tokens, exits, execution: run_verified(
        model, tokens, torch.stack([exits, exits.clamp(min=2)], 1), execution, RULE
    ),
    "look once": lambda model, tokens, exits, execution: run_look_once(model, tokens, 0, by_answer, execution),
    "tokens": lambda model, tokens, exits, execution: run_token_exits(
        model, tokens, HASHED[tokens.device.type], execution
    ),
    "cascade": lambda model, tokens, exits, execution: run_cascade(model, model, tokens, execution, RULE),
}


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Record everything that is copied to the host, in order."""
    seen: list[np.ndarray] = []

    def download(source: Tensor) -> Arrived:
        seen.append(source.numpy().copy())
        return Arrived(seen[-1])

    monkeypatch.setattr(transfer, "download", download)
    monkeypatch.setitem(run_pass.IN_FLIGHT, "cpu", run_pass.IN_FLIGHT["cuda"])
    return seen


def without_values(
    model: MultiExitModel, dtype: torch.dtype = torch.float32, *, heads: torch.dtype | None = None
) -> MultiExitModel:
    """Return a model of the same shape on the device without values."""
    twin = MultiExitModel(Encoder(SHAPE), model.labels, model.exits, model.head_kind)
    for module in twin.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                empty = torch.empty(weight.shape, dtype=dtype, device="meta")
                module._parameters[name] = nn.Parameter(empty, requires_grad=False)
    return twin.eval()


@contextmanager
def no_values(monkeypatch: pytest.MonkeyPatch, copies: list[np.ndarray]) -> Iterator[None]:
    """Let ``meta`` act as CUDA and answer copies to the host from ``copies``, in order."""
    answers = iter(list(copies))

    def download(source: Tensor) -> Arrived:
        assert source.device.type == "meta", "a tensor on the host needs no copy"
        expected = next(answers)
        assert tuple(source.shape) == expected.shape
        return Arrived(expected)

    def upload(values: np.ndarray, device: torch.device) -> Tensor:
        return torch.empty(values.shape, dtype=torch.from_numpy(values).dtype, device=device)

    with monkeypatch.context() as patch:
        patch.setattr(transfer, "download", download)
        patch.setattr(transfer, "upload", upload)
        patch.setattr(varlen, "DEVICES", ("meta",))
        patch.setattr(engine_cache, "GRAPH_DEVICES", ("meta",))
        patch.setitem(run_pass.IN_FLIGHT, "meta", run_pass.IN_FLIGHT["cuda"])
        patch.setattr(engine_cache, "model_copy", without_values)
        patch.setattr(graphs, "CudaRecorder", Twice)
        patch.setattr(graphs, "begins_at", lambda part, whole: False)
        with OneDevice():
            yield
    assert next(answers, None) is None, "the CPU pass made more copies than this one"


# How each run is made without `slow`: a rule's own code is the same in all of them, an executor's is not.
WAYS = list(product(("modern", "paper"), (("float32", "eager"), ("float32", "graphs"), ("bfloat16", "graphs"))))
FOR_RULES = {("modern", ("bfloat16", "graphs")), ("paper", ("float32", "eager"))}
FOR_EXECUTORS = {*FOR_RULES, ("modern", ("float32", "eager")), ("paper", ("bfloat16", "graphs"))}
EXECUTORS = {"full", "ladder", "shared", "shrink", "rebatch", "verified", "look once", "tokens", "cascade"}


def on_devices() -> Iterator[Any]:
    """Yield every run in every way, those that show nothing of their own marked ``slow``."""
    for name, way in product(RUNS, WAYS):
        fast = set(WAYS) if name == "full" else FOR_EXECUTORS if name in EXECUTORS else FOR_RULES
        protocol, (dtype, compute) = way
        marks = () if way in fast else pytest.mark.slow
        yield pytest.param(name, protocol, dtype, compute, marks=marks, id=f"{name}-{protocol}-{dtype}-{compute}")


@pytest.mark.parametrize(("name", "protocol", "dtype", "compute"), on_devices())
def test_no_value_is_read_during_a_pass(
    monkeypatch: pytest.MonkeyPatch,
    make_model: Callable[..., MultiExitModel],
    tokens: TokenSet,
    copies: list[np.ndarray],
    name: str,
    protocol: Any,
    dtype: Any,
    compute: Any,
) -> None:
    """Every executor runs on one device without reading a value there."""
    model = make_model(shape=SHAPE)
    exits = torch.arange(N, dtype=torch.int16) % DEPTH
    execution = Execution(batch_size=8, protocol=protocol, max_length=12)  # two full batches and one of seven
    expected = RUNS[name](model, tokens, exits, execution)
    there = replace(execution, dtype=dtype, compute=compute)
    twin, far, its_exits = without_values(model), tokens.to("meta"), exits.to("meta")
    refused = compute == "graphs" and dtype == "float32" and protocol == "modern"
    engine_cache.warn_without_graphs.cache_clear()
    warned = (
        pytest.warns(UserWarning, match="no CUDA graphs for packed batches of float32") if refused else nullcontext()
    )
    with warned, no_values(monkeypatch, copies):
        found = RUNS[name](twin, far, its_exits, there)
    assert found.exit_layer.tolist() == expected.exit_layer.tolist()
    np.testing.assert_array_equal(
        found.logits, expected.logits
    )  # the last copy, restored to the input order in the same way
    assert found.work.rows("layer") == expected.work.rows("layer")


def test_the_released_loop_reads_values(
    monkeypatch: pytest.MonkeyPatch,
    make_model: Callable[..., MultiExitModel],
    tokens: TokenSet,
    copies: list[np.ndarray],
) -> None:
    """FastBERT's own loop reads every sample; the check that other executors pass detects it."""
    model = make_model(shape=SHAPE)
    run_faithful(model, tokens, Execution(batch_size=5), RULE)
    twin, far = without_values(model), tokens.to("meta")
    with pytest.raises(RuntimeError, match="meta tensors"), no_values(monkeypatch, copies):
        run_faithful(twin, far, Execution(batch_size=5), RULE)


@pytest.mark.parametrize("name", ["full", "ladder", "exact-k", "shared", "tokens"])
def test_known_exits_take_two_copies(
    make_model: Callable[..., MultiExitModel], tokens: TokenSet, copies: list[np.ndarray], name: str
) -> None:
    """The host receives the execution order and the answers, nothing else."""
    RUNS[name](make_model(shape=SHAPE), tokens, torch.arange(N, dtype=torch.int16) % DEPTH, Execution(batch_size=3))
    assert len(copies) == 2
    assert copies[-1].shape == (N, 3)


@pytest.mark.parametrize("window", [0, 6])
def test_a_cascade_takes_one_copy_per_window(
    make_model: Callable[..., MultiExitModel], tokens: TokenSet, copies: list[np.ndarray], window: int
) -> None:
    """Besides these two copies, the host receives one bool per sample and window, for any number of batches."""
    RUNS["cascade"](make_model(shape=SHAPE), tokens, torch.zeros(N), Execution(batch_size=2, window=window))
    assert [copy.shape for copy in copies if copy.dtype == bool] == ([(6,)] * 3 + [(5,)] if window else [(N,)])
    assert len(copies) == 2 + (4 if window else 1)


@pytest.mark.parametrize(("window", "rows", "waits"), [(0, 1 << 18, 1), (6, 1 << 18, 4), (0, 60, 3)])
def test_one_look_takes_one_copy(
    make_model: Callable[..., MultiExitModel],
    tokens: TokenSet,
    copies: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    window: int,
    rows: int,
    waits: int,
) -> None:
    """Besides these two copies, the host receives the new order and the exits once; per window, and per so many rows."""
    monkeypatch.setattr(look_once, "ROWS", rows)
    model, execution = make_model(shape=SHAPE), Execution(batch_size=2, window=window)
    found = RUNS["look once"](model, tokens, torch.zeros(N), execution)
    assert len(set(found.exit_layer.tolist())) == DEPTH
    assert len(copies) == 2 + waits
    assert sum(one.shape[1] for one in copies[1:-1]) == N
    assert all(one.shape[0] == 2 for one in copies[1:-1])


@pytest.mark.parametrize(
    "name", ["shrink", "patience", "sure twice", "calibrated", "learned", "rebatch", "rebatch patience"]
)
def test_a_rule_copies_one_bool_per_active_sample(
    make_model: Callable[..., MultiExitModel], tokens: TokenSet, copies: list[np.ndarray], name: str
) -> None:
    """A rule's memory and gate stay on the device; each exit and batch copies only bools."""
    found = RUNS[name](make_model(shape=SHAPE), tokens, torch.zeros(N, dtype=torch.int16), Execution(batch_size=5))
    verdicts = [one for one in copies if one.dtype.kind == "b"]
    assert len(copies) == len(verdicts) + 2  # execution order and answers
    assert sum(map(len, verdicts)) == sum(min(int(exit_layer), DEPTH - 2) + 1 for exit_layer in found.exit_layer)


def test_verified_exits_take_one_copy_per_look(
    make_model: Callable[..., MultiExitModel], tokens: TokenSet, copies: list[np.ndarray]
) -> None:
    """One chunk with two looks takes one copy of a bool per sample after each look."""
    RUNS["verified"](make_model(shape=SHAPE), tokens, torch.zeros(N, dtype=torch.int16), Execution(batch_size=3))
    assert [one.dtype.kind for one in copies].count("b") <= 3
    assert copies[1].shape == (N,)
