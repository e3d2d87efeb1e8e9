"""From every layout that we accept, we read the tensors and ids that transformers loads; other layouts are refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertModel,
)

from harness.core.errors import BackboneError
from harness.encoder import checkpoint, miniature
from harness.encoder.backbone import Backbone, load_backbone

WEIGHTS, INDEX = checkpoint.WEIGHTS, checkpoint.INDEX
BERT = BertConfig(
    vocab_size=50,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=12,
    max_position_embeddings=16,
)
DISTILBERT = DistilBertConfig(vocab_size=50, dim=8, n_layers=2, n_heads=2, hidden_dim=12, max_position_embeddings=16)
LFS = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 231508\n"


PAGE = (Path(__file__).parents[3] / "docs" / "reference" / "accepted-input.md").read_text(encoding="utf-8")
# Messages that the page quotes; three dots stand for any text.
QUOTED = [text.split("...") for text in re.findall(r"refused: `([^`]+)`", PAGE.partition("## Backbones: weights")[2])]


def assert_quoted(message: str, folder: Path) -> None:
    """Assert that a message is one line that names the folder or a file in it, and that the page quotes it."""
    assert str(folder) in message and "\n" not in message
    shown = re.sub(rf"{re.escape(str(folder))}/[\w.]+", "FILE", message).replace(str(folder), "FOLDER")
    assert any(re.fullmatch(".*".join(map(re.escape, parts)), shown) for parts in QUOTED), shown


def drawn(model: nn.Module, seed: int = 0) -> Any:
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=draw)
    return model


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    """Replace the tensors in model.safetensors."""
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})


def config(folder: Path, **change: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


def old_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in tensors.items()
    }


def saved(model: Any, **options: Any) -> Callable[[Path], None]:
    return lambda folder: drawn(model).save_pretrained(folder, **options)


def with_old_file(folder: Path) -> None:
    """An earlier export under another name, after and before the current one in the alphabet."""
    drawn(BertModel(BERT)).save_pretrained(folder)
    other = {name: tensor + 1 for name, tensor in load_file(folder / WEIGHTS).items()}
    for name in ("model_old.safetensors", "model.fp16.safetensors", "a.safetensors"):
        save_file(other, folder / name, metadata={"format": "pt"})


def with_old_shards(folder: Path) -> None:
    """Shards of an earlier export, in more parts, beside those that the index names."""
    drawn(BertModel(BERT), 1).save_pretrained(folder, max_shard_size="2KB")
    earlier = {path.name: path.read_bytes() for path in folder.glob("model-*")}
    drawn(BertModel(BERT)).save_pretrained(folder, max_shard_size="4KB")
    for name, content in earlier.items():
        (folder / name).write_bytes(content)
    assert len(list(folder.glob("model-*"))) > len(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))


def with_old_index(folder: Path) -> None:
    """One file of weights beside the index and the shards of an earlier export."""
    drawn(BertModel(BERT), 1).save_pretrained(folder, max_shard_size="4KB")
    earlier = {path.name: path.read_bytes() for path in [*folder.glob("model-*"), folder / INDEX]}
    drawn(BertModel(BERT)).save_pretrained(folder)
    for name, content in earlier.items():
        (folder / name).write_bytes(content)


def with_a_tensor_twice(folder: Path) -> None:
    """The same tensor in two shards, with other values."""
    drawn(BertModel(BERT)).save_pretrained(folder, max_shard_size="4KB")
    first, last = sorted(folder.glob("model-*"))[:: len(list(folder.glob("model-*"))) - 1]
    name, tensor = next(iter(load_file(first).items()))
    save_file({**load_file(last), name: tensor + 1}, last, metadata={"format": "pt"})


def with_old_names(folder: Path) -> None:
    drawn(BertForMaskedLM(BERT)).save_pretrained(folder)
    rewrite(folder, old_names)


def with_more_layers(folder: Path) -> None:
    drawn(BertModel(BERT)).save_pretrained(folder)
    config(folder, num_hidden_layers=1)


def with_pickled_weights(folder: Path) -> None:
    drawn(BertModel(BERT)).save_pretrained(folder)
    (folder / "pytorch_model.bin").write_bytes(b"never read")


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "encoder": saved(BertModel(BERT)),
    "encoder without pooler": saved(BertModel(BERT, add_pooling_layer=False)),
    "masked words": saved(BertForMaskedLM(BERT)),
    "pretraining": saved(BertForPreTraining(BERT)),
    "classifier": saved(BertForSequenceClassification(BERT)),
    "half precision": saved(BertModel(BERT).half()),
    "bfloat16": saved(BertModel(BERT).bfloat16()),
    "shards": saved(BertForMaskedLM(BERT), max_shard_size="4KB"),
    "distilbert": saved(DistilBertModel(DISTILBERT)),
    "distilbert, masked words": saved(DistilBertForMaskedLM(DISTILBERT)),
    "distilbert in shards": saved(DistilBertModel(DISTILBERT), max_shard_size="4KB"),
    "gamma and beta": with_old_names,
    "old file": with_old_file,
    "old shards": with_old_shards,
    "old index": with_old_index,
    "tensor twice": with_a_tensor_twice,
    "more layers than the config": with_more_layers,
    "pickled weights, too": with_pickled_weights,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tensors_equal_those_of_transformers(layout: str, tmp_path: Path) -> None:
    """Every tensor of the encoder equals, bit for bit, the one in the model that transformers loads from the folder."""
    LAYOUTS[layout](tmp_path)
    found = checkpoint.read(tmp_path)
    theirs = AutoModel.from_pretrained(tmp_path, dtype=torch.float32)
    assert theirs.config.num_hidden_layers == found.shape.layers
    expected = checkpoint.from_hf(theirs.state_dict(), found.shape, found.family)
    assert found.state.keys() == expected.keys()
    assert [name for name, tensor in found.state.items() if not torch.equal(tensor, expected[name])] == []


@pytest.mark.parametrize(
    "model", [BertForMaskedLM(BERT), DistilBertForMaskedLM(DISTILBERT)], ids=["bert", "distilbert"]
)
def test_the_head_equals_that_of_transformers(model: Any, tmp_path: Path) -> None:
    """Every tensor of the masked-word head equals the one in the model that transformers loads."""
    drawn(model).save_pretrained(tmp_path)
    found = checkpoint.read(tmp_path)
    theirs = type(model).from_pretrained(tmp_path)
    expected = checkpoint.head_from_hf(theirs.state_dict(), found.shape, found.family)
    assert found.head is not None and expected is not None
    assert [name for name, tensor in found.head.items() if not torch.equal(tensor, expected[name])] == []


def test_a_head_with_two_biases_is_ignored(tmp_path: Path) -> None:
    """transformers would add the second bias, so the head that we know is not the one that was trained."""
    drawn(BertForMaskedLM(BERT)).save_pretrained(tmp_path)
    bias = load_file(tmp_path / WEIGHTS)["cls.predictions.bias"]
    for second, kept in ((bias.clone(), True), (bias + 1, False)):
        rewrite(tmp_path, lambda tensors, second=second: {**tensors, "cls.predictions.decoder.bias": second})
        assert (checkpoint.read(tmp_path).head is not None) == kept
        theirs = BertForMaskedLM.from_pretrained(tmp_path)
        assert torch.equal(theirs.cls.predictions.decoder.bias, bias) == kept


def one_bad(value: float) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            tensors["encoder.layer.1.output.dense.weight"][3, 2] = value
            return tensors

        rewrite(folder, change)

    return damage


def in_shards(missing: str) -> Callable[[Path], None]:
    """Replace the weights by four shards and their index, without one of these files."""

    def damage(folder: Path) -> None:
        drawn(BertModel(BERT)).save_pretrained(folder, max_shard_size="2KB")
        (folder / WEIGHTS).unlink()
        assert len(list(folder.glob("model-*-of-00004.safetensors"))) == 4
        (folder / missing).unlink()

    return damage


def bad_index(text: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        (folder / INDEX).write_text(text)

    return damage


def renamed(change: Callable[[str], str]) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder, lambda tensors: {change(name): tensor for name, tensor in tensors.items()})


def both_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**tensors, **{f"bert.{name}": tensor + 1 for name, tensor in tensors.items()}}


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "module prefix": (renamed(lambda name: f"module.{name}"), r"begin with 'module\.'.*model\.module\.save_pretrained"),
    "module and bert": (renamed(lambda name: f"module.bert.{name}"), r"begin with 'module\.bert\.'"),
    "NaN": (one_bad(float("nan")), r"'encoder\.layer\.1\.output\.dense\.weight' holds NaN"),
    "infinity": (one_bad(float("-inf")), r"'encoder\.layer\.1\.output\.dense\.weight' holds NaN or infinite"),
    "two names": (lambda f: rewrite(f, both_names), "under two names"),
    "integers": (lambda f: rewrite(f, lambda t: {n: x.to(torch.int8) for n, x in t.items()}), "holds torch.int8"),
    "shard missing": (
        in_shards("model-00002-of-00004.safetensors"),
        r"lacks 1 of the 4 files.*\(model-00002-of-00004\.safetensors\)",
    ),
    "index missing": (
        in_shards(INDEX),
        r"only model-00001-of-00004\.safetensors.*fetch model\.safetensors\.index\.json",
    ),
    "index damaged": (bad_index("{"), "not an index of weights"),
    "index of nothing": (bad_index('{"weight_map": {}}'), "not an index of weights.*names no file"),
    "index without a map": (bad_index('{"metadata": {}}'), "not an index of weights"),
    "index leads out": (bad_index('{"weight_map": {"a": "../b.safetensors"}}'), "not an index.*cannot contain '/'"),
    "other name only": (lambda f: (f / WEIGHTS).rename(f / "model_old.safetensors"), "only model_old.safetensors"),
    "adapter": (lambda f: (f / "adapter_config.json").write_text("{}"), "changes to another model: merge them"),
    "quantised": (lambda f: config(f, quantization_config={"bits": 8}), "'quantization_config', which is not supp"),
    "named weights": (lambda f: config(f, transformers_weights="b.safetensors"), "'transformers_weights'"),
    "pointer as weights": (lambda f: (f / WEIGHTS).write_text(LFS), r"model\.safetensors is only a Git LFS pointer"),
    "pointer as config": (lambda f: (f / "config.json").write_text(LFS), r"config\.json is only a Git LFS pointer"),
    "config of distilbert": (lambda f: DISTILBERT.save_pretrained(f), "weights are those of BERT or .* use the config"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_weights_are_refused(case: str, tmp_path: Path) -> None:
    """One line names the true cause, and the folder or file."""
    drawn(BertModel(BERT)).save_pretrained(tmp_path)
    damage, words = REFUSED[case]
    damage(tmp_path)
    with pytest.raises(BackboneError, match=words) as caught:
        checkpoint.read(tmp_path)
    assert_quoted(str(caught.value), tmp_path)


@pytest.fixture
def folder(saved_backbone: Path) -> Path:
    """Return a folder with a backbone whose tokenizer is complete."""
    return saved_backbone


def only_words(folder: Path, text: str | None = None) -> None:
    """Replace tokenizer.json by vocab.txt."""
    (folder / "tokenizer.json").unlink()
    words = miniature.tokenizer("en").get_vocab()
    (folder / "vocab.txt").write_text("\n".join(sorted(words, key=words.get)) + "\n" if text is None else text)


def tokenizer_config(folder: Path, **change: object) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


def unlike(folder: Path, **change: object) -> None:
    only_words(folder)
    tokenizer_config(folder, **change)


def with_gap(folder: Path) -> None:
    path = folder / "tokenizer.json"
    facts = json.loads(path.read_text(encoding="utf-8"))
    facts["model"]["vocab"]["far"] = 10_000
    path.write_text(json.dumps(facts), encoding="utf-8")


TOKENIZERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "unknown class": (
        lambda f: unlike(f, tokenizer_class="FooTokenizer"),
        "'FooTokenizer', which transformers .* not kn",
    ),
    "class is a number": (lambda f: tokenizer_config(f, tokenizer_class=5), "tokenizer_class = 5"),
    "unknown model": (lambda f: (f / "tokenizer.json").write_text('{"model": {"type": "Foo"}}'), "no usable tokenizer"),
    "reads other files": (
        lambda f: unlike(f, tokenizer_class="XLNetTokenizer"),
        "a XLNetTokenizer, which reads spiece.m",
    ),
    "empty vocabulary": (lambda f: only_words(f, ""), r"no usable tokenizer.*\[UNK\]"),
    "pointer as vocabulary": (lambda f: only_words(f, LFS), r"vocab\.txt is only a Git LFS pointer"),
    "pointer as tokenizer": (lambda f: (f / "tokenizer.json").write_text(LFS), r"tokenizer\.json is only a Git LFS"),
    "config is a list": (lambda f: (f / "tokenizer_config.json").write_text("[1]"), "not a valid JSON object"),
    "no such side": (
        lambda f: tokenizer_config(f, truncation_side="middle"),
        "no usable tokenizer.*'right' and 'left'",
    ),
    "id beyond the embeddings": (with_gap, r"has 10001 tokens, the embeddings \d+"),
}


@pytest.mark.parametrize("case", TOKENIZERS)
def test_unusable_tokenizers_are_refused(case: str, folder: Path) -> None:
    """One line names the true cause, and the folder or file."""
    damage, words = TOKENIZERS[case]
    damage(folder)
    with pytest.raises(BackboneError, match=words) as caught:
        load_backbone(str(folder), "en")
    assert_quoted(str(caught.value), folder)


def test_a_missing_library_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer that needs a library which is not installed gives one line with its name."""

    def missing(*_: object, **__: object) -> None:
        raise ImportError("\nFooTokenizer requires the Foo library but it was not found. Check out\nthe page\n")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", missing)
    with pytest.raises(BackboneError, match=r"needs a library that is missing \(FooTokenizer requires the Foo library"):
        load_backbone(str(folder), "en")


WORDS = "good bad very not and but the so a of"


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("paired", [False, True])
def test_ids_equal_those_of_transformers(side: str, paired: bool, folder: Path) -> None:
    """Long texts lose tokens at the side that the tokenizer says, however much white space or how long a word is in them."""
    tokenizer_config(folder, truncation_side=side)
    words = f"{WORDS} " * 30
    texts = [WORDS, words, f"{words} {words}", " " * 2000 + WORDS, f"{'x' * 2000} {WORDS} {'y' * 2000}", "bad", words]
    pairs = list(reversed(texts)) if paired else None
    theirs, ours = AutoTokenizer.from_pretrained(folder), load_backbone(str(folder), "en")
    for length in (8, 9):
        expected = theirs(texts, pairs, truncation=True, max_length=length, return_token_type_ids=True)
        found = ours.encode(texts, pairs, max_length=length)
        assert found.ids.tolist() == sum(expected["input_ids"], [])
        assert found.segments.tolist() == sum(expected["token_type_ids"], [])


@settings(max_examples=8, deadline=None)
@given(data=st.data(), side=st.sampled_from(["left", "right"]), length=st.integers(6, 12))
def test_shortened_texts_have_the_same_ids(
    make_backbone: Callable[..., Backbone], data: st.DataObject, side: str, length: int
) -> None:
    """Whatever is in very long texts, and whichever text of a pair is longer, truncation gives what it gives without cuts."""
    parts = st.sampled_from(["good ", "very", "bad", " ", "\n", "not!", "很", "é", "x" * 150, "unbelievable "])
    draw = st.lists(parts, min_size=1, max_size=4).flatmap(
        lambda some: st.integers(1, 60).map(lambda times: "".join(some) * times)
    )
    one, other = data.draw(draw), data.draw(draw)
    made = make_backbone()
    made.tokenizer.truncation_side = side
    assert made.encode([one, one], [other, one], max_length=length).ids.tolist() == sum(
        made.tokenizer([one, one], [other, one], truncation=True, max_length=length)["input_ids"], []
    )
    alone = made.tokenizer(other, truncation=True, max_length=length)["input_ids"]
    assert made.encode([other], max_length=length).ids.tolist() == alone
