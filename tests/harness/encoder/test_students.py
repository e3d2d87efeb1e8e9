"""Public students as initial weights: DistilBERT's and TinyBERT's layouts, their masked-word heads, hub revisions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertModel,
)

from harness.core.errors import BackboneError
from harness.core.tokens import TokenSet
from harness.encoder import backbone as module
from harness.encoder import checkpoint, miniature
from harness.encoder.backbone import load_backbone, shape_of
from harness.encoder.layout import Layout
from harness.encoder.model import Encoder

LENGTHS = [5, 1, 16, 9, 2]


def scattered(model: nn.Module) -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3)
    return model.eval()


def distilbert(**change: Any) -> DistilBertConfig:
    sizes = {"vocab_size": 50, "dim": 16, "n_layers": 3, "n_heads": 4, "hidden_dim": 20, "max_position_embeddings": 16}
    return DistilBertConfig(**{**sizes, **change})


def bert(vocab: int = 50, width: int = 16, layers: int = 2, heads: int = 2, inner: int = 20) -> BertConfig:
    sizes = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
    }
    return BertConfig(vocab_size=vocab, max_position_embeddings=16, **sizes)


def hidden_states(folder: Path, tokens: TokenSet) -> tuple[checkpoint.Checkpoint, list[torch.Tensor]]:
    found = checkpoint.read(folder)
    encoder = Encoder(found.shape).eval()
    encoder.load_state_dict(found.state)
    with torch.no_grad():
        return found, list(encoder.states(tokens, Layout(tokens.lengths.numpy(), None, "cpu")))


def grid(tokens: TokenSet) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask, [B, 16] each."""
    mask = torch.from_numpy(np.arange(16)[None, :] < tokens.lengths.numpy()[:, None])
    ids = torch.zeros(mask.shape, dtype=torch.int64)
    ids[mask] = tokens.ids.long()
    return ids, mask


@pytest.mark.parametrize("prefixed", [True, False])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_distilbert_equals_transformers_layer_by_layer(
    prefixed: bool, activation: str, tmp_path: Path, make_tokens: Callable[..., TokenSet]
) -> None:
    """With and without the prefix, all layers equal DistilBertModel, and pairs use its only segment."""
    theirs = scattered((DistilBertForMaskedLM if prefixed else DistilBertModel)(distilbert(activation=activation)))
    theirs.save_pretrained(tmp_path)
    assert any(name.startswith("distilbert.") for name in load_file(tmp_path / "model.safetensors")) == prefixed
    tokens = make_tokens(LENGTHS)
    assert tokens.segments.any()
    found, states = hidden_states(tmp_path, tokens)
    ids, mask = grid(tokens)
    with torch.no_grad():
        expected = theirs(ids, attention_mask=mask.long(), output_hidden_states=True).hidden_states
    assert len(states) == len(expected) == 4 and found.shape.type_vocab == 1
    for state, reference in zip(states, expected, strict=True):
        torch.testing.assert_close(state, reference[mask], rtol=1e-4, atol=1e-4)
    assert (found.head is not None) == prefixed


def test_tinyberts_layout_is_read(tmp_path: Path, make_tokens: Callable[..., TokenSet]) -> None:
    """12 heads of 26, a "bert." prefix, extra heads and no model_type give BertModel's states, layer by layer."""
    theirs = scattered(BertForPreTraining(bert(50, 312, 4, 12, 1200)))
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert {"bert.pooler.dense.weight", "cls.seq_relationship.weight"} < tensors.keys()
    save_file({**tensors, "fit_dense.weight": torch.zeros(768, 312)}, tmp_path / "model.safetensors")
    facts = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    del facts["model_type"]
    (tmp_path / "config.json").write_text(json.dumps(facts), encoding="utf-8")
    tokens = make_tokens(LENGTHS)
    found, states = hidden_states(tmp_path, tokens)
    ids, mask = grid(tokens)
    kinds = torch.zeros_like(ids)
    kinds[mask] = tokens.segments.long()
    with torch.no_grad():
        expected = theirs.bert(
            ids, attention_mask=mask.long(), token_type_ids=kinds, output_hidden_states=True
        ).hidden_states
    assert (found.shape.layers, found.shape.width, found.shape.head_width) == (4, 312, 26)
    for state, reference in zip(states, expected, strict=True):
        torch.testing.assert_close(state, reference[mask], rtol=1e-3, atol=1e-3)
    assert found.head is None  # general distillation does not train it


@pytest.mark.parametrize(
    "make",
    [
        lambda: BertForMaskedLM(bert()),
        lambda: BertForPreTraining(bert()),
        lambda: DistilBertForMaskedLM(distilbert()),
    ],
    ids=["masked", "pretraining", "distilbert"],
)
def test_the_masked_word_head_is_kept(make: Callable[[], Any], tmp_path: Path) -> None:
    """With the head, our model scores every word like transformers."""
    from harness.encoder.masked_words import MaskedWordModel

    theirs = scattered(make())
    theirs.save_pretrained(tmp_path)
    found = checkpoint.read(tmp_path)
    assert found.head is not None
    model = MaskedWordModel(Encoder(found.shape)).eval()
    model.load_state_dict({**{f"encoder.{name}": t for name, t in found.state.items()}, **found.head})
    ids = torch.randint(3, 50, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        *_, last = model.states(ids, torch.arange(9).expand(2, 9), None)
        out = theirs(ids)
    expected = out.logits if hasattr(out, "logits") else out.prediction_logits
    torch.testing.assert_close(model.scores(last).view(2, 9, -1), expected, rtol=1e-4, atol=1e-4)


def test_a_separate_decoder_is_ignored(tmp_path: Path) -> None:
    """A head that does not share the word embeddings would give other scores, so it is not kept."""
    theirs = scattered(DistilBertForMaskedLM(distilbert()))
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    words = tensors["distilbert.embeddings.word_embeddings.weight"]
    for decoder, kept in ((words.clone(), True), (words + 1, False)):
        save_file({**tensors, "vocab_projector.weight": decoder}, tmp_path / "model.safetensors")
        assert (checkpoint.read(tmp_path).head is not None) == kept


def test_a_head_changes_no_fingerprint(tmp_path: Path) -> None:
    """Cached fits depend on the encoder's fingerprint, which ignores the head; the folder's content hash does not."""
    theirs = scattered(BertForMaskedLM(bert(len(miniature.tokenizer("en")))))
    folders = [tmp_path / "with", tmp_path / "without"]
    for folder, model in zip(folders, (theirs, theirs.bert), strict=True):
        model.save_pretrained(folder)
        miniature.tokenizer("en").save_pretrained(folder)
    one, other = (load_backbone(str(folder), "en") for folder in folders)
    assert one.head is not None and other.head is None
    assert one.fingerprint == other.fingerprint
    contents = [module.content_of(str(folder), "en") for folder in folders]
    assert contents[0] != contents[1] == module.content_of(str(folders[1]), "en")


def test_distilbert_is_a_backbone(tmp_path: Path) -> None:
    """Folder and tokenizer load; the second text of a pair uses the only segment."""
    words = len(miniature.tokenizer("en"))
    scattered(DistilBertForMaskedLM(distilbert(vocab_size=words, max_position_embeddings=64))).save_pretrained(tmp_path)
    miniature.tokenizer("en").save_pretrained(tmp_path)
    found = load_backbone(str(tmp_path), "en")
    assert (found.shape.layers, found.shape.type_vocab) == (3, 1)
    assert not found.encode(["good"], ["bad"]).segments.any()
    assert shape_of("distilbert-base-uncased").layers == 6


def test_the_content_hash_covers_every_file(tmp_path: Path) -> None:
    """The hash depends on weights, config and vocabulary, but not on time and path."""
    scattered(DistilBertModel(distilbert())).save_pretrained(tmp_path / "a")
    (tmp_path / "a" / "vocab.txt").write_text("a\n", encoding="utf-8")
    first = checkpoint.content_of(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    assert checkpoint.content_of(tmp_path / "b") == first
    (tmp_path / "b" / "vocab.txt").write_text("bb\n", encoding="utf-8")
    assert checkpoint.content_of(tmp_path / "b") != first


def test_pickled_weights_are_never_read(tmp_path: Path) -> None:
    """A folder with pickled weights only is rejected with a hint how to convert it."""
    scattered(DistilBertModel(distilbert())).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(BackboneError, match=r"only pytorch_model.bin.*never read.*save_pretrained"):
        checkpoint.read(tmp_path)


def test_a_hub_id_may_carry_a_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The part after @ is the hub's revision; a repository without safetensors is rejected with a hint where to find some."""
    scattered(DistilBertModel(distilbert(vocab_size=len(miniature.tokenizer("en"))))).save_pretrained(tmp_path)
    miniature.tokenizer("en").save_pretrained(tmp_path)
    asked = []

    def snapshot(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision))
        assert not any("bin" in pattern for pattern in allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert load_backbone("some/student@refs/pr/1", "en").name == "some/student@refs/pr/1"
    load_backbone("some/student", "en")
    assert asked == [("some/student", "refs/pr/1"), ("some/student", None)]
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(BackboneError, match=r"no safetensors.*some/student@refs/pr/1.*save_pretrained"):
        load_backbone("some/student", "en")
