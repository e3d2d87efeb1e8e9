"""DeiT's distillation token: one more row a sample, two heads, and teachers of another kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from baselines.distilled.distill_token import DistillToken, token_loss
from baselines.small_models.sparse_dan import FittedSparseDan, SparseDan
from harness import registry
from harness.contracts import Execution, Fitted, OperatingPoint
from harness.core.errors import ConfigError
from harness.core.tokens import Split, Task, TokenSet
from harness.encoder.backbone import Backbone
from harness.toolkit.distillation import soft_kl
from harness.toolkit.fitted import FullDepth
from harness.toolkit.teachers.extra_token import TokenStudent, with_token

BRIEF: dict[str, Any] = {"epochs": 2, "learning_rate": 5e-3, "batch_size": 16, "precision": "float32"}


@pytest.fixture(scope="module")
def task(signal_task: Task) -> Task:
    return replace(signal_task, max_length=15)  # the small backbone has 16 positions


@pytest.fixture(scope="module")
def dan(task: Task, small_backbone: Backbone, trained_bert: FullDepth) -> FittedSparseDan:
    config = {"epochs": 1, "rows": 8, "width": 8, "label_epochs": 0}
    return SparseDan().fit(task, small_backbone, {"bert": trained_bert}, config=config, seed=0)


@pytest.fixture(scope="module")
def fitted(task: Task, small_backbone: Backbone, trained_bert: FullDepth, dan: FittedSparseDan) -> TokenStudent:
    teachers = {"bert": trained_bert, "sparse-dan": dan}
    return DistillToken().fit(task, small_backbone, teachers, config=BRIEF, seed=0)


def test_the_token_stands_behind_the_first() -> None:
    """Ids, segments and offsets of every sample have one more; the rest keeps its order."""
    tokens = TokenSet.from_lists([[1, 7, 8], [1], [1, 9]], [[0, 0, 1], [0], [0, 1]], (1,))
    found = with_token(tokens, 50)
    assert found.ids.tolist() == [1, 50, 7, 8, 1, 50, 1, 50, 9]
    assert found.segments.tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 1]
    assert found.offsets.tolist() == [0, 4, 6, 9] and found.special == (1,)


def test_each_head_has_its_own_task() -> None:
    """The head on [CLS] sees no teacher and that of the token no labels; with one head for both it is plain distillation."""
    torch.manual_seed(0)
    whole, token, taught = torch.randn(3, 4, 3, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 0])
    for hard in (False, True):
        at: dict[str, Any] = {"hard": hard, "alpha": 0.3, "temperature": 3.0}
        ours, theirs = torch.autograd.grad(token_loss(whole, token, taught, labels, **at), (whole, token))
        other, same = torch.autograd.grad(token_loss(whole, token, -taught, labels, **at), (whole, token))
        assert torch.equal(ours, other) and not torch.equal(theirs, same)
        same, other = torch.autograd.grad(token_loss(whole, token, taught, 2 - labels, **at), (token, whole))
        assert torch.equal(same, theirs) and not torch.equal(other, ours)
    plain = 0.7 * F.cross_entropy(whole, labels) + 0.3 * soft_kl(whole, taught, 3.0)
    tied = token_loss(whole, whole, taught, labels, hard=False, alpha=0.3, temperature=3.0)
    assert tied.item() == pytest.approx(plain.item(), rel=1e-6)


def test_one_more_token_and_head_are_counted(fitted: TokenStudent, unseen: Split) -> None:
    """Every layer runs exactly one more token for each sample, and two heads run."""
    (at,) = fitted.operating_points(unseen)
    work = fitted.predict(unseen.tokens, at=at).work
    assert work.blocks["layer.0"].valid == len(unseen.tokens.ids) + len(unseen)
    assert work.rows("layer") == 2 * len(unseen) and work.rows("head") == 2 * len(unseen)
    assert fitted.cost.flops(work, "full") > 0


@settings(max_examples=2)
@given(data=st.data())
def test_answers_do_not_depend_on_batches(
    data: st.DataObject,
    fitted: TokenStudent,
    executions: st.SearchStrategy[Execution],
    same_however_run: Callable[[Fitted, OperatingPoint, Execution, Sequence[int]], None],
    unseen: Split,
) -> None:
    """In any order, batch and protocol, answers are those of samples one by one."""
    (at,) = fitted.operating_points(unseen)
    same_however_run(fitted, at, data.draw(executions), data.draw(st.permutations(range(len(unseen)))))


def test_saved_packed_and_taught_by_others(
    fitted: TokenStudent,
    task: Task,
    small_backbone: Backbone,
    trained_bert: FullDepth,
    dan: FittedSparseDan,
    unseen: Split,
    tmp_path: Path,
) -> None:
    """A loaded student answers the same, also with packed weights; bert teaches if it is alone; all teachers count."""
    fitted.save(tmp_path)
    loaded = TokenStudent.load(tmp_path, "cpu")
    (at,) = loaded.operating_points(unseen)
    expected = fitted.predict(unseen.tokens, at=at).logits
    np.testing.assert_array_equal(loaded.predict(unseen.tokens, at=at).logits, expected)
    packed = loaded.predict(unseen.tokens, at=replace(at, execution=Execution(compute="packed"))).logits
    np.testing.assert_allclose(packed, expected, atol=1e-5)
    soft = {**BRIEF, "distillation": "soft", "epochs": 1}
    alone = DistillToken().fit(task, small_backbone, {"bert": trained_bert}, config=soft, seed=0)
    assert alone.training is not None and fitted.training is not None and dan.training is not None
    assert fitted.training.layer_passes == dan.training.layer_passes + 2 * 96 * 2
    assert type(registry.get("distill-token")) is DistillToken


def test_refused(
    signal_task: Task, task: Task, small_backbone: Backbone, trained_bert: FullDepth, dan: FittedSparseDan
) -> None:
    """Two teachers for one token, and samples as long as the positions."""
    teachers = {"bert": trained_bert, "a": dan, "b": dan}
    with pytest.raises(ConfigError, match="2 teachers for one token"):
        DistillToken().fit(task, small_backbone, teachers, config=BRIEF, seed=0)
    with pytest.raises(ConfigError, match="lower max_length by 1"):
        DistillToken().fit(signal_task, small_backbone, {"bert": trained_bert}, config=BRIEF, seed=0)
