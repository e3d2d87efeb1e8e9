"""A model that splits: shared layers, then several ends of a few layers and a head each, whose answers are joined."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from harness.contracts import OperatingPoint, Predictions
from harness.core.text_formats import read_json
from harness.core.tokens import Split, TokenSet
from harness.encoder.branches.tiled_layer import TiledLayer
from harness.encoder.layout import Layout
from harness.encoder.multi_exit import MultiExitModel
from harness.execution.executors import run_branches
from harness.toolkit.fitted import FittedModel, load_model, reading


@dataclass(frozen=True)
class Branches:
    """Which layers of an encoder are shared, and which belong to which end.

    Attributes:
        shared: layers below the split.
        count: ends.
        layers: of each end.
    """

    shared: int
    count: int
    layers: int

    @property
    def ends(self) -> list[range]:
        """Layer indices of every end; the last one has the end's head."""
        starts = (self.shared + number * self.layers for number in range(self.count))
        return [range(start, start + self.layers) for start in starts]

    @property
    def depth(self) -> int:
        """Layers in all."""
        return self.shared + self.count * self.layers

    @property
    def exits(self) -> list[int]:
        """Layers with a head, but for the last."""
        return [end[-1] for end in self.ends[:-1]]


class BranchedTraining(nn.Module):
    """Runs all ends of a model as one tiled batch. Has the model's weights and no others."""

    def __init__(self, model: MultiExitModel, branches: Branches) -> None:
        super().__init__()
        self.model, self.branches = model, branches
        layers, ends = model.encoder.layers, branches.ends
        tiles = zip(*ends, strict=True) if len(ends) > 1 else ()
        self.tiles = nn.ModuleList(TiledLayer([layers[index] for index in tile]) for tile in tiles)

    def forward(self, tokens: TokenSet, layout: Layout) -> list[Tensor]:
        """Return the logits of every end: k tensors [B, C]."""
        *_, hidden = self.model.encoder.states(tokens, layout, self.branches.shared)
        ends = self.branches.ends
        if len(ends) == 1:
            for index in ends[0]:
                hidden = self.model.encoder.layers[index](hidden, layout)
            return [self.model.student(ends[0][-1])(hidden, layout)]
        together = hidden.repeat(len(ends), 1)
        tiled = Layout(np.tile(layout.lengths, len(ends)), layout.pad_to, layout.device)
        for tile in self.tiles:
            together = tile(together, tiled)
        return [
            self.model.student(end[-1])(part, layout) for end, part in zip(ends, together.chunk(len(ends)), strict=True)
        ]


@dataclass
class FittedBranches(FittedModel):
    """A trained model with several ends; one operating point.

    Attributes:
        branches: of its encoder.
        answering: numbers of the ends that run; the answer is the mean of their probabilities.
    """

    executor = "full"
    is_stack = False

    branches: Branches = field(default=Branches(1, 1, 1))
    answering: tuple[int, ...] = (0,)

    def operating_points(self, dev: Split) -> Sequence[OperatingPoint]:
        return [OperatingPoint("full")]

    def predict(self, tokens: TokenSet, *, at: OperatingPoint) -> Predictions:
        ends = [self.branches.ends[number] for number in self.answering]
        return run_branches(self.model, tokens, at.execution, self.branches.shared, ends)

    def answers_of(self, tokens: TokenSet, at: OperatingPoint) -> Tensor:
        """Return the logarithms of the probabilities of every end, float32 [k, N, C] on the host."""
        shared, ends = self.branches.shared, self.branches.ends
        found = [run_branches(self.model, tokens, at.execution, shared, [end]).logits for end in ends]
        return torch.from_numpy(np.stack(found))

    def save(self, folder: Path) -> None:
        super().save(folder)
        facts = {**asdict(self.branches), "answering": self.answering}
        (folder / "branches.json").write_text(json.dumps(facts), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, device: str) -> Self:
        model, report = load_model(folder, device)
        with reading(folder):
            facts = read_json(folder / "branches.json")
            answering = tuple(facts.pop("answering"))
            return cls(model, report, Branches(**facts), answering)
