"""The training loop on raw text, with AdamW and states on disk from which a run resumes exactly.

Batches are determined by seed and number (:mod:`harness.pretraining.text.batches`), dropout by seed and step, so that weights,
moments and step are the whole state. A run that was killed and resumed has the same losses and weights, bit for bit on a CPU;
on a GPU as far as its kernels are deterministic.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from harness.core import clock
from harness.core.errors import ConfigError, ResultError
from harness.core.files import write_text
from harness.encoder.masked_words import MaskedWordModel
from harness.kernels.compiled_code import own_compiler_caches
from harness.measure.resources import matrix_rate
from harness.pretraining import snapshot
from harness.pretraining.general_distillation import Distillation
from harness.pretraining.recipe import PretrainRecipe
from harness.pretraining.text.batches import Batch, Stream, ahead
from harness.toolkit.training import has_bfloat16

_WINDOW = 20  # steps between reads of the loss, which wait for the device
_LINE_SECONDS = 30.0  # between progress lines without a terminal
_MEASURED_SECONDS, _WARM = 5.0, 3  # to measure the time of a step; warm-up steps before
_EARLY = 100  # batches that are searched for both kinds
_PEAKS = 3  # measurements of the peak rate; the best counts, as other programs may use the machine
_RESERVE = 0.03  # share of the time for states and progress

Forward = Callable[..., Tensor]


@dataclass
class Progress:
    """Progress of a run, stored in its states.

    Attributes:
        step: optimiser steps done.
        tokens: processed, without padding.
        seconds: in the loop, over all calls.
        loss: mean of the last window, in nats.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss: float = math.nan


class Trainer:
    """A model, its data and its optimiser.

    Args:
        folder: existing folder of the states and the curve.
        compiled: use ``torch.compile``; if it fails, print a message and run eagerly.
    """

    def __init__(
        self,
        model: MaskedWordModel | Distillation,
        stream: Stream,
        recipe: PretrainRecipe,
        folder: Path,
        *,
        compiled: bool = False,
    ) -> None:
        self.model, self.stream, self.recipe, self.folder = model, stream, recipe, folder
        self.device = stream.device
        self.bf16 = recipe.precision == "bfloat16" or (recipe.precision == "auto" and has_bfloat16(self.device))
        self.progress = Progress()
        self.curve = folder / "curve.jsonl"
        self.forward: Forward = model
        self.compiled = compiled
        self.optimizer = self._optimizer()
        self.peak = 0.0

    def _optimizer(self) -> torch.optim.AdamW:
        """Return AdamW as in BERT, without decay of norms and biases."""
        parameters = list(self.model.parameters())
        groups = [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": self.recipe.weight_decay},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]
        fused = self.device.type == "cuda"
        return torch.optim.AdamW(groups, lr=self.recipe.learning_rate, betas=(0.9, 0.98), eps=1e-6, fused=fused)

    def loss(self, batch: Batch) -> Tensor:
        """Return the loss: of the last layer, or the mean over all layers."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            losses = self.forward(*batch.inputs, self.recipe.multi_exit)
        return losses.mean()

    def prepare(self) -> None:
        """Compile by running a batch of each kind, if asked to, and measure the device's peak rate."""
        self.model.train()
        if self.compiled:
            own_compiler_caches()
            self.forward = torch.compile(self.model, dynamic=False, fullgraph=True)
            try:
                for batch in self._both_kinds():
                    self.loss(batch).backward()
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:  # e.g. a machine without a compiler
                print(f"torch.compile failed, continuing without it: {str(error).splitlines()[0]}", file=sys.stderr)
                self.forward, self.compiled = self.model, False
            self.optimizer.zero_grad(set_to_none=True)
        dtype = torch.bfloat16 if self.bf16 else torch.float32
        self.peak = max(matrix_rate(str(self.device), dtype) for _ in range(_PEAKS))

    def _both_kinds(self) -> list[Batch]:
        """Return the first batch without and the first with a mask in attention, among the first ones."""
        found: dict[bool, Batch] = {}
        for number in range(min(self.stream.per_epoch, _EARLY)):
            batch = self.stream.batch(number)
            found.setdefault(batch.pieces is None, batch)
            if len(found) == 2:
                break
        return list(found.values())

    def resume(self) -> bool:
        """Load the newest state; return whether there is one.

        Raises:
            ResultError: it is damaged, or has another shape.
        """
        found = snapshot.files(self.folder)
        if found:
            self.progress = Progress(**snapshot.load(found[-1], self.model, self.optimizer))
        self.cut_curve(self.progress.step)
        return bool(found)

    def cut_curve(self, step: int) -> None:
        """Keep the first ``step`` lines of the curve, which has one JSON line per step."""
        if self.curve.exists():
            # The curve is for readers only: a damaged line must not stop a run.
            kept = self.curve.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)[:step]
            write_text(self.curve, "".join(kept))

    def save(self) -> None:
        snapshot.save(self.folder, self.progress.step, self.model, self.optimizer, vars(self.progress))

    def _batches(self, first: int, stop: int) -> Iterator[list[Batch]]:
        """Yield the batches of steps ``first`` .. ``stop - 1``."""
        size = self.recipe.accumulate
        prepared = ahead(self.stream.batch, first * size, stop * size)
        while batches := list(itertools.islice(prepared, size)):
            yield batches

    def _update(self, step: int, batches: list[Batch]) -> tuple[Tensor, Tensor]:
        """Do one step; return its loss and the norm of its gradient, on the device."""
        torch.manual_seed(self.recipe.seed * 1_000_003 + step)  # dropout
        total = torch.zeros((), device=self.device)
        for batch in batches:
            loss = self.loss(batch) / len(batches)
            loss.backward()
            total += loss.detach()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate(step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total, norm

    def seconds_per_step(self) -> float:
        """Measure the time of a step on this device, by real steps that are then undone."""
        self.model.train()
        before = {name: value.clone() for name, value in self.model.state_dict().items()}
        start, done = 0.0, 0
        for step, batches in enumerate(self._batches(0, 10**6), start=1):
            self._update(step - 1, batches)
            if step == _WARM:
                clock.synchronise(self.device)
                start = clock.now()
            if step > _WARM and (step % 5 == 0 or clock.now() - start > _MEASURED_SECONDS):
                clock.synchronise(self.device)
                done = step - _WARM
                if clock.now() - start > _MEASURED_SECONDS:
                    break
        seconds = clock.now() - start
        self.model.load_state_dict(before)
        self.optimizer = self._optimizer()
        return seconds / done

    def flops_per_step(self) -> int:
        one = self.recipe
        return one.accumulate * self.model.training_flops(
            rows=one.rows, length=self.stream.length, share=one.mask_share, every=one.multi_exit
        )

    def train(self, *, save_every: float = 60.0, stop_after: float = math.inf, show: bool = True) -> bool:
        """Train to the end; return whether the end was reached.

        Args:
            save_every: seconds between states; 0 for one after every step.
            stop_after: seconds after which to save and stop.

        Raises:
            ConfigError: the loss or its gradient is NaN or infinite; the last valid state is kept.
            ResultError: a state cannot be written; the one before it is kept.
        """
        recipe, progress = self.recipe, self.progress
        self.model.train()
        losses: list[Tensor] = []
        norms: list[Tensor] = []
        start = mark = clock.now()
        saved = mark
        tokens, done_before = 0, progress.step
        with closing(_Bar(recipe.steps, progress.step, show)) as bar:

            def look() -> None:
                """Read the losses since the last call, which waits for the device; stop if one is not finite."""
                nonlocal tokens, mark, done_before
                if not losses:
                    return
                values, lines = torch.stack(losses).tolist(), []
                for number, pair in enumerate(zip(values, torch.stack(norms).tolist(), strict=True), done_before + 1):
                    if not all(map(math.isfinite, pair)):
                        kept = snapshot.files(self.folder)
                        where = f"the state in {kept[-1].name} is kept" if kept else "no state was written yet"
                        raise ConfigError(
                            f"the loss is not finite at step {number} of {recipe.steps}; {where}: start again with --fresh and "
                            "a lower --learning-rate"
                        )
                    lines.append(json.dumps({"step": number, "loss": pair[0], "norm": pair[1]}) + "\n")
                try:
                    with self.curve.open("a", encoding="utf-8") as handle:
                        handle.writelines(lines)
                except OSError as error:
                    raise ResultError(
                        f"cannot write {self.curve}: {error.strerror}: free space, then run again"
                    ) from error
                now = clock.now()
                progress.loss = sum(values) / len(values)
                progress.tokens += tokens
                progress.seconds += now - mark
                bar.show(
                    progress, tokens / (now - mark), len(values) * self.flops_per_step() / (now - mark) / self.peak
                )
                done_before, mark, tokens = progress.step, now, 0
                losses.clear()
                norms.clear()

            for batches in self._batches(progress.step, recipe.steps):
                loss, norm = self._update(progress.step, batches)
                losses.append(loss)
                norms.append(norm)
                progress.step += 1
                tokens += sum(batch.tokens for batch in batches)
                now = clock.now()
                ends = progress.step == recipe.steps or now - start >= stop_after
                if ends or now - saved >= save_every:
                    look()
                    self.save()
                    saved = mark = clock.now()
                elif len(losses) >= _WINDOW:
                    look()
                if ends:
                    break
        return progress.step == recipe.steps


class _Bar:
    """A progress bar on a terminal; otherwise a line every 30 seconds."""

    def __init__(self, steps: int, done: int, show: bool) -> None:
        self._steps, self._show = steps, show
        self._bar = tqdm(total=steps, initial=done, desc="training", unit="step", disable=None if show else True)
        self._told, self._began, self._first = clock.now(), clock.now(), done

    def close(self) -> None:
        self._bar.close()

    def show(self, progress: Progress, rate: float, share: float) -> None:
        """Show the loss, the tokens per second and the share of the peak rate since the last call."""
        facts = f"loss {progress.loss:.3f}, {rate:,.0f} tokens/s, {share:.1%} of peak"
        self._bar.update(progress.step - self._bar.n)
        self._bar.set_postfix_str(facts)
        now = clock.now()
        if self._show and self._bar.disable and now - self._told >= _LINE_SECONDS:
            self._told = now
            left = (now - self._began) / (progress.step - self._first) * (self._steps - progress.step)
            line = f"training: step {progress.step:,} of {self._steps:,}, {facts}, {left / 60:.1f} minutes left"
            print(line, file=sys.stderr, flush=True)


def steps_for(minutes: float, seconds_per_step: float) -> int:
    """Return the steps that fit into ``minutes``, with a reserve for states; at least 1."""
    return max(1, int(minutes * 60 * (1 - _RESERVE) / seconds_per_step))
