"""Vocabularies, trained on a corpus or read from a folder, and the kind of every token for masking.

Those that are trained here are WordPiece as in BERT (arXiv 1810.04805): text is lower-cased, accents are stripped, and every
Chinese character is a separate token. Those of backbones may be byte-level BPE or Unigram, too.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tokenizers.implementations import BertWordPieceTokenizer

from harness.core.errors import BackboneError, ConfigError
from harness.encoder import checkpoint
from harness.encoder.backbone import Backbone

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, UNK, CLS, SEP, MASK = range(len(SPECIALS))  # ids in vocabularies that are trained here
LARGEST = 2**20  # far larger than any BERT vocabulary
# Special tokens by their use, under the names that families give them.
_NAMES = (("[PAD]", "<pad>"), ("[UNK]", "<unk>"), ("[CLS]", "<s>"), ("[SEP]", "</s>"), ("[MASK]", "<mask>"))
_BEGINS = ("\u0120", "\u2581")  # before the first piece of a word, of byte-level BPE and of Unigram
# Kinds of tokens.
SPECIAL, WORD, CONTINUES, CHARACTER = range(4)
# Number of characters with a token of their own: Latin scripts for English, all but rare characters for Chinese.
_ALPHABET = {"en": 1000, "zh": 8000}


@dataclass(frozen=True)
class Specials:
    """Ids of the special tokens of a vocabulary.

    Attributes:
        between: separators between the texts of a pair.
    """

    pad: int = PAD
    unk: int = UNK
    cls: int = CLS
    sep: int = SEP
    mask: int = MASK
    between: int = 1

    @classmethod
    def of(cls, tokenizer: Any) -> Specials:
        """Return the ids in a tokenizer that has all special tokens."""
        of_pair = tokenizer.num_special_tokens_to_add(True)  # 0 without a rule for pairs
        pad, unk, first, sep, mask = map(tokenizer.token_to_id, special_names(tokenizer))
        return cls(pad, unk, first, sep, mask, between=max(1, of_pair - 2))


def special_names(tokenizer: Any) -> list[str]:
    """Return the names of the special tokens, in the order of :data:`SPECIALS`; ``""`` for those that are missing."""
    return [next((name for name in names if tokenizer.token_to_id(name) is not None), "") for names in _NAMES]


def train(texts: Iterable[str], size: int, alphabet: int | None = None, least: int = 2) -> Tokenizer:
    """Train a tokenizer with a vocabulary of at most ``size`` entries; the same texts give the same ids.

    The library numbers single characters in the order of a hash table, which differs from process to process, and merges pairs of
    equal frequency in the order of ids. So a first training finds the characters, and a second one is given their order.

    Args:
        alphabet: number of characters with a token of their own, most frequent first; ``None`` for all.
        least: number of times that a pair of pieces must occur to be merged.
    """
    texts = list(texts)

    def trained(limit: int, first: Sequence[str]) -> BertWordPieceTokenizer:
        tokenizer = BertWordPieceTokenizer(handle_chinese_chars=True, lowercase=True)
        tokenizer.train_from_iterator(
            iter(texts),
            vocab_size=limit,
            min_frequency=least,
            initial_alphabet=characters,
            limit_alphabet=len(characters),
            special_tokens=list(first),
            show_progress=False,
        )
        return tokenizer

    counts: Counter[str] = Counter()
    normalize = BertWordPieceTokenizer(handle_chinese_chars=True, lowercase=True).normalize
    for text in texts:
        counts.update(normalize(text))
    found = sorted((sign for sign in counts if not sign.isspace()), key=lambda sign: (-counts[sign], sign))
    characters = found[: alphabet or size]
    pieces = trained(0, SPECIALS).get_vocab().keys() - set(SPECIALS)
    ordered = [*SPECIALS, *sorted(pieces, key=lambda piece: (piece.startswith("##"), piece))]
    facts = json.loads(trained(size, ordered).to_str())
    facts["added_tokens"] = facts["added_tokens"][: len(SPECIALS)]
    return Tokenizer.from_str(json.dumps(facts))


def train_exactly(texts: Iterable[str], size: int, language: str) -> Tokenizer:
    """Train a vocabulary of exactly ``size`` entries.

    Raises:
        ConfigError: the corpus is too small for it, or ``size`` is out of range.
    """
    if not len(SPECIALS) < size <= LARGEST:
        raise ConfigError(f"--vocab {size}: give a number from {len(SPECIALS) + 1} to {LARGEST}")
    tokenizer = train(texts, size, min(size, _ALPHABET[language]))
    found = tokenizer.get_vocab_size()
    if found < size:
        raise ConfigError(f"--vocab {size}: the corpus gives only {found} pieces: lower it, or give more text")
    if found > size:  # the alphabet alone
        raise ConfigError(f"--vocab {size}: the single characters are already {found} pieces: raise --vocab to that")
    return tokenizer


def words(tokenizer: Any) -> list[str]:
    """Return the vocabulary of a tokenizer in the order of ids."""
    found = tokenizer.get_vocab()
    return sorted(found, key=found.__getitem__)


def save(tokenizer: Any, folder: Path, longest: int) -> None:
    """Write ``tokenizer.json``, ``tokenizer_config.json`` and, of WordPiece, ``vocab.txt`` into an existing folder."""
    tokenizer.save(str(folder / "tokenizer.json"))
    content = json.loads(tokenizer.to_str())
    facts: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if content["model"]["type"] == "WordPiece":
        (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words(tokenizer)), encoding="utf-8")
        normalizer = content.get("normalizer") or {}
        facts = {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": normalizer.get("lowercase", True),
            "strip_accents": normalizer.get("strip_accents"),
            "tokenize_chinese_chars": normalizer.get("handle_chinese_chars", True),
        }
    names = zip(SPECIALS, special_names(tokenizer), strict=True)
    facts |= {"model_max_length": longest, **{f"{use[1:-1].lower()}_token": name for use, name in names}}
    (folder / "tokenizer_config.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")


def load(folder: Path) -> Tokenizer:
    """Load the tokenizer of a folder: one written by :func:`save`, or that of another backbone.

    Raises:
        BackboneError: it is missing or damaged, lacks a special token, has gaps, or is larger than :data:`LARGEST`.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise BackboneError(f"no tokenizer.json in {folder}: give a folder with one")
    checkpoint.tokenizer_files(folder)  # says which file is only a Git LFS pointer
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        raise BackboneError(f"cannot read {path} ({error}): write that folder again") from error
    return _usable(tokenizer, str(folder))


def of_backbone(backbone: Backbone) -> Tokenizer:
    """Return a copy of a backbone's tokenizer.

    Raises:
        BackboneError: as for :func:`load`.
    """
    return _usable(Tokenizer.from_str(backbone.tokenizer.backend_tokenizer.to_str()), backbone.name)


def _usable(tokenizer: Tokenizer, name: str) -> Tokenizer:
    lacking = [" or ".join(_NAMES[use]) for use, one in enumerate(special_names(tokenizer)) if not one]
    size = tokenizer.get_vocab_size()
    if lacking or size > LARGEST or max(tokenizer.get_vocab().values()) != size - 1:
        fault = f"lacks {', '.join(lacking)}" if lacking else f"has {size} entries or gaps"
        raise BackboneError(
            f"the vocabulary of {name} {fault}; it needs tokens for padding, unknown words, beginning, end and mask, and ids from "
            f"0 to at most {LARGEST - 1} without gaps: train a vocabulary, or choose another backbone"
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def id_type(size: int) -> type[np.unsignedinteger[Any]]:
    """Return the integer type of stored ids for a vocabulary of ``size`` words."""
    return np.uint16 if size <= 2**16 else np.uint32


def fingerprint(tokenizer: Any) -> str:
    """Return the content hash of the vocabulary."""
    return hashlib.sha256("\n".join(words(tokenizer)).encode()).hexdigest()[:16]


def _is_character(word: str) -> bool:
    """Return whether a word is a single Chinese character, which BERT's tokenizer separates."""
    code = ord(word) if len(word) == 1 else 0
    return 0x3400 <= code <= 0x4DBF or 0x4E00 <= code <= 0x9FFF or 0xF900 <= code <= 0xFAFF or code >= 0x20000


def kinds(tokenizer: Any) -> np.ndarray:
    """Return the kind of every token, uint8 [V]: special, start of a word, continuation, or Chinese characters."""
    every, special = words(tokenizer), {*special_names(tokenizer)}
    marks = [sum(word.startswith(mark) for word in every) for mark in ("##", *_BEGINS)]
    marked = marks[0] >= max(
        marks[1:]
    )  # WordPiece marks the pieces that continue a word, the others those that begin one

    def kind(word: str) -> int:
        if word in special:
            return SPECIAL
        if marked:
            return CONTINUES if word.startswith("##") else CHARACTER if _is_character(word) else WORD
        if _is_character(word.lstrip("".join(_BEGINS))[:1]):
            return CHARACTER
        return WORD if word.startswith(_BEGINS) else CONTINUES

    return np.array([kind(word) for word in every], dtype=np.uint8)
