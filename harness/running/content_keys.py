"""Content keys of cells: they follow everything that a result depends on, and never the path of a file."""

from __future__ import annotations

from dataclasses import asdict
from functools import cache

from harness.core.files import content_key
from harness.encoder.backbone import EMBEDDED, content_of, shown_name
from harness.engines.choice import engine_key
from harness.running.fits.fit_keys import CHASSIS_VERSION
from harness.running.run_settings import Settings
from harness.running.task import language_of, source_identity, unlabelled_identity

# What a result depends on, of a profile's own keys; settings of methods and execution are added.
_KEYS = {"reference", "rounds", "max_length", "max_train", "max_dev", "max_test", "dev_share"}


class ContentKeys:
    """The content keys of a run; what files hold is read once per object."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.identity = cache(self._identity)
        self.backbone = cache(self._backbone)

    def _identity(self, dataset: str) -> str:
        """Return what the content of a dataset depends on."""
        return source_identity(dataset, self.settings.source, self.settings.data)

    def _backbone(self, dataset: str) -> list[str] | None:
        """Return name and content hash of a dataset's backbone, ``None`` for the embedded one and if none is given.

        The embedded backbone needs no hash, as the same recipe makes the embedded data (:func:`_identity`).
        """
        settings, backbones = self.settings, self.settings.profile.backbones
        language = next(iter(backbones), "")
        if len(set(backbones.values())) > 1:  # local data is read to know its language
            language = language_of(dataset, settings.source, settings.data)
        name = backbones.get(language, EMBEDDED)  # the run reports a language without a backbone
        return None if name == EMBEDDED else [shown_name(name), content_of(name, language)]

    def of(self, dataset: str, method: str, seed: int = 0) -> str:
        """Return the key of a method's cells; the seed matters only where some seeds are timed and others not.

        Raises:
            GeepBenchError: the method, the data or a folder that a setting names cannot be used.
        """
        settings = self.settings.of(dataset)
        profile = settings.profile
        names = profile.fits([method, profile.reference])
        engines = {name: engine_key(engine) for name in (method, profile.reference) if (engine := profile.engine(name))}
        executors = {name: way for name in (method, profile.reference) if (way := profile.executor(name))}
        offsets = {name: offset for name in names if (offset := profile.seed_offset(name))}
        named = {name: content for name in names if (content := profile.named_content(name)) is not None}
        execution = asdict(settings.execution)
        if (
            execution["rule_executor"] == "shrink"
        ):  # as all cells ran before there was a choice, so their keys stay valid
            del execution["rule_executor"]
        own_keys = profile.model_dump(include=_KEYS)
        if not profile.timing.times(method, seed):
            own_keys["rounds"] = 0
        unlabelled = []
        if any(profile.uses_unlabelled(name) for name in names):
            own = unlabelled_identity(dataset, self.settings.source, self.settings.data)
            unlabelled = [[profile.max_unlabelled, own]]
        return content_key(
            CHASSIS_VERSION,
            [(profile.identity(name), profile.version(name), profile.config(name)) for name in names],
            self.identity(dataset),
            self.backbone(dataset),
            named,
            own_keys,
            profile.common(method),  # which settings are common to all methods is part of a result's binding
            execution,
            self.settings.device,
            [self.settings.fit_threads, *(self.settings.precision(name) for name in names)],
            *unlabelled,
            *([engines] if engines else []),
            *([executors] if executors else []),
            *([["seed offsets", offsets]] if offsets else []),
            *profile.timing.key(method, seed),
        )
