"""What a method is, what it gets and what it returns.

Data flows one way: text -> :class:`TokenSet` -> ``Method.fit`` -> ``Fitted.predict`` -> :class:`Predictions`.
A method sees train and dev; test ids reach it only inside ``predict``, and test labels never.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from harness.core.tokens import Split, Task, TokenSet

if TYPE_CHECKING:
    from harness.core.work import ModelCost, Work
    from harness.encoder.backbone import Backbone

Kind = Literal["method", "control", "bound"]
DType = Literal["float32", "bfloat16"]
Compute = Literal["eager", "compiled", "graphs", "compiled-graphs"]


@dataclass(frozen=True)
class Execution:
    """How predictions are run: the same for every row of a table (DESIGN section 4, rule 1).

    Attributes:
        batch_size: samples per batch.
        protocol: ``"modern"`` packs tokens (no padding in the linear layers); ``"paper"`` pads all to ``max_length``.
        order: ``"arrival"`` or ``"length"``: how samples are ordered inside a window before batching.
        window: samples that are collected before they are ordered; 0 means all.
        executor: for methods that know the exit beforehand, ``"ladder"`` or ``"exact-k"``; others have one of their own.
        max_length: the pad length of protocol ``"paper"``.
        dtype: type of weights and hidden states, ``"float32"`` or ``"bfloat16"``; logits are always float32.
        compute: how blocks are run: ``"eager"``; ``"compiled"`` (all but attention through ``torch.compile``);
            ``"graphs"`` (a CUDA graph per block and batch shape); ``"compiled-graphs"``.
        batch_tokens: if not 0, a batch also ends before it holds more tokens than this, padding included.
    """

    batch_size: int = 32
    protocol: Literal["modern", "paper"] = "modern"
    order: Literal["arrival", "length"] = "length"
    window: int = 0
    executor: Literal["ladder", "exact-k"] = "ladder"
    max_length: int = 128
    dtype: DType = "float32"
    compute: Compute = "eager"
    batch_tokens: int = 0


@dataclass(frozen=True)
class OperatingPoint:
    """One point of a method's accuracy/cost curve, fixed on dev.

    Attributes:
        name: short and unique for the method, e.g. ``"speed=0.5"``.
        params: the method's own settings at this point (JSON scalars).
        execution: how to run; set by the referee.
        foresight: int16 [N] exits that a ``bound`` looked up beforehand; ``None`` for all others.
    """

    name: str
    params: Mapping[str, Any] = field(default_factory=dict)
    execution: Execution = field(default_factory=Execution)
    foresight: Tensor | None = None


@dataclass
class Predictions:
    """What one pass over N samples returned, in input order.

    Attributes:
        logits: float32 [N, C] on the host.
        exit_layer: int16 [N] on the host, index 0 .. L-1 of the last layer whose output was answered from.
        work: what was executed, for FLOPs and mean layers.
        predicted_exit: int16 [N], what a predictor said before running; ``None`` where nothing is predicted.
        phases: seconds of the parts of the pass (``"predict"``, ``"schedule"``, ...); need not add up to the whole.
    """

    logits: np.ndarray
    exit_layer: np.ndarray
    work: Work
    predicted_exit: np.ndarray | None = None
    phases: dict[str, float] = field(default_factory=dict)


@runtime_checkable
class Fitted(Protocol):
    """A method after training, ready to predict."""

    @property
    def cost(self) -> ModelCost:
        """FLOPs of its blocks and the number of its parameters."""
        ...

    def operating_points(self, dev: Split) -> Sequence[OperatingPoint]:
        """The points to measure; every threshold in them is chosen on ``dev``."""
        ...

    def predict(self, tokens: TokenSet, *, at: OperatingPoint) -> Predictions:
        """The timed region: ids on the device -> logits on the host, in input order."""
        ...

    def save(self, folder: Path) -> None:
        """Write safetensors and JSON into an existing empty folder; never pickle."""
        ...

    # A fitted method may also have ``foresee(tokens, at=...) -> int16 [N]``: exits looked up outside the timed
    # region. The referee then marks its rows as a bound, whatever the method says of itself. And it may have
    # ``key_hits(tokens, at=...) -> (found, asked)``: how many keys of a table it knew.


class Method(Protocol):
    """A competitor; stateless. Registered by decorator or through the entry-point group ``geep.methods``.

    Attributes:
        name: unique.
        kind: ``"method"``, ``"control"`` (a rival of the idea on the same weights) or ``"bound"`` (no method at all).
        needs: names of fitted methods it learns from; the referee fits and caches them first.
        version: raised whenever a change of code changes what ``fit`` returns; part of the cache key.
    """

    name: str
    kind: Kind
    needs: tuple[str, ...]
    version: int

    def fit(
        self,
        task: Task,
        backbone: Backbone,
        teachers: Mapping[str, Fitted],
        *,
        config: Mapping[str, Any],
        seed: int,
    ) -> Fitted:
        """Learn from ``task.train``, choose on ``task.dev``.

        Args:
            teachers: by the names in ``needs``; in a variant others may play these roles.

        Raises:
            ConfigError: a setting that makes no sense; it ends the run.
            MethodError: the method cannot be used here (a library, a device); its cells fail, those of others go on.
        """
        ...

    def load(self, folder: Path, task: Task, backbone: Backbone, teachers: Mapping[str, Fitted]) -> Fitted:
        """What ``save`` wrote."""
        ...

    # A method may also have ``point_names(config) -> Sequence[str]``: the names of its operating points as far as the
    # settings tell, so that a front end can list its cells before anything is fitted. Without it, its first point is taken.
    # And ``named_content(config) -> JSON value | None``: the content of what the settings only name, a folder say, so that a fit
    # is not found again when that has changed. And ``general_distillation``, see harness/pretraining/general_distillation.py.
