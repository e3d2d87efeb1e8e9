"""Insert, freeze and query millions of n-grams in an exit table, and check that none is lost.

Text is drawn chunk by chunk from a seed, half of it by Zipf's law and half uniformly, in samples of 64 tokens with random exits::

    python -m suites.studies.exit_table_load --ngrams 100000000 --backend cpu --seed 0 --out load.json

The checks: counts add up to what was inserted; every key of some samples has its exact count at every exit and the row that
follows from it; every queried n-gram is found. Rates, memory and checks are printed and stored. The exit code is 1 if a check
fails.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from geep.exit_table import ExitTable
from geep.exit_table.backends.selection import BACKENDS
from geep.exit_table.keys import MAX_NGRAM
from geep.exit_table.rows import prior_row, smoothed_rows
from harness.cli.argument_types import OneLineParser, whole_number
from harness.core import clock
from harness.core.command_line import exit_codes
from harness.core.environment import environment_facts
from harness.core.errors import ConfigError
from harness.core.files import write_json
from harness.core.tokens import TokenSet
from suites.workloads.exit_table_alternatives import LENGTH, keys_of
from suites.workloads.exit_table_workloads import grams

CHUNK = 1 << 14  # samples
WATCHED = 8  # samples of the first chunk whose keys are also counted exactly
SMOOTHING = 8


def chunks(samples: int, layers: int, vocab: int, seed: int) -> Iterator[tuple[TokenSet, torch.Tensor]]:
    """Yield (tokens, exits) of all samples, at most ``CHUNK`` samples at a time; the seed determines them."""
    for number, begin in enumerate(range(0, samples, CHUNK)):
        rng = np.random.default_rng([seed, number])
        count = min(CHUNK, samples - begin)
        zipf = (rng.zipf(1.2, (count, LENGTH)) - 1) % vocab
        ids = np.where(rng.random((count, LENGTH)) < 0.5, zipf, rng.integers(0, vocab, (count, LENGTH)))
        offsets = np.arange(count + 1, dtype=np.int64) * LENGTH
        segments = torch.zeros(count * LENGTH, dtype=torch.int8)
        tokens = TokenSet(torch.from_numpy(ids.reshape(-1).astype(np.int32)), torch.from_numpy(offsets), segments)
        yield tokens, torch.from_numpy(rng.integers(0, layers, count))


def peak_memory() -> int:
    """Return the largest resident set of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measure(
    ngrams: int, backend: str = "cpu", seed: int = 0, *, layers: int = 12, ngram: int = 2, vocab: int = 30_522,
    device: str = "cpu",
) -> dict[str, Any]:  # fmt: skip
    """Insert at least ``ngrams`` n-grams, freeze, query all of them, and return rates, memory and checks.

    Raises:
        ConfigError: a number is out of range.
        DeviceError: the backend or the device is not available.
    """
    if not 1 <= ngram <= MAX_NGRAM or not 1 < vocab <= 1 << 20:
        raise ConfigError(f"--ngram {ngram} must be 1 to {MAX_NGRAM}, --vocab {vocab} 2 to {1 << 20}")
    samples = -(-ngrams // grams(1, ngram))
    table = ExitTable(layers, ngram, backend, seed)
    before = peak_memory()
    seconds = dict.fromkeys(("insert", "freeze", "query"), 0.0)

    def text(label: str) -> Iterator[tuple[TokenSet, TokenSet, torch.Tensor]]:
        parts = chunks(samples, layers, vocab, seed)
        for tokens, exits in tqdm(parts, desc=label, total=-(-samples // CHUNK), disable=None):
            yield tokens, tokens.to(device), exits

    first, _ = next(chunks(samples, layers, vocab, seed))
    watched_samples = first.select(range(min(WATCHED, len(first))))
    watched = np.unique(keys_of(watched_samples, ngram)[0].numpy())
    exact = np.zeros((len(watched), layers), dtype=np.int64)
    for tokens, there, exits in text("insert"):
        begin = _now(device)
        table.insert(there, exits)
        seconds["insert"] += _now(device) - begin
        keys, sample = (part.numpy() for part in keys_of(tokens, ngram))
        place = np.searchsorted(watched, keys).clip(max=len(watched) - 1)
        hit = watched[place] == keys
        np.add.at(exact, (place[hit], exits.numpy()[sample[hit]]), 1)
    stats = table.stats()
    keys, counts = table.counts()
    place = np.searchsorted(keys, watched).clip(max=len(keys) - 1)
    checks = {
        "all_counted": int(counts.sum(dtype=np.int64)) == grams(samples, ngram),
        "keys_distinct": bool((np.diff(keys) > 0).all()),
        "watched_counts_exact": bool((keys[place] == watched).all() and (counts[place] == exact).all()),
    }
    del keys, counts
    begin = _now(device)
    table.freeze(min_count=1, smoothing=SMOOTHING)
    seconds["freeze"] = _now(device) - begin
    found = asked = 0
    exits_taken = np.zeros(layers, dtype=np.int64)
    for _, there, exits in text("query"):
        begin = _now(device)
        table.predict(there, 500)
        seconds["query"] += _now(device) - begin
        table.check()
        found, asked = found + table.hits()[0], asked + table.hits()[1]
        exits_taken += np.bincount(exits.numpy(), minlength=layers)
    rows = smoothed_rows(exact, prior_row(exits_taken, table.columns), SMOOTHING, table.columns)
    keys, sample = (part.numpy() for part in keys_of(watched_samples, ngram))
    expected = np.zeros((len(watched_samples), layers), dtype=np.int64)
    np.add.at(expected, sample, rows[np.searchsorted(watched, keys)])
    sums = table.distribution(watched_samples.to(device)).cpu().numpy()
    checks["watched_rows_exact"] = bool((sums == expected).all())
    inserted = grams(samples, ngram)
    checks["all_found"] = found == asked == inserted
    shape = {"samples": samples, "ngram": ngram, "layers": layers, "vocab": vocab, "seed": seed, "device": device}
    return {
        "ngrams": inserted,
        **shape,
        "backend": stats["backend"],
        "layout": stats["layout"],
        "keys": stats["keys"],
        "checks": checks,
        "watched_keys": len(watched),
        "seconds": seconds,
        "inserted_per_s": inserted / seconds["insert"],
        "queried_per_s": asked / seconds["query"],
        "table_bytes_counting": stats["bytes"],
        "table_bytes_frozen": table.stats()["bytes"],
        "peak_resident_bytes": peak_memory(),
        "peak_resident_bytes_before": before,
        "peak_device_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
        "fingerprint": environment_facts(),
    }


def _now(device: str) -> float:
    clock.synchronise(device)
    return clock.now()


@exit_codes("exit_table_load")
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = OneLineParser(prog="python -m suites.studies.exit_table_load", description=__doc__.splitlines()[0])
    count = whole_number(1)
    parser.add_argument("--ngrams", type=count, default=1_000_000, metavar="N", help="n-grams to insert, at least")
    parser.add_argument("--backend", choices=BACKENDS, default="cpu")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="device of the tokens")
    parser.add_argument("--layers", type=count, default=12, metavar="N")
    parser.add_argument("--ngram", type=count, default=2, metavar="N", help="longest n-gram")
    parser.add_argument("--vocab", type=count, default=30_522, metavar="N")
    parser.add_argument("--seed", type=whole_number(0), default=0, metavar="N")
    parser.add_argument("--out", type=Path, metavar="JSON", help="also write JSON here")
    args = parser.parse_args(arguments)
    options = {key: value for key, value in vars(args).items() if key not in ("ngrams", "out")}
    facts = measure(args.ngrams, **options)
    if args.out:
        write_json(args.out, facts)
    seconds = facts["seconds"]
    print(
        f"{facts['ngrams']:,} n-grams, {facts['keys']:,} keys, backend {facts['backend']} ({facts['layout']})\n"
        f"insert {seconds['insert']:.1f} s ({facts['inserted_per_s'] / 1e6:.2f} M/s), freeze {seconds['freeze']:.1f} s,"
        f" query {seconds['query']:.1f} s ({facts['queried_per_s'] / 1e6:.2f} M/s)\n"
        f"table {facts['table_bytes_counting'] / 2**20:.0f} MiB counting, {facts['table_bytes_frozen'] / 2**20:.0f} MiB frozen;"
        f" process at most {facts['peak_resident_bytes'] / 2**20:.0f} MiB"
        f" ({facts['peak_resident_bytes_before'] / 2**20:.0f} MiB before)"
    )
    failed = [name for name, held in facts["checks"].items() if not held]
    print(f"FAILED: {', '.join(failed)}" if failed else f"nothing lost: {', '.join(facts['checks'])}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
