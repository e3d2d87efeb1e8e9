"""The cells of the grid: variants of one method that differ in knowledge, matching and start."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.core.errors import ConfigError
from harness.running.profile import Profile

NONE = "—"  # the matching of knowledge that compares no layers
MATCHINGS = ("uniform", "last", "top", "first", "random")
INITS = ("every-k-th", "first-k", "random", "svd", "folder")
_NO_LAYERS = {"alpha_hidden": 0.0, "alpha_attention": 0.0, "alpha_token_relations": 0.0, "alpha_embeddings": 0.0}
# Settings of each kind. All but labels have the teacher's answers and the labels as well, with the weights of the base method.
KNOWLEDGE: Mapping[str, Mapping[str, Any]] = {
    "labels": {"alpha_logits": 0.0},
    "logits": {},
    "embeddings": {"alpha_embeddings": 1.0},
    "hidden-mse": {"alpha_hidden": 1.0, "hidden": "mse"},
    "hidden-cos": {"alpha_hidden": 1.0, "hidden": "cos"},
    "attention-scores": {"alpha_attention": 1.0, "attention": "scores"},
    "attention-probabilities": {"alpha_attention": 1.0, "attention": "probabilities"},
    "value-relations": {"alpha_token_relations": 1.0, "token_relations": "value"},
    "qkv-relations": {"alpha_token_relations": 1.0, "token_relations": "qkv"},
}
ALONE = ("labels", "logits", "embeddings")  # compare no layers, so that no layers are matched


@dataclass(frozen=True)
class GridCell:
    """One student of the grid."""

    knowledge: str
    matching: str
    init: str

    @property
    def name(self) -> str:
        """Name of the variant."""
        matching = [] if self.matching == NONE else [self.matching]
        return "-".join(["grid", self.knowledge, *matching, self.init])

    @property
    def settings(self) -> dict[str, Any]:
        """What differs from the base method."""
        start = {} if self.init == "folder" else {"init": self.init}
        matching = {} if self.matching == NONE else {"matching": self.matching}
        return {**_NO_LAYERS, **KNOWLEDGE[self.knowledge], **matching, **start}


def cells(knowledge: Sequence[str], matchings: Sequence[str], inits: Sequence[str]) -> Iterator[GridCell]:
    """Yield all cells; knowledge without layers has one per start."""
    for init, kind in itertools.product(inits, knowledge):
        for matching in (NONE,) if kind in ALONE else matchings:
            yield GridCell(kind, matching, init)


def usual_starts(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the starts that a student with these settings can have: its folder, or those that fit its width."""
    if config.get("student"):
        return ("folder",)
    return ("every-k-th", "first-k", "random") if _is_wide(config) else ("svd", "random")


def _is_wide(config: Mapping[str, Any]) -> bool:
    return config.get("width") in (None, 1.0) or type(config["width"]) is int


def check_starts(base: str, config: Mapping[str, Any], inits: Sequence[str]) -> None:
    """Check that starts fit the base method's settings.

    Raises:
        ConfigError: one of them does not.
    """
    known = usual_starts(config)
    for init in inits:
        if init in known or (type(config.get("width")) is int and init in INITS[:-1]):
            continue
        fixed = {
            "svd": f"projects embeddings to a smaller width, and students are as wide as their teacher: --set {base}.width=0.5",
            "folder": f"needs a student to start from: --set {base}.student=FOLDER",
        }.get(init, f"does not fit a student that is narrower or comes from a folder: choose from {', '.join(known)}")
        raise ConfigError(f"--init {init} {fixed}")


def with_cells(profile: Profile, base: str, every: Sequence[GridCell]) -> Profile:
    """Return a profile whose methods are the reference and the cells, as variants of a base method."""
    tables = {cell.name: {"like": base, **cell.settings} for cell in every}
    methods = [profile.reference, *tables]
    return profile.model_copy(update={"method": {**profile.method, **tables}, "methods": methods})
