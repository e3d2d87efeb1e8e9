"""WordPiece vocabularies: trained on a corpus, or taken from a folder; and what masking has to know of every token.

As in BERT (arXiv 1810.04805), text is lower-cased, accents are stripped, and every Chinese character is a token of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tokenizers.implementations import BertWordPieceTokenizer

from harness.core.errors import BackboneError, ConfigError
from harness.encoder.backbone import Backbone

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, UNK, CLS, SEP, MASK = range(len(SPECIALS))  # in vocabularies that are trained here
LARGEST = 2**20  # far beyond any BERT vocabulary
# Kinds of tokens.
SPECIAL, WORD, CONTINUES, CHARACTER = range(4)
# Characters that get a token each: those of Latin scripts in English; in Chinese as many as are not rare.
_ALPHABET = {"en": 1000, "zh": 8000}


@dataclass(frozen=True)
class Specials:
    """Ids of the special tokens of a vocabulary."""

    pad: int = PAD
    unk: int = UNK
    cls: int = CLS
    sep: int = SEP
    mask: int = MASK

    @classmethod
    def of(cls, tokenizer: Any) -> Specials:
        """Those of a tokenizer that has them all."""
        return cls(*(tokenizer.token_to_id(name) for name in SPECIALS))


def train(texts: Iterable[str], size: int, alphabet: int | None = None, least: int = 2) -> BertWordPieceTokenizer:
    """A tokenizer whose vocabulary has at most ``size`` entries.

    Args:
        alphabet: characters that get a token each, most frequent first; ``None`` for all.
        least: times that a pair of pieces must occur to become one.
    """
    tokenizer = BertWordPieceTokenizer(handle_chinese_chars=True, lowercase=True)
    tokenizer.train_from_iterator(
        iter(texts),
        vocab_size=size,
        min_frequency=least,
        limit_alphabet=alphabet or size,
        special_tokens=list(SPECIALS),
        show_progress=False,
    )
    return tokenizer


def train_exactly(texts: Iterable[str], size: int, language: str) -> Tokenizer:
    """A vocabulary of exactly ``size`` entries.

    Raises:
        ConfigError: the corpus does not support as many, or that is beyond :data:`LARGEST`.
    """
    if not len(SPECIALS) < size <= LARGEST:
        raise ConfigError(f"--vocab {size} is outside {len(SPECIALS) + 1}..{LARGEST}")
    tokenizer = train(texts, size, min(size, _ALPHABET[language]))
    found = tokenizer.get_vocab_size()
    if found < size:
        raise ConfigError(
            f"--vocab {size}: the corpus supports {found} pieces only: lower --vocab to that, or give more text"
        )
    if found > size:  # the alphabet alone
        raise ConfigError(f"--vocab {size}: single characters alone are {found} pieces: raise --vocab to at least that")
    return Tokenizer.from_str(tokenizer.to_str())


def words(tokenizer: Any) -> list[str]:
    """Its vocabulary, in order of ids."""
    return [word for word, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]


def save(tokenizer: Any, folder: Path, longest: int) -> None:
    """``vocab.txt``, ``tokenizer.json`` and ``tokenizer_config.json`` into an existing folder."""
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words(tokenizer)), encoding="utf-8")
    tokenizer.save(str(folder / "tokenizer.json"))
    normalizer = json.loads(tokenizer.to_str()).get("normalizer") or {}
    facts = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": normalizer.get("lowercase", True),
        "strip_accents": normalizer.get("strip_accents"),
        "tokenize_chinese_chars": normalizer.get("handle_chinese_chars", True),
        "model_max_length": longest,
        **{f"{name[1:-1].lower()}_token": name for name in SPECIALS},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")


FILES = ("vocab.txt", "tokenizer.json", "tokenizer_config.json")


def load(folder: Path) -> Tokenizer:
    """The tokenizer that :func:`save` wrote, or another BERT's.

    Raises:
        BackboneError: there is none, it is damaged, lacks a special token, has gaps, or is beyond :data:`LARGEST`.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise BackboneError(f"no tokenizer.json in {folder}: give a folder that has one")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        raise BackboneError(f"cannot read {path} ({error}): write that folder again") from error
    return _usable(tokenizer, str(folder))


def of_backbone(backbone: Backbone) -> Tokenizer:
    """A copy of a backbone's tokenizer.

    Raises:
        BackboneError: as :func:`load`.
    """
    return _usable(Tokenizer.from_str(backbone.tokenizer.backend_tokenizer.to_str()), backbone.name)


def _usable(tokenizer: Tokenizer, name: str) -> Tokenizer:
    lacking = [special for special in SPECIALS if tokenizer.token_to_id(special) is None]
    size = tokenizer.get_vocab_size()
    if lacking or size > LARGEST or max(tokenizer.get_vocab().values()) != size - 1:
        raise BackboneError(
            f"the vocabulary of {name} {f'lacks {chr(32).join(lacking)}' if lacking else f'has {size} entries or gaps'}: "
            f"{' '.join(SPECIALS)} are needed, and ids 0 up to at most {LARGEST - 1} without gaps; train one instead, or choose "
            "another backbone"
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def id_type(size: int) -> type[np.unsignedinteger[Any]]:
    """The type that ids of a vocabulary of ``size`` words are kept in."""
    return np.uint16 if size <= 2**16 else np.uint32


def fingerprint(tokenizer: Any) -> str:
    """Content hash of the vocabulary."""
    return hashlib.sha256("\n".join(words(tokenizer)).encode()).hexdigest()[:16]


def _is_character(word: str) -> bool:
    """A Chinese character: what BERT sets apart from its neighbours."""
    code = ord(word) if len(word) == 1 else 0
    return 0x3400 <= code <= 0x4DBF or 0x4E00 <= code <= 0x9FFF or 0xF900 <= code <= 0xFAFF or code >= 0x20000


def kinds(tokenizer: Any) -> np.ndarray:
    """What every token is, uint8 [V]: special, begins a word, continues one ("##"), or a Chinese character."""
    found = [
        SPECIAL
        if word in SPECIALS
        else CONTINUES
        if word.startswith("##")
        else CHARACTER
        if _is_character(word)
        else WORD
        for word in words(tokenizer)
    ]
    return np.array(found, dtype=np.uint8)
