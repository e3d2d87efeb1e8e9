"""Stand-ins for the CUDA attention kernel and for CUDA graphs."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from harness.encoder import layout, partial_attention, transfer
from harness.encoder.device_kernels import varlen
from harness.execution import (
    arrangement,
    cascade,
    engine,
    engine_cache,
    executors,
    graphs,
    run_pass,
    sequential,
    token_exits,
    verified,
)
from harness.execution.regrouping import look_once, rebatch, waiting_samples

# In the order in which they import each other.
CHASSIS = (
    transfer,
    varlen,
    layout,
    arrangement,
    partial_attention,
    engine,
    graphs,
    engine_cache,
    run_pass,
    executors,
    sequential,
    waiting_samples,
    rebatch,
    verified,
    token_exits,
    cascade,
    look_once,
)


class _Tape(TorchDispatchMode):
    """Record every operation with the tensors it used."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.steps.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        """Repeat the operations on the same memory; decisions of the host stay as recorded."""
        now: dict[int, Any] = {}

        def current(leaf: Any) -> Any:
            return now.get(id(leaf), leaf) if isinstance(leaf, Tensor) else leaf

        for func, args, kwargs, out in self.steps:
            fresh = func(*tree_map(current, args), **tree_map(current, kwargs))
            for old, new in zip(tree_leaves(out), tree_leaves(fresh), strict=True):
                if isinstance(old, Tensor):
                    now[id(old)] = new


class TapeRecorder:
    """A recorder like CUDA's: it warms up once, then keeps operations and addresses but no Python code."""

    def __init__(self, *_: Any) -> None: ...

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        _kernel.recorded += 1
        run()
        tape = _Tape()
        with torch.compiler.set_stance("force_eager"), tape:  # the compiler refuses to run below a mode
            run()
        return tape.replay


@dataclass
class Kernel:
    """Attention over sequences of any lengths, written out.

    Rows outside of all sequences are NaN, because reading them is a bug.

    Attributes:
        pairs: query-key pairs so far.
        recorded: graphs so far.
        widths: of heads so far.
    """

    pairs: int = 0
    recorded: int = 0
    widths: set[int] = field(default_factory=set)

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        q_bounds: Tensor,
        k_bounds: Tensor,
        q_longest: int,
        k_longest: int,
        window_size: tuple[int, int] = (-1, -1),
    ) -> Tensor:
        assert q_bounds.dtype == k_bounds.dtype == torch.int32
        assert q_bounds.shape == k_bounds.shape
        assert q.shape[-1] % 8 == 0
        self.widths.add(q.shape[-1])
        assert window_size[0] == window_size[1] and (window_size[0] < 0 or q_bounds is k_bounds)
        return torch.ops.geep_tests.varlen(q, k, v, q_bounds, k_bounds, q_longest, k_longest, window_size[0])


_kernel = Kernel()


@torch.library.custom_op("geep_tests::varlen", mutates_args=())
def _attention(
    q: Tensor, k: Tensor, v: Tensor, q_bounds: Tensor, k_bounds: Tensor, q_longest: int, k_longest: int, window: int
) -> Tensor:
    out = torch.full_like(q, math.nan)
    q_at, k_at = q_bounds.tolist(), k_bounds.tolist()
    for at, rows in ((q_at, q), (k_at, k)):
        assert at[0] == 0 and at == sorted(at)
        assert at[-1] <= len(rows), "the kernel would read beyond its rows"
    for i in range(len(q_at) - 1):
        ours, theirs = slice(q_at[i], q_at[i + 1]), slice(k_at[i], k_at[i + 1])
        size, keys = q_at[i + 1] - q_at[i], k_at[i + 1] - k_at[i]
        assert size <= q_longest
        assert keys <= k_longest
        far = torch.zeros(size, keys, dtype=torch.bool)
        if window >= 0:
            far = (torch.arange(size)[:, None] - torch.arange(keys)).abs() > window
        _kernel.pairs += int((~far).sum())
        if not size:
            continue
        if not keys:
            out[ours] = 0.0
            continue
        scores = torch.einsum("qhd,khd->hqk", q[ours], k[theirs]) / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(far, -math.inf)
        out[ours] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[theirs])
    return out


def _pretend(patch: pytest.MonkeyPatch) -> Kernel:
    patch.setattr(varlen, "DEVICES", ("cpu",))
    patch.setattr(varlen, "HALF", (torch.float32,))
    patch.setattr("torch.nn.attention.varlen.varlen_attn", _kernel)
    patch.setattr(arrangement, "HOST_DEVICES", ())
    patch.setattr(engine_cache, "GRAPH_DEVICES", ("cpu",))
    patch.setattr(graphs, "CudaRecorder", TapeRecorder)
    patch.setitem(run_pass.IN_FLIGHT, "cpu", run_pass.IN_FLIGHT["cuda"])
    engine_cache._prepared.clear()
    _kernel.pairs = _kernel.recorded = 0
    return _kernel


@pytest.fixture(scope="session")
def pretend_cuda() -> Callable[[pytest.MonkeyPatch], Kernel]:
    """Make executors treat the CPU like CUDA, in float32."""
    return _pretend


@pytest.fixture
def like_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    """Make executors treat the CPU like CUDA, in float32."""
    yield _pretend(monkeypatch)
    engine_cache._prepared.clear()


@pytest.fixture(scope="session")
def planted() -> Callable[[str, str, str], Callable[[], None]]:
    """Prepare a bug for a module.

    The returned function patches the module and all modules that import it, permanently. Call it in a separate process.
    """

    def prepare(name: str, good: str, bad: str) -> Callable[[], None]:
        module: ModuleType = importlib.import_module(f"harness.{name}")
        assert module.__file__ is not None
        text = Path(module.__file__).read_text(encoding="utf-8")
        assert text.count(good) == 1, "the planted bug must apply exactly once"
        code = compile(text.replace(good, bad), module.__file__, "exec")

        def put() -> None:
            exec(code, module.__dict__)
            for later in CHASSIS[CHASSIS.index(module) + 1 :]:
                importlib.reload(later)

        return put

    return prepare
