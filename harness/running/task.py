"""Prepares a dataset: a task for methods to learn from, and a test split that only the harness sees."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch

from harness.core.digest import digest_of
from harness.core.errors import ConfigError, DataError, MethodError, UnknownNameError
from harness.core.tokens import Split, Task, TokenSet
from harness.data.cards import CARDS, card
from harness.data.embedded import load_embedded
from harness.data.hub import load_hub
from harness.data.local import available, content_files, find_files, load_local
from harness.data.overlaps import count_overlaps, without_rows_of
from harness.data.splits import DEV_SHARE, RawDataset, RawSplit, limit_dataset
from harness.data.unlabelled import MOST_UNLABELLED, UnlabelledTexts
from harness.encoder.backbone import Backbone
from harness.results.schema import Overlaps

# Share of [UNK]. On the twelve datasets it is below 0.5 % if the tokenizer knows the language, and above 50 % if it does not.
MANY_UNKNOWN = 0.05
_ROWS_AT_ONCE = 10_000  # bounds the memory that hashing needs


@dataclass(frozen=True)
class Prepared:
    """A dataset tokenised for one backbone.

    Attributes:
        task: train and dev, for methods.
        test: ids and labels, for the harness.
        difficulty: int8 [N] of the test rows; -1 where unknown.
        label_names: names of the classes, class 0 first.
        notes: remarks on the data for readers of results.
        unknown: a remark on tokens that the tokenizer does not know; none if they are few.
        test_rows, train_rows: hashes of the test rows, and of those of train and dev (:func:`rows_digest`).
        unlabelled: the texts of ``task.unlabelled``.
        raw_test: the texts of ``test``.
    """

    task: Task
    test: Split
    difficulty: np.ndarray
    label_names: list[str]
    notes: list[str]
    unknown: tuple[str, ...]
    test_rows: str = ""
    train_rows: str = ""
    unlabelled: UnlabelledTexts | None = None
    raw_test: RawSplit | None = None

    @cached_property
    def unlabelled_rows(self) -> str:
        """Hash of the token ids of ``task.unlabelled``, which are made for it; empty if there are none."""
        tokens = self.task.unlabelled
        return "" if tokens is None else _digest(tokens.ids, tokens.offsets, tokens.segments)

    def unlabelled_notes(self) -> list[str]:
        """Return a note on ``task.unlabelled`` for readers of results of methods that learn from it."""
        texts, tokens = self.unlabelled, self.task.unlabelled
        if texts is None or tokens is None:
            return []
        return [
            f"learns from {len(tokens):,} rows without labels, drawn from {texts.origin} (seed 0); {texts.drawn - len(tokens):,} "
            "more were dropped, because they occur in train, dev or test, or twice"
        ]

    @cached_property
    def overlaps(self) -> Overlaps:
        """Counts of rows that occur in more than one split."""
        return Overlaps(**count_overlaps(self.task.train.tokens, self.task.dev.tokens, self.test.tokens))


def load_raw(
    name: str,
    source: str,
    *,
    data: Path | None = None,
    max_train: int | None = None,
    max_dev: int | None = None,
    max_test: int | None = None,
    dev_share: float = DEV_SHARE,
    max_unlabelled: int = MOST_UNLABELLED,
) -> RawDataset:
    """Load a dataset from one of the three sources, limited as :func:`harness.data.splits.limit_dataset` does.

    Raises:
        GeepBenchError: it cannot be loaded.
    """
    if source == "embedded":
        raw = load_embedded(name)
    elif source == "hub":
        raw = load_hub(card(name))
    elif data is None:
        raise ConfigError(
            "this profile measures real data: give its folder with --data DIR (<DIR>/<name>/train.parquet ...)"
        )
    else:
        raw = load_local(data, name)
    return limit_dataset(raw, max_train, max_test, max_dev, dev_share, max_unlabelled)


def check_names(names: Sequence[str], source: str, data: Path | None) -> None:
    """Validate dataset names before anything expensive starts.

    Raises:
        UnknownNameError: the only dataset has no card and, for local data, no folder.
        DataError: the folder of local data does not exist, or lacks some of several datasets.
    """
    known = set(CARDS)
    if source == "local" and data is not None:
        folder = Path(data).expanduser()
        if not folder.is_dir():
            raise DataError(
                f"data folder {folder} does not exist: give --data a folder that holds <name>/train.parquet"
            )
        known = set(available(folder)) | {
            name for name in names if (folder / name).is_dir()
        }  # the loader says what it lacks
    there, lacking = ([name for name in names if (name in known) == wanted] for wanted in (True, False))
    if there and lacking and {*lacking} <= {*CARDS}:  # any other name may be a typing error
        raise DataError(
            f"data folder {data} lacks {len(lacking)} of {len(names)} datasets ({', '.join(lacking)}): add "
            f"{lacking[0]}/train.parquet ..., or run without with --datasets {','.join(there)}"
        )
    for name in lacking:
        raise UnknownNameError("dataset", name, known)


def language_of(name: str, source: str, data: Path | None) -> str:
    """Return the language of a dataset; local data is read for it."""
    return load_raw(name, source, data=data).language if source == "local" else card(name).language


def source_identity(name: str, source: str, data: Path | None) -> str:
    """Return what a dataset's content depends on, without loading it, to decide whether stored results are still valid.

    Raises:
        DataError: a file of a local dataset cannot be read, or two files are the same split.
    """
    if source == "local" and data is not None:
        return _files_digest(content_files(data.expanduser(), name), data.expanduser() / name)
    if source == "embedded":
        from harness.encoder import miniature

        return miniature.recipe_key()
    return f"{card(name).hub_id}@{card(name).hub_revision}"


def unlabelled_identity(name: str, source: str, data: Path | None) -> str:
    """Return what the texts without labels depend on in addition to :func:`source_identity`: the folder's own file of them.

    Raises:
        DataError: as :func:`source_identity`.
    """
    if source != "local" or data is None:
        return ""
    place = data.expanduser() / name
    return _files_digest(find_files(place).unlabelled, place)


def _files_digest(files: Sequence[Path], place: Path) -> str:
    try:
        return digest_of(files, place)
    except OSError as error:
        raise DataError(f"{place}: cannot be read ({error}): give a folder that you may read") from error


def rows_digest(*splits: RawSplit) -> str:
    """Return a hash of the rows of some splits, in order: their texts, second texts and labels."""
    digest = hashlib.sha256()
    for split in splits:
        digest.update(f"{len(split)} rows, {'single' if split.pairs is None else 'pairs'}\n".encode())
        for start in range(0, len(split), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            rows = [split.texts[part], (split.pairs or [])[part], split.labels[part].tolist()]
            digest.update(json.dumps(rows).encode())
    return digest.hexdigest()[:16]


def _split(raw: RawSplit, backbone: Backbone, max_length: int) -> Split:
    tokens = backbone.encode(raw.texts, raw.pairs, max_length=max_length)
    return Split(tokens.to(backbone.device), torch.from_numpy(np.asarray(raw.labels, dtype=np.int64)))


def _digest(*tensors: torch.Tensor, start: str = "") -> str:
    digest = hashlib.sha256(start.encode())
    for tensor in tensors:
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def without_unlabelled(task: Task, method: str) -> Task:
    """Return the task of a method that does not declare that it uses rows without labels, so that its key ignores them."""

    def refuse() -> NoReturn:
        raise MethodError(
            f"method '{method}' reads task.unlabelled without saying so: give it a function uses_unlabelled(config) that "
            "returns True (harness/contracts.py, UsesUnlabelled)"
        )

    return replace(task, read_unlabelled=refuse)


def _unknown(split: Split, backbone: Backbone) -> float:
    """Return the share of [UNK] among the tokens of a split, special tokens left out; 0..1."""
    tokens, unknown = split.tokens, backbone.tokenizer.unk_token_id
    if unknown is None:
        return 0.0
    words = int((~torch.isin(tokens.ids, torch.tensor(tokens.special, device=tokens.device))).sum())
    return int((tokens.ids == unknown).sum()) / max(words, 1)


def prepare(raw: RawDataset, backbone: Backbone, max_length: int) -> Prepared:
    """Tokenise all three splits onto the backbone's device."""
    train, dev, test = (_split(part, backbone, max_length) for part in (raw.train, raw.dev, raw.test))
    contents = [(part.tokens.ids, part.tokens.offsets, part.tokens.segments, part.labels) for part in (train, dev)]
    fingerprint = _digest(*itertools.chain(*contents), start=f"{raw.name} {raw.num_labels} {max_length}")

    @cache
    def read_unlabelled() -> TokenSet | None:
        if raw.unlabelled is None:
            return None
        tokens = backbone.encode(raw.unlabelled.texts, raw.unlabelled.pairs, max_length=max_length)
        kept = without_rows_of(tokens, train.tokens, dev.tokens, test.tokens)
        return kept.to(backbone.device) if len(kept) else None

    difficulty = raw.test.difficulty
    shares = {name: _unknown(part, backbone) for name, part in (("train", train), ("test", test))}
    unknown: tuple[str, ...] = ()
    if max(shares.values()) >= MANY_UNKNOWN:
        unknown = (
            f"the tokenizer of backbone '{backbone.name}' does not know {shares['train']:.1%} of the train tokens and "
            f"{shares['test']:.1%} of the test tokens ([UNK]); use a backbone that knows this language",
        )
    return Prepared(
        Task(
            name=raw.name,
            language=raw.language,
            num_labels=raw.num_labels,
            max_length=min(max_length, backbone.shape.max_positions),
            train=train,
            dev=dev,
            fingerprint=fingerprint,
            read_unlabelled=read_unlabelled,
        ),
        test,
        np.full(len(raw.test), -1, dtype=np.int8) if difficulty is None else difficulty,
        list(raw.label_names),
        [*raw.notes, *unknown],
        unknown,
        test_rows=rows_digest(raw.test),
        train_rows=rows_digest(raw.train, raw.dev),
        unlabelled=raw.unlabelled,
        raw_test=raw.test,
    )
