"""The plug-in contract: what a method receives and what it returns.

Data flows one way: text -> :class:`TokenSet` -> ``Method.fit`` -> ``Fitted.predict`` -> :class:`Predictions`.
A method sees train and dev, and texts without labels if it asks for them. Test ids reach it only inside ``predict``, and
test labels never.

:class:`Method` and :class:`Fitted` are required. All other protocols are optional capabilities: a method (or what it
fits) has one by having its attributes. The harness asks with ``isinstance``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
from torch import Tensor, nn

from harness.core.tokens import Split, Task, TokenSet

if TYPE_CHECKING:
    from pydantic import BaseModel

    from harness.core.work import ModelCost, Work
    from harness.encoder.backbone import Backbone

Kind = Literal["method", "control", "bound"]
Role = Literal[
    "predicts-exits", "verifies-exits", "constant-depth", "random-exits", "length-exits", "sequential-exits", "oracle"
]
DType = Literal["float32", "bfloat16"]
Compute = Literal["eager", "packed", "compiled", "graphs", "compiled-graphs"]
# Setting ``engine`` of a method; see :mod:`harness.engines.choice`.
TorchEngine = Literal["eager", "packed", "compiled", "bfloat16", "int8", "int8-call"]
WholeModelEngine = Literal["onnx", "onnx-int8", "openvino", "openvino-int8", "ctranslate2", "ctranslate2-int8"]
EngineName = Literal[TorchEngine, WholeModelEngine]
# Executors of fitted methods for which the run chooses: exits are known beforehand, or a rule decides them on the way.
ASSIGNED, BY_RULE = "assigned", "by-rule"


@dataclass(frozen=True)
class Execution:
    """How predictions are run: the same for every row of a table, so that rows differ by method only.

    Attributes:
        batch_size: samples per batch.
        protocol: ``"modern"`` packs tokens (no padding in the linear layers); ``"paper"`` pads all to ``max_length``.
        order: ``"arrival"`` or ``"length"``: how samples are ordered inside a window before batching.
        window: samples that are collected before they are ordered; 0 means all.
        executor: for methods that know the exit beforehand, ``"ladder"`` or ``"exact-k"``.
        rule_executor: for methods with an exit rule, ``"shrink"`` or ``"rebatch"`` (batches are refilled); others have their own.
        max_length: the pad length of protocol ``"paper"``.
        dtype: type of weights and hidden states, ``"float32"`` or ``"bfloat16"``; logits are always float32.
        compute: how blocks are run: ``"eager"``; ``"packed"`` (weights laid out once for a CPU); ``"compiled"`` (all but attention
            through ``torch.compile``); ``"graphs"`` (a CUDA graph per block and batch shape); ``"compiled-graphs"``.
        batch_tokens: if not 0, the maximum number of tokens of a batch, padding included.
    """

    batch_size: int = 32
    protocol: Literal["modern", "paper"] = "modern"
    order: Literal["arrival", "length"] = "length"
    window: int = 0
    executor: Literal["ladder", "exact-k"] = "ladder"
    rule_executor: Literal["shrink", "rebatch"] = "shrink"
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
        execution: how to run; set by the harness.
        foresight: int16 [N] exits from :class:`Foresees`; ``None`` for all other methods.
    """

    name: str
    params: Mapping[str, Any] = field(default_factory=dict)
    execution: Execution = field(default_factory=Execution)
    foresight: Tensor | None = None


@dataclass
class Predictions:
    """The answers of one pass over N samples, in input order.

    Attributes:
        logits: float32 [N, C] on the host.
        exit_layer: int16 [N] on the host, index 0 .. L-1 of the last layer that the answer used; -1 if it used none.
        work: what was executed, for FLOPs and mean layers.
        predicted_exit: int16 [N], the exit predicted before running, or after one look; ``None`` for methods that predict none.
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
        """Return the points to measure; every threshold in them is chosen on ``dev``."""
        ...

    def predict(self, tokens: TokenSet, *, at: OperatingPoint) -> Predictions:
        """Answer all samples. This is the timed region: ids on the device -> logits on the host, in input order."""
        ...

    def save(self, folder: Path) -> None:
        """Write safetensors and JSON into an existing empty folder; never pickle."""
        ...


class Method(Protocol):
    """A method; stateless. Registered through the entry-point group ``geep.methods``.

    Attributes:
        name: unique.
        kind: ``"method"``, ``"control"`` (a simple alternative on the same weights) or ``"bound"`` (cannot be deployed).
        needs: names of the fitted methods it learns from; the harness fits and caches them first.
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
        """Learn from ``task.train``, choose on ``task.dev``; see also :class:`UsesUnlabelled`.

        Args:
            teachers: fitted methods by the names in ``needs``; a variant may put other methods in their places.

        Raises:
            ConfigError: a setting is invalid; its cells fail, the run continues.
            MethodError: the method cannot be used here (a missing library or device); its cells fail, the run continues.
        """
        ...

    def load(self, folder: Path, task: Task, backbone: Backbone, teachers: Mapping[str, Fitted]) -> Fitted:
        """Load what ``save`` wrote."""
        ...


# Optional capabilities of a method.


@runtime_checkable
class HasRole(Protocol):
    """A method that fills a role in the reports' comparison of exit decisions; variants inherit it.

    Attributes:
        role: ``"predicts-exits"``, or ``"verifies-exits"`` (it looks at a head's answer first), for a method under study; the
            others are its controls and bound.
    """

    role: Role


@runtime_checkable
class HasSettings(Protocol):
    """A method with a model of its settings, so that a profile is validated before anything runs.

    Attributes:
        settings: pydantic model of everything that ``config`` may hold for this method.
    """

    settings: type[BaseModel]


@runtime_checkable
class NamesPoints(Protocol):
    """A method that knows the names of its operating points before it is fitted.

    Front ends list cells with it. For other methods they list the first point only.
    """

    def point_names(self, config: Mapping[str, Any]) -> Sequence[str]:
        """Return the names of the operating points that follow from the settings."""
        ...


@runtime_checkable
class NamesContent(Protocol):
    """A method that says what content its settings name, such as a folder of weights.

    Without this, every setting that is the path of a file or folder counts, with all that is in it.
    """

    def named_content(self, config: Mapping[str, Any]) -> Any:
        """Return the content (JSON, e.g. a hash), or ``None``. It is part of the cache key."""
        ...


@runtime_checkable
class UsesWordHead(Protocol):
    """A method that may use the backbone's masked-word head, which the backbone's fingerprint does not cover."""

    def uses_word_head(self, config: Mapping[str, Any]) -> bool:
        """Return whether ``fit`` uses the head with these settings; the head's hash is then part of the cache key."""
        ...


@runtime_checkable
class UsesUnlabelled(Protocol):
    """A method that may learn from ``task.unlabelled``, which the task's fingerprint does not cover."""

    def uses_unlabelled(self, config: Mapping[str, Any]) -> bool:
        """Return whether ``fit`` uses these rows with these settings; their hash is then part of the cache key."""
        ...


@runtime_checkable
class LearnsInStages(Protocol):
    """A method that trains weights, then chooses for them on dev: points, thresholds, tables. ``fit`` is both, in this order.

    The harness stores the weights in a folder of their own, so that other choices need no training.

    Attributes:
        choices: names of the settings that training does not depend on. All others are part of the key of the weights.
        weights_version: raised, from 1, whenever a change of code changes what ``train_weights`` returns. ``version`` is raised
            for changes of ``choose``, which need no training.
    """

    choices: frozenset[str]
    weights_version: int

    def train_weights(
        self,
        task: Task,
        backbone: Backbone,
        teachers: Mapping[str, Fitted],
        *,
        config: Mapping[str, Any],
        seed: int,
    ) -> Fitted:
        """Train, as ``fit`` does. The result need not have operating points; ``load`` reads what it saves.

        Args:
            teachers: as for ``fit``, but those that learn in stages are what their own ``train_weights`` returned, without
                choices. A method that learns from another one's choices must therefore not learn in stages.
            config: all settings, so that wrong ones are refused before training.
        """
        ...

    def choose(self, weights: Fitted, task: Task, *, config: Mapping[str, Any], seed: int) -> Fitted:
        """Return the fitted method around ``weights``, which must not change; called with any values of ``choices``."""
        ...


@runtime_checkable
class DistilsGenerally(Protocol):
    """A method whose students can learn on raw text from a pretrained teacher (``geep-bench distill``).

    Attributes:
        general_recipe: values that differ from the defaults of :class:`harness.pretraining.recipe.PretrainRecipe`.
    """

    general_recipe: Mapping[str, Any]

    def general_distillation(self, teacher: Backbone, *, config: Mapping[str, Any], dropout: float) -> nn.Module:
        """Make a student to train: a :class:`harness.pretraining.general_distillation.Distillation`.

        Raises:
            ConfigError: a setting is unknown or invalid.
        """
        ...


# Optional capabilities of a fitted method.


@runtime_checkable
class Foresees(Protocol):
    """A fitted method that looks up exits outside the timed region. Its rows are marked as a bound."""

    def foresee(self, tokens: TokenSet, *, at: OperatingPoint) -> Tensor:
        """Return int16 [N] exits; ``predict`` receives them as ``at.foresight``."""
        ...


@runtime_checkable
class AnswersAtDepths(Protocol):
    """A fitted method that can say what each of its exits would answer, the same at all of its points.

    It is asked once for all points, outside the timed region.

    The harness compares the answers with the labels, which no method sees, and stores both comparisons per sample.
    """

    def depth_answers(self, tokens: TokenSet, *, at: OperatingPoint) -> tuple[Sequence[int], np.ndarray]:
        """Return the A layer indices that can answer, rising up to the last one (-1: before layer 1), and labels, int64 [A, N]."""
        ...


@runtime_checkable
class CountsKeyHits(Protocol):
    """A fitted method with a table of keys."""

    def key_hits(self, tokens: TokenSet, *, at: OperatingPoint) -> tuple[int, int]:
        """Return how many keys of the samples the table holds, and how many were looked up."""
        ...


@runtime_checkable
class HasExecutor(Protocol):
    """A fitted method that names its executor; for others, ``"own"`` is stored.

    Attributes:
        executor: as stored with results; :data:`ASSIGNED` and :data:`BY_RULE` stand for the run's choice.
    """

    executor: str


@runtime_checkable
class HasCompute(Protocol):
    """A fitted method that may override how its blocks are run.

    Attributes:
        compute: replaces the run's choice (see :class:`Execution`); ``None``: as the run says.
    """

    compute: Compute | None


class TrainingCost(Protocol):
    """What fitting cost; see :class:`harness.toolkit.training.TrainingReport`.

    Attributes:
        seconds: wall time.
        steps: optimiser steps.
        layer_passes: forward passes of one sample through one layer, teachers included.
        sample_passes: samples seen, with repetition.
        dev_scores: dev accuracy after each epoch; empty if it was not computed.
        best_epoch: the epoch whose weights were kept, counted from 1; ``None`` for the last one by rule.
        flops: of the layers, forward and backward, convention ``linear``; 0 if not counted.
    """

    seconds: float
    steps: int
    layer_passes: int
    sample_passes: int
    dev_scores: Sequence[float]
    best_epoch: int | None
    flops: float


@runtime_checkable
class TrainingConditions(Protocol):
    """What a :class:`TrainingCost` may state, as :class:`harness.toolkit.training.TrainingReport` does; its ``torch`` is optional.

    Attributes:
        epochs: that were allowed; 0 if unknown.
        exit_scores: dev accuracy of every answering layer with the weights that were kept; empty if unknown.
        precision: of matrix products; empty if unknown.
        threads: of the CPU; 0 if unknown.
    """

    epochs: int
    exit_scores: Sequence[float]
    precision: str
    threads: int


@runtime_checkable
class HasTraining(Protocol):
    """A fitted method that reports the cost of its training.

    Attributes:
        training: ``None`` if it trains nothing of its own.
    """

    training: TrainingCost | None
