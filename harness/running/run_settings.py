"""The settings of a run: a profile and what the command line changes in it, validated before anything expensive starts."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch

from harness.contracts import Compute, DType, Execution
from harness.core.errors import ConfigError, DeviceError, MethodError, SettingsError, UnknownNameError
from harness.encoder.backbone import default_device
from harness.encoder.device_kernels.packed_linear import can_pack
from harness.execution.engine import DTYPES
from harness.results.search_record import SearchRecord, read_search
from harness.running import profile as profiles
from harness.running.profile import Override, Profile
from harness.running.task import check_names
from harness.toolkit.method_settings import Precision
from harness.toolkit.training import resolved_precision


@dataclass(frozen=True)
class Settings:
    """A profile, and what the command line sets in addition.

    Attributes:
        out: the run folder.
        data: folder of local data; makes the source ``local``.
        device: ``"cpu"`` or ``"cuda"``.
        fresh: fit and measure again what exists already.
        tuned: searches whose winners are among the settings of methods.
    """

    profile: Profile
    out: Path
    data: Path | None = None
    device: str = "cpu"
    fresh: bool = False
    tuned: tuple[SearchRecord, ...] = ()

    def of(self, dataset: str) -> Settings:
        """Return the settings with the rows and lengths of a dataset (:meth:`Profile.with_rows_of`)."""
        return replace(self, profile=self.profile.with_rows_of(dataset))

    @property
    def source(self) -> str:
        return "local" if self.data is not None else self.profile.source

    @property
    def dtype(self) -> DType:
        chosen = self.profile.execution.dtype
        return ("bfloat16" if self.device == "cuda" else "float32") if chosen == "auto" else chosen

    @property
    def fit_threads(self) -> int:
        """Threads of every fit on a CPU; 0 on another device, where they have no effect."""
        profile = self.profile
        if self.device != "cpu":
            return 0
        return profile.fit_threads or max(1, torch.get_num_threads() // profile.workers)

    def precision(self, method: str) -> str:
        """Return the precision in which a method is trained on this device, ``"float32"`` or ``"bfloat16"``."""
        chosen = self.profile.config(method).get("precision", "auto")
        # Any other value is refused when the method reads its settings.
        return resolved_precision(chosen, torch.device(self.device)) if chosen in get_args(Precision) else str(chosen)

    @property
    def compute(self) -> Compute:
        chosen = self.profile.execution.compute
        return usual_compute(self.device, self.dtype, self.profile.execution.protocol) if chosen == "auto" else chosen

    @property
    def execution(self) -> Execution:
        given = self.profile.execution.model_dump() | {"dtype": self.dtype, "compute": self.compute}
        return Execution(max_length=self.profile.max_length, **given)


def usual_compute(device: str, dtype: DType, protocol: str) -> Compute:
    """Return how blocks run on a device unless settings say otherwise."""
    if device == "cpu":
        return "packed" if can_pack(DTYPES[dtype]) else "eager"
    # CUDA graphs can hold the attention kernel for packed rows in half precision only.
    return "graphs" if dtype == "bfloat16" or protocol == "paper" else "eager"


def make_settings(
    profile: str | Path | Profile,
    *,
    out: Path | None = None,
    data: Path | None = None,
    device: str | None = None,
    fresh: bool = False,
    tuned: Iterable[Path] = (),
    overrides: Iterable[Override] = (),
    backbones: Mapping[str, str] | None = None,
    execution: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Settings:
    """Combine a profile with the options of the command line or of :func:`harness.run`.

    Args:
        profile: a name, the path of a TOML file, or a profile.
        out: the run folder; default ``runs/<profile>``.
        device: default: ``"cuda"`` if there is one.
        tuned: files of ``suites.studies.search``, whose winners replace settings of the profile.
        overrides: settings of methods, which replace those. A variant made by them is measured, too, unless ``methods`` are given.
        backbones: by language; others stay as in the profile.
        execution: keys of the profile's table ``execution`` to replace.
        changes: other keys of the profile to replace; ``None`` keeps the profile's value.

    Raises:
        UnknownNameError: no profile has this name.
        ConfigError: the profile or an option is invalid.
    """
    chosen = profile if isinstance(profile, Profile) else profiles.load(str(profile))
    changes = {key: value for key, value in changes.items() if value is not None}
    searches = tuple(read_search(path) for path in tuned)
    found = [
        (method, key, value) for search in searches for method, own in search.best.items() for key, value in own.items()
    ]
    listed, merged = {*chosen.methods, *chosen.method}, chosen.with_settings([*found, *overrides])
    if "methods" not in changes and (made := [name for name in merged.variants if name not in listed]):
        changes["methods"] = [*chosen.methods, *made]
    if backbones:
        changes["backbones"] = {**chosen.backbones, **backbones}
    if execution := {key: value for key, value in (execution or {}).items() if value is not None}:
        changes["execution"] = {**chosen.execution.model_dump(), **execution}
    if rows := {name: own.without(changes) for name, own in chosen.rows.items()}:
        changes["rows"] = rows
    if changes:
        valid = profiles.validated({**merged.model_dump(), **changes}, f"{chosen.name} with the given options")
        merged = merged.model_copy(update={key: getattr(valid, key) for key in changes})
    folder = out.expanduser() if out else Path("runs") / (chosen.name or "run")
    return Settings(merged, folder, data, device or default_device(), fresh, searches)


def validate_settings(settings: Settings, *, elsewhere: bool = False) -> None:
    """Validate names, settings of methods, device and folders before anything expensive starts.

    Args:
        elsewhere: other machines fit and measure, so this one needs no device.

    Raises:
        GeepBenchError: something does not exist or is invalid; problems of names and of settings are reported together.
    """
    profile = settings.profile
    # Names of tables and comparisons, too: a typo there would have no effect otherwise.
    compared = itertools.chain(profile.compare, *profile.compare.values())
    needed: dict[str, None] = {}
    unknown: list[UnknownNameError] = []
    named = [*profile.methods, profile.reference, *profile.method, *profile.timing.untimed, *compared]
    for name in dict.fromkeys(named):
        try:
            needed |= dict.fromkeys(profile.in_order([name]))
        except MethodError:  # its cells fail with this reason; other methods are not affected
            continue
        except UnknownNameError as error:
            unknown.append(error)
    problems = [*dict.fromkeys(map(str, unknown)), *profile.problems(needed)]
    if unknown and len(problems) == 1:
        raise unknown[0]
    if problems:
        raise SettingsError(*problems)
    if not profile.methods or not profile.datasets or not profile.seeds:
        raise ConfigError("nothing to run: name at least one method, one dataset and one seed")
    if not any(map(profile.seeds_of, profile.methods)):
        raise ConfigError(
            f"nothing to run: {', '.join(profile.methods)}: measured with other seeds than {', '.join(map(str, profile.seeds))} "
            "only: choose one of them with --seeds, or more with --set METHOD.seeds=[...]"
        )
    if settings.source == "local" and settings.data is None:
        raise ConfigError(f"profile '{profile.name}' measures real data: give its folder with --data DIR")
    check_names(profile.datasets, settings.source, settings.data)
    if settings.device == "cuda" and not elsewhere and not torch.cuda.is_available():
        raise DeviceError("--device cuda: this machine has no usable CUDA device: omit --device, or use --device cpu")
    if settings.compute == "packed" and settings.device != "cpu":
        raise ConfigError("compute = 'packed' is for a CPU: choose auto, or use --device cpu")
    if "graphs" in settings.compute:
        if settings.device != "cuda":
            raise ConfigError(f"compute = '{settings.compute}' needs --device cuda: choose auto, eager or compiled")
        if settings.dtype == "float32" and profile.execution.protocol == "modern":
            raise ConfigError(
                f"compute = '{settings.compute}' of packed batches needs dtype = 'bfloat16': choose that, or auto, eager "
                "or compiled"
            )
