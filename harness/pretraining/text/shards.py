"""Shards: a corpus as files of token ids, made once and read by every run.

::

    SHARDS/shards.json               list of the files and their sources, with hashes
    SHARDS/full-0000.npy ...         uint16 (uint32 from 65,537 words on) [rows, length], rows of one piece each (see packing)
    SHARDS/shared-0000.npy ...       rows with several pieces, or with padding
    SHARDS/heldout-0000.npy          rows of documents that are never trained on
    SHARDS/vocab.txt, tokenizer*.json

No file exceeds 60 MiB. The first document and one in :data:`HELD_OUT`, by a hash of its text, are held out. Duplicates are
removed. A pair is held out by its first text, and is a duplicate if both texts are equal: a second text may repeat.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from harness.core.digest import SEAL, check_seal, seal
from harness.core.errors import DataError, ResultError
from harness.core.files import content_key, write_folder
from harness.core.text_formats import read_json
from harness.pretraining.text import corpus, vocabulary
from harness.pretraining.text.corpus import Document
from harness.pretraining.text.packing import SHORTEST, full_pieces, paired, shared_rows
from harness.pretraining.text.vocabulary import Specials

FORMAT = 1
LARGEST_FILE = 60 * 2**20  # bytes
HELD_OUT = 200
_TOGETHER = 1000  # documents per call of the tokenizer
_POOL = 100_000  # pieces that are packed together
SAMPLE = 100_000_000  # characters to train a vocabulary on, at most
TRAIN_KINDS = ("full", "shared")


class _Writer:
    """Writes rows of one kind to numbered files, and packs pieces into such rows."""

    def __init__(
        self, folder: Path, kind: str, length: int, ids: type[np.unsignedinteger[Any]], special: Specials
    ) -> None:
        self.folder, self.kind, self.length, self.special = folder, kind, length, special
        self.files: list[dict[str, Any]] = []
        self._pieces: list[np.ndarray] = []  # packed together
        self._waiting: list[np.ndarray] = []
        self._count = 0
        self._most = (LARGEST_FILE - 1024) // (np.dtype(ids).itemsize * length)

    def add(self, rows: np.ndarray) -> None:
        self._waiting.append(rows)
        self._count += len(rows)
        while self._count >= self._most:
            self._write(self._most)

    def _write(self, count: int) -> None:
        rows = np.concatenate(self._waiting)
        self._waiting, self._count = [rows[count:]], len(rows) - count
        path = self.folder / f"{self.kind}-{len(self.files):04d}.npy"
        np.save(path, rows[:count], allow_pickle=False)
        with path.open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
        self.files.append({"name": path.name, "kind": self.kind, "rows": min(count, len(rows)), "sha256": digest})

    def pack(self, piece: np.ndarray) -> None:
        if len(piece) >= SHORTEST:
            self._pieces.append(piece)
        if len(self._pieces) >= _POOL:
            self._flush()

    def _flush(self) -> None:
        if self._pieces:
            self.add(shared_rows(self._pieces, self.length, self.special))
        self._pieces = []

    def close(self) -> list[dict[str, Any]]:
        self._flush()
        if self._count:
            self._write(self._count)
        return self.files


def _texts(document: Document) -> tuple[str, ...]:
    return (document,) if isinstance(document, str) else document


def _digest(document: Document) -> bytes:
    return hashlib.blake2b("\0".join(_texts(document)).encode(), digest_size=8).digest()


def _held_out(document: Document) -> bool:
    """Decide by a hash of the text, or of the first text of a pair, so that pairs with the same first text stay together."""
    return int.from_bytes(_digest(_texts(document)[0])[:4], "big") % HELD_OUT == 0


def _units(
    document: Document, parts: list[np.ndarray], length: int, special: Specials
) -> list[tuple[Document, np.ndarray]]:
    """Return a document with its ids; a pair that does not fit into a row becomes two documents."""
    if isinstance(document, str):
        return [(document, parts[0])]
    both = paired(parts[0], parts[1], length, special)
    return [(document, both)] if both is not None else list(zip(document, parts, strict=True))


def write(documents: Iterable[Document], tokenizer: Tokenizer, folder: Path, *, length: int) -> dict[str, Any]:
    """Write the rows of all documents into an existing folder; return facts for ``shards.json``.

    Raises:
        DataError: there are too few documents to hold one out.
    """
    ids_as = vocabulary.id_type(tokenizer.get_vocab_size())
    special = Specials.of(tokenizer)
    writers = {kind: _Writer(folder, kind, length, ids_as, special) for kind in (*TRAIN_KINDS, "heldout")}
    facts = dict.fromkeys(("documents", "characters", "tokens", "unknown", "repeats", "pairs"), 0)
    held_facts = dict.fromkeys(("documents", "characters", "tokens", "unknown", "pairs"), 0)
    seen: set[bytes] = set()
    opening = ""  # the first text of all
    waiting = iter(documents)
    while batch := list(itertools.islice(waiting, _TOGETHER)):
        texts = [text for document in batch for text in _texts(document)]
        encodings = iter(tokenizer.encode_batch_fast(texts, add_special_tokens=False))
        for document in batch:
            parts = [np.array(next(encodings).ids, dtype=ids_as) for _ in _texts(document)]
            for one, ids in _units(document, parts, length, special):
                digest = _digest(one)
                if digest in seen:
                    facts["repeats"] += 1
                    continue
                opening = opening or _texts(one)[0]
                out = _held_out(one) or _texts(one)[0] == opening
                seen.add(digest)
                rows, rest = full_pieces(ids, length, special)
                if len(rows):
                    writers["heldout" if out else "full"].add(rows)
                writers["heldout" if out else "shared"].pack(rest)
                counts, is_pair = held_facts if out else facts, not isinstance(one, str)
                counts["documents"] += 1
                counts["pairs"] += is_pair
                counts["characters"] += sum(map(len, _texts(one)))
                counts["tokens"] += len(ids) - is_pair * special.between  # without those separators
                counts["unknown"] += int((ids == special.unk).sum())
    files = [file for writer in writers.values() for file in writer.close()]
    if not {"heldout"} < {file["kind"] for file in files}:
        raise DataError(
            f"the corpus has {len(seen)} different documents, too few or too short to train and to hold one out: give more text"
        )
    return {"train": facts, "heldout": held_facts, "files": files}


def _sample(documents: Iterable[Document]) -> Iterator[str]:
    """Yield texts of documents up to :data:`SAMPLE` characters, without held-out ones."""
    room = SAMPLE
    for document in documents:
        if room <= 0:
            return
        if not any(map(_held_out, _texts(document))):
            room -= sum(map(len, _texts(document)))
            yield from _texts(document)


def make(
    sources: Sequence[corpus.CorpusFile],
    folder: Path,
    *,
    language: str,
    vocab: int,
    length: int,
    tokenizer: Tokenizer | None = None,
) -> None:
    """Train a vocabulary (unless ``tokenizer`` is given) and write the shards; the folder appears only when it is complete.

    Raises:
        DataError, ConfigError: the corpus is empty, cannot be read, or is too small for the vocabulary.
    """
    ours = tokenizer or vocabulary.train_exactly(_sample(corpus.documents(sources)), vocab, language)

    def fill(place: Path) -> None:
        found = write(corpus.documents(sources), ours, place, length=length)
        vocabulary.save(ours, place, length)
        facts = {
            "format": FORMAT,
            "language": language,
            "length": length,
            "vocab_size": ours.get_vocab_size(),
            "vocabulary": vocabulary.fingerprint(ours),
            "sources": [given.facts() for given in sources],
            **found,
        }
        (place / "shards.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        seal(place)

    write_folder(folder, fill, "choose another folder with --work or --shards, or free space")


@dataclass(frozen=True)
class Shards:
    """Shards on disk, mapped into memory.

    Attributes:
        facts: ``shards.json``.
        tokenizer: of the ``tokenizers`` library.
        kinds: kind of every token, see :func:`harness.pretraining.text.vocabulary.kinds`.
    """

    folder: Path
    facts: dict[str, Any]
    tokenizer: Tokenizer
    kinds: np.ndarray

    @classmethod
    def open(cls, folder: Path) -> Shards:
        """Read ``shards.json`` and the vocabulary, and check the checksums and the sizes of the files.

        Raises:
            DataError: a file is missing or damaged, or belongs to other shards.
        """
        path = folder / "shards.json"
        if not path.is_file():
            raise DataError(f"no shards.json in {folder}: make them with geep-bench pretrain --shards DIR")
        try:
            if (folder / SEAL).is_file():  # shards of earlier versions have none
                check_seal(folder)
            facts = read_json(path)
            if facts["format"] != FORMAT:
                raise DataError(f"{path} has format {facts['format']}, not {FORMAT}: make the shards again")
            tokenizer = vocabulary.load(folder)
            if vocabulary.fingerprint(tokenizer) != facts["vocabulary"]:
                raise DataError(f"the vocabulary in {folder} is not that of its shards: copy the folder again")
            found = cls(folder, facts, tokenizer, vocabulary.kinds(tokenizer))
            for file in facts["files"]:
                found._map(file)
        except (ResultError, ValueError, KeyError, TypeError, OSError, EOFError) as error:
            raise DataError(
                f"the shards in {folder} are damaged ({error}): delete the folder, and copy or make it again"
            ) from error
        return found

    def _map(self, file: dict[str, Any]) -> np.ndarray:
        rows = np.load(self.folder / str(file["name"]), mmap_mode="r", allow_pickle=False)
        if rows.shape != (file["rows"], self.length) or rows.dtype != vocabulary.id_type(self.vocab_size):
            raise ValueError(f"{file['name']} is {rows.dtype} {rows.shape}")
        return rows

    @property
    def length(self) -> int:
        """Tokens per row."""
        return int(self.facts["length"])

    @property
    def special(self) -> Specials:
        """Ids of the special tokens."""
        return Specials.of(self.tokenizer)

    @property
    def paired(self) -> bool:
        """Whether there are pairs, which use the second segment."""
        return bool(self.facts["train"].get("pairs"))

    @property
    def vocab_size(self) -> int:
        return int(self.facts["vocab_size"])

    @property
    def fingerprint(self) -> str:
        """Content hash of rows and vocabulary."""
        return content_key(self.facts["vocabulary"], [(file["kind"], file["sha256"]) for file in self.facts["files"]])

    def rows(self, *which: str) -> list[np.ndarray]:
        """Return the files of these kinds as memory maps, each uint16 or uint32 [rows, length]."""
        return [self._map(file) for kind in which for file in self.facts["files"] if file["kind"] == kind]

    def train_tokens(self) -> int:
        """Return the number of tokens in training rows, with [CLS] and [SEP], without padding."""
        return sum(int((part != self.special.pad).sum()) for part in self.rows(*TRAIN_KINDS))
