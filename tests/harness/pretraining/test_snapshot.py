"""States on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from harness.core.errors import ResultError
from harness.pretraining import snapshot


def trained(width: int = 6, steps: int = 3) -> tuple[nn.Module, torch.optim.AdamW]:
    """A small model after some steps."""
    torch.manual_seed(0)
    model = nn.Linear(4, width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(steps):
        step(model, optimizer)
    return model, optimizer


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.arange(8.0).view(2, 4)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def test_a_state_is_restored_bit_for_bit(tmp_path: Path) -> None:
    """Weights, moments and the number of steps are restored: the next steps are the same."""
    model, optimizer = trained()
    path = snapshot.save(tmp_path, 3, model, optimizer, {"step": 3, "loss": 0.5})
    other, fresh = trained(steps=0)
    assert snapshot.load(path, other, fresh) == {"step": 3, "loss": 0.5}
    for _ in range(2):
        step(model, optimizer)
        step(other, fresh)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_the_two_newest_are_kept(tmp_path: Path) -> None:
    """The newest states by number are kept, also with more digits."""
    model, optimizer = trained()
    for number in (8, 9, 10, 100):
        snapshot.save(tmp_path, number, model, optimizer, {"step": number})
    assert [path.name for path in snapshot.files(tmp_path)] == [
        "state-000000010.safetensors",
        "state-000000100.safetensors",
    ]


def test_a_full_disk_keeps_the_old_state(tmp_path: Path, full_disk: Callable[[], AbstractContextManager[None]]) -> None:
    """A full disk gives an error in one line, no partial file, and the old state loads."""
    model, optimizer = trained()
    old = snapshot.save(tmp_path, 3, model, optimizer, {"step": 3})
    with full_disk(), pytest.raises(ResultError, match="cannot write .*state-000000004.*free space"):
        snapshot.save(tmp_path, 4, model, optimizer, {"step": 4})
    assert list(tmp_path.iterdir()) == [old]
    assert snapshot.load(old, model, optimizer) == {"step": 3}


def test_another_shape_is_refused(tmp_path: Path) -> None:
    """The error for another model names both shapes, and nothing is loaded."""
    path = snapshot.save(tmp_path, 3, *trained(), {"step": 3})
    model, optimizer = trained(width=7)
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(ResultError, match=r"another shape .*\[6, 4\], not \[7, 4\]"):
        snapshot.load(path, model, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@given(st.data())
@settings(max_examples=25)
def test_a_flipped_bit_is_found(data: st.DataObject) -> None:
    """Wherever one bit of a state differs, the state is refused and the file is named."""
    with tempfile.TemporaryDirectory() as folder:
        model, optimizer = trained()
        path = snapshot.save(Path(folder), 3, model, optimizer, {"step": 3})
        content = bytearray(path.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
        with pytest.raises(ResultError, match=path.name):
            snapshot.load(path, model, optimizer)


@pytest.mark.parametrize("content", [b"", b"not safetensors", None])
def test_a_damaged_state_is_reported(content: bytes | None, tmp_path: Path) -> None:
    """Empty, foreign and truncated files are refused."""
    model, optimizer = trained()
    path = snapshot.save(tmp_path, 3, model, optimizer, {"step": 3})
    path.write_bytes(path.read_bytes()[:-10] if content is None else content)
    with pytest.raises(ResultError, match="is damaged .*: delete it"):
        snapshot.load(path, model, optimizer)
