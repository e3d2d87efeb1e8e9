"""Pairs of texts in pretraining, with the second text in the second segment, as in fine-tuning."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from baselines.distilled.distilbert import DistilBert
from baselines.distilled.tinybert import TinyBert
from harness.encoder import checkpoint
from harness.encoder.backbone import Backbone, load_backbone
from harness.encoder.families.bert_family import BERT
from harness.encoder.masked_words import masked_word_model
from harness.encoder.shape import EncoderShape
from harness.pretraining import export, start
from harness.pretraining.text import corpus, shards
from harness.pretraining.text.batches import Stream, held_out, places, segments
from harness.pretraining.text.shards import Shards
from harness.pretraining.text.vocabulary import CLS, PAD, SEP

SHAPE = EncoderShape(layers=2, width=16, heads=2, intermediate=24, vocab_size=40, max_positions=16)
WORDS = ("river", "stone", "house", "green", "light", "winter", "summer", "garden")
PAIRS = [("river stone", "house"), ("green", "light winter summer"), ("river", "stone")]


def test_a_pair_that_fits_is_one_piece(english: Shards, tmp_path: Path) -> None:
    """A pair is [CLS] a [SEP] b [SEP]; if it does not fit into a row it is two documents; both texts are counted."""
    brim = (" ".join(WORDS), " ".join(WORDS[:5]))  # 13 words and 3 special tokens
    long = (" ".join(WORDS), " ".join(WORDS[:6]))
    facts = shards.write([*PAIRS, brim, long, "garden river"], english.tokenizer, tmp_path, length=16)
    assert facts["train"]["documents"] + facts["heldout"]["documents"] == 7
    assert facts["train"]["pairs"] + facts["heldout"]["pairs"] == 4
    assert [file["rows"] for file in facts["files"] if file["kind"] == "full"] == [1]  # of one piece: needs no mask
    rows = np.concatenate([np.load(tmp_path / file["name"]) for file in facts["files"]])
    said = [english.tokenizer.decode(row[row != PAD].tolist(), skip_special_tokens=False) for row in rows]
    pieces = sorted(piece.strip() for row in said for piece in row.split("[CLS]") if piece)
    assert pieces == sorted(
        [*(f"{a} [SEP] {b} [SEP]" for a, b in (*PAIRS, brim)), *(f"{text} [SEP]" for text in (*long, "garden river"))]
    )
    texts = [text for document in (*PAIRS, brim, long, ("garden river",)) for text in document]
    for what, expected in (("tokens", sum(len(text.split()) for text in texts)), ("characters", sum(map(len, texts)))):
        assert facts["train"][what] + facts["heldout"][what] == expected


def test_the_same_texts_in_another_pair_are_not_a_duplicate(english: Shards, tmp_path: Path) -> None:
    """A pair is a duplicate if both texts are equal, in the same order."""
    documents = [("river", "stone house"), ("river stone", "house"), "river stone house", ("river", "stone house")]
    facts = shards.write(documents, english.tokenizer, tmp_path, length=16)
    assert facts["train"]["repeats"] == 1


def _texts(folder: Path, facts: dict[str, Any], *kinds: str) -> list[str]:
    """Return the texts between special tokens in rows of these kinds."""
    english = Shards.open(folder).tokenizer
    rows = [row for f in facts["files"] if f["kind"] in kinds for row in np.load(folder / f["name"])]
    said = [english.decode(row[row != PAD].tolist(), skip_special_tokens=False) for row in rows]
    return [text.strip() for row in said for text in row.replace("[SEP]", "[CLS]").split("[CLS]") if text.strip()]


@pytest.mark.parametrize("length", [16, 64])
def test_no_pair_is_in_training_and_held_out(length: int, english: Shards, tmp_path: Path) -> None:
    """First texts of held-out pairs begin no training pair; texts of pairs that do not fit are on one side only."""
    draw = random.Random(0)
    some = [" ".join(draw.choices(WORDS, k=9)) for _ in range(300)]
    table = pd.DataFrame({"text": [draw.choice(some) for _ in range(3000)], "text_pair": draw.choices(some, k=3000)})
    table.to_parquet(tmp_path / "train.parquet")
    source, folder = corpus.corpus_file(tmp_path / "train.parquet"), tmp_path / "s"
    shards.make([source], folder, language="en", vocab=1, length=length, tokenizer=english.tokenizer)
    facts = Shards.open(folder).facts
    held, train = (_texts(folder, facts, *kinds) for kinds in (["heldout"], ["full", "shared"]))
    assert len(held) > 1
    if length == 16:
        assert not facts["train"]["pairs"] and not set(held) & set(train)
        assert len(train) == len(set(train)) and facts["train"]["repeats"] == 6000 - len(set(held) | set(train))
    else:
        assert facts["train"]["pairs"] == facts["train"]["documents"]
        assert not set(held[::2]) & set(train[::2])


def test_pairs_have_the_states_of_bert() -> None:
    """States equal those of transformers' model with token_type_ids, on weights whose segments differ."""
    model = start.fresh(SHAPE, 0.0, 0).eval()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=draw)
    export.round_to_half(model)
    ids = np.array([[CLS, 7, 8, SEP, 9, SEP, *[PAD] * 10], [CLS, *range(20, 34), SEP]], dtype=np.uint16)
    positions, pieces = places(ids)
    second = segments(ids)
    given = [torch.from_numpy(part) for part in (ids.astype(np.int64), positions, pieces, second)]
    config = BertConfig(**{k: v for k, v in BERT.config(SHAPE).items() if k not in ("architectures", "model_type")})
    theirs = BertForMaskedLM(config).eval()
    written = export.tensors_of(model, SHAPE, one_segment=False)
    theirs.load_state_dict({name: value.float() for name, value in written.items()}, strict=False)
    theirs.tie_weights()
    with torch.no_grad():
        found = model.scores(model.states(*given)[-1]).view(2, 16, -1)
        blind = model.scores(model.states(*given[:3])[-1]).view(2, 16, -1)
        expected = theirs(given[0], attention_mask=given[2], token_type_ids=given[3]).logits
    torch.testing.assert_close(found[0, :6], expected[0, :6], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1], expected[1], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found[0, :6], blind[0, :6], atol=1e-2) and torch.equal(found[1], blind[1])


def test_an_encoder_of_one_segment_reads_pairs_on_it() -> None:
    """An encoder with one segment, as DistilBERT's, ignores the segments of a pair."""
    model = start.fresh(replace(SHAPE, type_vocab=1), 0.0, 0).eval()
    ids = np.array([[CLS, 7, 8, SEP, 9, SEP]], dtype=np.uint16)
    given = [torch.from_numpy(part) for part in (ids.astype(np.int64), *places(ids), segments(ids))]
    torch.testing.assert_close(model.states(*given)[-1], model.states(*given[:3])[-1])


@pytest.fixture
def paired(english: Shards, tmp_path: Path) -> Path:
    """Shards of 200 pairs whose second text is the first one reversed."""
    draw = random.Random(0)
    first = [draw.sample(WORDS, 4) for _ in range(200)]
    table = pd.DataFrame({"text": [" ".join(a) for a in first], "text_pair": [" ".join(a[::-1]) for a in first]})
    path = tmp_path / "train.parquet"
    table.to_parquet(path)
    made = tmp_path / "paired"
    shards.make([corpus.corpus_file(path)], made, language="en", vocab=1, length=16, tokenizer=english.tokenizer)
    return made


def test_only_shards_with_pairs_have_segments(paired: Path, english: Shards) -> None:
    """Only batches of shards with pairs have segments."""
    found = Shards.open(paired)
    assert found.paired and not english.paired
    batch = Stream(found, size=4, share=0.15, seed=0, device="cpu").batch(0)
    assert batch.segments is not None and set(batch.segments.unique().tolist()) == {0, 1}
    assert all(b.segments is not None for b in held_out(found, size=4, share=0.15, device="cpu", most=4))
    assert Stream(english, size=4, share=0.15, seed=0, device="cpu").batch(0).segments is None


@pytest.fixture
def whole(english: Shards, tmp_path: Path) -> Backbone:
    """A teacher with a masked-word head and different segments."""
    shape = replace(SHAPE, layers=4, vocab_size=english.vocab_size)
    model, draw = start.fresh(shape, 0.0, 0), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=draw)
    (tmp_path / "whole").mkdir()
    export.write(tmp_path / "whole", model, shape, english.tokenizer, one_segment=False)
    return load_backbone(str(tmp_path / "whole"), "en")


def test_losses_depend_on_segments(paired: Path, whole: Backbone) -> None:
    """Segments change the losses of masked words and of both distillations, and the second one gets a gradient if it is trained."""
    batch = Stream(Shards.open(paired), size=4, share=0.3, seed=0, device="cpu").batch(0)
    blind = replace(batch, segments=None)
    words = masked_word_model(whole)
    assert words is not None
    models: list[torch.nn.Module] = [
        words,
        DistilBert().general_distillation(whole, config={}, dropout=0.0),
        TinyBert().general_distillation(whole, config={"layers": 2, "width": 8}, dropout=0.0),
    ]
    for model in models:
        model.eval()
        assert abs(model(*batch.inputs).item() - model(*blind.inputs).item()) > 1e-5
    words(*batch.inputs).backward()
    gradient = words.encoder.segment.weight.grad
    assert gradient is not None and (gradient.abs().sum(1) > 0).all()


def test_the_second_segment_is_trained_by_pairs_only(
    pretrain: Callable[..., int], paired: Path, tmp_path: Path
) -> None:
    """The trained second segment is written and described in the card; without pairs it is a copy of the first."""
    message = {}
    for name, options, source in (("pairs", ["--shards", str(paired)], None), ("texts", [], "en")):
        out = tmp_path / name
        assert pretrain(out, *options, "--steps", "3", shards_from=source) == 0
        weight = checkpoint.read(out).state["segment.weight"]
        message[name] = torch.equal(weight[0], weight[1]), (out / "README.md").read_text(encoding="utf-8")
        facts = json.loads((out / "pretraining.json").read_text(encoding="utf-8"))
        assert bool(facts["train"]["pairs"]) == (name == "pairs")
    assert not message["pairs"][0] and message["texts"][0]
    assert (
        "The second segment occurs only in pairs" in message["pairs"][1] and "are pairs of texts" in message["pairs"][1]
    )
    assert "All training text was in the first segment" in message["texts"][1] and "pairs" not in message["texts"][1]


def test_a_start_from_a_backbone_copies_all_its_weights(
    pretrain: Callable[..., int], paired: Path, tmp_path: Path
) -> None:
    """With the same vocabulary, both segments and the masked-word head are copied."""
    pretrain(tmp_path / "first", "--shards", str(paired), "--steps", "3", shards_from=None)
    first = checkpoint.read(tmp_path / "first")
    assert first.head is not None
    for name, text in (("pairs", str(paired)), ("texts", None)):
        options = ["--init-from", str(tmp_path / "first"), "--steps", "0", *(["--shards", text] if text else [])]
        pretrain(tmp_path / name, *options, shards_from=None if text else "en")
        found = checkpoint.read(tmp_path / name)
        assert found.head is not None
        assert all(torch.equal(first.state[key], value) for key, value in found.state.items())
        assert all(torch.equal(first.head[key], value) for key, value in found.head.items())
        card = (tmp_path / name / "README.md").read_text(encoding="utf-8")
        assert "its embeddings too, and its masked-word head" in card and "Untrained" not in card
        assert ("the second is that of `first`" in card) == (name == "texts")
