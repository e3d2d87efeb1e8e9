"""Shards: token ids on disk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from transformers import BertTokenizer

from harness.core.digest import SEAL
from harness.core.errors import DataError
from harness.encoder.backbone import Backbone
from harness.encoder.shape import EncoderShape
from harness.pretraining.text import corpus, shards, vocabulary
from harness.pretraining.text.batches import Stream
from harness.pretraining.text.packing import SHORTEST
from harness.pretraining.text.shards import Shards
from harness.pretraining.text.vocabulary import CLS, PAD, SEP, SPECIALS


def test_every_document_is_trained_on_or_held_out(english: Shards, corpora: dict[str, Path]) -> None:
    """All tokens are in the shards, except ends of documents with a single token."""
    facts = english.facts
    texts = set(corpus.read(corpus.corpus_file(corpora["en"])))
    assert facts["train"]["documents"] + facts["heldout"]["documents"] == len(texts)
    assert facts["heldout"]["documents"] >= 1
    sizes = [len(one.ids) for one in english.tokenizer.encode_batch(sorted(texts))]
    crumbs = sum(size % 14 for size in sizes if size % 14 < SHORTEST)
    inside = sum(int((part > vocabulary.MASK).sum()) for part in english.rows("full", "shared", "heldout"))
    assert inside + crumbs == sum(sizes) == facts["train"]["tokens"] + facts["heldout"]["tokens"]


def test_full_rows_are_one_piece(english: Shards) -> None:
    """Full rows have one [CLS], one [SEP] and no padding, so that they need no mask."""
    for rows in english.rows("full"):
        assert (rows[:, 0] == CLS).all() and (rows[:, -1] == SEP).all()
        assert ((rows == CLS).sum(1) == 1).all() and (rows != PAD).all()


def test_repeats_are_dropped_and_files_stay_small(
    english: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A duplicate is stored once, and files stay below their size limit."""
    monkeypatch.setattr(shards, "LARGEST_FILE", 1024 + 5 * 32)  # five rows of 16 tokens
    one, other = "river stone house green light " * 8, "winter summer garden story letter " * 40
    facts = shards.write([one, other, one, other], english.tokenizer, tmp_path, length=16)
    assert facts["train"]["repeats"] == 2
    assert facts["train"]["documents"] == facts["heldout"]["documents"] == 1
    full = [file for file in facts["files"] if file["kind"] == "full"]
    assert len(full) > 1 and max(file["rows"] for file in full) == 5
    rows = np.concatenate([np.load(tmp_path / file["name"]) for file in full])
    assert len(rows) == sum(file["rows"] for file in full) == len(rows.reshape(-1)) // 16


def test_large_vocabularies_are_stored(tmp_path: Path) -> None:
    """Ids above 16 bits are stored in 32 bits and read correctly, also in masked batches."""
    words = [*SPECIALS, *(f"w{i}" for i in range(70_000))]
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    many = vocabulary.of_backbone(Backbone("many", EncoderShape(1, 4, 1, 4, len(words), 16), {}, tokenizer))
    last = range(69_800, 70_000)
    texts = [" ".join(f"w{i}" for i in part) for part in (last, reversed(last), [*last, *last])]
    (tmp_path / "c.txt").write_text("\n".join(texts), encoding="utf-8")
    shards.make(
        [corpus.corpus_file(tmp_path / "c.txt")], tmp_path / "s", language="en", vocab=1, length=16, tokenizer=many
    )
    found = Shards.open(tmp_path / "s")
    rows = np.concatenate([rows.reshape(-1) for rows in found.rows("full", "shared", "heldout")])
    assert rows.dtype == np.uint32
    assert set(rows.tolist()) >= {len(SPECIALS) + i for i in last}
    batch = Stream(found, size=4, share=0.15, seed=0, device="cpu").batch(0)
    assert int(batch.ids.max()) > 2**16 and int(batch.labels.max()) > 2**16


def test_too_little_text_is_refused(english: Shards, tmp_path: Path) -> None:
    """A corpus of one document is refused, because it cannot be trained on and held out."""
    with pytest.raises(DataError, match="1 different documents"):
        shards.write(["river stone house"] * 3, english.tokenizer, tmp_path, length=16)


def test_failed_shards_leave_no_folder(tmp_path: Path) -> None:
    """An empty corpus gives an error in one line and no folder."""
    (tmp_path / "empty.txt").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match="has no text"):
        shards.make([corpus.corpus_file(tmp_path / "empty.txt")], tmp_path / "s", language="en", vocab=50, length=16)
    assert [path.name for path in tmp_path.iterdir()] == ["empty.txt"]


@pytest.mark.parametrize("damage", ["missing", "cut", "facts", "vocabulary", "format", "rows"])
@pytest.mark.parametrize("sealed", [True, False])
def test_damaged_shards_are_refused(damage: str, sealed: bool, shard_folders: dict[str, Path], tmp_path: Path) -> None:
    """Missing files, damaged files and mismatches give an error in one line, also in shards of earlier versions, without seal."""
    folder = shutil.copytree(shard_folders["en"], tmp_path / "s")
    if not sealed:
        (folder / SEAL).unlink()
    facts = json.loads((folder / "shards.json").read_text(encoding="utf-8"))
    first = folder / facts["files"][0]["name"]
    if damage == "missing":
        first.unlink()
    elif damage == "cut":
        first.write_bytes(first.read_bytes()[:200])
    elif damage == "facts":
        (folder / "shards.json").write_text("{", encoding="utf-8")
    elif damage == "vocabulary":
        shutil.copy(shard_folders["zh"] / "tokenizer.json", folder)
    else:
        if damage == "format":
            facts["format"] = 99
        else:
            facts["files"][0]["rows"] += 1
        (folder / "shards.json").write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        Shards.open(folder)
    assert str(folder) in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_a_flipped_bit_in_shards_is_found(shard_folders: dict[str, Path], tmp_path: Path) -> None:
    """Token ids that differ from the written ones are refused, with the file's name."""
    folder = shutil.copytree(shard_folders["en"], tmp_path / "s")
    path = folder / "full-0000.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(DataError, match=r"full-0000\.npy .*delete the folder"):
        Shards.open(folder)


def test_the_fingerprint_follows_the_content(
    english: Shards, chinese: Shards, corpora: dict[str, Path], tmp_path: Path
) -> None:
    """The same corpus with the same vocabulary gives the same shards."""
    source = corpus.corpus_file(corpora["en"])
    shards.make([source], tmp_path / "s", language="en", vocab=1, length=16, tokenizer=english.tokenizer)
    assert Shards.open(tmp_path / "s").fingerprint == english.fingerprint != chinese.fingerprint
