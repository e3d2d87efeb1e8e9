"""Whole-model engines: another library runs a fit at full depth, over padded batches.

A model is converted once per fit and kept in memory. Batches are those of every other row of a table (ordered by length, cut the
same way), padded to their longest sample. The library has as many threads as torch.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self
from weakref import WeakKeyDictionary

import numpy as np

from harness.contracts import OperatingPoint, Predictions
from harness.core.clock import Phases
from harness.core.errors import MethodError
from harness.core.tokens import TokenSet
from harness.core.work import Tally, Work
from harness.encoder.layout import Layout
from harness.encoder.model import PROJECTION
from harness.encoder.multi_exit import MultiExitModel
from harness.execution.arrangement import arrange, cut, windows
from harness.toolkit.fitted import FullDepth

Files = Mapping[str, bytes]  # of a converted model, by name


def needed(module: str, extra: str) -> Any:
    """Import a module of an extra.

    Raises:
        MethodError: it cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MethodError(f"it needs {module} ({error}): pip install 'geep-bench[{extra}]'") from error


@dataclass
class WholeModel(FullDepth, ABC):
    """A fit on a whole-model engine; ``model`` is the source, for counting FLOPs.

    Attributes:
        executor: name of the library, as stored with results.
        extra: of this project, which installs the library.
        modules: of that extra.
        calibrates: conversion needs rows to choose scales from.
        skips_padding: linear layers run on tokens alone; attention and the head do not.
        files: the converted model.
    """

    compute = "eager"

    extra: ClassVar[str]
    modules: ClassVar[tuple[str, ...]]
    calibrates: ClassVar[bool] = False
    skips_padding: ClassVar[bool] = False

    files: Files = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._start()

    @classmethod
    def check(cls) -> None:
        """Check that everything is installed, and that the CPU has what the library needs.

        Raises:
            MethodError: it is not, or it has not.
        """
        for module in cls.modules:
            needed(module, cls.extra)

    @classmethod
    @abstractmethod
    def convert(cls, model: MultiExitModel, rows: TokenSet | None) -> Files:
        """Convert a model.

        Args:
            rows: unlabelled training rows, for engines that calibrate.
        """

    @classmethod
    def files_of(cls, model: MultiExitModel, rows: TokenSet | None = None) -> Files:
        """Return a converted model, converted at the first call."""
        kept = _converted.setdefault(model, {})
        if cls not in kept:
            kept[cls] = cls.convert(model, rows)
        return kept[cls]

    @abstractmethod
    def _start(self) -> None:
        """Load the files into the library."""

    @abstractmethod
    def _logits(self, ids: np.ndarray, segments: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Answer a padded batch: ids and segments int32 [B, T], lengths int64 [B] -> float32 [B, C]."""

    @classmethod
    def of(cls, fitted: FullDepth, rows: TokenSet | None = None) -> Self:
        """Convert a fitted method, or take what was converted for its model before.

        Raises:
            MethodError: the library cannot run this model, or not on this CPU.
        """
        if fitted.model.encoder.shape.sizes:
            raise MethodError(
                f"{cls.executor} runs layers of one size, and this model is pruned: use eager, packed, compiled, bfloat16 or int8"
            )
        try:
            return cls(fitted.model, fitted.training, cls.files_of(fitted.model, rows))
        except RuntimeError as error:  # all of these libraries raise it
            reason = str(error).strip().splitlines()[-1:] or [repr(error)]
            raise MethodError(f"{cls.executor} cannot run this model here ({reason[0]}): use another engine") from error

    def predict(self, tokens: TokenSet, *, at: OperatingPoint) -> Predictions:
        execution, depth = at.execution, self.model.depth
        phases, work = Phases(tokens.device), Work()
        with phases("schedule"):
            arranged = arrange(tokens, execution, self.model.encoder.shape)
        logits = np.zeros((len(tokens), self.model.labels), np.float32)
        with phases("layers"):
            for begin, end in windows(len(tokens), execution.window):
                for first, last in cut(arranged.lengths, begin, end, execution):
                    lengths, packed = arranged.lengths[first:last], arranged.batch(first, last)[0]
                    longest = execution.max_length if execution.protocol == "paper" else int(lengths.max())
                    grid = np.arange(longest) < lengths[:, None]  # [B, T]
                    ids, segments = np.zeros((2, *grid.shape), np.int32)
                    # Both are ordered by sample, so the true cells of the grid are the packed tokens, in order.
                    ids[grid], segments[grid] = packed.ids.numpy(), packed.segments.numpy()
                    logits[arranged.order[first:last]] = self._logits(ids, segments, lengths)
                    layout = Layout(lengths, longest, tokens.device)
                    if self.model.encoder.shape.embedding:
                        work.add(f"{PROJECTION}.0", Tally(layout.count, layout.rows, layout.valid))
                    layer = layout.tally()
                    layer.tokens = layer.valid if self.skips_padding else layer.tokens
                    for index in range(depth):
                        work.add(f"layer.{index}", layer)
                    work.add(f"head.{depth - 1}", layout.tally("first"))
        exits = np.full(len(tokens), depth - 1, np.int16)
        return Predictions(logits, exits, work, phases=phases.seconds())

    def save(self, folder: Path) -> None:
        """Write the converted model, which holds the weights."""
        for name, content in self.files.items():
            (folder / name).write_bytes(content)


_converted: WeakKeyDictionary[MultiExitModel, dict[type[WholeModel], Files]] = WeakKeyDictionary()
