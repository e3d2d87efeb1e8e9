"""Samples put into an order before a method runs, by code that knows nothing of the method.

So length sorting can be given to everybody, and is credited to nobody's early exits (DESIGN section 4, rule 2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from harness.contracts import Execution, Fitted, OperatingPoint, Predictions
from harness.core.clock import Phases
from harness.core.tokens import TokenSet
from harness.execution.schedule import schedule, schedule_on_device
from suites.studies.shared.study_methods import StudyMethod, StudySamples

MEANING = {
    "arrival": "as they come",
    "length": "longest first",
    "predicted": "deepest predicted exit first, ties as they come; predicting and sorting are timed",
    "oracle": "deepest true exit first; looked up beforehand and not timed: a bound",
    "own": "as the method sorts by itself: all samples by its exits, ties by length",
}
ORDERS = tuple(MEANING)
PREDICTING, SORTING = "order by prediction", "order and back"  # phases


@dataclass
class InOrder:
    """A method around which samples are sorted, longest or deepest first, and put back; all of it timed.

    Attributes:
        fitted: the method; it gets the samples as if they had arrived in this order.
        depth: layers, one more than the largest exit.
        exits: int16 [M] of the samples about to run, known beforehand; or
        predict_exits: finds them out in the timed region; neither: sort by length.
        longest: tokens, or more, of any sample.
    """

    fitted: Fitted
    depth: int
    longest: int
    exits: Tensor | None = None
    predict_exits: Callable[[TokenSet], Tensor] | None = None

    def predict(self, tokens: TokenSet, *, at: OperatingPoint) -> Predictions:
        phases = Phases(tokens.device)
        exits = self.exits
        if self.predict_exits is not None:
            with phases(PREDICTING):
                exits = self.predict_exits(tokens)
        with phases(SORTING):
            order = self._sorted(tokens, exits)
            ordered = tokens.select(order)
            if at.foresight is not None:
                at = replace(at, foresight=at.foresight[order])
        found = self.fitted.predict(ordered, at=at)
        with phases(SORTING):
            place = np.empty(len(tokens), dtype=np.int64)
            place[order.cpu().numpy()] = np.arange(len(tokens))
            predicted = None if found.predicted_exit is None else found.predicted_exit[place]
            logits, exit_layer = found.logits[place], found.exit_layer[place]
        return Predictions(logits, exit_layer, found.work, predicted, {**found.phases, **phases.seconds()})

    def _sorted(self, tokens: TokenSet, exits: Tensor | None) -> Tensor:
        """int64 [M]: by exit if there are any, else by length."""
        lengths = tokens.lengths if exits is None else torch.zeros_like(tokens.lengths)
        if exits is None:
            exits = torch.zeros(len(tokens), dtype=torch.int16, device=tokens.device)
        if tokens.device.type == "cpu":
            return schedule(exits, lengths)
        return schedule_on_device(exits, lengths, depth=self.depth, max_length=self.longest)


def execution_for(order: str, execution: Execution, sorts: bool) -> Execution:
    """How an ordered method is run.

    Under ``own`` it sorts all samples as it likes. Under every other order batches are cut from the order given; a method
    that sorts by exits gets one batch at a time (its window), and goes on sorting within that.
    """
    if order == "own":
        return replace(execution, order="length", window=0)
    return replace(execution, order="arrival", window=execution.batch_size if sorts else 0)


def around(order: str, entry: StudyMethod, samples: StudySamples, exits: np.ndarray | None) -> InOrder | None:
    """What sorts for ``entry``; ``None`` where nothing has to.

    Args:
        exits: for ``oracle``: int16 [M] of the samples about to run.
    """
    if order in ("arrival", "own"):
        return None
    # Exits come from the predictor's model as well as from the entry's.
    depth = max(entry.fitted.cost.depth, samples.predictor[0].model.depth) if order != "length" else 1
    longest = samples.session.settings.execution.max_length
    if order == "length":
        return InOrder(entry.fitted, depth, longest)
    if order == "predicted":
        return InOrder(entry.fitted, depth, longest, predict_exits=samples.predict)
    return InOrder(entry.fitted, depth, longest, torch.as_tensor(exits, device=samples.tokens.device))


def pointless(order: str, entry: StudyMethod, samples: StudySamples, execution: Execution) -> str | None:
    """Why this order cannot change how ``entry`` runs; ``None`` where it can."""
    probe = samples.probes[entry.label]
    if order == "own" and not probe.sorts:
        return "does not sort by exits: its own order is by length"
    if order == "arrival":
        return None
    if execution.batch_size == 1 and order != "own":
        return "batches of one: no order changes them"
    if execution.batch_size >= len(samples) and not execution.batch_tokens:
        return "one batch holds all samples: no order changes it"
    if execution.protocol == "paper" and not probe.leaves_early:
        return "all padded alike and all leave alike: no order changes the work"
    return None
