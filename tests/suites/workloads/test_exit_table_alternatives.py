"""The alternatives in the exit table's benchmarks compute the table's answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from geep.exit_table import ExitTable
from suites.workloads import exit_table_alternatives
from suites.workloads.exit_table_alternatives import FrozenRows

VOCAB, LAYERS, SMOOTHING = 300, 7, 8


@pytest.fixture(params=[("uniform", 1), ("uniform", 2), ("zipf", 1), ("zipf", 2)], ids=str)
def workload(request: pytest.FixtureRequest) -> tuple[ExitTable, FrozenRows, int, str]:
    """A frozen table and its rows as plain tensors."""
    skew, ngram = request.param
    tokens = exit_table_alternatives.text(3000, VOCAB, skew, seed=0)
    exits = torch.from_numpy(np.random.default_rng(1).integers(0, LAYERS, len(tokens)))
    table = ExitTable(LAYERS, ngram)
    table.insert(tokens, exits)
    table.freeze(min_count=1, smoothing=SMOOTHING)
    unique, counts = exit_table_alternatives.count_by_sorting(tokens, exits, LAYERS, ngram)
    np.testing.assert_array_equal(unique.numpy(), table.counts()[0])
    np.testing.assert_array_equal(counts.numpy(), table.counts()[1])
    return table, FrozenRows.of(table, exits, VOCAB, SMOOTHING, "cpu"), ngram, skew


@pytest.mark.parametrize("quantile", [1, 300, 700, 1000])
def test_rivals_give_the_tables_exits(workload: tuple[ExitTable, FrozenRows, int, str], quantile: int) -> None:
    """Gather, embedding bag and binary search equal the exit table on seen and unseen text, at any quantile."""
    table, held, ngram, skew = workload
    asked = exit_table_alternatives.text(6000, VOCAB, skew, seed=5)
    expected = table.predict(asked, quantile)
    assert torch.equal(exit_table_alternatives.search_sorted(asked, held, quantile, ngram), expected)
    if ngram == 1:
        assert torch.equal(exit_table_alternatives.gather_and_sum(asked, held, quantile), expected)
        assert torch.equal(exit_table_alternatives.bag_of_rows(asked, held, quantile), expected)


def test_the_hashing_trick_equals_the_table_up_to_collisions(workload: tuple[ExitTable, FrozenRows, int, str]) -> None:
    """With far fewer keys than rows, few collide, and nearly all exits are exact."""
    table, held, ngram, skew = workload
    asked = exit_table_alternatives.text(6000, VOCAB, skew, seed=5)
    found = exit_table_alternatives.hashing_trick(asked, held, 600, ngram)
    assert (found == table.predict(asked, 600)).float().mean() > 0.95


def test_text_has_the_stated_skew() -> None:
    """Uniform ids are about equally frequent, Zipf's fall as k^-1.2, and a seed determines the text."""
    uniform, zipf = (exit_table_alternatives.text(200_000, VOCAB, skew, seed=2).ids for skew in ("uniform", "zipf"))
    assert torch.equal(zipf, exit_table_alternatives.text(200_000, VOCAB, "zipf", seed=2).ids)
    counts = torch.bincount(uniform, minlength=VOCAB).double()
    assert len(counts) == VOCAB
    assert counts.max() < 1.3 * counts.min()
    counts = torch.bincount(zipf, minlength=VOCAB).double()
    assert len(counts) == VOCAB
    for k in (2, 5, 10, 20):
        assert float(counts[k - 1] / counts[0]) == pytest.approx(k**-1.2, rel=0.1)
