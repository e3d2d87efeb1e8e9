"""States of a run on disk, one safetensors file each.

A file has the weights, both moments of AdamW and, as JSON in its header, the step and other facts. Random numbers are
determined by seed and step (:mod:`harness.pretraining.loop`), so that they need no state. The two newest files are kept: if
writing one fails, the one before it is complete.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from harness.core.errors import ResultError
from harness.core.files import write_atomic

_KEPT = 2
_MOMENTS = ("exp_avg", "exp_avg_sq")


def files(folder: Path) -> list[Path]:
    """Return the states in a folder, oldest first."""
    return sorted(folder.glob("state-*.safetensors"))


def _digest(facts: str, tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a state's facts and tensors (on the CPU, contiguous)."""
    digest = hashlib.sha256(facts.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].view(torch.uint8).numpy().data)
    return digest.hexdigest()


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
    # Serialised to bytes first, so that a full disk raises an OSError with its cause.
    here = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    header = json.dumps(facts)
    content = to_bytes(here, {"facts": header, "sha256": _digest(header, here)})
    path = folder / f"state-{step:09d}.safetensors"
    write_atomic(path, lambda temporary: temporary.write_bytes(content))
    for old in files(folder)[:-_KEPT]:
        old.unlink(missing_ok=True)
    return path


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restore a state; return the facts that were saved with it.

    Raises:
        ResultError: the file is damaged, or belongs to another model.
    """
    try:
        with safe_open(path, framework="pt") as file:
            stored = file.metadata()
            facts: dict[str, Any] = json.loads(stored["facts"])
            names = set(file.keys())
            tensors = {name: file.get_tensor(name) for name in names}
            # States of earlier versions have nothing but facts.
            if stored.keys() != {"facts"} and stored.get("sha256") != _digest(stored["facts"], tensors):
                raise ValueError("it does not have its stored checksum")
            for name, parameter in model.named_parameters():
                wanted = {f"{part}.{name}" for part in ("model", *_MOMENTS)}
                shape = list(tensors[f"model.{name}"].shape) if wanted <= names else None
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
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise ResultError(
            f"{path} is damaged ({error}): delete it; the same command then resumes from the state before it"
        ) from error
    return facts
