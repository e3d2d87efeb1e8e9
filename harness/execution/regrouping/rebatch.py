"""Sequential exit in batches that stay full: samples that stay after a head wait there, and continue together with others.

Early-exit servers do this against shrinking batches: E3 (Iyer et al., SOSP 2024) splits a model into blocks and keeps the batch
size constant from block to block; DREX (Liu et al., arXiv 2512.15705) holds the requests that continue in a buffer and regroups
them at every exit. It is the strongest rival of sorting by predicted exits. Batches are nearly as large as there, but the host
still has to read, after every head, which samples stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from harness.contracts import Execution, Predictions
from harness.core.tokens import TokenSet
from harness.core.work import Tally, record
from harness.encoder import transfer
from harness.encoder.multi_exit import MultiExitModel
from harness.execution.exit_rules import ExitRule
from harness.execution.regrouping.waiting_samples import WaitingGroup, WaitingQueue
from harness.execution.run_pass import BatchRun, Pass, StartBatch, inference, interleave
from harness.execution.sequential import run_sequential


def run_rebatched(model: MultiExitModel, tokens: TokenSet, execution: Execution, rule: ExitRule) -> Predictions:
    """Run batches of constant size. Results equal those at batch size 1.

    Work is chosen in this order, whenever a batch may start:

    1. the deepest full batch of waiting samples, so that few wait and for a short time;
    2. a new batch of the next samples. Like those of all executors it does not span windows; its survivors wait for those of
       later windows;
    3. at the end of the data, the shallowest waiting samples: their survivors join those that wait deeper.

    Samples leave a queue in the order in which they came. With batches of at most B samples and A heads, fewer than (A - 1) B
    samples wait, and the memory that they need, hidden states and rows of the rule's memory, is bounded by that. After every
    head but the last, the host receives one bool per sample of the batch, which it has to wait for; on CUDA, another batch
    computes meanwhile. Samples that stay are gathered with one copy on the device, and joined with others with a second one.
    """
    with inference(model):
        run = Pass(model, tokens, execution)
        with run.phases("layers"):
            interleave(_Rebatching(run, rule).starts(), run.device)
        return run.predictions()


def run_by_rule(model: MultiExitModel, tokens: TokenSet, execution: Execution, rule: ExitRule) -> Predictions:
    """Run samples to where an exit rule lets them leave, with the executor of the execution, ``rule_executor``."""
    run = run_rebatched if execution.rule_executor == "rebatch" else run_sequential
    return run(model, tokens, execution, rule)


class _Rebatching:
    """The queues of one pass, and what starts next.

    A stage is the layers up to a head that the rule asks, and that head. Queue s has the samples before stage s + 1.
    """

    def __init__(self, run: Pass, rule: ExitRule) -> None:
        self._run, self._rule = run, rule
        answers = run.model.answers
        self._heads = [at for place, at in enumerate(answers[:-1]) if rule.asks(place)] + [answers[-1]]
        self._queues = [WaitingQueue(run.execution) for _ in self._heads[1:]]
        self._in_flight: list[int] = []  # stages of the running batches

    def starts(self) -> Iterator[StartBatch | None]:
        """Yield what to start next, whenever asked; ``None`` if that depends on the running batches."""
        for first, last in self._run.batches():
            yield from self._full_batches()
            yield partial(self._begin, first, last)
        while True:
            yield from self._full_batches()
            waiting = [stage for stage, queue in enumerate(self._queues, 1) if queue.count]
            # A running batch at an earlier stage may still add samples.
            if waiting and min(self._in_flight, default=waiting[0]) >= waiting[0]:
                yield self._continue(waiting[0])
            else:
                yield None

    def _full_batches(self) -> Iterator[StartBatch]:
        while full := [stage for stage, queue in enumerate(self._queues, 1) if queue.full()]:
            yield self._continue(full[-1])

    def _continue(self, stage: int) -> StartBatch:
        return partial(self._run_stages, stage, self._queues[stage - 1].take())

    def _begin(self, first: int, last: int, lane: int) -> BatchRun:
        """Run a new batch through the first stage."""
        hidden, layout = self._run.begin(first, last, lane)
        memory = self._rule.begin(last - first, self._run.device)
        return self._run_stages(0, WaitingGroup(np.arange(first, last), hidden, layout, memory), lane)

    def _run_stages(self, stage: int, group: WaitingGroup, lane: int) -> BatchRun:
        """Run a batch through a stage, and on as long as no sample leaves and none waits before the next stage."""
        run, rule = self._run, self._rule
        samples, hidden, layout, memory = group.samples, group.hidden, group.layout, group.memory
        where = slice(int(samples[0]), int(samples[-1]) + 1) if stage == 0 else samples
        # The last batch of a window, and those at the end of the data, may be smaller.
        full = len(samples) == run.execution.batch_size or run.execution.batch_tokens > 0
        while True:
            head = self._heads[stage]
            for index in range(self._heads[stage - 1] + 1 if stage else 0, head + 1):
                hidden = run.layer(index, hidden, layout, lane)
            logits = run.head(head, hidden, layout, lane)
            # All samples are answered, and staying ones again later, so none has to be picked out.
            run.answer(where, logits, head)
            if stage == len(self._queues):
                return
            doubt = None if rule.gate is None else run.gate(head, rule.gate, hidden, layout)
            record("decide", Tally(len(logits)))
            leaves, memory = rule.look(run.model.answers.index(head), logits, doubt, memory)
            self._in_flight.append(stage)
            stay = ~(yield transfer.download(leaves))
            self._in_flight.remove(stage)
            if not stay.any():
                return
            queue = self._queues[stage]
            if not stay.all():
                staying = np.flatnonzero(stay)
                samples = samples[staying]
                hidden, layout = layout.select(hidden, staying)
                if memory:
                    rows = transfer.upload(staying, run.device)
                    memory = tuple(part.index_select(0, rows) for part in memory)
            elif queue.count or not full:
                hidden = run.keep(hidden)
            else:
                stage += 1
                continue
            queue.add(WaitingGroup(samples, hidden, layout, memory))
            return
