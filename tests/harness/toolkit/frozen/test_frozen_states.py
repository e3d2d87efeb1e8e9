"""Stored states and answers are those of a model that runs in every epoch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.core.tokens import Split, Task, TokenSet
from harness.encoder.backbone import Backbone
from harness.encoder.model import LinearHead
from harness.encoder.multi_exit import MultiExitModel
from harness.toolkit.frozen import frozen_states
from harness.toolkit.frozen.frozen_states import FrozenOutput, FrozenStates, NumberedRows
from harness.toolkit.method_settings import Recipe
from harness.toolkit.training import LayerPasses, training_layout

PLACES = [0, 2, 5]
Make = Callable[..., FrozenStates]


@pytest.fixture(scope="module")
def make(small_backbone: Backbone, signal_task: Task) -> Make:
    """States of a model of five layers over 96 rows, which are more than are computed at a time."""

    def states(places: Any = PLACES, precision: Any = "float32", head: str = "fastbert", **more: Any) -> FrozenStates:
        torch.manual_seed(0)
        model = MultiExitModel(small_backbone.encoder(), 3, range(4), head).eval()
        recipe = Recipe(precision=precision)
        return FrozenStates(model, signal_task.train.tokens, places, recipe, name="frozen", **more)

    return states


@pytest.fixture(scope="module")
def stored(make: Make) -> FrozenStates:
    frozen = make()
    frozen.store()
    return frozen


@pytest.fixture(scope="module")
def live(make: Make) -> FrozenStates:
    """The same, which runs the model for every batch."""
    return make()


def ask(frozen: FrozenStates, rows: Any, **more: Any) -> FrozenOutput:
    batch = frozen.rows.select(rows)
    return frozen(batch, training_layout(batch), **more)


def by_length(tokens: TokenSet) -> np.ndarray:
    return np.argsort(tokens.lengths.numpy(), kind="stable")


@given(rows=st.lists(st.integers(0, 95), min_size=1, max_size=20))
@settings(max_examples=25)
def test_any_batch_reads_what_the_model_would_say(rows: list[int], stored: FrozenStates, live: FrozenStates) -> None:
    """In any order and company, a row has the states and the answer that running the model gives it, and no layer runs."""
    with LayerPasses([stored.model]) as passes:
        found = ask(stored, rows)
    assert passes.count == 0
    wanted = ask(live, rows)
    torch.testing.assert_close(found.answers, wanted.answers)
    assert list(found.states) == list(wanted.states) == PLACES
    for place, hidden in wanted.states.items():
        assert found.states[place].shape == hidden.shape
        torch.testing.assert_close(found.layout.tokens(found.states[place]), wanted.layout.tokens(hidden))


def test_rows_of_another_set_are_run(stored: FrozenStates, live: FrozenStates, unseen: Split) -> None:
    """Samples that were not selected from the stored rows get their own states and answers."""
    batch = unseen.tokens.select(range(8))
    found, wanted = (frozen(batch, training_layout(batch)) for frozen in (stored, live))
    assert torch.equal(found.answers, wanted.answers)
    assert all(torch.equal(found.states[place], wanted.states[place]) for place in PLACES)


def test_selections_know_their_rows(signal_task: Task) -> None:
    """Numbers follow any selection, also of a selection."""
    rows = NumberedRows.of(signal_task.train.tokens)
    few = rows.select([7, 3, 90]).select([2, 0])
    assert few.numbers.tolist() == [90, 7]
    assert torch.equal(few.ids, signal_task.train.tokens.select([90, 7]).ids)


def test_equal_batches_have_equal_bits(stored: FrozenStates, live: FrozenStates) -> None:
    """A batch that holds the rows that were computed together reads the bits that running the model gives."""
    rows = by_length(stored.rows)[:64]
    found, wanted = ask(stored, rows), ask(live, rows)
    assert torch.equal(found.answers, wanted.answers)
    for place, hidden in wanted.states.items():
        assert torch.equal(found.layout.tokens(found.states[place]), wanted.layout.tokens(hidden))


def test_heads_read_equal_numbers_in_bfloat16(make: Make) -> None:
    """Stored in bfloat16, states give a head the bits that float32 states give it: its first layer rounds them anyway."""
    for head in ("fastbert", "linear"):
        frozen, live = (make(precision="bfloat16", head=head, first_only=head == "linear") for _ in range(2))
        frozen.store()
        rows = by_length(frozen.rows)[:64]
        with torch.autocast("cpu", torch.bfloat16):
            one, two = ask(frozen, rows), ask(live, rows)
            assert (one.states[2].dtype, two.states[2].dtype) == (torch.bfloat16, torch.float32)
            answers = [frozen.model.student(1)(said.states[2], said.layout) for said in (one, two)]
        assert torch.equal(*answers)
        assert torch.equal(one.answers, two.answers.float())


def test_linear_heads_need_the_first_tokens_only(make: Make) -> None:
    """One state per row is stored, and a linear head says the same with it."""
    frozen, live = make(head="linear", first_only=True), make(head="linear")
    frozen.store()
    rows = by_length(frozen.rows)[:64]
    one, two = ask(frozen, rows), ask(live, rows)
    assert isinstance(frozen.model.teacher, LinearHead)
    assert len(one.states[2]) == 64 < len(two.states[2])
    assert torch.equal(*(frozen.model.student(1)(said.states[2], said.layout) for said in (one, two)))


def test_costs_one_pass(make: Make) -> None:
    """Storing runs each row through each layer once; without answers, layers above the last state do not run."""
    everything, few = make().store(), make([1, 3], answers=False).store()
    assert everything is not None
    assert few is not None
    assert (everything.layer_passes, few.layer_passes) == (96 * 5, 96 * 3)
    assert everything.flops > few.flops > 0
    assert everything.steps == everything.sample_passes == 0


def test_with_dropout_nothing_is_stored(make: Make) -> None:
    """A model with dropout runs in train mode in every batch, so that it says something else each time."""
    frozen = make(dropout=True)
    for layer in frozen.model.encoder.layers:
        layer.dropout = 0.5
    assert frozen.store() is None
    first, second = (ask(frozen, range(9)).states[5] for _ in range(2))
    assert not torch.equal(first, second)


def test_without_room_states_are_computed_in_every_epoch(
    make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The answers are stored all the same, layers above the last state do not run in training, and a line says so."""
    frozen, live = make([1, 3]), make([1, 3])
    monkeypatch.setattr(frozen_states, "room_for", lambda *_: None)
    assert frozen.store() is not None
    assert capsys.readouterr().err == "frozen: no room for hidden states, so they are computed in every epoch\n"
    rows = [5, 2, 9]
    with LayerPasses([frozen.model]) as passes:
        found = ask(frozen, rows)
    assert passes.count == 3 * 3
    wanted = ask(live, rows)
    assert all(torch.equal(found.states[place], hidden) for place, hidden in wanted.states.items())
    torch.testing.assert_close(found.answers, wanted.answers)
    with LayerPasses([frozen.model]) as passes:
        assert ask(frozen, rows, places=()).states == {}
    assert passes.count == 0


def test_nothing_to_store(make: Make) -> None:
    """Without states and room for them, and without answers, no pass is made."""
    assert make([], answers=False).store() is None
