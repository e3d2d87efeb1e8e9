"""Makes fits that another process asks for, one after the other, into the cache: in a worker of this machine or on a node."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness.core.errors import GeepBenchError, format_error, is_fatal
from harness.encoder.backbone import Backbone
from harness.measure.resources import advice
from harness.running.profile import Profile
from harness.running.run_settings import Settings
from harness.running.session import Session


def first_message(settings: Settings) -> dict[str, Any]:
    """Return what a process must know of a run to fit its methods; JSON."""
    profile = settings.profile.model_copy(update={"fit_threads": settings.fit_threads or None})
    return {
        "profile": profile.model_dump(mode="json"),
        "data": None if settings.data is None else str(settings.data.expanduser().resolve()),
        "device": settings.device,
        "threads": settings.fit_threads,
    }


def settings_of_message(message: Mapping[str, Any], out: Path = Path("unused")) -> Settings:
    """Return the settings that :func:`first_message` describes, with a run folder."""
    data = None if message["data"] is None else Path(message["data"])
    return Settings(Profile(**message["profile"]), out, data, message["device"])


def answer_of(work: Callable[[], Mapping[str, Any] | None]) -> dict[str, Any]:
    """Call ``work`` and return its answer or, if it failed, ``{"reason": ..., "traceback": ..., ...}``.

    ``fatal``: nothing more can be written; ``refused``: the input cannot be used.
    """
    try:
        return dict(work() or {})
    except Exception as error:  # noqa: BLE001 - the process that asked handles it
        reason, trace = f"{format_error(error)}{advice(error)}", "".join(traceback.format_exception(error))
        return {
            "reason": reason,
            "fatal": is_fatal(error),
            "refused": isinstance(error, GeepBenchError),
            "traceback": trace,
        }


class FitMaker:
    """Fits of one run.

    Data and backbones stay loaded, as the next fit may be of any dataset and seed; fits of the last one only.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._loaded: dict[str, Session] = {}
        self._backbones: dict[tuple[str, str], Backbone] = {}
        self._session: Session | None = None

    def session(self, dataset: str, seed: int) -> Session:
        """Return the session of a dataset and seed, with its data and backbone loaded.

        Raises:
            GeepBenchError: they cannot be used.
        """
        last = self._session
        if last is None or (last.dataset, last.seed) != (dataset, seed):
            if dataset not in self._loaded:
                self._loaded[dataset] = Session(self.settings, dataset, seed, quiet=True, backbones=self._backbones)
            _ = self._loaded[dataset].prepared
            self._session = last = self._loaded[dataset].with_seed(seed)
        return last
