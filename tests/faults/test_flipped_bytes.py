"""One byte of a stored file is flipped: the damage is found, and what was damaged is made again."""

from __future__ import annotations

import fnmatch
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

pytestmark = pytest.mark.slow

# Every file that a run stores belongs to one of these kinds. Those of a run folder are damaged in a finished run ...
RUN = (
    "run/run.json",
    "run/plan/*.json",
    "run/results/*.json",
    "run/samples/*.parquet",
    "run/report/index.html",
    "run/report/*",
)
# ... those of the cache before another run, which uses them.
CACHE = (
    "cache/backbones/*/model.safetensors",
    "cache/backbones/*/config.json",
    "cache/backbones/*/tokenizer.json",
    "cache/backbones/*/tokenizer_config.json",
    "cache/backbones/*/seal.json",
    "cache/weights/*/model.safetensors",
    "cache/weights/*/model.json",
    "cache/weights/*/training.json",
    "cache/weights/*/geep.json",
    "cache/weights/*/points.json",
    "cache/weights/*/seal.json",
    "cache/fits-2/*/model.safetensors",
    "cache/fits-2/*/model.json",
    "cache/fits-2/*/training.json",
    "cache/fits-2/*/geep.json",
    "cache/fits-2/*/points.json",
    "cache/fits-2/*/seal.json",
    "cache/fits-2/*/table-*/exit_table.safetensors",
    "cache/fits-2/*/table-*/exit_table.json",
)
# ... and those of a fit that was killed before the same command.
UNFINISHED = ("cache/unfinished/*/training-*.safetensors",)
OTHER = ("*.lock",)  # nothing depends on their content
PRETRAINED = (
    "training/plan.json",
    "training/curve.jsonl",
    "training/state-*4.safetensors",
    "training/shards/full-*.npy",
    "training/shards/heldout-*.npy",
    "training/shards/shared-*.npy",
    "training/shards/shards.json",
    "training/shards/tokenizer.json",
    "training/shards/vocab.txt",
    "training/shards/seal.json",
)


def stored(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip(folder: Path, kind: str, draw: Random) -> Path:
    """Flip one bit of one file of a kind."""
    path = draw.choice([one for one in stored(folder) if fnmatch.fnmatch(one.relative_to(folder).as_posix(), kind)])
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    return path


def test_every_stored_file_is_of_a_known_kind(undisturbed: Any) -> None:
    """A new kind of file is damaged here, too."""
    names = [path.relative_to(undisturbed.place.folder).as_posix() for path in stored(undisturbed.place.folder)]
    kinds = (*RUN, *CACHE, *UNFINISHED, *OTHER)
    assert not [name for name in names if not any(fnmatch.fnmatch(name, kind) for kind in kinds)]
    assert not [kind for kind in (*RUN, *CACHE) if not fnmatch.filter(names, kind)]
    assert not [kind for kind in UNFINISHED if fnmatch.filter(names, kind)]  # all fits have ended


@pytest.mark.parametrize("number", range(2))
@pytest.mark.parametrize("kind", RUN)
def test_in_a_run_folder(
    kind: str,
    number: int,
    place: Any,
    undisturbed: Any,
    survives: Callable[..., None],
    tried: Callable[[str], None],
    draw: Random,
) -> None:
    """The same command again measures the damaged cell, and no other one, or makes the damaged file again."""
    tried("a flipped byte in a run folder")
    damaged = flip(undisturbed.copy_to(place).folder, kind, draw)
    survives(place, damaged=frozenset({f"{damaged.stem}.json"}))


@pytest.mark.parametrize("kind", CACHE)
def test_in_the_cache(
    kind: str, place: Any, undisturbed: Any, survives: Callable[..., None], tried: Callable[[str], None], draw: Random
) -> None:
    """Another run finds the damage and makes the damaged fit or backbone again."""
    tried("a flipped byte in the cache")
    shutil.copytree(undisturbed.place.cache, place.cache)
    if kind.startswith("cache/weights/"):  # they are read when a fit is made
        shutil.rmtree(place.cache / "fits-2")
    flip(place.folder, kind, draw)
    survives(place)


@pytest.mark.parametrize("kind", UNFINISHED)
def test_in_a_fit_that_was_killed(
    kind: str, place: Any, undisturbed: Any, survives: Callable[..., None], tried: Callable[[str], None], draw: Random
) -> None:
    """The damage is found, and the training starts again."""
    tried("a flipped byte in a killed fit")
    while not any(fnmatch.fnmatch(one.relative_to(place.folder).as_posix(), kind) for one in stored(place.folder)):
        for folder in (place.run, place.cache):
            shutil.rmtree(folder, ignore_errors=True)
        place.carry_out(fault={"kill_at": draw.randint(1, undisturbed.events)})
    flip(place.folder, kind, draw)
    survives(place)


@pytest.mark.parametrize("kind", PRETRAINED)
def test_damaged_files_of_pretraining_are_named(
    kind: str, place: Any, pretrained: Any, tried: Callable[[str], None], refused: Callable[[Any], str], draw: Random
) -> None:
    """The same command again gives the same weights; where a file has to go first, the message names it."""
    tried("a flipped byte in pretraining")
    shutil.copytree(pretrained.out, place.folder / "out")
    (place.folder / "out" / "model.safetensors").unlink()  # the last step is made again
    damaged = flip(place.folder / "out", kind, draw)
    ended = place.carry_out(*pretrained.command(place))
    if ended.code:
        line = refused(ended)
        fresh = ["--fresh"] if "--fresh" in line else []
        if not fresh:
            named = next(path for path in (damaged.parent, damaged) if f"{path} " in line)
            shutil.rmtree(named) if named.is_dir() else named.unlink()
        ended = place.carry_out(*pretrained.command(place), *fresh)
    assert ended.code == 0, ended.log
    assert (place.folder / "out" / "model.safetensors").read_bytes() == pretrained.weights
