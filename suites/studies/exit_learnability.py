"""Can exits be predicted? Predict where a sample leaves sequentially, from its text and from the first head, against chance.

::

    python -m suites.studies.exit_learnability --profile twelve-layers --data DATA --backbone en=DIR,zh=DIR --methods geep

HashEE's authors report that neural models predict poorly how difficult a sample is (Sun et al., Findings of ACL 2022), and
therefore learn nothing about exits. Here the difficulty is the exit of the sequential entropy rule on trained weights, at
thresholds with which rows that training has not seen run a given share of the layers (``--budgets``). Ridge regressions learn
that exit from rows without labels; a dataset that has none lends its dev rows. They are tested on the test rows, on which
nothing is chosen.

* *hits*: share of test rows whose exit is predicted, less that of always saying the most common exit.
* *explained*: share of the variance of the exit layer that the prediction explains; always saying the mean explains nothing.

Pooled figures weigh every set the same and cover test rows, with the seeds of a row kept together; beside each stands the value
that could have been found with 80 % power. Nothing is timed. Cached fits are used, and others are made; a stopped study resumes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import RidgeCV
from torch import Tensor

from harness.cli.argument_types import OneLineParser, comma_separated, whole_number
from harness.contracts import Execution
from harness.core.errors import ConfigError
from harness.core.tokens import TokenSet
from harness.encoder.multi_exit import MultiExitModel
from harness.execution.executors import exit_logits
from harness.execution.exit_rules import Entropy, candidate_thresholds, normalised_entropy, replay
from harness.measure.detectable import detectable_mean
from harness.measure.paired_tests import stratified_difference
from harness.running.session import Session
from suites.studies.shared.study import DatasetStudy
from suites.studies.shared.study_page import Page

EVALUATION = Execution(batch_size=64)
HASHED = 1024  # buckets of token ids
BINS = 10  # of the first head's entropy
THRESHOLDS = 400
PENALTIES = np.logspace(-1, 5, 13)
LENGTH = "length"
PREDICTORS = (LENGTH, "hashed tokens", "mean embedding", "first head", "first head and embedding")
Row = Mapping[str, Any]


def share(text: str) -> float:
    """Read a share of the depth, above 0 and below 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no share of the layers between 0 and 1")
    return value


def hashed_tokens(tokens: TokenSet) -> np.ndarray:
    """Return the share of a sample's tokens in every bucket of a multiplicative hash of the id: float64 [N, HASHED]."""
    ids = tokens.ids.cpu().numpy().astype(np.uint64)
    bucket = ((ids * np.uint64(2654435761)) % np.uint64(2**32)) >> np.uint64(32 - (HASHED.bit_length() - 1))
    lengths = tokens.lengths.cpu().numpy()
    rows = np.repeat(np.arange(len(lengths)), lengths)
    counts = np.bincount(rows * HASHED + bucket.astype(np.int64), minlength=len(lengths) * HASHED)
    return np.asarray(counts.reshape(len(lengths), HASHED) / lengths[:, None])


def mean_embedding(model: MultiExitModel, tokens: TokenSet) -> np.ndarray:
    """Return the mean word embedding of every sample: float64 [N, width]."""
    with torch.no_grad():
        words, offsets = model.encoder.word.weight, tokens.offsets[:-1]
        found = torch.nn.functional.embedding_bag(tokens.ids.long(), words, offsets, mode="mean")
    return np.asarray(found.double().cpu().numpy())


def features(model: MultiExitModel, tokens: TokenSet, first: Tensor, edges: np.ndarray) -> dict[str, np.ndarray]:
    """Return the features of every predictor: float64 [N, F] each.

    Args:
        first: logits of the first head, [N, C].
        edges: between bins of its entropy, rising.
    """
    lengths = tokens.lengths.cpu().numpy().astype(float)
    length = np.stack([lengths, np.log(lengths)], 1)
    hashed, embedded = hashed_tokens(tokens), mean_embedding(model, tokens)
    entropy = normalised_entropy(first).numpy().astype(float)
    binned = np.eye(len(edges) + 1)[np.searchsorted(edges, entropy)]
    said = first.double().softmax(-1).numpy()
    head = np.concatenate([said, said.max(1, keepdims=True), entropy[:, None], entropy[:, None] ** 2, binned], 1)
    parts = (length, hashed, embedded, head, np.concatenate([head, embedded], 1))
    return dict(zip(PREDICTORS, parts, strict=True))


def threshold_at(entropies: Tensor, answers: Sequence[int], layers: float) -> float:
    """Return the threshold at which samples run nearest to so many mean layers; ``entropies``: [A, N], normalised."""
    thresholds = candidate_thresholds(entropies[:-1].numpy(), (0.0, 1.0), most=THRESHOLDS)
    places = replay(Entropy(torch.from_numpy(thresholds)[:, None]), entropies)
    means = (torch.tensor(answers) + 1)[places].double().mean(1).numpy()
    return float(thresholds[np.abs(means - layers).argmin()])


def predicted(
    known: np.ndarray, exits: np.ndarray, new: np.ndarray, layers: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Learn exits by ridge regression and predict them for other rows.

    The penalty is chosen by leave-one-out error among the rows to learn from.

    Args:
        known: [M, F], features of the rows to learn from.
        exits: int64 [M], their places.
        new: [N, F].
        layers: [A], of the places.

    Returns:
        The likeliest place, int64 [N], and the expected layer, float64 [N].
    """
    middle, scale = known.mean(0), known.std(0)
    scale[scale == 0] = 1.0
    # One target for each place, and the layer itself.
    targets = np.concatenate([np.eye(len(layers))[exits], layers[exits, None].astype(float)], 1)
    ridge = RidgeCV(alphas=PENALTIES, alpha_per_target=True).fit((known - middle) / scale, targets)
    found = ridge.predict((new - middle) / scale)
    return found[:, :-1].argmax(1), np.clip(found[:, -1], layers[0], layers[-1])


def measures(
    exits: np.ndarray, known_exits: np.ndarray, layers: np.ndarray, guess: np.ndarray, expected: np.ndarray
) -> dict[str, Any]:
    """Return by test row: whether it was hit, less the same for the most common exit; and what the prediction explains of it.

    ``explained`` has the share of the variance as its mean: (squared error of always saying the mean, less that of the
    prediction) / variance.

    Args:
        exits: int64 [N], places of the test rows.
        known_exits: int64 [M], places of the rows to learn from, which know the most common exit and the mean.
        guess, expected: as :func:`predicted` returns them.
    """
    common, mean = np.bincount(known_exits).argmax(), layers[known_exits].mean()
    true = layers[exits]
    variance = float(((true - mean) ** 2).mean())
    gain = ((true - mean) ** 2 - (true - expected) ** 2) / variance if variance else np.zeros(len(true))
    hits = (guess == exits).astype(int) - (common == exits)
    return {"hits": hits.tolist(), "explained": gain.round(3).tolist(), "chance": float((common == exits).mean())}


class ExitLearnability(DatasetStudy):
    """How well exits are predicted from text, and from the first head."""

    name = "exit_learnability"
    options = ("budgets", "rows")
    reads_unlabelled = True

    @classmethod
    def add_options(cls, parser: OneLineParser) -> None:
        parser.add_argument(
            "--budgets",
            type=comma_separated(share),
            default=[0.25, 0.5, 0.75],
            metavar="S,S",
            help="shares of the layers",
        )
        parser.add_argument(
            "--rows", type=whole_number(50), default=4000, metavar="N", help="learn from at most N rows; default 4000"
        )

    def measure(self, dataset: str, seed: int) -> list[dict[str, Any]]:
        session = Session(self.settings, dataset, seed)
        task, rows = session.prepared.task, []
        known = task.dev.tokens if task.unlabelled is None else task.unlabelled
        known = known.select(range(min(len(known), self.args.rows)))
        for method in self.settings.profile.methods:
            self.describe(f"{dataset} seed {seed} {method}")
            facts = {**self.facts(dataset, seed), "method": method, "learnt_from": len(known)}
            facts["unlabelled"] = task.unlabelled is not None
            rows += [{**facts, **row} for row in self._method(session, method, known)]
        return rows

    def _method(self, session: Session, method: str, known: TokenSet) -> list[dict[str, Any]]:
        """Return a row per budget and predictor."""
        model = getattr(session.fit(method), "model", None)
        if not isinstance(model, MultiExitModel) or not model.exits:
            raise ConfigError(f"method '{method}' has no heads at several depths: choose others with --methods")
        test = session.prepared.test.tokens
        layers = np.array(model.answers) + 1
        seen, unseen = (exit_logits(model, tokens, EVALUATION) for tokens in (known, test))
        entropies, test_entropies = normalised_entropy(seen), normalised_entropy(unseen)
        edges = np.unique(np.quantile(entropies[0].numpy(), np.arange(1, BINS) / BINS))
        learn, apply = features(model, known, seen[0], edges), features(model, test, unseen[0], edges)
        found = []
        for budget in self.args.budgets:
            rule = Entropy(threshold_at(entropies, model.answers, budget * model.depth))
            exits, test_exits = replay(rule, entropies).numpy(), replay(rule, test_entropies).numpy()
            for name in PREDICTORS:
                guess, expected = predicted(learn[name], exits, apply[name], layers)
                row = measures(test_exits, exits, layers, guess, expected)
                counts = np.bincount(test_exits, minlength=len(layers)).tolist()
                found.append({"budget": budget, "predictor": name, "exits": counts, **row})
        return found

    def results(self) -> dict[str, Any]:
        """Return means by dataset and seed, and pooled figures, without values of single samples."""
        means = [
            {**row, "hits": float(np.mean(row["hits"])), "explained": float(np.mean(row["explained"]))}
            for row in self.rows
        ]
        return {"rows": means, "pooled": self.pooled()}

    def _of(self, method: str, budget: float, predictor: str, dataset: str) -> list[Row]:
        wanted = (method, budget, predictor, dataset)
        return [
            row
            for row in self.rows
            if tuple(row[key] for key in ("method", "budget", "predictor", "dataset")) == wanted
        ]

    def pooled(self) -> list[dict[str, Any]]:
        """Return hits and explained variance of every method, budget and predictor, pooled over datasets and seeds."""
        profile, found = self.settings.profile, []
        for method in profile.methods:
            for budget in self.args.budgets:
                for name in PREDICTORS:
                    groups = [self._of(method, budget, name, dataset) for dataset in profile.datasets]
                    row: dict[str, Any] = {"method": method, "budget": budget, "predictor": name}
                    for what in ("hits", "explained"):
                        pool = stratified_difference([np.mean([one[what] for one in group], 0) for group in groups])
                        row[what] = {**pool._asdict(), "detectable": detectable_mean(pool.se)}
                    found.append(row)
        return found

    def page(self) -> Page:
        profile = self.settings.profile
        page = Page("Can exits be predicted?", self.rows, self.settings.dtype)
        page.text(
            f"{len(profile.seeds)} seed(s). The exit is that of the sequential entropy rule at a share of the layers.",
            "Hits: share of exits that are predicted, with the points above always saying the most common one.",
            "Explained: share of the variance of the exit layer; always saying the mean explains nothing.",
        )
        if not all(row["unlabelled"] for row in self.rows):
            page.text("Predictors of sets without unlabelled rows learn from dev rows.")
        heads = (
            "from",
            *(f"{what} at {budget:g}" for budget in self.args.budgets for what in ("hits %", "explained %")),
        )
        for dataset in profile.datasets:
            for method in profile.methods:
                group = self._of(method, self.args.budgets[0], LENGTH, dataset)
                known, test = group[0]["learnt_from"], len(group[0]["hits"])
                least = 100 * detectable_share(test)
                page.heading(f"{dataset}, {method}: {known} rows to learn from, {test} test rows")
                page.text(f"{test} rows find {least:.1f} % explained with 80 % power.")
                page.table(heads, [self._line(method, name, dataset) for name in PREDICTORS])
        page.heading("Pooled over datasets and seeds")
        lines = [
            [one["method"], f"{one['budget']:g}", one["predictor"], interval(one["hits"]), interval(one["explained"])]
            for one in self.pooled()
        ]
        page.table(
            ("method", "share", "from", "hits above the most common exit, points", "variance explained, points"), lines
        )
        return page

    def _line(self, method: str, name: str, dataset: str) -> list[str]:
        cells = [name]
        for budget in self.args.budgets:
            group = self._of(method, budget, name, dataset)
            above = 100 * float(np.mean([row["hits"] for row in group]))
            chance = 100 * float(np.mean([row["chance"] for row in group]))
            explained = 100 * float(np.mean([row["explained"] for row in group]))
            cells += [f"{chance + above:.1f} ({above:+.1f})", f"{explained:.1f}"]
        return cells


def interval(found: Mapping[str, float]) -> str:
    """Return a value in points with its 95 % interval, and what could have been found, unless predictions hardly vary."""
    mean, low, high, power = (100 * found[key] for key in ("mean", "low", "high", "detectable"))
    known = f"80 % power for {power:.1f}" if power >= 0.1 else "as good as constant"
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f}); {known}"


def detectable_share(rows: int) -> float:
    """Return the explained share that so many rows find with 80 % power: the square of a correlation (Fisher's z, 1921)."""
    return float(np.tanh(detectable_mean(1 / np.sqrt(rows - 3))) ** 2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return ExitLearnability.main(__doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
