"""Checkpoints use Hugging Face's tensor names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, BertModel

from harness.core.errors import BackboneError
from harness.encoder.checkpoint import from_hf, read, to_hf, write_folder
from harness.encoder.families.bert_family import BERT
from harness.encoder.model import Encoder
from harness.encoder.shape import EncoderShape


@pytest.fixture
def state(tiny_shape: EncoderShape) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn_like(tensor) for name, tensor in Encoder(tiny_shape).state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_round_trip_through_a_folder(tmp_path: Path, tiny_shape: EncoderShape, state: dict[str, Tensor]) -> None:
    """A written checkpoint is read back bit for bit, with its shape."""
    write_folder(tmp_path, tiny_shape, state)
    found = read(tmp_path)
    shape, again = found.shape, found.state
    assert shape == tiny_shape
    assert same(state, again)


def test_transformers_loads_our_folder(tmp_path: Path, tiny_shape: EncoderShape, state: dict[str, Tensor]) -> None:
    """BertModel takes every tensor from our folder and saves it again so that we read the same."""
    write_folder(tmp_path / ".", tiny_shape, state)
    model, info = BertModel.from_pretrained(tmp_path, add_pooling_layer=False, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    for name, tensor in to_hf(state).items():
        assert torch.equal(model.state_dict()[name], tensor)
    model.save_pretrained(tmp_path / "again")
    found = read(tmp_path / "again")
    shape, again = found.shape, found.state
    assert (shape, same(state, again)) == (tiny_shape, True)


def test_task_checkpoints_in_shards_are_read(tmp_path: Path, tiny_shape: EncoderShape) -> None:
    """The encoder of a classifier is found in several files with "bert." before every name."""
    model = BertForSequenceClassification(BertConfig(**BERT.config(tiny_shape)))
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    state = read(tmp_path).state
    assert same(state, from_hf(model.bert.state_dict(), tiny_shape))


def test_names_of_old_checkpoints(tiny_shape: EncoderShape, state: dict[str, Tensor]) -> None:
    """Norms called gamma and beta, and a "bert." before all names, are read as the current names."""
    old = {}
    for name, tensor in to_hf(state).items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        old["bert." + name] = tensor
    assert any(name.endswith("gamma") for name in old)
    assert same(from_hf(old, tiny_shape), state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_become_float32(
    tmp_path: Path, tiny_shape: EncoderShape, state: dict[str, Tensor], dtype: torch.dtype
) -> None:
    """Widening loses nothing, and all later computation is in float32."""
    half = {name: tensor.to(dtype) for name, tensor in state.items()}
    write_folder(tmp_path, tiny_shape, half)
    again = read(tmp_path).state
    assert {tensor.dtype for tensor in again.values()} == {torch.float32}
    assert same(again, {name: tensor.float() for name, tensor in half.items()})


def test_a_missing_tensor_is_named(tiny_shape: EncoderShape, state: dict[str, Tensor]) -> None:
    """The message names the first missing tensor."""
    tensors = to_hf(state)
    del tensors["encoder.layer.2.output.dense.bias"]
    with pytest.raises(BackboneError, match=r"encoder\.layer\.2\.output\.dense\.bias"):
        from_hf(tensors, tiny_shape)


@pytest.mark.parametrize("change", [{"intermediate": 25}, {"vocab_size": 51}, {"max_positions": 12}, {"type_vocab": 1}])
def test_weights_of_another_shape_are_rejected(
    tiny_shape: EncoderShape, state: dict[str, Tensor], change: dict
) -> None:
    """Weights that do not match their config are rejected, and the message has both sizes."""
    other = EncoderShape(**{**tiny_shape.to_dict(), **change})
    with pytest.raises(BackboneError, match="use the config of these weights"):
        from_hf(to_hf(state), other)


def _config(folder: Path, **change: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


def _drop(folder: Path, key: str) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != key}))


BROKEN = {
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "config not JSON": (lambda f: (f / "config.json").write_text("{"), "config.json is not valid JSON.*fetch it again"),
    "config is a list": (lambda f: (f / "config.json").write_text("[1]"), "config.json"),
    "dimension missing": (lambda f: _drop(f, "hidden_size"), "hidden_size"),
    "dimension not a number": (lambda f: _config(f, hidden_size="wide"), "wide"),
    "dimension zero": (lambda f: _config(f, num_hidden_layers=0), "below 1"),
    "heads do not divide": (lambda f: _config(f, num_attention_heads=3), "not divisible"),
    "unknown activation": (lambda f: _config(f, hidden_act="swish"), "swish"),
    "relative positions": (lambda f: _config(f, position_embedding_type="relative_key"), "absolute positions"),
    "decoder": (lambda f: _config(f, is_decoder=True), "encoders"),
    "another architecture": (
        lambda f: _config(f, model_type="xlnet"),
        "'xlnet', which is not known: .* bert, roberta, xlm-",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors"),
    "broken weights": (lambda f: (f / "model.safetensors").write_bytes(b"\x05\0\0\0junk"), "fetch it again"),
    "no BERT": (
        lambda f: save_file({"a": torch.ones(1)}, f / "model.safetensors"),
        "no tensor .embeddings.word_embeddings.weight., which config.json promises",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_unusable_folders_are_rejected(
    tmp_path: Path, tiny_shape: EncoderShape, state: dict[str, Tensor], case: str
) -> None:
    """Every damage gives one BackboneError that names the problem."""
    write_folder(tmp_path, tiny_shape, state)
    damage, words = BROKEN[case]
    damage(tmp_path)
    with pytest.raises(BackboneError, match=words):
        read(tmp_path)
