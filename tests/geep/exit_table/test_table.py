"""The exit table: counts, predictions and rejected input."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from geep.exit_table import ExitTable, table
from geep.exit_table.backends import cpu
from geep.exit_table.columns import TableColumns
from geep.exit_table.keys import MAX_ID
from geep.exit_table.rows import SCALE, prior_row, smoothed_rows
from geep.exit_table.rules import Quantiles
from harness.core.errors import ConfigError, UnknownNameError
from harness.core.tokens import TokenSet
from harness.kernels import cuda, host

USABLE = ["reference", "cpu", *["host"] * (host.problem() is None), *["cuda"] * (cuda.problem() is None)]
BACKENDS = [
    "reference",
    "cpu",
    pytest.param("host", marks=pytest.mark.skipif(host.problem() is not None, reason=str(host.problem()))),
    pytest.param(
        "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(cuda.problem() is not None, reason=str(cuda.problem()))]
    ),
]
CLS, SEP = 101, 102
IDS = st.sampled_from([0, 1, 2, 3, 7, 500, MAX_ID, CLS, SEP])
SAMPLES = st.lists(st.lists(IDS, max_size=9), max_size=12)


def tensors(samples: list[list[int]]) -> list[Tensor]:
    return [torch.tensor(sample, dtype=torch.int64) for sample in samples]


@st.composite
def cases(draw: st.DrawFn) -> dict:
    """Draw a table's options, samples with exits to insert, and samples to query (some empty, some unseen)."""
    layers = draw(st.integers(1, 24))
    train = draw(st.lists(st.tuples(st.lists(IDS, max_size=9), st.integers(0, layers - 1)), min_size=1, max_size=12))
    return {
        "options": {"columns": layers, "ngram": draw(st.integers(1, 3)), "special": (CLS, SEP)},
        "train": [sample for sample, _ in train],
        "exits": [exit_layer for _, exit_layer in train],
        "freeze": {"min_count": draw(st.integers(1, 4)), "smoothing": draw(st.sampled_from([0, 1, 8, 2**32 - 1]))},
        "test": draw(SAMPLES),
        "quantiles": draw(st.lists(st.integers(1, 1000), min_size=1, max_size=5)),
    }


def build(case: dict, backend: str) -> ExitTable:
    made = ExitTable(**case["options"], backend=backend)
    made.insert(tensors(case["train"]), case["exits"])
    made.freeze(**case["freeze"])
    return made


@settings(max_examples=100)
@given(cases())
def test_the_cpu_backend_equals_the_reference_bit_for_bit(case: dict) -> None:
    """Both backends give the same counts, row sums, exits and statistics for any data."""
    reference, fast = build(case, "reference"), build(case, "cpu")
    test = tensors(case["test"])
    for ours, theirs in zip(reference._backend.export(), fast._backend.export(), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    assert torch.equal(reference.distribution(test), fast.distribution(test))
    exits = reference.quantiles(test, case["quantiles"])
    assert exits.dtype == torch.int16
    assert torch.equal(exits, fast.quantiles(test, case["quantiles"]))
    for name in ("keys", "samples", "tokens", "query_keys", "hit_rate"):
        assert reference.stats()[name] == fast.stats()[name]


@settings(max_examples=50)
@given(cases())
def test_long_samples_and_small_chunks_change_nothing(case: dict) -> None:
    """The exact int64 path, work in pieces and another share of dense ids equal the float32 path in one piece."""
    test = tensors(case["test"])
    expected = build(case, "cpu").distribution(test)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "EXACT_IN_FLOAT32", 0)
        patch.setattr(cpu, "CHUNK", 3)
        patch.setattr(cpu, "ROWS", 2)
        patch.setattr(cpu, "DENSE_IDS", 2)
        patch.setattr(cpu, "SMALLEST_MERGE", 2)
        assert torch.equal(build(case, "cpu").distribution(test), expected)


def test_a_sample_too_long_for_float32_is_still_exact() -> None:
    """Sums above 2^24 keep their last bits."""
    made = ExitTable(columns=3)
    made.insert(tensors([[5], [5], [5]]), [0, 1, 2])
    made.freeze(smoothing=0)
    row = made.distribution(tensors([[5]]))
    assert (row % 2).any()
    assert torch.equal(made.distribution(tensors([[5] * 5001])), row * 5001)


@settings(max_examples=60)
@given(cases(), st.randoms(use_true_random=False), st.integers(1, 5), st.sampled_from(USABLE))
def test_order_and_batching_of_inserts_do_not_matter(case: dict, random, size: int, backend: str) -> None:
    """Samples inserted in shuffled small batches give the same table."""
    rows = list(zip(case["train"], case["exits"], strict=True))
    random.shuffle(rows)
    made = ExitTable(**case["options"], backend=backend)
    for begin in range(0, len(rows), size):
        part = rows[begin : begin + size]
        made.insert(tensors([sample for sample, _ in part]), [exit_layer for _, exit_layer in part])
    made.freeze(**case["freeze"])
    whole = build(case, "cpu")
    for ours, theirs in zip(made._backend.export(), whole._backend.export(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    test = tensors(case["test"])
    assert torch.equal(made.distribution(test), whole.distribution(test))


@settings(max_examples=60)
@given(cases(), st.integers(0, 12), st.permutations(USABLE))
def test_merging_equals_inserting_everything_into_one_table(case: dict, cut: int, backends: list[str]) -> None:
    """Two merged tables, also of different backends, equal one table with all samples."""
    parts = []
    for backend, part in zip(backends[:2], (slice(0, cut), slice(cut, None)), strict=True):
        made = ExitTable(**case["options"], backend=backend)
        made.insert(tensors(case["train"][part]), case["exits"][part])
        parts.append(made)
    parts[0].merge(parts[1])
    parts[0].freeze(**case["freeze"])
    whole = build(case, "cpu")
    test = tensors(case["test"])
    assert torch.equal(parts[0].distribution(test), whole.distribution(test))
    for name in ("keys", "samples", "tokens"):
        assert parts[0].stats()[name] == whole.stats()[name]


@settings(max_examples=100)
@given(cases(), st.sampled_from(USABLE))
def test_a_prediction_has_mass_and_grows_with_the_quantile(case: dict, backend: str) -> None:
    """Only exits that some sample took are predicted, and a larger quantile is never shallower."""
    made, test = build(case, backend), tensors(case["test"])
    exits = made.quantiles(test, range(1, 1001, 37))
    assert (exits[:, 1:] >= exits[:, :-1]).all()
    empty = torch.tensor([not set(sample) - {CLS, SEP} for sample in case["test"]], dtype=torch.bool)
    assert (exits[empty] == made.num_layers - 1).all()
    taken = torch.zeros(made.num_layers, dtype=torch.bool)
    taken[case["exits"]] = True
    assert taken[exits[~empty].long()].all()


@settings(max_examples=60)
@given(cases(), st.sampled_from(USABLE))
def test_a_prediction_does_not_depend_on_other_samples(case: dict, backend: str) -> None:
    """Queries one by one give the answers of one query for all samples."""
    made, test = build(case, backend), tensors(case["test"])
    together = made.predict(test, 0.7)
    assert together.tolist() == [int(made.predict([sample], 0.7)[0]) for sample in test]


@settings(max_examples=60)
@given(cases(), st.sampled_from(USABLE))
def test_every_key_has_exactly_one_unit_of_mass(case: dict, backend: str) -> None:
    """Every row sums to 2^14, known or not, so rounding gives no key more weight."""
    made = build(case, backend)
    for sample in tensors(case["test"]):
        total = int(made.distribution([sample]).sum())
        assert total == SCALE * made.stats()["query_keys"]


@settings(max_examples=60)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=2, max_size=24).filter(any), st.integers(0, 2**32 - 1), st.data())
def test_rows_are_within_one_unit_of_the_exact_fraction(counts: list[int], smoothing: int, data: st.DataObject) -> None:
    """Fixed-point rows differ from exact smoothed fractions by less than one unit, and are 0 for exits never seen."""
    seen = data.draw(st.lists(st.integers(0, 9), min_size=len(counts), max_size=len(counts)).filter(any))
    counts = [count // len(counts) for count in counts]  # a table holds fewer than 2^32 tokens
    if not any(counts):
        counts[0] = 1
    columns = TableColumns(exits=len(counts))
    prior = prior_row(np.array(seen), columns)
    row = smoothed_rows(np.array([counts], dtype=np.uint32), prior, smoothing, columns)[0]
    assert prior.sum() == SCALE and row.sum() == SCALE
    for got, count, share in zip(row.tolist(), counts, prior.tolist(), strict=True):
        exact = Fraction(SCALE * count + smoothing * share, sum(counts) + smoothing)
        assert abs(got - exact) < 1
        assert got == 0 or count or share


def test_the_quantile_is_the_smallest_exit_that_reaches_it() -> None:
    """A cumulative mass equal to the quantile is enough; one per mille more is not."""
    sums = torch.tensor([[250, 0, 250, 500]]) * SCALE
    assert Quantiles((1, 250, 251, 500, 501, 1000)).assign(sums).tolist() == [[0, 0, 2, 2, 3, 3]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_words_move_the_prediction_to_their_exits(backend: str) -> None:
    """A word seen at shallow exits predicts a shallow exit; an unknown word predicts the usual one."""
    made = ExitTable(columns=6, backend=backend)
    made.insert(tensors([[1, 9], [1, 8], [2, 9], [2, 8], [2, 7]]), [0, 0, 4, 4, 4])
    made.freeze(smoothing=0)
    assert made.predict(tensors([[1], [2], [1, 1, 2], [999], []]), 0.5).tolist() == [0, 4, 0, 4, 5]
    assert made.predict(tensors([[999]]), 0.39).tolist() == [0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_rare_keys_take_the_back_off_row(backend: str) -> None:
    """A key below min_count counts as unknown, not as a hit."""
    made = ExitTable(columns=4, backend=backend)
    made.insert(tensors([[1], [2], [2], [2]]), [0, 3, 3, 3])
    made.freeze(min_count=2, smoothing=0)
    rows = made.distribution(tensors([[1], [999], [2]]))
    assert rows.tolist() == [[SCALE // 4, 0, 0, 3 * SCALE // 4]] * 2 + [[0, 0, 0, SCALE]]
    assert made.stats()["hit_rate"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("ngram", "keys"), [(1, 4), (2, 6), (3, 6)])
def test_ngrams_do_not_cross_special_ids_or_samples(backend: str, ngram: int, keys: int) -> None:
    """[CLS] 1 2 [SEP] 3 [SEP] and 4 1 have only the words 1..4 and the bigrams (1, 2) and (4, 1)."""
    made = ExitTable(columns=2, ngram=ngram, backend=backend)
    tokens = TokenSet.from_lists([[CLS, 1, 2, SEP, 3, SEP], [4, 1]], special=(CLS, SEP, 0))
    made.insert(tokens, [0, 1])
    assert made.stats()["keys"] == keys


@pytest.mark.parametrize("backend", BACKENDS)
def test_ngrams_of_id_zero_are_distinct_by_length(backend: str) -> None:
    """The word 0, the pair 0 0 and the triple 0 0 0 are three keys."""
    made = ExitTable(columns=2, ngram=3, backend=backend)
    made.insert(tensors([[0, 0, 0]]), [1])
    keys, counts = made._backend.export()
    assert keys.tolist() == [1 << 60, 2 << 60, 3 << 60]
    assert counts[:, 1].tolist() == [3, 2, 1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_token_sets_and_lists_give_the_same_answers(backend: str) -> None:
    """A packed TokenSet equals the same samples as lists."""
    made = ExitTable(columns=3, ngram=2, backend=backend, special=(CLS, SEP))
    rows = [[CLS, 5, 6, SEP], [CLS, 7, SEP], [CLS, 6, 5, 6, SEP]]
    made.insert(TokenSet.from_lists(rows, special=(CLS, SEP)), torch.tensor([0, 1, 2], dtype=torch.int16))
    made.freeze()
    packed = made.distribution(TokenSet.from_lists(rows, special=(CLS, SEP)))
    assert torch.equal(packed, made.distribution(tensors(rows)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_samples_give_no_exits(backend: str) -> None:
    """Zero samples and samples without tokens are valid queries."""
    made = ExitTable(columns=3, ngram=3, backend=backend)
    made.insert(tensors([[1, 2, 3]]), [1])
    made.freeze()
    assert made.predict([], 0.5).shape == (0,)
    assert made.predict([torch.zeros(0)], 0.5).tolist() == [2]
    assert made.stats()["hit_rate"] is None


def test_the_layout_is_reported() -> None:
    """The report names the lookup of single tokens (by id), n-grams and large ids (by search), and the fast backend."""
    assert ExitTable(2).stats()["backend"] == ("cuda" if "cuda" in USABLE else "cpu")
    for backend in USABLE[1:]:
        search = "sorted" if backend == "cpu" else "dense+hash"
        assert ExitTable(2, backend=backend).stats()["layout"] == "dense"
        assert ExitTable(2, ngram=2, backend=backend).stats()["layout"] == search
        large = ExitTable(2, backend=backend)
        large.insert(tensors([[MAX_ID]]), [0])
        assert large.stats()["layout"] == search


@pytest.mark.parametrize(("options", "word"), [
    ({"columns": 0}, "num_layers=0"),
    ({"columns": 25}, "num_layers=25"),
    ({"columns": 6, "ngram": 0}, "ngram=0"),
    ({"columns": 6, "ngram": 4}, "ngram=4"),
    ({"columns": 6, "special": (-1,)}, "special"),
])  # fmt: skip
def test_options_out_of_range_are_rejected(options: dict, word: str) -> None:
    """The message names the option."""
    with pytest.raises(ConfigError, match=word):
        ExitTable(**options)


def test_an_unknown_backend_gets_a_suggestion() -> None:
    """The error for a misspelt backend suggests the right name."""
    with pytest.raises(UnknownNameError, match="did you mean cpu"):
        ExitTable(6, backend="cpuu")


@pytest.mark.parametrize(("samples", "exits", "word"), [
    ([torch.tensor([1])], [3], "exit 3 is not in 0..2"),
    ([torch.tensor([1])], [-1], "exit -1"),
    ([torch.tensor([1])], [0.5], "give integers"),
    ([torch.tensor([1])], [0, 1], "1 samples but 2 exits"),
    ([torch.tensor([1 << 20])], [0], "id 1048576"),
    ([torch.tensor([4, -7])], [0], "id -7"),
    ([torch.tensor([1.5])], [0], "float32"),
    ([torch.tensor([[1]])], [0], "not a 1-D tensor"),
    ([[1, 2]], [0], "not a 1-D tensor"),
    (TokenSet(torch.tensor([1, 2]), torch.tensor([0, 1]), torch.zeros(2)), [0], "offsets"),
    (TokenSet(torch.tensor([1, 2]), torch.tensor([0, 3, 2]), torch.zeros(2)), [0, 0], "offsets"),
])  # fmt: skip
@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_samples_are_rejected_and_nothing_is_counted(backend: str, samples, exits: list, word: str) -> None:
    """The one-line message names the problem, and the table does not change."""
    made = ExitTable(columns=3, backend=backend)
    with pytest.raises(ConfigError, match=word) as caught:
        made.insert(samples, exits)
    assert "\n" not in str(caught.value)
    assert made.stats()["keys"] == made.stats()["samples"] == made.stats()["tokens"] == 0


def test_the_order_of_calls_is_enforced() -> None:
    """Predicting is possible after freezing and counting before it; an empty table cannot be frozen."""
    made, other = ExitTable(3), ExitTable(3)
    with pytest.raises(ConfigError, match="call freeze before predict"):
        made.predict(tensors([[1]]), 0.5)
    with pytest.raises(ConfigError, match="nothing was inserted"):
        made.freeze()
    made.insert(tensors([[1]]), [0])
    made.freeze()
    for act in (lambda: made.insert(tensors([[1]]), [0]), made.freeze, lambda: made.merge(other)):
        with pytest.raises(ConfigError, match="frozen"):
            act()
    with pytest.raises(ConfigError, match="merge from a frozen"):
        other.merge(made)


@pytest.mark.parametrize("options", [{"min_count": 0}, {"smoothing": -1}, {"smoothing": 0.5}, {"min_count": 2**32}])
def test_freeze_rejects_invalid_numbers(options: dict) -> None:
    """min_count and smoothing must be whole numbers in range."""
    made = ExitTable(3)
    made.insert(tensors([[1]]), [0])
    with pytest.raises(ConfigError, match=next(iter(options))):
        made.freeze(**options)


@pytest.mark.parametrize("quantile", [0, 0.0, -0.1, 1.01, 1001, 0.0004, float("nan"), float("inf"), True, "0.5", None])
def test_quantiles_out_of_range_are_rejected(quantile) -> None:
    """The message names a quantile that is neither a fraction nor per mille."""
    made = ExitTable(3)
    made.insert(tensors([[1]]), [0])
    made.freeze()
    with pytest.raises(ConfigError, match="quantile"):
        made.predict(tensors([[1]]), quantile)


def test_a_fraction_and_its_per_mille_are_the_same_quantile() -> None:
    """0.25 equals 250 per mille, and 1.0 equals 1000."""
    made = ExitTable(5)
    made.insert(tensors([[1]] * 5), range(5))
    made.freeze()
    assert made.quantiles(tensors([[1]]), [0.25, 250, 1.0, 1000, 0.001, 1]).tolist() == [[1, 1, 4, 4, 0, 0]]


@pytest.mark.parametrize("options", [{"columns": 4}, {"ngram": 2}, {"seed": 1}, {"special": (7,)}])
def test_tables_with_different_options_are_not_merged(options: dict) -> None:
    """The message names the option that differs."""
    with pytest.raises(ConfigError, match=next(iter(options))):
        ExitTable(**{"columns": 3}).merge(ExitTable(**{"columns": 3, **options}))


def test_counts_cannot_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """An insert beyond the counters' range is an error, and the table does not change."""
    monkeypatch.setattr(table, "COUNT_LIMIT", 5)
    made, other = ExitTable(3), ExitTable(3)
    made.insert(tensors([[1, 2, 3]]), [0])
    other.insert(tensors([[1, 2]]), [0])
    with pytest.raises(ConfigError, match="limit"):
        made.insert(tensors([[1, 2]]), [0])
    with pytest.raises(ConfigError, match="limit"):
        made.merge(other)
    assert made.stats()["tokens"] == 3
