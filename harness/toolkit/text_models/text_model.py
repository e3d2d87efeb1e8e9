"""A classifier over packed token ids without Transformer layers, such as a bag of words or a recurrent network."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from harness.core.errors import ResultError
from harness.core.text_formats import read_json
from harness.core.tokens import Task, TokenSet
from harness.core.work import BlockCost, Convention, ModelCost, Tally, Work
from harness.encoder.backbone import Backbone
from harness.encoder.layout import Layout
from harness.encoder.model import parameters_of


@dataclass(frozen=True)
class TextLimits:
    """What samples a model can read, see :class:`harness.execution.arrangement.Readable`.

    Attributes:
        vocab_size: token ids are below it.
        max_positions: most tokens of a sample.
        type_vocab: segments are below it; 1: they are not read.
        special: ids of [CLS], [SEP] and [PAD], which stand for no word.
        layers: depth by which samples are sorted; they all have the same.
    """

    vocab_size: int
    max_positions: int
    type_vocab: int = 2
    special: tuple[int, ...] = ()
    layers: int = 1

    @classmethod
    def of(cls, task: Task, backbone: Backbone) -> Self:
        """Return the limits of a task's samples, made with a backbone's tokenizer."""
        return cls(backbone.shape.vocab_size, task.max_length, special=task.train.tokens.special)


class TextModel(nn.Module, ABC):
    """A classifier that reads packed ids; weights and logits are float32.

    A subclass takes ``limits`` and ``labels`` and further JSON values as keyword arguments; :meth:`facts` returns these.

    Args:
        limits: of its samples.
        labels: number of classes.
    """

    def __init__(self, limits: TextLimits, labels: int) -> None:
        super().__init__()
        self.limits, self.labels = limits, labels

    @abstractmethod
    def forward(self, tokens: TokenSet, layout: Layout) -> Tensor:
        """Return logits of a batch: [B, C].

        Args:
            tokens: B samples, packed.
            layout: of the batch. Lengths are on the host (``layout.lengths``) and, as offsets, on the device. A model that pads
                pads to ``layout.longest``.
        """

    @abstractmethod
    def tallies(self, layout: Layout) -> Mapping[str, Tally]:
        """Return what each block executes for a batch, by name, from what the host knows: a device is not waited for."""

    @abstractmethod
    def blocks(self) -> Mapping[str, BlockCost]:
        """Return the cost of every block in :meth:`tallies`, by name or kind. No kind is ``layer`` or ``head``."""

    def tables(self) -> Sequence[nn.Module]:
        """Return the tables of which an answer reads single rows. Those with sparse gradients are trained by row."""
        return [part for part in self.modules() if isinstance(part, nn.Embedding | nn.EmbeddingBag)]

    def facts(self) -> dict[str, Any]:
        """Return the keyword arguments that make this model again, limits and labels aside (JSON)."""
        return {}

    def cost(self) -> ModelCost:
        """Return FLOPs per block, and the parameters."""
        return ModelCost(self.blocks(), depth=0, params=parameters_of(self), looked_up=parameters_of(*self.tables()))

    def flops(self, layout: Layout, convention: Convention) -> int:
        """Return the FLOPs of a batch."""
        return self.cost().flops(Work(dict(self.tallies(layout))), convention)

    def save(self, folder: Path) -> None:
        """Write ``model.safetensors`` and ``model.json`` into an existing folder."""
        facts = {"limits": asdict(self.limits), "labels": self.labels, **self.facts()}
        (folder / "model.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, folder / "model.safetensors")

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> Self:
        """Read the files of :meth:`save`.

        Raises:
            ResultError: the files are missing or damaged.
        """
        try:
            facts = read_json(folder / "model.json")
            limits = facts.pop("limits")
            model = cls(TextLimits(**{**limits, "special": tuple(limits["special"])}), **facts)
            model.load_state_dict(load_file(folder / "model.safetensors"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
            raise ResultError(
                f"cannot load the model in {folder}: {error}: delete that folder and run again"
            ) from error
        return model.to(device).eval()
