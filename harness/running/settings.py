"""The settings of a run: a profile and what the command line changes in it, validated before anything expensive starts."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import torch

from harness.contracts import Compute, DType, Execution
from harness.core.errors import ConfigError, DeviceError, MethodError
from harness.running.profile import Profile
from harness.running.task import check_names


@dataclass(frozen=True)
class Settings:
    """A profile and what the command line overrides in it.

    Attributes:
        data: folder of local data; makes the source ``local``.
        fresh: refit and measure again whatever is there already.
    """

    profile: Profile
    out: Path
    data: Path | None = None
    device: str = "cpu"
    fresh: bool = False

    @property
    def source(self) -> str:
        return "local" if self.data is not None else self.profile.source

    @property
    def dtype(self) -> DType:
        chosen = self.profile.execution.dtype
        return ("bfloat16" if self.device == "cuda" else "float32") if chosen == "auto" else chosen

    @property
    def compute(self) -> Compute:
        chosen, protocol = self.profile.execution.compute, self.profile.execution.protocol
        if chosen != "auto":
            return chosen
        # Attention over packed rows has a kernel that graphs can hold in half precision only.
        return "graphs" if self.device == "cuda" and (self.dtype == "bfloat16" or protocol == "paper") else "eager"

    @property
    def execution(self) -> Execution:
        given = self.profile.execution
        return Execution(
            given.batch_size,
            given.protocol,
            given.order,
            given.window,
            given.executor,
            self.profile.max_length,
            self.dtype,
            self.compute,
            given.batch_tokens,
        )


def validate_settings(settings: Settings) -> None:
    """Complain about names, device and folders before anything expensive starts.

    Raises:
        GeepBenchError: something asked for does not exist.
    """
    profile = settings.profile
    # Tables of settings and comparisons, too: a typo there would otherwise change nothing, silently.
    compared = itertools.chain(profile.compare, *profile.compare.values())
    for name in dict.fromkeys([*profile.methods, profile.reference, *profile.method, *compared]):
        try:
            profile.in_order([name])
        except MethodError:  # its cells will fail and say so; those of others need not
            continue
    if not profile.methods or not profile.datasets or not profile.seeds:
        raise ConfigError("nothing to run: name at least one method, one dataset and one seed")
    if settings.source == "local" and settings.data is None:
        raise ConfigError(f"profile '{profile.name}' measures real data: give its folder with --data DIR")
    check_names(profile.datasets, settings.source, settings.data)
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            "--device cuda: this machine has no usable CUDA device: leave --device out, or say --device cpu"
        )
    if "graphs" in settings.compute:
        if settings.device != "cuda":
            raise ConfigError(f"compute = '{settings.compute}' needs --device cuda: choose auto, eager or compiled")
        if settings.dtype == "float32" and profile.execution.protocol == "modern":
            raise ConfigError(
                f"compute = '{settings.compute}' of packed batches needs dtype = 'bfloat16': choose that, or auto, eager "
                "or compiled"
            )
