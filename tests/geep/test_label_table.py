"""The table of labels: what it counts, what it is sure of, equal on every backend, and sensitive to planted bugs."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geep import label_table
from geep.exit_table.rows import SCALE
from geep.label_table import UNREACHABLE, VOTES, LabelTable, soft_votes
from harness.core.errors import ConfigError
from harness.core.tokens import TokenSet

CLASSES = 3
rows = st.lists(st.lists(st.integers(0, 12), max_size=7), min_size=1, max_size=8)


def samples(ids: list[list[int]]) -> TokenSet:
    """Return samples; id 0 is special."""
    found = TokenSet.from_lists(ids)
    return TokenSet(found.ids, found.offsets, found.segments, (0,))


def heads(count: int, seed: int = 0, classes: int = CLASSES) -> torch.Tensor:
    """Return answers of a last head, [count, classes]."""
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 2, (count, classes)).astype(np.float32))


def posterior_by_hand(
    train: list[list[int]], logits: torch.Tensor, text: list[int], min_count: int, smoothing: int
) -> np.ndarray | None:
    """Return the posterior of a text as the module describes it, in floating point; None without keys."""

    def keys(ids: list[int]) -> list[tuple[int, ...]]:
        grams = [(a,) for a in ids] + list(zip(ids[:-1], ids[1:], strict=True))
        return [gram for gram in grams if 0 not in gram]

    votes = soft_votes(logits).numpy()
    counts: dict[tuple[int, ...], np.ndarray] = {}
    for sample, ids in enumerate(train):
        for gram in keys(ids):
            counts.setdefault(gram, np.zeros(logits.shape[1]))
            np.add.at(counts[gram], votes[:, sample], 1)
    prior = np.bincount(votes.flatten(), minlength=logits.shape[1]) / votes.size

    def row(gram: tuple[int, ...]) -> np.ndarray:
        seen = counts.get(gram, np.zeros(1))
        if seen.sum() < min_count * VOTES:
            return prior
        return (seen + smoothing * VOTES * prior) / (seen.sum() + smoothing * VOTES)

    found = [row(gram) for gram in keys(text)]
    return np.mean(found, axis=0) if found else None


@given(st.integers(1, 9), st.integers(2, 6), st.integers(0, 99))
def test_votes_follow_the_probabilities(count: int, classes: int, seed: int) -> None:
    """Every sample gives all its votes, and each class gets its share of them, rounded up or down."""
    logits = heads(count, seed, classes)
    votes = soft_votes(logits)
    assert votes.shape == (VOTES, count)
    shares = VOTES * logits.double().softmax(-1)
    for sample in range(count):
        found = torch.bincount(votes[:, sample], minlength=classes)
        assert ((found - shares[sample]).abs() < 1).all()


def check(module: ModuleType) -> None:
    """Posterior, margin and answers of fixed samples are those computed by hand."""
    draw = np.random.default_rng(3)
    train = [draw.integers(0, 9, draw.integers(1, 8)).tolist() for _ in range(40)]
    texts = [*(draw.integers(0, 12, draw.integers(1, 9)).tolist() for _ in range(30)), [0], [11, 11]]
    logits = heads(40, 5)
    logits[:, 0] += torch.from_numpy(np.array([2.0 * (1 in ids) for ids in train]))
    table = module.LabelTable.fill([(samples(train), logits)], ngram=2, min_count=3, smoothing=2)
    posterior, margins = table.posterior(samples(texts))
    expected = [posterior_by_hand(train, logits, text, 3, 2) for text in texts]
    for found, margin, wanted in zip(posterior, margins.tolist(), expected, strict=True):
        if wanted is None:
            assert margin == -1 and found.tolist() == [0.0] * CLASSES
            continue
        np.testing.assert_allclose(found, wanted, atol=4 / SCALE)
        best = np.sort(wanted)
        assert abs(margin / SCALE - (best[-1] - best[-2])) < 4 / SCALE
    assert margins[-2] == -1 and margins[-1] == margins[-1].clamp(min=0)
    middle = int(margins.median())
    answered = table.answered(samples(texts), middle)
    assert answered.sure.tolist() == [margin >= middle for margin in margins.tolist()]
    assert 0 < int(answered.sure.sum()) < len(texts)
    assert answered.logits.dtype is torch.float32
    assert answered.logits.argmax(1).tolist() == posterior.argmax(1).tolist()
    table.temperature = 20.0
    np.testing.assert_allclose(table.answered(samples(texts), 0).logits, 5 * posterior, rtol=1e-6)
    assert not table.answered(samples(texts), module.UNREACHABLE).sure.any()


def test_rows_and_margins_are_as_described() -> None:
    """The mean of the rows of known and unknown keys, and the difference of the two largest entries."""
    check(label_table)


BUGS = {
    "hard labels": ("soft_votes(logits)", "logits.argmax(-1).repeat(VOTES, 1)"),
    "remainders to the smallest": ("descending=True, stable=True", "stable=True"),
    "the first part only": ("for votes in soft_votes(logits):", "for votes in soft_votes(logits)[:1]:"),
    "samples and votes swapped": (".view(len(logits), votes).T.contiguous()", ".view(votes, len(logits)).contiguous()"),
    "counts of votes, not samples": ("min_count=min_count * VOTES", "min_count=min_count"),
    "smoothing by votes": ("smoothing=smoothing * VOTES", "smoothing=smoothing"),
    "single tokens only": ("TableColumns(labels=parts[0][1].shape[1]), ngram", "TableColumns(labels=parts[0][1].shape[1]), 1"),
    "long texts are surer": ("(best[:, 0] - best[:, 1]) // keys.clamp(min=1)", "(best[:, 0] - best[:, 1])"),
    "the best alone": ("best[:, 0] - best[:, 1]", "best[:, 0]"),
    "no keys, no doubt": ("keys.clamp(min=1), -1)", "keys.clamp(min=1), 1)"),
    "above the threshold only": ("margins >= margin", "margins > margin"),
    "unsure samples are answered": ("margins >= margin", "margins < margin"),
    "temperature upside down": ("PERCENT / self.temperature", "PERCENT * self.temperature"),
    "a margin that can be reached": ("UNREACHABLE = SCALE + 1", "UNREACHABLE = 0"),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_caught(bug: str) -> None:
    """The check fails for every planted bug."""
    good, bad = BUGS[bug]
    text = Path(str(label_table.__file__)).read_text(encoding="utf-8")
    assert text.count(good) == 1, "the planted bug must apply exactly once"
    spec = importlib.util.spec_from_file_location("geep.label_table_with_a_bug", str(label_table.__file__))
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    exec(compile(text.replace(good, bad), str(label_table.__file__), "exec"), module.__dict__)
    with pytest.raises(AssertionError):
        check(module)


@pytest.mark.parametrize("backend", ["cpu", "host", pytest.param("cuda", marks=pytest.mark.gpu)])
@settings(max_examples=15, deadline=None)
@given(train=rows, texts=rows, seed=st.integers(0, 9))
def test_backends_are_sure_of_the_same_samples(
    backend: str, train: list[list[int]], texts: list[list[int]], seed: int
) -> None:
    """Posterior, margins and answers equal the reference's bit for bit, also where classes or keys are missing."""
    logits = heads(len(train), seed)
    logits[:, 1] = -40  # a class that the model never gives
    made = [
        LabelTable.fill([(samples(train), logits)], ngram=2, min_count=1, smoothing=1, backend=name)
        for name in ("reference", backend)
    ]
    (wanted, margins), (found, others) = (table.posterior(samples(texts)) for table in made)
    assert torch.equal(found, wanted) and torch.equal(others, margins)
    assert not (wanted[:, 1] > 0).any()  # never the answer
    ours, theirs = (table.answered(samples(texts), 100) for table in made)
    assert torch.equal(ours.sure, theirs.sure) and torch.equal(ours.logits, theirs.logits)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_saved_table_answers_the_same(backend: str, tmp_path: Path) -> None:
    """Whatever backend reads it."""
    train, logits = [[1, 2, 3], [2, 3], [4, 1]], heads(3)
    table = LabelTable.fill([(samples(train), logits)], ngram=2, min_count=1, smoothing=1)
    table.temperature = 3.5
    table.save(tmp_path)
    again = LabelTable.load(tmp_path, backend)
    for first, second in zip(table.posterior(samples(train)), again.posterior(samples(train)), strict=True):
        assert torch.equal(first, second)
    assert again.temperature == 3.5


def test_too_many_classes_and_no_samples_are_refused() -> None:
    """In one line that says what fits."""
    with pytest.raises(ConfigError, match="61 label columns do not fit into a row: it has room for 60"):
        LabelTable.fill([(samples([[1]]), heads(1, classes=61))], ngram=1, min_count=1, smoothing=1)
    with pytest.raises(ConfigError, match="nothing was inserted"):
        LabelTable.fill([(samples([]), heads(0))], ngram=1, min_count=1, smoothing=1)


def test_nobody_reaches_the_highest_margin() -> None:
    """Even a table that knows one class only leaves all samples to the others there."""
    table = LabelTable.fill(
        [(samples([[1]] * 4), heads(4) * 0 + torch.tensor([90.0, 0, 0]))], ngram=1, min_count=1, smoothing=0
    )
    assert table.posterior(samples([[1, 1]]))[1].tolist() == [SCALE]
    assert not table.answered(samples([[1, 1]]), UNREACHABLE).sure.any()
