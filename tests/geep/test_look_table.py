"""The table behind one look equals a written-out one on every backend, and falls back where it has seen nothing."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from geep import look_table
from geep.exit_table import ExitTable
from geep.exit_table.rows import SCALE
from geep.exit_table.rules import UNIT, Expected
from geep.look_table import Bins, LookTable
from harness.core.errors import ConfigError
from harness.execution.exit_rules import normalised_entropy
from harness.kernels import cuda, host

BACKENDS = ["reference", "cpu", "host"][: 2 if host.problem() else 3]
ANSWERS = (0, 1, 3, 5)


def observed(count: int, seed: int, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Return logits [A, N, C] of which later ones agree more often with the last, and lengths [N]."""
    draw = torch.Generator().manual_seed(seed)
    last = torch.randn(count, classes, generator=draw) * 2
    noise = torch.randn(len(ANSWERS), count, classes, generator=draw)
    logits = last + noise * torch.tensor([3.0, 2.0, 1.0, 0.0])[:, None, None]
    return logits, torch.randint(1, 20, (count,), generator=draw)


def by_hand(
    seen: tuple[Tensor, Tensor], asked: tuple[Tensor, Tensor], look: int, bins: Bins, smoothing: int
) -> list[list[int]]:
    """Return the summed rows of the asked samples (their logits at the look, and lengths), in plain loops."""

    def keys(logits: Tensor, length: int) -> list[tuple[int, ...]]:
        entropy = float(normalised_entropy(logits))
        at = sum(entropy > cut for cut in bins.entropies)
        said, bucket = int(logits.argmax()), sum(length > end for end in bins.lengths)
        return [(at,), (at, said), (at, said, bucket)]

    logits, lengths = seen
    width = ANSWERS[-1] + 1 - look
    counts: dict[tuple[int, ...], list[int]] = {}
    samples: dict[tuple[int, ...], int] = {}
    for sample in range(logits.shape[1]):
        for key in [(), *keys(logits[ANSWERS.index(look), sample], int(lengths[sample]))]:
            row = counts.setdefault(key, [0] * width)
            samples[key] = samples.get(key, 0) + 1
            for answer, theirs in zip(ANSWERS, logits[:, sample], strict=True):
                if answer >= look:
                    row[answer - look] += int(theirs.argmax() == logits[-1, sample].argmax())
    prior = [SCALE * count // samples[()] for count in counts[()]]
    rows = {
        key: [
            (SCALE * count + smoothing * usual) // (samples[key] + smoothing)
            for count, usual in zip(row, prior, strict=True)
        ]
        for key, row in counts.items()
    }
    return [
        [sum(parts) for parts in zip(*(rows.get(key, prior) for key in keys(one, int(length))), strict=True)]
        for one, length in zip(*asked, strict=True)
    ]


def dearest(row: list[int], look: int, price: int) -> int:
    """Return the exit with a head and the smallest loss of agreement plus price, in exact fractions."""
    candidates = [answer for answer in ANSWERS if answer >= look]
    return min(candidates, key=lambda k: (1 - Fraction(row[k - look], row[-1]) + Fraction(price * (k - look), UNIT), k))


def compare(
    module: ModuleType, seed: int, look: int, price: int, smoothing: int = 3, backends: list[str] = BACKENDS
) -> None:
    """Compare the exits and rows of every backend with those written out."""
    seen, asked = observed(60, seed), observed(25, seed + 1000)
    queries = asked[0][ANSWERS.index(look)], asked[1]
    for backend in backends:
        table = module.LookTable.fill(*seen, ANSWERS, look, bins=4, buckets=3, smoothing=smoothing, backend=backend)
        expected = by_hand(seen, queries, look, table.bins, smoothing)
        assert table.table.distribution(table.keys(*queries)).tolist() == expected, backend
        exits = table.exits(*queries, (price, 0))
        assert exits.dtype == torch.int16
        wanted = [[dearest(row, look, each) for each in (price, 0)] for row in expected]
        assert exits.tolist() == wanted, backend


@settings(max_examples=12)
@given(
    st.integers(0, 1 << 20),
    st.sampled_from(ANSWERS[:-1]),
    st.one_of(st.integers(0, UNIT), st.integers(0, 2400)),
    st.sampled_from([0, 1, 8]),
)
def test_every_backend_equals_the_written_out_table(seed: int, look: int, price: int, smoothing: int) -> None:
    """Rows and exits are the same, bit for bit, whatever is drawn."""
    compare(look_table, seed, look, price, smoothing)


@settings(max_examples=25)
@given(st.integers(0, 1 << 20), st.sampled_from(ANSWERS[:-1]), st.lists(st.integers(0, UNIT), min_size=2, max_size=6))
def test_a_dearer_layer_never_sends_a_sample_deeper(seed: int, look: int, prices: list[int]) -> None:
    """Exits are at layers with a head from the look on, and do not rise with the price."""
    seen, asked = observed(60, seed), observed(25, seed + 1000)
    table = LookTable.fill(*seen, ANSWERS, look, bins=4, buckets=3, smoothing=8, backend="cpu")
    exits = table.exits(asked[0][ANSWERS.index(look)], asked[1], tuple(sorted(prices)))
    assert set(exits.flatten().tolist()) <= {answer for answer in ANSWERS if answer >= look}
    assert (exits.diff(dim=1) <= 0).all()


def test_a_free_layer_gives_full_agreement_and_a_dear_one_the_look() -> None:
    """At price 0 no sample loses agreement that the table expects; at the price of an answer every sample stops."""
    seen = observed(60, 3)
    table = LookTable.fill(*seen, ANSWERS, 1, bins=4, buckets=3, smoothing=0, backend="cpu")
    sums = table.table.distribution(table.keys(seen[0][1], seen[1]))
    free, dear = table.exits(seen[0][1], seen[1], (0, UNIT)).long().unbind(1)
    assert torch.equal(sums.gather(1, free[:, None] - 1)[:, 0], sums[:, -1])
    assert set(dear.tolist()) == {1}


def test_what_was_never_seen_falls_back_and_is_counted() -> None:
    """A class without samples takes the row of all samples for its missing keys; known rows find all of theirs."""
    logits, lengths = observed(60, 5)
    logits[:, :, 2] -= 100.0  # nobody says class 2
    table = LookTable.fill(logits, lengths, ANSWERS, 0, bins=4, buckets=3, smoothing=1, backend="cpu")
    strange = torch.tensor([[0.0, 0.0, 5.0]]), torch.tensor([7])
    keys = table.keys(*strange)
    sums = table.table.distribution(keys)
    assert table.table.hits() == (1, 3)  # the bin of the entropy is known
    everybody = table.table.distribution([torch.tensor([table.bins.size])])  # a key outside of all bins
    assert torch.equal(sums, table.table.distribution([keys.ids[:1]]) + 2 * everybody)
    assert int(table.exits(*strange, (10,))) in ANSWERS
    table.exits(logits[0], lengths, (10,))
    assert table.table.hits() == (180, 180)


def test_bins_keep_equal_entropies_together() -> None:
    """No threshold is at an entropy that occurs, and buckets take whole lengths; one value makes one bin."""
    rng = np.random.default_rng(0)
    entropies = rng.choice([0.1, 0.2, 0.2 + 1e-7, 0.5, 0.9], 200).astype(np.float32)
    bins = Bins.of(entropies, np.full(200, 32), 3, bins=16, buckets=4)
    for cut in bins.entropies:
        assert np.abs(entropies - cut).min() > 1e-6
    assert bins.entropies == pytest.approx([0.15, 0.35, 0.7], abs=1e-6)
    assert bins.lengths == (32,)
    alone = Bins.of(np.zeros(1), np.ones(1, dtype=np.int64), 2, bins=16, buckets=4)
    assert alone.entropies == ()
    assert alone.size == 1 + 2 + 4
    keys = bins.keys(torch.randn(50, 3), torch.randint(1, 60, (50,)), bins.to(torch.device("cpu")))
    assert int(keys.ids.max()) < bins.size


def test_too_many_keys_are_refused() -> None:
    """Classes times bins times buckets must fit the exit table's ids."""
    with pytest.raises(ConfigError, match="set fewer bins or buckets"):
        Bins.of(np.linspace(0, 1, 5000), np.arange(5000), 100, bins=1024, buckets=64)


def test_no_key_is_shared() -> None:
    """Every combination of bin, class and bucket has three keys of its own; keys of different kinds differ."""
    bins = Bins((0.3, 0.6), (5, 9), 3)
    cuts = bins.to(torch.device("cpu"))
    scales = torch.tensor([0.01, 3.0, 20.0])
    kinds: list[set[int]] = [set(), set(), set()]
    for said in range(3):
        logits = torch.nn.functional.one_hot(torch.tensor(said), 3)[None] * scales[:, None]
        for length in (1, 7, 30):
            ids = bins.keys(logits, torch.full((3,), length), cuts).ids.view(3, 3)
            for kind in range(3):
                kinds[kind] |= set(ids[:, kind].tolist())
    assert [len(kind) for kind in kinds] == [3, 9, 27]
    assert len(set.union(*kinds)) == bins.size == 39


def test_no_value_is_read_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Apart from the table's query, tensors without values are enough: on a device the host does not wait."""
    table = LookTable.fill(*observed(60, 3), ANSWERS, 1, bins=4, buckets=3, smoothing=1, backend="cpu")
    monkeypatch.setattr(
        ExitTable, "assign", lambda self, keys, rule: torch.empty(len(keys), 1, dtype=torch.int16, device="meta")
    )
    exits = table.exits(torch.empty(9, 3, device="meta"), torch.empty(9, dtype=torch.int64, device="meta"), (3,))
    assert exits.shape == (9, 1)


def test_a_saved_table_gives_the_same_exits(tmp_path: Path) -> None:
    """A table that was written and read decides alike."""
    seen, asked = observed(60, 3), observed(25, 4)
    table = LookTable.fill(*seen, ANSWERS, 1, bins=4, buckets=3, smoothing=8, backend="cpu")
    table.save(tmp_path)
    again = LookTable.load(tmp_path, 6, backend="reference")
    assert (again.bins, again.look) == (table.bins, 1)
    assert torch.equal(*(one.exits(asked[0][1], asked[1], (0, 100, 2000)) for one in (table, again)))


BUGS = {
    "agreement with the first head": ("labels == predicted[-1]", "labels == predicted[0]"),
    "exits before the look have a column": ("agrees[:, answer - look] =", "agrees[:, answer - answers[0]] ="),
    "exits by place": ("zip(answers, predicted, strict=True)", "zip(range(look, 9), predicted[answers.index(look) :])"),
    "the entropy of the last head": ("logits[answers.index(look)], lengths.cpu()", "logits[-1], lengths.cpu()"),
    "classes share keys": ("entropy * self.classes + logits.argmax(-1)", "entropy + logits.argmax(-1)"),
    "bins and classes share keys": ("answer + bins,", "answer,"),
    "buckets share keys": ("length + bins * (1 + self.classes)", "length"),
    "a length at the end of its bucket is in the next": (
        "torch.bucketize(lengths, cuts[1])", "torch.bucketize(lengths, cuts[1], right=True)"),
    "two keys a sample": ("len(ids) + 1, KEYS, device", "len(ids) // KEYS + 1, device"),
    "exits are counted from the look": ("Expected(prices)) + self.look", "Expected(prices))"),
    "nothing is smoothed": ("smoothing=smoothing)", "smoothing=0)"),
    "rare keys are left out": ("min_count=1", "min_count=4"),
}  # fmt: skip


@pytest.mark.parametrize("bug", [None, *BUGS])
def test_planted_bugs_are_caught(bug: str | None) -> None:
    """The comparison with the written-out table fails for every planted bug, and passes without one."""
    place = Path(str(look_table.__file__))
    text = place.read_text(encoding="utf-8")
    good, bad = BUGS[bug] if bug else ("KEYS = 3", "KEYS = 3")
    assert text.count(good) == 1, "the planted bug must apply exactly once"
    made = ModuleType("geep.look_table_with_a_bug")
    made.__dict__["__file__"] = str(place)

    def act() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, made.__name__, made)
            exec(compile(text.replace(good, bad), str(place), "exec"), made.__dict__)
            for seed, look, price in ((1, 1, 1200), (2, 0, 160), (3, 3, 8000), (4, 1, 0)):
                compare(made, seed, look, price, backends=["cpu"])

    if bug is None:
        act()
    else:
        with pytest.raises((AssertionError, ConfigError, IndexError, RuntimeError)):
            act()


@pytest.mark.gpu
@pytest.mark.skipif(cuda.problem() is not None, reason=str(cuda.problem()))
def test_a_decision_on_the_device_does_not_synchronise() -> None:
    """After the first call, exits are decided without a synchronisation, and equal those of the CPU's table."""
    seen, asked = observed(400, 3), observed(300, 4)
    tables = [
        LookTable.fill(*seen, ANSWERS, 1, bins=8, buckets=3, smoothing=8, backend=name) for name in ("cuda", "cpu")
    ]
    there = asked[0][1].cuda(), asked[1].cuda()
    tables[0].exits(*there, (50,))
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = tables[0].exits(*there, (50,))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    keys = tables[0].keys(*there)  # entropies may round differently there, so the CPU gets the same keys
    assert torch.equal(found.cpu(), tables[1].table.assign(keys.to("cpu"), Expected((50,))) + 1)
