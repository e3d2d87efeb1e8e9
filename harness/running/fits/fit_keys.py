"""The content keys of fits and of trained weights: everything that each depends on, and never the path of a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.contracts import LearnsInStages, UsesUnlabelled, UsesWordHead
from harness.core.files import content_key
from harness.encoder.backbone import Backbone
from harness.running.run_settings import Settings
from harness.running.task import Prepared
from harness.running.variants import Variant

# Raised whenever a change of the encoder or the training loop changes what methods learn.
CHASSIS_VERSION = 2
# Settings that only choose operating points, which cells are named after.
POINTS = {"speeds", "budgets"}


def without_paths(value: Any) -> Any:
    """Return a setting with folders reduced to their names: results hold no path, and content has a hash of its own."""
    if isinstance(value, Mapping):
        return {str(key): without_paths(part) for key, part in sorted(value.items())}
    if isinstance(value, list | tuple):
        return [without_paths(part) for part in value]
    if isinstance(value, str) and value and Path(value).expanduser().is_dir():
        return Path(value).expanduser().resolve().name
    return value if isinstance(value, bool | int | float | str | None) else str(value)


@dataclass(frozen=True)
class FitKeys:
    """The keys of one dataset with one seed."""

    settings: Settings
    seed: int
    prepared: Prepared
    backbone: Backbone

    def seed_of(self, name: str) -> int:
        """Return the seed with which a method or variant is made."""
        return self.seed + self.settings.profile.seed_offset(name)

    def fit(self, name: str) -> str:
        """Return the key of a fitted method: everything its weights and choices depend on, so not its engine."""
        profile = self.settings.profile
        name = profile.fit_of(name)
        taught = [self.fit(need) for need in profile.method_of(name).needs]
        return self._key(name, profile.identity(name), profile.version(name), profile.config(name), taught)

    def weights(self, name: str) -> str:
        """Return the key of what training makes: the weights of a method that learns in stages, or the fit of another one.

        Methods and variants that differ in choices, or in those of their teachers, have equal keys.
        """
        profile = self.settings.profile
        name = profile.fit_of(name)
        method = profile.method_of(name)
        if not isinstance(method, LearnsInStages):
            return self.fit(name)
        base, roles = name, {need: need for need in method.needs}
        if isinstance(method, Variant):
            base, roles = method.base.name, method.roles
        config = {key: value for key, value in profile.config(name).items() if key not in method.choices}
        taught = {role: self.weights(need) for role, need in roles.items()}
        return self._key(name, base, method.weights_version, config, taught)

    def _key(self, name: str, identity: Any, version: int | str, config: Mapping[str, Any], taught: Any) -> str:
        named = self.settings.profile.named_content(name)
        return content_key(
            CHASSIS_VERSION,
            identity,
            version,
            config,
            self.seed_of(name),
            self.prepared.task.fingerprint,
            [self.backbone.fingerprint, self.backbone.tokenizer_fingerprint],
            self.settings.device,
            self.settings.fit_threads,
            self.settings.precision(name),
            taught,
            *([] if named is None else [named]),
            *self._declared_content(name, config),
        )

    def recipe(self, name: str) -> str:
        """Return a hash of the settings of one fit, without those that only choose operating points."""
        profile = self.settings.profile
        declared = self._declared_content(name, profile.config(name))
        return content_key(*self._chosen(name), profile.named_content(name), *declared)

    def settings_alone(self, name: str) -> str:
        """Return :meth:`recipe` without the content of files and rows, which differs from set to set."""
        return content_key(*self._chosen(name))

    def _chosen(self, name: str) -> tuple[Any, dict[str, Any]]:
        profile = self.settings.profile
        config = {key: without_paths(value) for key, value in profile.config(name).items() if key not in POINTS}
        return profile.identity(name), config

    def _declared_content(self, name: str, config: Mapping[str, Any]) -> list[str]:
        """Return the hashes of the backbone's word head and of the rows without labels, if these settings use them."""
        method = self.settings.profile.method_of(name)
        head = isinstance(method, UsesWordHead) and method.uses_word_head(config)
        rows = isinstance(method, UsesUnlabelled) and method.uses_unlabelled(config)
        return [*([self.backbone.head_fingerprint] if head else []), *([self.prepared.unlabelled_rows] if rows else [])]
