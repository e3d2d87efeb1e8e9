"""States of a run on disk, one safetensors file each.

A file has the weights, both moments of AdamW and, as JSON in its header, the step and other facts. Random numbers are
determined by seed and step (:mod:`harness.pretraining.loop`), so that they need no state. The two newest files are kept: if
writing one fails, the one before it is complete.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.core.digest import read_tensors, write_tensors
from harness.core.errors import ResultError

_KEPT = 2
_MOMENTS = ("exp_avg", "exp_avg_sq")


def files(folder: Path) -> list[Path]:
    """Return the states in a folder, oldest first."""
    return sorted(folder.glob("state-*.safetensors"))


def save(folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, facts: dict[str, Any]) -> Path:
    """Write the state after ``step`` steps, then delete all but the newest two.

    Args:
        facts: JSON values that :func:`load` returns.

    Raises:
        ResultError: the file cannot be written; older files are kept.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        tensors[f"model.{name}"] = parameter.detach()
        for moment in _MOMENTS:
            held = optimizer.state[parameter].get(moment)
            tensors[f"{moment}.{name}"] = torch.zeros_like(parameter) if held is None else held
    path = folder / f"state-{step:09d}.safetensors"
    write_tensors(path, tensors, facts)
    for old in files(folder)[:-_KEPT]:
        old.unlink(missing_ok=True)
    return path


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restore a state; return the facts that were saved with it.

    Raises:
        ResultError: the file is damaged, or belongs to another model.
    """
    try:
        facts, tensors = read_tensors(path)
        for name, parameter in model.named_parameters():
            wanted = {f"{part}.{name}" for part in ("model", *_MOMENTS)}
            shape = list(tensors[f"model.{name}"].shape) if wanted <= tensors.keys() else None
            if shape != list(parameter.shape):
                raise ResultError(
                    f"{path} is the state of a model of another shape ('{name}' is {shape or 'missing'}, not "
                    f"{list(parameter.shape)}): name another folder with --out, or start again with --fresh"
                )
        step = torch.tensor(float(facts["step"]))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(tensors[f"model.{name}"])
                moments = {key: tensors[f"{key}.{name}"].to(parameter.device) for key in _MOMENTS}
                # Fused AdamW counts its steps on the device, others on the host.
                counted = step.to(parameter.device if optimizer.defaults.get("fused") else "cpu").clone()
                optimizer.state[parameter] = {"step": counted, **moments}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultError(
            f"{path} is damaged ({error}): delete it; the same command then resumes from the state before it"
        ) from error
    return facts
