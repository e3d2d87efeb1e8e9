"""Finished parts of a long measurement, stored in its results file, from which a stopped run resumes."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.core.environment import environment_facts
from harness.core.errors import ResultError
from harness.core.files import write_json
from harness.core.text_formats import read_json

# Parts of a fingerprint without which two measurements cannot be of the same code on the same machine.
_SAME = ("commit", "versions", "cpu", "gpu", "torch_threads")


class ResumeFile:
    """A JSON file with the settings, the parts measured so far by name, and at the end the results.

    Its ``fingerprint`` is that of the last program that wrote it; ``earlier`` has those of other code or machines that measured
    parts of it, and a line says so.

    Args:
        path: of the file; it is made when the first part is stored.
        suite: name of the study that writes it.
        asked: JSON values on which parts depend.
        fresh: drop parts that are stored.

    Raises:
        ResultError: the file belongs to another program, was made with other settings, or cannot be written.
    """

    def __init__(self, path: Path, suite: str, asked: Mapping[str, Any], *, fresh: bool = False) -> None:
        self.path = path
        self._data: dict[str, Any] = {
            "suite": suite,
            "asked": json.loads(json.dumps(asked)),
            "complete": False,
            "parts": {},
            "fingerprint": environment_facts(),
        }
        try:  # fail before hours of work
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResultError(f"cannot write {path}: {error.strerror}: choose another file with --out") from error
        found = self._found()
        if found is None:
            return
        if found.get("suite") != suite or not isinstance(found.get("parts"), dict):
            raise ResultError(f"{path} was not written by this study: choose another file with --out")
        if fresh or not found["parts"]:
            return
        before, now = found.get("asked", {}), self._data["asked"]
        differing = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
        if differing:
            named = [key for key in differing if key != "key"] or ["settings of the profile, or the data"]
            raise ResultError(
                f"{path} was made with other settings ({', '.join(named)}): choose another file with --out, or --fresh"
            )
        self._data["parts"] = found["parts"]
        now = self._data["fingerprint"]
        before = [*found.get("earlier", []), found.get("fingerprint", {})]
        earlier = [one for one in before if any(one.get(name) != now.get(name) for name in _SAME)]
        if earlier:
            self._data["earlier"] = earlier
            commits = ", ".join(dict.fromkeys(str(one.get("commit") or "unknown") for one in earlier))
            print(
                f"{path}: some of its {len(found['parts'])} parts were measured by other code or on another machine (commit "
                f"{commits}): --fresh measures all of them again",
                file=sys.stderr,
            )

    def _found(self) -> dict[str, Any] | None:
        try:
            data = read_json(self.path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ResultError(f"cannot read {self.path} ({error}): delete it, or choose another --out") from error
        return data if isinstance(data, dict) else {}

    def __contains__(self, part: str) -> bool:
        return part in self._data["parts"]

    def __getitem__(self, part: str) -> Any:
        return self._data["parts"][part]

    def store(self, part: str, value: Any, *, instead_of: str = "") -> Any:
        """Write a part to the file and return its value; drop parts whose names begin with ``instead_of``."""
        parts = self._data["parts"]
        if instead_of:
            parts = {name: kept for name, kept in parts.items() if not name.startswith(instead_of)}
        self._data["parts"] = {**parts, part: value}
        write_json(self.path, self._data)
        return value

    def reopen(self, part: str, finished: Mapping[str, Any]) -> None:
        """Replace a part by those of its own parts that are finished, so that the others are measured again.

        Args:
            finished: name behind ``part/`` -> value.
        """
        parts = {name: kept for name, kept in self._data["parts"].items() if name != part}
        self._data["parts"] = {**parts, **{f"{part}/{name}": value for name, value in finished.items()}}
        write_json(self.path, self._data)

    def finish(self, **results: Any) -> None:
        """Write the results beside the parts."""
        write_json(self.path, {**self._data, **results, "complete": True})
