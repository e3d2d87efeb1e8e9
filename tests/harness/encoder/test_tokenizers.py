"""Tokenizers of all three kinds give the ids of transformers, with their own special tokens, pairs and limits."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AlbertConfig,
    AlbertModel,
    AlbertTokenizer,
    AutoTokenizer,
    BertTokenizer,
    ElectraConfig,
    ElectraModel,
    RobertaConfig,
    RobertaModel,
    RobertaTokenizer,
    XLMRobertaConfig,
    XLMRobertaModel,
    XLMRobertaTokenizer,
)

from harness.core.errors import BackboneError
from harness.encoder import backbone as module
from harness.encoder.backbone import Backbone, check_length, load_backbone
from harness.toolkit.augmentation import Pieces

TEXTS = ["a good film, not bad at all", "the cast is bad, very bad", "unbelievable! really good"] * 4
SMALL: dict[str, Any] = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "embedding_size": 8,
}


def bpe() -> Any:
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    first = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    model.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(vocab_size=320, special_tokens=first, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()),
    )
    facts = json.loads(model.to_str())["model"]
    merges: Any = [tuple(pair) for pair in facts["merges"]]
    return RobertaTokenizer(vocab=facts["vocab"], merges=merges)


def unigram(kind: type, first: list[str]) -> Any:
    model = Tokenizer(models.Unigram())
    model.pre_tokenizer = pre_tokenizers.Metaspace()
    model.train_from_iterator(TEXTS, trainers.UnigramTrainer(vocab_size=60, special_tokens=first, unk_token="<unk>"))
    return kind(vocab=[tuple(piece) for piece in json.loads(model.to_str())["model"]["vocab"]])


def wordpiece() -> Any:
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "a",
        "good",
        "film",
        "not",
        "bad",
        "at",
        "all",
        "the",
        "cast",
        "is",
        "very",
        "un",
        "##bel",
        "##ie",
        "##vable",
        "really",
        ",",
        "!",
    ]
    return BertTokenizer(vocab={word: i for i, word in enumerate(words)})


# The first four ids of each are those that its family expects.
KINDS: dict[str, tuple[Callable[[], Any], Callable[[int], Any]]] = {
    "wordpiece": (wordpiece, lambda size: ElectraModel(ElectraConfig(**SMALL, vocab_size=size))),
    "byte-level BPE": (
        bpe,
        lambda size: RobertaModel(
            RobertaConfig(**SMALL, vocab_size=size, max_position_embeddings=34, type_vocab_size=1, pad_token_id=1)
        ),
    ),
    "unigram": (
        lambda: unigram(XLMRobertaTokenizer, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]),
        lambda size: XLMRobertaModel(
            XLMRobertaConfig(**SMALL, vocab_size=size, max_position_embeddings=34, type_vocab_size=1, pad_token_id=1)
        ),
    ),
    "unigram of ALBERT": (
        lambda: unigram(AlbertTokenizer, ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]),
        lambda size: AlbertModel(AlbertConfig(**SMALL, vocab_size=size)),
    ),
}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that makes the folder of a backbone with a kind of tokenizer, once."""
    folders: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in folders:
            folders[kind] = place = tmp_path_factory.mktemp("kind")
            tokenizer, model = KINDS[kind][0](), KINDS[kind][1]
            model(len(tokenizer)).save_pretrained(place)
            tokenizer.save_pretrained(place)
        return folders[kind]

    return make


@pytest.fixture(scope="module")
def backbone_with(folder_of: Callable[[str], Path]) -> Callable[[str], Backbone]:
    """Return a function that loads it."""
    return cache(lambda kind: load_backbone(str(folder_of(kind)), "en"))


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_ids_equal_those_of_transformers(
    kind: str, paired: bool, folder_of: Callable[[str], Path], backbone_with: Callable[[str], Backbone]
) -> None:
    """Texts and pairs get the ids of transformers, special tokens included, also where they are cut; segments fit the encoder."""
    backbone, theirs = backbone_with(kind), AutoTokenizer.from_pretrained(folder_of(kind))
    pairs = TEXTS[1:] + TEXTS[:1] if paired else None
    for length in (9, 30):
        expected = theirs(TEXTS, pairs, truncation=True, max_length=length, return_token_type_ids=True)
        found = backbone.encode(TEXTS, pairs, max_length=length)
        assert found.ids.tolist() == sum(expected["input_ids"], [])
        most = backbone.shape.type_vocab - 1
        assert found.segments.tolist() == [min(one, most) for one in sum(expected["token_type_ids"], [])]
        assert found.segments.max() == (paired and most > 0)
        assert set(found.ids[found.offsets[:-1]].tolist()) == {theirs.cls_token_id}
        assert {theirs.cls_token_id, theirs.sep_token_id, theirs.pad_token_id} == set(found.special)
    assert theirs.unk_token_id not in found.ids


@pytest.mark.parametrize("kind", KINDS)
def test_words_begin_where_the_kind_of_tokenizer_says(kind: str, backbone_with: Callable[[str], Backbone]) -> None:
    """Augmentation finds the same words, and replaces only by pieces that begin one."""
    backbone = backbone_with(kind)
    pieces = Pieces.of(backbone.tokenizer)
    words = pieces.words(backbone.encode(["very unbelievable film"]))
    assert (len(words.size), int(words.size.sum())) == (3, int((words.number >= 0).sum()))
    assert words.lettered.all()
    assert len(pieces.candidates) > 1
    chosen = backbone.tokenizer.convert_ids_to_tokens(pieces.candidates.tolist())
    assert not [name for name in chosen if name.startswith("##") or name in backbone.tokenizer.all_special_tokens]
    if kind != "wordpiece":
        assert {name[0] for name in chosen} <= {"\u0120", "\u2581"}


def test_positions_before_the_first_token_are_no_limit_to_use(backbone_with: Callable[[str], Backbone]) -> None:
    """RoBERTa with 34 rows of positions reads 32 tokens; more are refused in one line."""
    backbone = backbone_with("byte-level BPE")
    assert backbone.shape.max_positions == 32
    assert int(backbone.encode(["good " * 99], max_length=99).lengths[0]) == 32
    check_length("mine", backbone.shape, 32)
    with pytest.raises(
        BackboneError, match="max_length = 33, but backbone 'mine' reads at most 32 tokens: lower max_length"
    ):
        check_length("mine", backbone.shape, 33)


def _without_ends(folder: Path) -> None:
    path = folder / "tokenizer.json"
    facts = json.loads(path.read_text(encoding="utf-8"))
    facts["post_processor"] = None
    path.write_text(json.dumps(facts), encoding="utf-8")


def test_tokenizers_without_special_tokens_are_refused(tmp_path: Path) -> None:
    """A tokenizer that puts nothing around texts is refused: heads read the first token."""
    from transformers import PreTrainedTokenizerFast

    model = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "[CLS]": 2, "[SEP]": 3}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(
        tokenizer_object=model, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(tmp_path)
    ElectraModel(ElectraConfig(**SMALL, vocab_size=4)).save_pretrained(tmp_path)
    _without_ends(tmp_path)
    with pytest.raises(BackboneError, match="does not put special tokens around a text"):
        load_backbone(str(tmp_path), "en")


def test_vocabularies_without_merges_are_refused(tmp_path: Path) -> None:
    """transformers would silently make a tokenizer without words of a vocab.json alone."""
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(BackboneError, match=r"vocab\.json and merges\.txt"):
        module.load_tokenizer(tmp_path)


def test_pickled_weights_stay_refused(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    """A folder with only pytorch_model.bin is refused for every family, without reading it."""
    for path in folder_of("byte-level BPE").iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"never read")
    with pytest.raises(BackboneError, match=r"pytorch_model\.bin, which may hold code and is never read"):
        load_backbone(str(tmp_path), "en")
