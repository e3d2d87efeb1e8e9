"""Profile ``paper``: every method that trains has its published settings, with their source."""

from __future__ import annotations

import re
from importlib.metadata import entry_points
from pathlib import Path

from harness import registry
from harness.running import profile
from harness.running.run_settings import make_settings, validate_settings
from harness.toolkit.base_method import BorrowingMethod

PLACE = Path(__file__).parents[2] / "suites" / "profiles" / "paper.toml"
# They run the weights of another method in another way. Controls, bounds and borrowed models are known as such.
RUN_ONLY = {"edgebert", "exit-rule", "f-pabee", "geep-look1", "geep-verified", "geep-zero"}


def trained() -> set[str]:
    """Return the registered methods that train a model of their own."""
    methods = [registry.get(entry.name) for entry in entry_points(group="geep.methods")]
    own = {one.name for one in methods if one.kind == "method" and not isinstance(one, BorrowingMethod)}
    return own - RUN_ONLY


def test_every_trained_method_has_published_settings(tmp_path: Path) -> None:
    """Each trained method has a table of its own and is measured; bert has the common one. The profile is valid."""
    paper = profile.load("paper")
    assert trained() - {*paper.method, "bert"} == set()
    assert trained() <= set(paper.methods)
    assert len(trained()) >= 14
    validate_settings(make_settings(paper, out=tmp_path, device="cpu"))


def test_every_table_states_its_source() -> None:
    """A comment above each table of settings names a repository, or says that nothing was published and what was taken instead."""
    text = PLACE.read_text(encoding="utf-8")
    tables = re.findall(r"((?:^#.*\n)+)\[(training|method\.\S+)\]$", text, flags=re.MULTILINE)
    assert {name for _, name in tables} == {"training", *(f"method.{name}" for name in profile.load("paper").method)}
    for comment, name in tables:
        named = re.search(r"\w[\w-]*/\w[\w-]*|same README", comment)
        assert named or "ot published" in comment and "taken from" in comment, name


def test_published_settings_reach_the_methods() -> None:
    """Spot checks of what is fitted: GEEP's ten epochs as released, and batches and epochs of its rivals."""
    paper = profile.load("paper")
    assert (paper.config("geep")["epochs"], paper.config("geep")["learning_rate"]) == (10, 3e-5)
    assert (paper.config("pcee-bert")["epochs"], paper.config("pcee-bert")["batch_size"]) == (15, 16)
    assert paper.config("fastbert")["epochs"] == paper.config("bert")["epochs"] == 3
    assert paper.config("control-constant")["epochs"] == 3
