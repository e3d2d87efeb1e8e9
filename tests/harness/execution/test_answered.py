"""Samples that are answered before layer 1 run nothing, and the others run as if they were alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.contracts import Execution
from harness.core.tokens import TokenSet
from harness.core.work import BEFORE
from harness.encoder.layout import Layout
from harness.encoder.multi_exit import MultiExitModel
from harness.execution import executors, run_pass
from harness.execution.regrouping.look_once import run_look_once

N, DEPTH = 23, 4
EXITS = torch.from_numpy(np.random.default_rng(5).integers(0, DEPTH, N).astype(np.int16))
SPOKEN = torch.from_numpy(np.random.default_rng(6).normal(size=(N, 3)).astype(np.float32))
EXECUTIONS = st.builds(
    Execution,
    batch_size=st.integers(1, N),
    order=st.sampled_from(["arrival", "length"]),
    window=st.one_of(st.just(0), st.integers(1, N + 2)),
    executor=st.sampled_from(["ladder", "exact-k"]),
    max_length=st.just(12),
)


def check(model: MultiExitModel, tokens: TokenSet, execution: Execution, sure: torch.Tensor) -> None:
    """Answers, exits and work are those of a pass over the other samples, and those of the table in their places."""
    going = torch.nonzero(~sure).squeeze(1)
    # Other rows of the table's answers are ignored, whatever they hold.
    logits = torch.where(sure[:, None], SPOKEN, float("nan"))
    embedded: list[int] = []
    begin = executors.Pass.begin

    def spy(run: run_pass.Pass, first: int, last: int, lane: int = 0) -> tuple[torch.Tensor, Layout]:
        embedded.append(last - first)
        return begin(run, first, last, lane)

    with patch.object(executors.Pass, "begin", spy):
        found = executors.run_assigned(model, tokens, EXITS, execution, answered=run_pass.Answered(sure, logits))
    assert sum(embedded) == len(going)
    exits = torch.where(sure, BEFORE, EXITS).numpy()
    assert found.exit_layer.dtype == np.int16 and found.predicted_exit is not None
    assert found.exit_layer.tolist() == found.predicted_exit.tolist() == exits.tolist()
    np.testing.assert_array_equal(found.logits[sure], SPOKEN[sure])
    assert found.work.rows("layer") == (exits + 1).sum()  # nothing for exit -1
    assert found.work.rows("head") == len(going)
    if not len(going):
        assert not found.work.blocks
        return
    if not execution.window:
        alone = executors.run_assigned(model, tokens.select(going), EXITS[going], execution)
        assert found.work == alone.work  # in tokens and pairs, and with the same batches
        assert all(found.work.blocks[name].calls == tally.calls for name, tally in alone.work.blocks.items())
    all_run = executors.run_assigned(model, tokens, EXITS, execution)
    np.testing.assert_allclose(found.logits[going], all_run.logits[going], rtol=1e-3, atol=1e-4)


@given(EXECUTIONS, st.lists(st.booleans(), min_size=N, max_size=N))
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_answered_samples_run_nothing(
    tiny_model: MultiExitModel, tokens: TokenSet, execution: Execution, sure: list[bool]
) -> None:
    """Whichever samples are answered, in any batches, windows and order: no layer, no head, and the others are unchanged."""
    check(tiny_model, tokens, execution, torch.tensor(sure))


@pytest.mark.parametrize("window", [0, 1, 9])
@pytest.mark.parametrize("answered", [0, 3, N])
def test_one_look_takes_the_others(tiny_model: MultiExitModel, tokens: TokenSet, window: int, answered: int) -> None:
    """Executors that decide on the way run the samples that are left, too, also where a window has none."""
    sure = (torch.arange(N) * 5 % N) < answered
    execution = Execution(batch_size=4, window=window, max_length=12)

    def decide(logits: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return (lengths % 3).to(torch.int16)

    found = run_look_once(tiny_model, tokens, 0, decide, execution, answered=run_pass.Answered(sure, SPOKEN))
    exits = torch.where(sure, BEFORE, tokens.lengths % 3).numpy()
    assert found.exit_layer.tolist() == exits.tolist()
    assert found.work.rows("layer") == (exits + 1).sum()
    np.testing.assert_array_equal(found.logits[sure], SPOKEN[sure])
    alone = run_look_once(tiny_model, tokens, 0, decide, execution)
    np.testing.assert_allclose(found.logits[~sure], alone.logits[~sure], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("answered", [0, N])
def test_nobody_or_everybody_is_answered(tiny_model: MultiExitModel, tokens: TokenSet, answered: int) -> None:
    """With none it is the pass without a table; with all, nothing runs at all."""
    check(tiny_model, tokens, Execution(max_length=12), torch.arange(N) < answered)


def test_answered_samples_cost_no_copy(
    tiny_model: MultiExitModel, tokens: TokenSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host receives two copies, as without a table: the schedule, which says how many run, and the answers."""
    copies: list[int] = []
    real = run_pass.transfer.download
    monkeypatch.setattr(run_pass.transfer, "download", lambda source: (copies.append(len(source)), real(source))[1])
    sure = torch.arange(N) % 3 == 0
    executors.run_assigned(tiny_model, tokens, EXITS, Execution(), answered=run_pass.Answered(sure, SPOKEN))
    assert len(copies) == 2 and copies[0] == 4 * N + 4 and copies[1] == N


CHECKED = Execution(batch_size=4, window=9, max_length=12)
BUGS = {
    "answered samples come first": ("execution.arrangement", "torch.where(answered, 0,", "torch.where(answered, depth,"),
    "answered samples run": (
        "execution.arrangement", "yield begin, end - int(self.answered[begin:end].sum())", "yield begin, end"),
    "one window too many leave": ("execution.arrangement", "self.answered[begin:end].sum()", "self.answered.sum()"),
    "answered flags in input order": ("execution.arrangement", "known[order].long()", "known.long()"),
    "exit 0 counts as answered": ("execution.arrangement", "first.clamp(min=0) + 1)", "first.clamp(min=0))"),
    "a bin too few on a device": ("execution.arrangement", "depth + 1\n", "depth\n"),
    "the table's answers in input order": (
        "execution.run_pass",
        "torch.index_select(answered.logits, 0, transfer.upload(arranged.order, self.device), out=self.logits)",
        "self.logits.copy_(answered.logits)"),
    "answered at layer 1": ("execution.run_pass", "self.exits[arranged.answered] = BEFORE", "pass"),
    "predicted to run": ("execution.run_pass", "self.columns[arranged.answered] = BEFORE", "pass"),
}  # fmt: skip


def compare(put: Callable[[], None] | None, model: MultiExitModel, tokens: TokenSet) -> None:
    """Run the checks on execution code with a bug, with the values at hand and as on a device."""
    if put is not None:
        put()
    torch.set_num_threads(1)
    sure = torch.arange(N) % 4 == 1
    for host_devices in (("cpu",), ()):
        run_pass.arrange.__globals__["HOST_DEVICES"] = host_devices
        for execution in (CHECKED, replace(CHECKED, window=0, executor="exact-k")):
            try:
                check(model, tokens, execution, sure)
            except Exception as error:  # any effect of a bug counts
                raise AssertionError from error


@pytest.mark.parametrize("bug", [None, *BUGS])
def test_planted_bugs_are_caught(
    bug: str | None,
    tiny_model: MultiExitModel,
    tokens: TokenSet,
    planted: Callable[[str, str, str], Callable[[], None]],
    fails_apart: Callable[..., bool],
) -> None:
    """The checks fail for every planted bug, and for no bug they pass."""
    put = None if bug is None else planted(*BUGS[bug])
    assert fails_apart(compare, put, tiny_model, tokens) is (bug is not None)
