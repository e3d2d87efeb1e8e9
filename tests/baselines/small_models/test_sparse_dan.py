"""Sparse distillation: hashing, the mean over multiplicities, the release's loss, sizes and costs by hand, bad settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from baselines.small_models.sparse_dan import (
    GOLDEN,
    MULTIPLIER,
    NOTHING,
    FittedSparseDan,
    HashedNgrams,
    SparseDan,
    class_weighted_kl,
)
from harness.contracts import Execution, Fitted, OperatingPoint
from harness.core.errors import ConfigError
from harness.core.tokens import Split, Task, TokenSet
from harness.encoder.backbone import Backbone
from harness.encoder.layout import Layout
from harness.toolkit.fitted import FullDepth
from harness.toolkit.text_models.text_model import TextLimits

LIMITS = TextLimits(vocab_size=60, max_positions=32, special=(0, 1, 2))
FULL = OperatingPoint("full")
SMALL = {"rows": 10, "width": 16, "batch_size": 8, "precision": "float32"}


def model_of(rows: int = 10, width: int = 4, ngrams: int = 4, labels: int = 3) -> HashedNgrams:
    """Return a model with random weights; row 0 stays zero."""
    torch.manual_seed(0)
    model = HashedNgrams(LIMITS, labels, rows, width, ngrams).eval()
    torch.nn.init.normal_(model.table.weight)
    with torch.no_grad():
        model.table.weight[NOTHING] = 0
    return model


def text(*words: int) -> list[int]:
    """Return a text with [CLS] and [SEP]."""
    return [1, *words, 2]


def said(model: HashedNgrams, tokens: TokenSet) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(tokens, Layout(tokens.lengths.numpy(), None, "cpu"))
    return found


def row_of(ids: Sequence[int], segment: int, rows: int) -> int:
    """Return the row of an n-gram, in unsigned arithmetic of Python."""
    code = segment + 1
    for one in ids:
        code = (code * MULTIPLIER + one + 1) % 2**64
    return max(1, code * (GOLDEN % 2**64) % 2**64 >> 64 - rows)


@examples(max_examples=30)
@given(data=st.data())
def test_rows_are_those_of_the_n_grams_inside_each_text(data: st.DataObject) -> None:
    """Every n-gram of words has the row of its ids and segment; none has a special token or leaves its text."""
    words = st.lists(st.integers(3, 59), max_size=6)
    pairs = data.draw(st.lists(st.tuples(words, words), min_size=1, max_size=4))
    special = data.draw(st.booleans())
    rows = [[1, *a, 2, *b, 2] if special else [*a, *b, 7] for a, b in pairs]
    first = [len(a) + 2 * special for a, _ in pairs]
    segments = [[0] * n + [1] * (len(row) - n) for n, row in zip(first, rows, strict=True)]
    size = data.draw(st.integers(1, 5))
    found = model_of(ngrams=size).hashed(TokenSet.from_lists(rows, segments))
    wanted = []
    for row, segment in zip(rows, segments, strict=True):
        for start in range(len(row)):
            for n in range(1, size + 1):
                ids = row[start : start + n]
                whole = len(ids) == n and not {0, 1, 2} & set(ids)
                wanted.append(row_of(ids, segment[start], 10) if whole else NOTHING)
    assert found.view(-1).tolist() == wanted


def test_hashes_collide_no_more_often_than_random_ones() -> None:
    """30,000 bigrams of small ids fill as many of 2^18 rows as random numbers would, within three standard deviations."""
    model = HashedNgrams(TextLimits(30_000, 512), 2, rows=18, width=1, ngrams=2)
    pairs = np.unique(np.random.default_rng(0).integers(0, 2_000, (30_000, 2)), axis=0)
    found = model.hashed(TokenSet.from_lists(pairs.tolist()))[::2, 1]
    filled, n, m = len(found.unique()), len(pairs), 2**18
    expected = m * (1 - (1 - 1 / m) ** n)
    assert abs(filled - expected) < 3 * np.sqrt(n * n / (2 * m))


def test_repeated_n_grams_count_as_often_as_they_occur() -> None:
    """The mean of "a a b" is (2a + b) / 3, not that of "a b"."""
    model = model_of(ngrams=1)
    a, b = (model.table.weight[row_of([one], 0, 10)] for one in (10, 11))
    seen: list[Tensor] = []
    model.dense.register_forward_hook(lambda module, given, output: seen.append(given[0]))
    said(model, TokenSet.from_lists([text(10, 10, 11), text(10, 11)]))
    torch.testing.assert_close(seen[0], torch.stack([(2 * a + b) / 3, (a + b) / 2]))


def test_training_and_answering_take_the_same_mean() -> None:
    """Without dropout both modes give the same logits, for texts without an n-gram, too."""
    model, tokens = model_of(), TokenSet.from_lists([text(10, 11, 12), text(), text(13)])
    model.feature_dropout = model.dropout = 0.0
    layout = Layout(tokens.lengths.numpy(), None, "cpu")
    torch.testing.assert_close(model.train()(tokens, layout).detach(), said(model.eval(), tokens))


def test_a_row_changes_only_texts_with_its_n_gram() -> None:
    """A text without the trigram keeps its answer to the last bit."""
    model, tokens = model_of(), TokenSet.from_lists([text(10, 11, 12, 13), text(10, 11, 13, 12)])
    before = said(model, tokens)
    with torch.no_grad():
        model.table.weight[row_of([11, 12, 13], 0, 10)] += 1
    after = said(model, tokens)
    assert not torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])


def test_both_texts_of_a_pair_have_n_grams_of_their_own() -> None:
    """Exchanging the texts changes the answer, and no n-gram crosses [SEP]."""
    pair = TokenSet.from_lists([[1, 10, 2, 11, 2], [1, 11, 2, 10, 2]], [[0, 0, 0, 1, 1]] * 2)
    logits = said(model_of(), pair)
    assert not torch.allclose(logits[0], logits[1])
    assert (model_of().hashed(pair) != NOTHING).sum() == 4


def test_texts_shorter_than_an_n_gram_are_answered() -> None:
    """One word, no word, and a single token of any kind have finite answers, alone and beside others."""
    tokens = TokenSet.from_lists([text(10), text(), [1], text(*range(10, 20))])
    model = model_of()
    together = said(model, tokens)
    assert torch.isfinite(together).all()
    for number in range(4):
        torch.testing.assert_close(said(model, tokens.sample(number))[0], together[number])


@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_is_that_of_the_release(weighted: bool) -> None:
    """``alpha * sum (1 - freq)^0.5 * KL * T^2`` with alpha 1; the release adds rows up, this is their mean."""
    draw = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(5, 3, generator=draw), torch.randn(5, 3, generator=draw)
    shares = torch.tensor([0.5, 0.3, 0.2]) if weighted else torch.zeros(3)
    p, q = torch.softmax(teacher, -1), torch.softmax(student, -1)
    release = ((1 - shares) ** 0.5 * p * (p.log() - q.log())).sum()
    torch.testing.assert_close(class_weighted_kl((1 - shares).sqrt(), 1.0)(student, teacher), release / 5)
    if not weighted:
        plain = F.kl_div(q.log(), p, reduction="batchmean")
        torch.testing.assert_close(class_weighted_kl(torch.ones(3), 1.0)(student, teacher), plain)


def test_sizes_and_work_by_hand() -> None:
    """rows d + d d + d + d C + C parameters; 2 (d d + d C) FLOPs a text, and in full d additions for each n-gram."""
    model, d, labels = model_of(width=4), 4, 3
    assert model.cost().params == 2**10 * d + d * d + d + d * labels + labels
    assert model.cost().looked_up == 2**10 * d
    tokens = TokenSet.from_lists([text(10, 11, 12), text(10), text(*range(10, 16))])
    found = FittedSparseDan(model).predict(tokens, at=FULL)
    ngrams = (3 + 2 + 1) + 1 + (6 + 5 + 4 + 3)
    assert (model.hashed(tokens) != NOTHING).sum() == ngrams
    assert model.cost().flops(found.work, "linear") == 3 * 2 * (d * d + d * labels)
    assert model.cost().flops(found.work, "full") == 3 * 2 * (d * d + d * labels) + ngrams * d
    with FlopCounterMode(display=False) as counter:
        said(model, tokens)
    assert counter.get_total_flops() == model.cost().flops(found.work, "linear")


@pytest.fixture(scope="module")
def dan(signal_task: Task, small_backbone: Backbone, trained_bert: FullDepth) -> FittedSparseDan:
    """Taught with its own defaults, but for sizes."""
    config = {**SMALL, "learning_rate": 1e-2}
    return SparseDan().fit(signal_task, small_backbone, {"bert": trained_bert}, config=config, seed=0)


def test_it_learns_from_the_teacher_and_labels(dan: FittedSparseDan, unseen: Split) -> None:
    """Test rows are answered better than by the most common label, and rows that training never touched are zero."""
    found = dan.predict(unseen.tokens, at=FULL)
    common = torch.bincount(unseen.labels).max() / len(unseen)
    assert (torch.from_numpy(found.logits.argmax(1)) == unseen.labels).float().mean() > common + 0.2
    assert isinstance(dan.model, HashedNgrams)
    touched = dan.model.table.weight.any(1)
    assert not touched[NOTHING] and touched.any() and not touched.all()


@examples(max_examples=10)
@given(data=st.data())
def test_answers_do_not_depend_on_order_and_batch(
    data: st.DataObject,
    dan: FittedSparseDan,
    unseen: Split,
    executions: st.SearchStrategy[Execution],
    same_however_run: Callable[[Fitted, OperatingPoint, Execution, Sequence[int]], None],
) -> None:
    """Every order, batch size, window and protocol gives the answers of samples one by one."""
    order = data.draw(st.permutations(range(len(unseen))))
    same_however_run(dan, FULL, data.draw(executions), order)


def test_saved_and_loaded_it_answers_the_same(dan: FittedSparseDan, unseen: Split, tmp_path: Path) -> None:
    """The table, its size and which ids are words are read back."""
    dan.save(tmp_path)
    loaded = FittedSparseDan.load(tmp_path, "cpu")
    np.testing.assert_array_equal(*(one.predict(unseen.tokens, at=FULL).logits for one in (dan, loaded)))


def test_dropout_leaves_out_whole_n_grams_in_training_only() -> None:
    """With all n-grams left out, a text is answered as one without words; predictions keep all of them."""
    model, tokens = model_of(), TokenSet.from_lists([text(10, 11, 12)])
    model.feature_dropout, model.dropout = 1.0, 0.0
    layout = Layout(tokens.lengths.numpy(), None, "cpu")
    nothing = said(model, TokenSet.from_lists([text()]))
    torch.testing.assert_close(model.train()(tokens, layout).detach(), nothing)
    model.eval()
    assert not torch.allclose(said(model, tokens), nothing)


def test_a_table_larger_than_memory_is_refused(
    signal_task: Task, small_backbone: Backbone, trained_bert: FullDepth, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is made of it, and the message says what it needs and what to lower."""
    monkeypatch.setattr("harness.toolkit.text_models.table_optimizer.memory_left", lambda device: 2**30)
    message = r"training a table of 1,048,576 rows \(rows = 20\) and width 256 needs 5\.0 GiB, and 1\.0 GiB are left"
    with pytest.raises(ConfigError, match=message):
        SparseDan().fit(signal_task, small_backbone, {"bert": trained_bert}, config={"rows": 20}, seed=0)


@pytest.mark.parametrize("config", [{"rows": 40}, {"ngrams": 0}, {"loss": "hinge"}, {"feature_dropout": 1}])
def test_wrong_settings_are_refused(config: Mapping[str, Any], signal_task: Task, small_backbone: Backbone) -> None:
    """One line names the setting."""
    with pytest.raises(ConfigError, match=next(iter(config))):
        SparseDan().fit(signal_task, small_backbone, {}, config=config, seed=0)


@pytest.mark.gpu
def test_a_device_hashes_and_answers_as_the_host_does(dan: FittedSparseDan, unseen: Split) -> None:
    """Products modulo 2^64 wrap around on both, so that rows are equal; answers differ by rounding at most."""
    assert isinstance(dan.model, HashedNgrams)
    there = HashedNgrams(dan.model.limits, dan.model.labels, **dan.model.facts())
    there.load_state_dict(dan.model.state_dict())
    there.to("cuda").eval()
    tokens = unseen.tokens.to("cuda")
    assert torch.equal(there.hashed(tokens).cpu(), dan.model.hashed(unseen.tokens))
    found, expected = FittedSparseDan(there).predict(tokens, at=FULL), dan.predict(unseen.tokens, at=FULL)
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-4)
