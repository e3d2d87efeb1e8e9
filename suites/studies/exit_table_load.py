"""An exit table under load: millions of n-grams inserted, frozen and queried, and none of them lost.

Text is drawn chunk by chunk from a seed, half of it after Zipf's law and half uniformly, in samples of 64 tokens that leave
at random exits::

    python -m suites.studies.exit_table_load --ngrams 100000000 --backend cpu --seed 0 --out load.json

Checks that counts add up to what was inserted, that every key of some samples has its exact count at every exit and the row
that follows from it, and that every n-gram asked for is found. Prints and stores rates, memory and the checks; leaves with
code 1 if one fails.
"""

from __future__ import annotations

import argparse
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
from geep.exit_table.keys import MAX_NGRAM, pack
from geep.exit_table.rows import prior_row, smoothed_rows
from harness.core import clock
from harness.core.command_line import exit_codes
from harness.core.environment import environment_facts
from harness.core.errors import ConfigError
from harness.core.files import write_json
from harness.core.tokens import TokenSet

LENGTH = 64  # tokens per sample
CHUNK = 1 << 14  # samples
WATCHED = 8  # samples of the first chunk whose keys are counted apart
SMOOTHING = 8


def per_sample(ngram: int) -> int:
    """N-grams of a sample, of every length up to ``ngram``."""
    return sum(LENGTH - n + 1 for n in range(1, ngram + 1))


def chunks(samples: int, layers: int, vocab: int, seed: int) -> Iterator[tuple[TokenSet, torch.Tensor]]:
    """(Tokens, exits) of all samples, the same for the same seed, never more than ``CHUNK`` samples in memory."""
    for number, begin in enumerate(range(0, samples, CHUNK)):
        rng = np.random.default_rng([seed, number])
        count = min(CHUNK, samples - begin)
        zipf = (rng.zipf(1.2, (count, LENGTH)) - 1) % vocab
        ids = np.where(rng.random((count, LENGTH)) < 0.5, zipf, rng.integers(0, vocab, (count, LENGTH))).astype(
            np.int32
        )
        offsets = np.arange(count + 1, dtype=np.int64) * LENGTH
        segments = torch.zeros(count * LENGTH, dtype=torch.int8)
        tokens = TokenSet(torch.from_numpy(ids.reshape(-1)), torch.from_numpy(offsets), segments)
        yield tokens, torch.from_numpy(rng.integers(0, layers, count))


def keys_of(tokens: TokenSet, ngram: int) -> tuple[np.ndarray, np.ndarray]:
    """All keys of the samples and the sample that each is of."""
    packed = pack(tokens, ())
    words = packed.words()
    starts = [torch.nonzero(packed.windows(n, words)).squeeze(1) for n in range(1, ngram + 1)]
    keys = torch.cat([packed.keys(n, at) for n, at in enumerate(starts, 1)])
    return keys.numpy(), (torch.cat(starts) // LENGTH).numpy()


def peak_memory() -> int:
    """Bytes: the largest resident set of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measure(
    ngrams: int, backend: str = "cpu", seed: int = 0, *, layers: int = 12, ngram: int = 2, vocab: int = 30_522,
    device: str = "cpu",
) -> dict[str, Any]:  # fmt: skip
    """Insert at least ``ngrams`` n-grams, freeze, and query all of them; see the module for what is returned.

    Raises:
        ConfigError: a number makes no sense.
        DeviceError: the backend or the device is not to be had here.
    """
    if ngrams < 1:
        raise ConfigError(f"exit_table_load: --ngrams {ngrams}: give at least 1")
    if not 1 <= ngram <= MAX_NGRAM or not 1 < vocab <= 1 << 20:
        raise ConfigError(f"exit_table_load: --ngram {ngram} must be 1 to {MAX_NGRAM}, --vocab {vocab} 2 to {1 << 20}")
    samples = -(-ngrams // per_sample(ngram))
    table = ExitTable(layers, ngram, backend, seed)
    before = peak_memory()
    seconds = dict.fromkeys(("insert", "freeze", "query"), 0.0)

    def text(label: str) -> Iterator[tuple[TokenSet, TokenSet, torch.Tensor]]:
        parts = chunks(samples, layers, vocab, seed)
        for tokens, exits in tqdm(parts, desc=label, total=-(-samples // CHUNK), disable=None):
            yield tokens, tokens.to(device), exits

    first, _ = next(chunks(samples, layers, vocab, seed))
    watched_samples = first.select(range(min(WATCHED, len(first))))
    watched = np.unique(keys_of(watched_samples, ngram)[0])
    exact = np.zeros((len(watched), layers), dtype=np.int64)
    for tokens, there, exits in text("insert"):
        begin = _now(device)
        table.insert(there, exits)
        seconds["insert"] += _now(device) - begin
        keys, sample = keys_of(tokens, ngram)
        place = np.searchsorted(watched, keys).clip(max=len(watched) - 1)
        hit = watched[place] == keys
        np.add.at(exact, (place[hit], exits.numpy()[sample[hit]]), 1)
    stats = table.stats()
    keys, counts = table.counts()
    place = np.searchsorted(keys, watched).clip(max=len(keys) - 1)
    checks = {
        "all_counted": int(counts.sum(dtype=np.int64)) == samples * per_sample(ngram),
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
    rows = smoothed_rows(exact, prior_row(exits_taken), SMOOTHING)
    keys, sample = keys_of(watched_samples, ngram)
    expected = np.zeros((len(watched_samples), layers), dtype=np.int64)
    np.add.at(expected, sample, rows[np.searchsorted(watched, keys)])
    sums = table.distribution(watched_samples.to(device)).cpu().numpy()
    checks["watched_rows_exact"] = bool((sums == expected).all())
    checks["all_found"] = found == asked == samples * per_sample(ngram)
    inserted = samples * per_sample(ngram)
    return {
        "ngrams": inserted,
        "samples": samples,
        "ngram": ngram,
        "layers": layers,
        "vocab": vocab,
        "seed": seed,
        "backend": stats["backend"],
        "layout": stats["layout"],
        "device": device,
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
    parser = argparse.ArgumentParser(
        prog="python -m suites.studies.exit_table_load", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--ngrams", type=int, default=1_000_000, help="n-grams to insert, at least")
    parser.add_argument("--backend", choices=BACKENDS, default="cpu")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the tokens are")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--ngram", type=int, default=2, help="longest n-gram")
    parser.add_argument("--vocab", type=int, default=30_522)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write JSON here")
    args = parser.parse_args(arguments)
    facts = measure(
        args.ngrams,
        args.backend,
        args.seed,
        layers=args.layers,
        ngram=args.ngram,
        vocab=args.vocab,
        device=args.device,
    )
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
