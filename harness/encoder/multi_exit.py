"""One encoder with answering heads at several depths, shared by every early-exit method."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from harness.core.errors import ConfigError, ResultError
from harness.core.text_formats import read_json
from harness.core.work import BlockCost, KeyValueCost, ModelCost
from harness.encoder.layout import Layout
from harness.encoder.model import HEADS, Encoder, FastBertHead, LinearHead, embedding_costs, parameters_of
from harness.encoder.shape import EncoderShape, layer_cost

MODEL = "model.safetensors"  # file with the weights


class MultiExitModel(nn.Module):
    """Encoder, student heads ``C_i`` after the layers in ``exits`` and a teacher head ``C_T`` after the last.

    Between pre-norm layers, states are not normalised: there every head has a copy of the encoder's last norm, and trains it.

    Args:
        encoder: its layers are used directly, not copied.
        labels: number of classes.
        exits: layer indices (0 .. L-2) with a student; may be empty (a plain classifier).
        head: ``"fastbert"`` or ``"linear"``.

    Raises:
        ConfigError: an exit outside 0 .. L-2, or an unknown head.
    """

    def __init__(self, encoder: Encoder, labels: int, exits: Sequence[int] = (), head: str = "fastbert") -> None:
        super().__init__()
        if head not in HEADS:
            raise ConfigError(f"unknown head '{head}': choose one of {', '.join(HEADS)}")
        if any(not 0 <= e < encoder.depth - 1 for e in exits):
            raise ConfigError(
                f"exits {list(exits)} are not all in 0..{encoder.depth - 2}: the last layer has the teacher head"
            )
        self.labels, self.head_kind, self.exits = labels, head, tuple(sorted(exits))
        self.encoder = encoder
        make, width, unpruned = HEADS[head], encoder.shape.width, encoder.shape.unpruned_width
        # Heads on pruned states keep their inner width, so that they can be those of the unpruned model.
        inner = make(unpruned, labels).inner if unpruned else None
        self.students = nn.ModuleDict({str(e): make(width, labels, inner) for e in self.exits})
        self.teacher = make(width, labels, inner)
        if encoder.shape.norm_first:
            for answering in (*self.students.values(), self.teacher):
                answering.norm = copy.deepcopy(encoder.final_norm)
        self.to(encoder.device)

    @property
    def depth(self) -> int:
        return self.encoder.depth

    @property
    def answers(self) -> tuple[int, ...]:
        """Layer indices with a head: the exits and the last layer."""
        return (*self.exits, self.depth - 1)

    def student(self, exit_layer: int) -> FastBertHead | LinearHead:
        """Return head ``C_i`` after layer index ``exit_layer``; the teacher for the last layer."""
        head = self.teacher if exit_layer == self.depth - 1 else self.students[str(exit_layer)]
        assert isinstance(head, FastBertHead | LinearHead)
        return head

    def shared_answer(self, hidden: Tensor, layout: Layout) -> Tensor:
        """Return ``C_T(F_L(h^k))``: the last layer and the teacher on a shortened prefix (GEEP)."""
        return self.teacher(self.encoder.layers[-1](hidden, layout), layout)

    def cost(self) -> ModelCost:
        """Return FLOPs per block and the parameters, of all heads, as inference needs all of them."""
        shape = self.encoder.shape
        layers: dict[str, BlockCost] = {"layer": self.encoder.cost(), "keys": KeyValueCost(shape.width)}
        if shape.sizes:
            layers = {f"layer.{index}": layer_cost(shape, index) for index in range(self.depth)}
            for index, size in enumerate(shape.sizes):
                layers[f"keys.{index}"] = KeyValueCost(shape.width, sum(size.queries) + sum(size.values))
        blocks = {**layers, "head": self.teacher.cost(), **embedding_costs(shape)}
        tables = parameters_of(*self.encoder.tables().values())
        return ModelCost(blocks, depth=self.depth, params=parameters_of(self), looked_up=tables)

    def save(self, folder: Path) -> None:
        """Write the weights (:data:`MODEL`) and ``model.json`` into an existing folder."""
        facts = {
            "shape": self.encoder.shape.to_dict(),
            "labels": self.labels,
            "exits": self.exits,
            "head": self.head_kind,
        }
        (folder / "model.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, folder / MODEL)

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> MultiExitModel:
        """Read the files of :meth:`save`.

        Raises:
            ResultError: the files are missing or damaged.
        """
        try:
            facts = read_json(folder / "model.json")
            encoder = Encoder(EncoderShape(**facts["shape"]))
            model = cls(encoder, facts["labels"], facts["exits"], facts["head"])
            model.load_state_dict(load_file(folder / MODEL))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise ResultError(
                f"cannot load the model in {folder}: {error}: delete that folder and run again"
            ) from error
        return model.to(device).eval()
