"""Students and backbones of other families than BERT: distilled, started from, and written as the family that they are of."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForMaskedLM, BertTokenizer, RobertaTokenizer, XLMRobertaTokenizer

from harness.cli import main as cli
from harness.core.errors import BackboneError, ConfigError
from harness.encoder import checkpoint
from harness.encoder.backbone import Backbone, load_backbone
from harness.pretraining import distill_command, pretrain_command
from harness.pretraining.text import vocabulary
from harness.pretraining.text.packing import paired
from suites.workloads.family_models import both_states, family_model, random_texts

NAMES = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def _bpe(texts: list[str]) -> Any:
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    model.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=300, special_tokens=NAMES, initial_alphabet=alphabet)
    )
    facts = json.loads(model.to_str())["model"]
    merges: Any = [tuple(pair) for pair in facts["merges"]]
    return RobertaTokenizer(vocab=facts["vocab"], merges=merges)


def _unigram(texts: list[str]) -> Any:
    model = Tokenizer(models.Unigram())
    model.pre_tokenizer = pre_tokenizers.Metaspace()
    model.train_from_iterator(texts, trainers.UnigramTrainer(vocab_size=60, special_tokens=NAMES, unk_token="<unk>"))
    return XLMRobertaTokenizer(vocab=[tuple(piece) for piece in json.loads(model.to_str())["model"]["vocab"]])


def _wordpiece(texts: list[str]) -> Any:
    return BertTokenizer(vocab=vocabulary.train(texts, 60).get_vocab())


TOKENIZERS = {"roberta": _bpe, "xlm-roberta": _unigram, "electra": _wordpiece, "albert": _wordpiece}
TOKENIZERS["modernbert"] = _wordpiece
WRITTEN = ("roberta", "xlm-roberta", "electra")


@pytest.fixture(scope="module")
def teachers(corpora: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that makes the folder of a teacher of a family, once."""
    made: dict[str, Path] = {}
    texts = corpora["en"].read_text(encoding="utf-8").split("\n\n")

    def make(family: str) -> Path:
        if family not in made:
            made[family] = folder = tmp_path_factory.mktemp(family)
            tokenizer = TOKENIZERS[family](texts)
            family_model(family, 40, words=len(tokenizer)).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        return made[family]

    return make


@pytest.fixture
def run(corpora: dict[str, Path], tmp_path: Path) -> Callable[..., Path]:
    """Return a function that runs distill or pretrain on the small corpus and returns the folder that it wrote."""

    def command(*words: str) -> Path:
        given = ["--corpus", str(corpora["en"]), "--lang", "en", "--length", "16", "--rows", "8", "--device", "cpu"]
        given += ["--precision", "float32", "--shards", str(tmp_path / "shards"), "--out", str(tmp_path / "out")]
        args = cli.parser().parse_args([*words, *given])
        assert (distill_command if words[0] == "distill" else pretrain_command).run(args) == 0
        return tmp_path / "out"

    return command


def check_written(folder: Path, teacher: Backbone) -> checkpoint.Checkpoint:
    """Check that a folder has its teacher's family and ids, and that transformers reads the same model from it."""
    written, found = checkpoint.read(folder), load_backbone(str(folder), "en")
    assert written.family is teacher.family is found.family
    for pair in (None, ["green light", "a letter"]):
        texts = ["old river, STONE", "winter answer"]
        ours, theirs = (one.encode(texts, pair, max_length=14) for one in (found, teacher))
        assert torch.equal(ours.ids, theirs.ids)
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    assert type(model).__name__.lower().startswith(teacher.family.architecture.lower())
    tokens = random_texts([9, 14, 3], written.shape)
    for mine, his in zip(*both_states(model, written, tokens), strict=True):
        torch.testing.assert_close(mine, his, atol=1e-3, rtol=1e-3)
    return written


@pytest.mark.parametrize("family", WRITTEN)
def test_students_are_of_their_teachers_family(
    family: str, teachers: Callable[[str], Path], run: Callable[..., Path]
) -> None:
    """A DistilBERT student of RoBERTa, XLM-R or a small ELECTRA has its layers and tokenizer, and transformers reads it."""
    teacher = load_backbone(str(teachers(family)), "en")
    out = run("distill", "distilbert", "--teacher", str(teachers(family)), "--steps", "2", "--layers", "2")
    written = check_written(out, teacher)
    assert written.shape.layers == 2 and written.shape.embedding == teacher.shape.embedding
    card = json.loads((out / "distillation.json").read_text(encoding="utf-8"))
    assert card["evaluation"]["words"]["guesses"] > 10
    text = (out / "README.md").read_text(encoding="utf-8")
    assert f"{family}, distillation" in text and f"on raw text: {teacher.family.name} of 2 layers" in text


@pytest.mark.parametrize("family", ["roberta", "electra"])
def test_thin_students(family: str, teachers: Callable[[str], Path], run: Callable[..., Path]) -> None:
    """TinyBERT's student of half the width is a model of its teacher's family, without a masked-word head."""
    out = run(
        "distill", "tinybert", "--teacher", str(teachers(family)), "--steps", "1", "--layers", "2", "--width", "8"
    )
    written = checkpoint.read(out)
    assert (written.family.kind, written.shape.width, written.head) == (family, 8, None)


SIZES = ("--layers", "4", "--width", "16", "--heads", "2", "--intermediate", "24")


@pytest.mark.parametrize("family", WRITTEN)
def test_pretraining_goes_on_in_the_family(
    family: str, teachers: Callable[[str], Path], run: Callable[..., Path]
) -> None:
    """With the vocabulary of the backbone that it starts from, no step gives that backbone again, up to float16."""
    folder = str(teachers(family))
    written = check_written(
        run("pretrain", "--init-from", folder, "--vocab-from", folder, *SIZES, "--steps", "0"),
        load_backbone(folder, "en"),
    )
    origin = checkpoint.read(teachers(family))
    assert origin.head is not None and written.head is not None
    for name, value in {**origin.state, **origin.head}.items():
        kept = {**written.state, **written.head}[name]
        torch.testing.assert_close(kept, value[: len(kept)], atol=2e-3, rtol=1e-3)


def test_another_vocabulary_takes_layers_only(teachers: Callable[[str], Path], run: Callable[..., Path]) -> None:
    """From RoBERTa with a new vocabulary a BERT is made, since padding has another id; from ELECTRA still an ELECTRA."""
    for family, expected in (("roberta", "bert"), ("electra", "electra")):
        out = run("pretrain", "--init-from", str(teachers(family)), "--vocab", "70", *SIZES, "--steps", "0", "--fresh")
        written, origin = checkpoint.read(out), checkpoint.read(teachers(family))
        assert written.family.kind == expected and written.shape.vocab_size == 70
        torch.testing.assert_close(
            written.state["layers.3.up.weight"], origin.state["layers.3.up.weight"], atol=2e-3, rtol=1e-3
        )


@pytest.mark.parametrize("family", ["albert", "modernbert"])
def test_other_structures_are_refused(family: str, teachers: Callable[[str], Path], run: Callable[..., Path]) -> None:
    """Shared layers, and ModernBERT's, have no form in which a student is written: one line names those that have."""
    folder = str(teachers(family))
    able = "structure are not written: choose one of BERT, RoBERTa, XLM-R, ELECTRA, DistilBERT"
    with pytest.raises(ConfigError, match=rf"teacher '.*' has no students that can be written: .*{able}$"):
        run("distill", "tinybert", "--teacher", folder, "--steps", "1")
    with pytest.raises(BackboneError, match=f"--init-from .*{able}, or leave it out$"):
        run("pretrain", "--init-from", folder, "--vocab-from", folder, *SIZES, "--steps", "0")


@pytest.mark.parametrize("family", WRITTEN)
def test_pairs_are_packed_as_the_tokenizer_joins_them(family: str, teachers: Callable[[str], Path]) -> None:
    """RoBERTa and XLM-R have two separators between the texts of a pair, ELECTRA one."""
    backbone = load_backbone(str(teachers(family)), "en")
    tokenizer = vocabulary.of_backbone(backbone)
    special = vocabulary.Specials.of(tokenizer)
    one, other = (np.array(tokenizer.encode(text, add_special_tokens=False).ids) for text in ("old house", "river"))
    inside = paired(one, other, 20, special)
    assert inside is not None
    assert [special.cls, *inside, special.sep] == backbone.encode(["old house"], ["river"]).ids.tolist()
    assert special.between == (1 if family == "electra" else 2)
    assert paired(one, other, len(inside) + 2, special) is not None
    assert paired(one, other, len(inside) + 1, special) is None


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta"])
def test_words_begin_at_their_marks(family: str, teachers: Callable[[str], Path]) -> None:
    """Pieces with a mark begin words, others continue them, special tokens are no words; all three kinds occur."""
    tokenizer = vocabulary.of_backbone(load_backbone(str(teachers(family)), "en"))
    for word, kind in zip(vocabulary.words(tokenizer), vocabulary.kinds(tokenizer), strict=True):
        expected = vocabulary.WORD if word[0] in "\u0120\u2581" else vocabulary.CONTINUES
        assert kind == (vocabulary.SPECIAL if word in NAMES else expected), word
    assert len({*vocabulary.kinds(tokenizer).tolist()}) == 3


def test_chinese_pieces_of_unigram_are_characters() -> None:
    """Chinese text has no marks between words, so that pieces of it are masked in runs, as characters are."""
    pieces = [*NAMES, "\u2581", "\u2581the", "s", "\u5c71", "\u5c71\u6c34", "\u2581\u82b1"]
    tokenizer = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=3))
    named = dict(zip(vocabulary.words(tokenizer), vocabulary.kinds(tokenizer).tolist(), strict=True))
    assert {named[piece] for piece in NAMES} == {vocabulary.SPECIAL}
    assert [named[piece] for piece in pieces[5:8]] == [vocabulary.WORD, vocabulary.WORD, vocabulary.CONTINUES]
    assert {named[piece] for piece in pieces[8:]} == {vocabulary.CHARACTER}
