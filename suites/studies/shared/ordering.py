"""Sort samples before a method runs, without knowledge of the method.

Thus every method can have its samples sorted by length, and the gain is not credited to early exits.
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
    "predicted": "deepest predicted exit first, ties in order of arrival; predicting and sorting are timed",
    "oracle": "deepest true exit first; looked up beforehand and not timed: a bound",
    "own": "as the method itself sorts: all samples by its exits, ties by length",
}
ORDERS = tuple(MEANING)
PREDICTING, SORTING = "order by prediction", "order and back"  # phases


@dataclass
class InOrder:
    """A method whose samples are sorted, longest or deepest first, and whose answers are put back in order, all timed.

    Without ``exits`` and ``predict_exits``, samples are sorted by length.

    Attributes:
        fitted: the method; it receives the samples as if they had arrived in this order.
        depth: number of layers, one more than the largest exit.
        longest: upper bound of the tokens of a sample.
        exits: int16 [M] of the samples about to run, known beforehand; -1 (answered before layer 1) comes last.
        predict_exits: predicts exits in the timed region.
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
        """Return the order, int64 [M]: by exit if there are exits, else by length."""
        lengths = tokens.lengths if exits is None else torch.zeros_like(tokens.lengths)
        if exits is None:
            exits = torch.zeros(len(tokens), dtype=torch.int16, device=tokens.device)
        if tokens.device.type == "cpu":
            return schedule(exits + 1, lengths)
        return schedule_on_device(exits + 1, lengths, depth=self.depth + 1, max_length=self.longest)


def execution_for(order: str, execution: Execution, sorts: bool) -> Execution:
    """Return the execution settings under an order.

    Under ``own`` the method sorts all samples itself. Under any other order, batches are cut from the given order; a method
    that sorts by exits receives one batch at a time (its window) and sorts within it.
    """
    if order == "own":
        return replace(execution, order="length", window=0)
    return replace(execution, order="arrival", window=execution.batch_size if sorts else 0)


def around(order: str, entry: StudyMethod, samples: StudySamples, exits: np.ndarray | None) -> InOrder | None:
    """Return the sorter around ``entry``, or ``None`` if no sorting is needed.

    Args:
        exits: for ``oracle``: int16 [M] of the samples about to run.
    """
    if order in ("arrival", "own"):
        return None
    # Exits come from the predictor's model or from the entry's.
    depth = max(entry.fitted.cost.depth, samples.predictor[0].model.depth) if order != "length" else 1
    longest = samples.session.settings.execution.max_length
    if order == "length":
        return InOrder(entry.fitted, depth, longest)
    if order == "predicted":
        return InOrder(entry.fitted, depth, longest, predict_exits=samples.predict)
    return InOrder(entry.fitted, depth, longest, torch.as_tensor(exits, device=samples.tokens.device))


def pointless(order: str, entry: StudyMethod, samples: StudySamples, execution: Execution) -> str | None:
    """Return why this order cannot change how ``entry`` runs, or ``None`` if it can."""
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
        return "all samples have the same padded length and exit: no order changes the work"
    return None
