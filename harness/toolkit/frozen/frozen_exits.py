"""Answers of heads on a frozen encoder, for the scores of every epoch: its layers run once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from harness.contracts import Execution
from harness.core.tokens import TokenSet
from harness.encoder import transfer
from harness.encoder.layout import Layout
from harness.encoder.model import LinearHead
from harness.encoder.multi_exit import MultiExitModel
from harness.execution.executors import exit_logits
from harness.execution.run_pass import Pass, inference
from harness.toolkit.frozen.row_storage import room_for


class FrozenExits:
    """Calls return :func:`~harness.execution.executors.exit_logits` bit for bit, while early heads change and all else does not.

    Args:
        execution: of protocol ``modern``.
    """

    def __init__(self, model: MultiExitModel, tokens: TokenSet, execution: Execution) -> None:
        self.model, self.tokens, self.execution = model, tokens, replace(execution, compute="eager")
        self._first_only = isinstance(model.teacher, LinearHead)
        self._states: Tensor | None = None  # [exits, rows, width], of the engine's type
        self._last: list[Tensor] = []  # answers of the last head, by batch

    def __call__(self) -> Tensor:
        """Return logits of every answering layer, float32 [A, N, C] on the host."""
        model, exits = self.model, self.model.exits
        with inference(model):
            run = Pass(model, self.tokens, self.execution)
            starts = np.arange(len(run.lengths) + 1) if self._first_only else run.arranged.starts
            out = torch.zeros(len(model.answers), len(self.tokens), model.labels, device=run.device)
            filling = self._states is None
            for number, (first, last) in enumerate(run.batches()):
                hidden, layout = run.begin(first, last)
                if self._states is None:
                    shape = len(exits), int(starts[-1]), hidden.shape[1]
                    self._states = room_for(shape, hidden.dtype, hidden.device)
                if self._states is None:
                    return exit_logits(model, self.tokens, self.execution)
                rows = slice(int(starts[first]), int(starts[last]))
                if filling:
                    for index in range(model.depth):
                        hidden = run.layer(index, hidden, layout)
                        if index in exits:
                            kept = hidden.index_select(0, layout.first) if self._first_only else hidden
                            self._states[exits.index(index), rows] = kept
                    self._last.append(run.keep(run.head(model.depth - 1, hidden, layout)))
                if self._first_only:
                    layout = Layout(np.ones_like(layout.lengths), 1, layout.device)
                for place, index in enumerate(exits):
                    out[place, first:last] = run.head(index, self._states[place, rows], layout)
                out[-1, first:last] = self._last[number]
            found = transfer.download(out.transpose(0, 1).contiguous()).wait()
            return torch.from_numpy(run.in_input_order(found)).transpose(0, 1).contiguous()
