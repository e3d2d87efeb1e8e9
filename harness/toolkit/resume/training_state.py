"""Training states of one fit on disk: a killed training resumes after its last stored epoch, with the same result bit for bit.

A training's file has the trained parameters, those of the best epoch, the optimiser's moments, the states of the random
generators and, as JSON, what else the loop knows. Trainings are numbered in the order in which a fit makes them, which its settings
and its seed determine. The file of one that has ended has its weights and its report.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.core import clock
from harness.core.digest import read_tensors, write_tensors
from harness.core.errors import WriteError

EVERY = 60.0  # seconds between two states, at least
_SHARE = 0.02  # of the time that writing may take
_CPU, _CUDA, _ORDER = "random.cpu", "random.cuda", "random.order"


class _Fit:
    """Where the trainings of a fit are stored, and when one was stored last."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.trainings, self.stored, self.writing = folder, 0, clock.now(), 0.0

    def is_due(self) -> bool:
        return clock.now() - self.stored >= max(EVERY, self.writing / _SHARE)


_fit: ContextVar[_Fit | None] = ContextVar("_fit", default=None)


@contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """Store the states of trainings inside the block in a folder, at most one a minute, and resume from stored ones.

    The folder stays: :func:`forget` it when their result is stored.
    """
    token = _fit.set(_Fit(folder))
    try:
        yield
    finally:
        _fit.reset(token)


def forget(folder: Path) -> None:
    """Delete the trainings of a fit."""
    shutil.rmtree(folder, ignore_errors=True)


def _random_states(device: torch.device) -> dict[str, Tensor]:
    states = {_CPU: torch.get_rng_state()}
    return {**states, _CUDA: torch.cuda.get_rng_state(device)} if device.type == "cuda" else states


class TrainingState:
    """The stored state of one training.

    Args:
        model: its parameters that are not trained, and thus do not change, are not stored.
        about: JSON values that identify the training; a file of another one is ignored.
    """

    def __init__(self, model: nn.Module, device: torch.device, about: Mapping[str, Any]) -> None:
        self._fit = fit = _fit.get()
        self._model, self._device, self._about = model, device, dict(about)
        self._facts: dict[str, Any] = {}
        self._tensors: dict[str, Tensor] = {}
        if fit is None:
            return
        fit.trainings += 1
        self._path = fit.folder / f"training-{fit.trainings}.safetensors"
        if self._path.is_file():
            self._read()

    def _read(self) -> None:
        try:
            facts, tensors = read_tensors(self._path)
        except FileNotFoundError:  # another process has just stored the same fit
            return
        except (OSError, ValueError) as error:
            print(f"{self._path} is damaged ({error}); its training starts again", file=sys.stderr)
            return
        names = {f"model.{name}" for name in self._trained()}
        if facts.get("about") == self._about and names <= tensors.keys():
            self._facts, self._tensors = facts, tensors

    def _trained(self) -> dict[str, Tensor]:
        """Return what training changes: all of the model's state but frozen parameters."""
        frozen = {name for name, parameter in self._model.named_parameters() if not parameter.requires_grad}
        return {name: value for name, value in self._model.state_dict().items() if name not in frozen}

    @property
    def report(self) -> dict[str, Any] | None:
        """The report of a training that has ended; its weights and random states are then in place."""
        found: dict[str, Any] | None = self._facts.get("report")
        if found is not None:
            self._restore()
        return found

    def resume(
        self, optimizer: torch.optim.Optimizer, order: torch.Generator
    ) -> tuple[dict[str, Any], dict[str, Tensor] | None]:
        """Put model, optimiser and random generators into the stored state.

        Returns:
            The stored facts, empty without a state; and the state of the model's best epoch, if there is one.
        """
        if not self._facts:
            return {}, None
        self._restore()
        order.set_state(self._tensors[_ORDER])
        parameters = [one for group in optimizer.param_groups for one in group["params"]]
        for name, tensor in self._part("optimizer").items():
            number, _, key = name.partition(".")
            parameter = parameters[int(number)]
            optimizer.state[parameter][key] = tensor.to(parameter.device, copy=True)
        kept = self._part("best")
        now = self._model.state_dict()
        best = (
            {name: kept.get(name, value).to(value.device, copy=True) for name, value in now.items()} if kept else None
        )
        facts, self._tensors = self._facts, {}
        return facts, best

    def _part(self, kind: str) -> dict[str, Tensor]:
        return {name.removeprefix(f"{kind}."): v for name, v in self._tensors.items() if name.startswith(f"{kind}.")}

    def _restore(self) -> None:
        with torch.no_grad():
            for name, value in self._trained().items():
                value.copy_(self._tensors[f"model.{name}"])
        torch.set_rng_state(self._tensors[_CPU])
        if _CUDA in self._tensors:
            torch.cuda.set_rng_state(self._tensors[_CUDA], self._device)

    def store(
        self,
        facts: Mapping[str, Any],
        optimizer: torch.optim.Optimizer,
        order: torch.Generator,
        best: Mapping[str, Tensor] | None,
    ) -> None:
        """Store the state between two epochs, if it is time.

        Raises:
            WriteError: it cannot be written.
        """
        if self._fit is None or not self._fit.is_due():
            return
        trained = self._trained()
        tensors = {_ORDER: order.get_state()}
        tensors |= {} if best is None else {f"best.{name}": best[name] for name in trained}
        parameters = [one for group in optimizer.param_groups for one in group["params"]]
        for number, parameter in enumerate(parameters):
            tensors |= {f"optimizer.{number}.{key}": value for key, value in optimizer.state[parameter].items()}
        self._write(self._fit, facts, tensors)

    def end(self, report: Mapping[str, Any]) -> None:
        """Store the weights of a training that has ended, and its report, if it is time; raises as :meth:`store`."""
        if self._fit is not None and self._fit.is_due():
            self._write(self._fit, {"report": report}, {})

    def _write(self, fit: _Fit, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        start = clock.now()
        trained = {f"model.{name}": value for name, value in self._trained().items()}
        state = {**trained, **_random_states(self._device), **tensors}
        try:
            write_tensors(self._path, state, {"about": self._about, **facts})
        except WriteError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            # Another process has just stored the same fit, and deleted its trainings: nothing is left to resume.
        fit.stored = clock.now()
        fit.writing = fit.stored - start
