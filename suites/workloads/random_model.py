"""A random model and random samples whose entropies give a chosen share of exits at every layer.

It compares the speed of executors at any shape without data or training. All executors run the same samples to the same layers,
whether they know the exits beforehand or determine them layer by layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from geep.exit_table import ExitTable
from harness.contracts import Compute, DType, EngineName, Execution, Predictions
from harness.core.clock import Phases
from harness.core.tokens import TokenSet
from harness.encoder.backbone import shape_of
from harness.encoder.model import Encoder
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.shape import EncoderShape
from harness.engines.choice import LINEAR, execution_on
from harness.engines.int8 import quantised
from harness.execution.arrangement import sort_by_exit
from harness.execution.executors import exit_logits, run_assigned, run_full
from harness.execution.exit_rules import Entropy, normalised_entropy
from harness.execution.regrouping.look_once import run_look_once
from harness.execution.regrouping.rebatch import run_rebatched
from harness.execution.sequential import run_faithful, run_sequential
from harness.execution.verified import run_verified

THRESHOLD = 0.5  # a sample exits at this normalised entropy or less
PILOT = 512  # samples for which heads are set


def random_samples(
    count: int, vocab: int, rng: np.random.Generator, longest: int = 128, length: int | None = None
) -> TokenSet:
    """Draw ids by Zipf's law, and lengths log-normally around 50 tokens as in AG News, at most ``longest``.

    First ids are uniform: heads read that position, and a random model must be able to tell samples apart.

    Args:
        length: of all samples, instead of random ones.
    """
    drawn = np.clip(np.exp(rng.normal(3.9, 0.45, count)), 8, longest).astype(np.int64)
    lengths = drawn if length is None else np.full(count, length)
    ids = [
        [int(rng.integers(min(1000, vocab - 1), vocab)), *np.minimum(rng.zipf(1.3, size - 1) + 999, vocab - 1).tolist()]
        for size in lengths
    ]
    return TokenSet.from_lists(ids)


def shallow(count: int) -> np.ndarray:
    """Return probabilities of ``count`` exits with a mean at about a third of the depth."""
    weight = np.linspace(2.0, 0.2, count)
    return weight / weight.sum()


def set_exits(model: MultiExitModel, tokens: TokenSet, execution: Execution) -> None:
    """Shift and scale every student's logits so that exits at :data:`THRESHOLD` follow :func:`shallow`."""
    few = tokens.select(np.arange(min(PILOT, len(tokens))))
    logits = exit_logits(model, few, execution)  # [A, N, C]
    wanted = shallow(len(model.answers))
    here = torch.ones(len(few), dtype=torch.bool)
    for place, exit_layer in enumerate(model.exits):
        said = logits[place] - logits[place].mean(0)
        leaving = round(float(wanted[place] / wanted[place:].sum() * int(here.sum())))
        # Half way between two samples, so that rounding moves no sample.
        scale = (_scale(said[here], leaving) * _scale(said[here], leaving + 1)) ** 0.5
        label = model.student(exit_layer).label
        assert isinstance(label, nn.Linear)
        with torch.no_grad():
            label.bias.sub_(logits[place].mean(0).to(label.bias)).mul_(scale)
            label.weight.mul_(scale)
        here &= normalised_entropy(said * scale) > THRESHOLD


def _scale(logits: Tensor, count: int) -> float:
    """Return the smallest factor on logits [N, C] with which ``count`` samples exit; a larger one lowers all entropies."""
    low, high = 0.0, 1e6
    for _ in range(60):
        middle = (low + high) / 2
        sure = int((normalised_entropy(logits * middle) <= THRESHOLD).sum())
        low, high = (middle, high) if sure < count else (low, middle)
    return high


@dataclass
class ExecutorWorkload:
    """A model, samples and an exit table for timing executors.

    Attributes:
        shape: name of a backbone's shape, or the shape itself.
        length: tokens of every sample; ``None`` for realistic lengths.
        engine: of torch, that runs the blocks; ``None``: as the execution says. See :meth:`on`.
    """

    shape: str | EncoderShape
    samples: int
    device: str
    dtype: DType
    length: int | None = None
    seed: int = 0
    engine: EngineName | None = None

    def on(self, engine: EngineName) -> ExecutorWorkload:
        """Return the same samples, weights and exits on an engine of torch. Exits that a rule finds are the engine's own."""
        new = replace(self, engine=engine)
        model = quantised(self.model, LINEAR[engine]) if engine in LINEAR else self.model
        vars(new).update(tokens=self.tokens, model=model, exits=self.exits, table=self.table)
        return new

    def execution(
        self, batch_size: int, compute: Compute = "eager", window: int = 0, batch_tokens: int = 0
    ) -> Execution:
        """Return execution settings; samples are sorted by length."""
        chosen = Execution(batch_size, window=window, dtype=self.dtype, compute=compute, batch_tokens=batch_tokens)
        return execution_on(self.engine, chosen)

    @property
    def _shape(self) -> EncoderShape:
        return shape_of(self.shape) if isinstance(self.shape, str) else self.shape

    @cached_property
    def tokens(self) -> TokenSet:
        rng = np.random.default_rng(self.seed)
        vocab = self._shape.vocab_size
        return random_samples(self.samples, vocab, rng, length=self.length).to(self.device)

    @cached_property
    def model(self) -> MultiExitModel:
        torch.manual_seed(self.seed)
        shape = self._shape
        model = MultiExitModel(Encoder(shape).to(self.device), 2, range(max(1, shape.layers - 2))).eval()
        set_exits(model, self.tokens, self.execution(64))
        return model

    @cached_property
    def exits(self) -> Tensor:
        """Exit layers if a head runs after every layer: int16 [N] on the device."""
        found = run_sequential(self.model, self.tokens, self.execution(64), Entropy(THRESHOLD))
        return torch.from_numpy(found.exit_layer).to(self.device)

    @cached_property
    def table(self) -> ExitTable:
        """An exit table of these samples and exits."""
        table = ExitTable(self.model.depth)
        table.insert(self.tokens, self.exits)
        table.freeze(min_count=1, smoothing=0)
        return table

    def run(self, executor: str, execution: Execution) -> Predictions:
        """Run one pass. Executors that predict exits spend the time for it, but use :attr:`exits`.

        Raises:
            KeyError: unknown executor.
        """
        rule = Entropy(THRESHOLD)

        def predicted(run: Callable[[Phases], Predictions]) -> Predictions:
            phases = Phases(self.device)
            with phases("predict"):
                self.table.predict(self.tokens, 500)
            return run(phases)

        def assigned(phases: Phases) -> Predictions:
            way = replace(execution, executor="exact-k" if executor == "exact-k" else "ladder")
            return run_assigned(self.model, self.tokens, self.exits, way, phases=phases)

        def verified(phases: Phases) -> Predictions:
            return run_verified(self.model, self.tokens, self.exits[:, None], execution, rule, phases=phases)

        def looked() -> Predictions:
            lengths = self.tokens.lengths
            coming = self.exits[sort_by_exit(torch.zeros_like(self.exits), lengths, execution, self.model.depth)]

            def decide(logits: Tensor, _: Tensor) -> Tensor:  # samples come in running order
                nonlocal coming
                exits, coming = coming[: len(logits)], coming[len(logits) :]
                return exits

            return run_look_once(self.model, self.tokens, 0, decide, execution)

        runs: dict[str, Callable[[], Predictions]] = {
            "bert": lambda: run_full(self.model, self.tokens, execution),
            "ladder": lambda: predicted(assigned),
            "exact-k": lambda: predicted(assigned),
            "verified": lambda: predicted(verified),
            "look1": looked,
            "shrink": lambda: run_sequential(self.model, self.tokens, execution, rule),
            "rebatch": lambda: run_rebatched(self.model, self.tokens, execution, rule),
            "faithful": lambda: run_faithful(self.model, self.tokens, execution, rule),
        }
        return runs[executor]()


EXECUTORS = ("bert", "ladder", "exact-k", "verified", "look1", "shrink", "rebatch", "faithful")
