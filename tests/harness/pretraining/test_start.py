"""Initial weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness.core.errors import BackboneError, ConfigError
from harness.encoder import checkpoint
from harness.encoder.shape import EncoderShape
from harness.pretraining import start
from harness.pretraining.text.vocabulary import SPECIALS

WORDS = [*SPECIALS, *(f"w{i}" for i in range(20))]
TEACHER = EncoderShape(layers=6, width=16, heads=2, intermediate=64, vocab_size=25, max_positions=8)


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """Six layers that differ by a bias."""
    model = start.fresh(TEACHER, 0.0, 5)
    with torch.no_grad():
        for number, layer in enumerate(model.encoder.layers):
            layer.out.bias.fill_(number)
    checkpoint.write_folder(tmp_path, TEACHER, model.encoder.state_dict())
    (tmp_path / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("count", "depth", "chosen"),
    [(6, 12, [0, 2, 4, 7, 9, 11]), (1, 5, [4]), (12, 12, list(range(12))), (4, 2, [0, 0, 1, 1]), (2, 12, [0, 11])],
)
def test_layers_are_evenly_spread(count: int, depth: int, chosen: list[int]) -> None:
    """Layers are evenly spread with the first and the last, and repeat if there are too few."""
    assert start.spread(count, depth) == chosen


def test_layers_and_embeddings_are_copied(teacher: Path) -> None:
    """Positions are copied as far as the teacher has them; the others keep their random values."""
    model = start.fresh(start.shape_for(3, 16, 2, None, 25, 12), 0.0, 0)
    drawn = model.encoder.position.weight.clone()
    taken = {"name": teacher.name, "layers": [0, 2, 5], "embeddings": True, "head": False}  # its folder has no head
    assert start.take_from(model, start.Origin.of(teacher, WORDS)) == taken
    state = checkpoint.read(teacher).state
    assert [layer.out.bias[0].item() for layer in model.encoder.layers] == [0, 2, 5]
    assert torch.equal(model.encoder.layers[1].qkv.weight, state["layers.2.qkv.weight"])
    assert torch.equal(model.encoder.word.weight, state["word.weight"])
    assert torch.equal(model.encoder.position.weight[:8], state["position.weight"])
    assert torch.equal(model.encoder.position.weight[8:], drawn[8:])


def test_going_on_keeps_the_shape(teacher: Path) -> None:
    """What is not asked for is the origin's; all its positions stay if its vocabulary does, also with shorter rows."""
    theirs = checkpoint.read_shape(teacher)
    shape = start.shape_for(None, None, None, None, 25, 6, theirs)
    kept = start.Origin.of(teacher, WORDS).shaped(shape)
    assert kept == TEACHER
    model = start.fresh(kept, 0.0, 0)
    start.take_from(model, start.Origin.of(teacher, WORDS))
    state = checkpoint.read(teacher).state
    assert all(torch.equal(value, state[name]) for name, value in model.encoder.state_dict().items())
    assert start.Origin.of(teacher, [*WORDS[:-1], "other"]).shaped(shape).max_positions == 6
    assert start.shape_for(2, None, None, 32, 25, 12, theirs) == replace(
        TEACHER, layers=2, intermediate=32, max_positions=12
    )


def test_another_vocabulary_copies_layers_only(teacher: Path) -> None:
    """Embeddings of another vocabulary are not copied."""
    model = start.fresh(start.shape_for(2, 16, 2, None, 25, 8), 0.0, 0)
    before = model.encoder.word.weight.clone()
    taken = start.take_from(model, start.Origin.of(teacher, [*WORDS[:-1], "other"]))
    assert taken["layers"] == [0, 5] and not taken["embeddings"] and not taken["head"]
    assert torch.equal(model.encoder.word.weight, before)
    assert model.encoder.layers[1].out.bias[0].item() == 5


@pytest.mark.parametrize(("width", "heads", "inner"), [(32, 2, 64), (16, 4, 64), (16, 2, 32)])
def test_other_dimensions_are_refused(teacher: Path, width: int, heads: int, inner: int) -> None:
    """Another width, inner width or number of heads is refused with its name."""
    model = start.fresh(start.shape_for(2, width, heads, inner, 25, 8), 0.0, 0)
    with pytest.raises(BackboneError, match="--init-from .*: its (width|heads|intermediate) is"):
        start.take_from(model, start.Origin.of(teacher, WORDS))


def test_a_width_that_heads_do_not_divide_is_refused() -> None:
    """A width that the heads do not divide is refused; by default heads have width 64."""
    with pytest.raises(ConfigError, match="--width 250 is not divisible by --heads 3"):
        start.shape_for(12, 250, None, None, 100, 128)
    assert start.shape_for(12, 256, None, None, 100, 128).heads == 4
    assert start.shape_for(2, 24, None, None, 100, 128).heads == 1


def test_random_weights_depend_on_the_seed() -> None:
    """Random weights follow from the seed, and do not change the global generator."""
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    one, same, other = (start.fresh(TEACHER, 0.0, seed) for seed in (3, 3, 4))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(one.dense.weight, same.dense.weight) and not torch.equal(one.dense.weight, other.dense.weight)
    assert torch.equal(one.encoder.segment.weight[0], one.encoder.segment.weight[1])
