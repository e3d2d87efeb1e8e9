"""A profile says what is measured on what, and how: TOML, data and never code.

Profiles are found in packages named by the entry-point group ``geep.profiles``, or by path.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness import registry
from harness.contracts import Method, NamesContent
from harness.core.errors import ConfigError, UnknownNameError
from harness.running import variants

GROUP = "geep.profiles"


class ExecutionSettings(BaseModel):
    """See :class:`harness.contracts.Execution`.

    ``"auto"`` is bfloat16 in CUDA graphs on a CUDA device, and float32 run eagerly elsewhere.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    batch_size: int = Field(default=32, ge=1)
    protocol: Literal["modern", "paper"] = "modern"
    order: Literal["arrival", "length"] = "length"
    window: int = Field(default=0, ge=0)
    executor: Literal["ladder", "exact-k"] = "ladder"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    compute: Literal["auto", "eager", "compiled", "graphs", "compiled-graphs"] = "auto"
    batch_tokens: int = Field(default=0, ge=0)


class Profile(BaseModel):
    """What a run does unless the command line says otherwise.

    Attributes:
        title: one line for people.
        source: where data comes from.
        datasets: names.
        methods: names of methods and variants; what they need is fitted, too, but only these are measured.
        reference: the method that speed-ups are measured against.
        speeds: entropy thresholds (FastBERT's speed) at which early-exit methods are measured.
        rounds: timed passes per cell.
        fit_processes: methods that are fitted at the same time, each on its share of the threads; on a CPU only.
        max_length: tokens per sample.
        backbones: language -> ``"embedded"``, folder or hub id.
        training: hyper-parameters for every method (see :class:`harness.toolkit.training.Recipe`), ``head``.
        compare: method -> others that the report holds it against, beside ``bert`` and ``fastbert``: the same without its
            idea, for example.
        method: settings per method, on top of ``training``; with ``like``, a variant (:mod:`harness.running.variants`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = ""
    title: str
    source: Literal["embedded", "local", "hub"]
    datasets: list[str]
    methods: list[str]
    reference: str = "bert"
    seeds: list[int] = [0]
    speeds: list[float] = [0.1, 0.5, 0.8]
    rounds: int = Field(default=3, ge=1)
    fit_processes: int = Field(default=1, ge=1, le=64)
    max_length: int = Field(default=128, ge=8)
    max_train: int | None = Field(default=None, ge=1)
    max_test: int | None = Field(default=None, ge=1)
    backbones: dict[str, str] = Field(default_factory=dict)
    execution: ExecutionSettings = ExecutionSettings()
    training: dict[str, Any] = Field(default_factory=dict)
    compare: dict[str, list[str]] = Field(default_factory=dict)
    method: dict[str, dict[str, Any]] = Field(default_factory=dict)

    def config(self, method: str) -> dict[str, Any]:
        """Settings for one method or variant: the common ones and its own."""
        return {"speeds": self.speeds, **self.training, **variants.settings(self.method, method)}

    def method_of(self, name: str) -> Method:
        """The method or variant called ``name``.

        Raises:
            UnknownNameError: there is none, or it is like, or needs, one that does not exist.
            ConfigError: a variant makes no sense.
            MethodError: its plug-in cannot be imported or lacks a part of the contract.
        """
        return variants.method_of(self.method, name)

    def in_order(self, names: Iterable[str]) -> list[str]:
        """``names`` and everything they need, each after what it needs (:func:`harness.registry.in_order`)."""
        return registry.in_order(names, self.method_of)

    def identity(self, name: str) -> Any:
        """What tells a method or variant from all others in content keys, its settings aside; JSON."""
        method = self.method_of(name)
        return method.identity if isinstance(method, variants.Variant) else name

    def named_content(self, name: str) -> Any:
        """Return the content that settings only name, e.g. a folder of weights (JSON), or ``None``."""
        method = self.method_of(name)
        return method.named_content(self.config(name)) if isinstance(method, NamesContent) else None

    @property
    def variants(self) -> list[str]:
        """Names of its variants."""
        return [name for name in self.method if variants.is_variant(self.method, name)]


def _found() -> dict[str, Any]:
    """Profile name -> readable file, over all packages of the group."""
    found = {}
    for point in entry_points(group=GROUP):
        for entry in files(point.value).iterdir():
            if entry.name.endswith(".toml"):
                found[entry.name.removesuffix(".toml")] = entry
    return found


def names() -> list[str]:
    """Names of all installed profiles."""
    return sorted(_found())


def load(name: str) -> Profile:
    """A profile by name or by the path of a TOML file.

    Raises:
        UnknownNameError: there is none of that name.
        ConfigError: it is not valid TOML, or holds an unknown or wrong key.
    """
    if name.endswith(".toml"):
        if not Path(name).is_file():
            raise ConfigError(f"no profile file {name}: give an existing TOML file, or one of {', '.join(names())}")
        try:
            text, title = Path(name).read_text(encoding="utf-8"), Path(name).stem
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"profile {name} cannot be read as UTF-8 text ({error}): save it again") from error
    else:
        found = _found()
        if name not in found:
            raise UnknownNameError("profile", name, found)
        text, title = found[name].read_text(encoding="utf-8"), name
    try:
        return Profile.model_validate({**tomllib.loads(text), "name": title})
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"profile {name} is not valid TOML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"profile {name}: {place}: {first['msg']}: see harness/running/profile.py for the keys"
        ) from error
