"""Vocabularies: their size, their kinds of tokens, and their files."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from harness.core.errors import BackboneError, ConfigError
from harness.pretraining.text import vocabulary
from harness.pretraining.text.shards import Shards


def test_a_vocabulary_has_the_requested_size(english: Shards) -> None:
    """Special tokens come first, in the order of their ids."""
    words = vocabulary.words(english.tokenizer)
    assert len(words) == 90
    assert tuple(words[:5]) == vocabulary.SPECIALS


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (5000, "gives only [0-9]+ pieces"),
        (12, "single characters are already [0-9]+ pieces"),
        (5, "give a number from 6 to 1048576"),
        (2**20 + 1, "give a number from 6 to 1048576"),
    ],
)
def test_a_size_that_the_corpus_does_not_support_is_refused(size: int, said: str) -> None:
    """Sizes that are too large or too small are refused with a possible size."""
    with pytest.raises(ConfigError, match=said):
        vocabulary.train_exactly(["some words of some text"] * 5, size, "en")


def test_kinds_distinguish_words_pieces_and_characters() -> None:
    """Chinese characters have their own kind."""
    tokenizer = vocabulary.train(["abab ab 山水"] * 9, 40)
    kinds = dict(zip(vocabulary.words(tokenizer), vocabulary.kinds(tokenizer).tolist(), strict=True))
    assert kinds["[MASK]"] == vocabulary.SPECIAL
    assert kinds["ab"] == vocabulary.WORD
    assert kinds["##ab"] == kinds["##b"] == vocabulary.CONTINUES
    assert kinds["山"] == vocabulary.CHARACTER


@pytest.mark.parametrize("language", ["en", "zh"])
def test_transformers_reads_the_same_tokenizer(language: str, shard_folders: dict[str, Path]) -> None:
    """A saved and loaded tokenizer gives the same ids for capitals, accents, unknown signs and both scripts."""
    theirs = AutoTokenizer.from_pretrained(shard_folders[language])
    text = "The Río, 山水 ☃ GREENER b"
    ours = vocabulary.load(shard_folders[language]).encode(text)
    assert theirs(text)["input_ids"] == [vocabulary.CLS, *ours.ids, vocabulary.SEP]
    assert theirs.mask_token_id == vocabulary.MASK and theirs.pad_token_id == vocabulary.PAD


def test_a_foreign_or_broken_vocabulary_is_refused(tmp_path: Path) -> None:
    """A tokenizer that is missing, damaged or without a special token is refused."""
    with pytest.raises(BackboneError, match="no tokenizer.json"):
        vocabulary.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(BackboneError, match="cannot read"):
        vocabulary.load(tmp_path)
    tokenizer = vocabulary.train(["ab"] * 3, 20)
    moved = tokenizer.to_str().replace("[PAD]", "[pad]")
    (tmp_path / "tokenizer.json").write_text(moved, encoding="utf-8")
    with pytest.raises(BackboneError, match=r"lacks \[PAD\]"):
        vocabulary.load(tmp_path)


def test_the_fingerprint_follows_the_words(english: Shards, chinese: Shards) -> None:
    """The fingerprint differs between vocabularies and equals that of the shards."""
    assert vocabulary.fingerprint(english.tokenizer) == english.facts["vocabulary"] != chinese.facts["vocabulary"]
    assert chinese.kinds.dtype == np.uint8


def test_the_same_texts_give_the_same_ids() -> None:
    """Characters and pairs of equal frequency have one order, within a process and in another one."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 7))) for _ in range(200)]
    texts = [" ".join(words[at : at + 20]) + " 山水" for at in range(0, 200, 20)] * 2
    found = [vocabulary.words(vocabulary.train(texts, size, 9)) for size in (150, 150, 150, 300, 300)]
    assert found[0] == found[1] == found[2] and found[3] == found[4]
    assert found[0][:5] == list(vocabulary.SPECIALS) and len(found[0]) == 150
    tokenizer = vocabulary.train(texts, 150, 9)
    assert set(tokenizer.get_added_tokens_decoder()) == set(range(5))
    code = (
        "import json, sys; from harness.pretraining.text import vocabulary; "
        "print(json.dumps(vocabulary.words(vocabulary.train(json.load(sys.stdin), 300, 9))))"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(texts), capture_output=True, text=True, check=True
    )
    assert json.loads(other.stdout) == found[3]
