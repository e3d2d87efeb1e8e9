"""The exported folder, read by us and by transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from harness.encoder.backbone import load_backbone
from harness.encoder.checkpoint import read
from harness.encoder.masked_words import MaskedWordModel
from harness.pretraining import export, start
from harness.pretraining.text.shards import Shards

SHAPE = start.shape_for(3, 16, 2, None, 90, 16)


@pytest.fixture
def model() -> MaskedWordModel:
    made = start.fresh(SHAPE, 0.0, 7)
    with torch.no_grad():
        made.bias.normal_()
        made.encoder.segment.weight[1] += 1  # never trained, never written
    export.round_to_half(made)
    return made


@pytest.mark.parametrize("limit", [export.PIECE, export._HEADER + 3000])
def test_both_readers_find_the_same_weights(
    limit: int, model: MaskedWordModel, english: Shards, tmp_path: Path
) -> None:
    """Our loader and transformers' models with and without decoder read one file or several, without warnings."""
    names = export.write(tmp_path, model, SHAPE, english.tokenizer, limit)
    assert (len(names) > 1) == (limit < export.PIECE)
    found = read(tmp_path)
    shape, state = found.shape, found.state
    assert shape == SHAPE
    for name, value in model.encoder.state_dict().items():
        if name != "segment.weight":
            assert torch.equal(state[name], value), name
    assert torch.equal(state["segment.weight"], model.encoder.segment.weight[:1].expand(2, -1))
    full, said = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(said.values()), said
    assert torch.equal(full.cls.predictions.decoder.weight, model.encoder.word.weight)
    assert torch.equal(full.cls.predictions.decoder.bias, model.bias)
    bare, said = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert all("pooler" in name for name in said["missing_keys"])
    assert torch.equal(bare.encoder.layer[2].output.dense.weight, model.encoder.layers[2].down.weight)
    assert full.dtype == torch.float32
    assert len(AutoTokenizer.from_pretrained(tmp_path)) == 90
    backbone = load_backbone(str(tmp_path), "en")
    tokens = backbone.encode(["stone house"], ["river"])
    assert tokens.ids[0] == 2 and tokens.segments.max() == 1


def test_files_stay_below_their_limit(model: MaskedWordModel, english: Shards, tmp_path: Path) -> None:
    """A larger tensor has a file of its own; every tensor is in one file."""
    tensors = export.tensors_of(model, SHAPE)
    names = export.write(tmp_path, model, SHAPE, english.tokenizer, export._HEADER + 2000)
    files = [load_file(tmp_path / name) for name in names]
    assert sorted(name for file in files for name in file) == sorted(tensors)
    for file in files:
        assert len(file) == 1 or sum(tensor.nbytes for tensor in file.values()) <= 2000
    assert any(tensor.nbytes > 2000 for tensor in tensors.values())


def test_files_of_an_older_export_do_not_stay(model: MaskedWordModel, english: Shards, tmp_path: Path) -> None:
    """Weight files of an earlier export are deleted, so that readers cannot mix them."""
    export.write(tmp_path, model, SHAPE, english.tokenizer, export._HEADER + 3000)
    assert (tmp_path / export.INDEX).is_file()
    export.write(tmp_path, model, SHAPE, english.tokenizer)
    assert sorted(path.name for path in tmp_path.glob("model*")) == ["model.safetensors"]


def test_the_index_names_every_tensor(model: MaskedWordModel, english: Shards, tmp_path: Path) -> None:
    """A full disk gives an error with the file."""
    names = export.write(tmp_path, model, SHAPE, english.tokenizer, export._HEADER + 3000)
    index = json.loads((tmp_path / export.INDEX).read_text(encoding="utf-8"))
    assert set(index["weight_map"]) == set(export.tensors_of(model, SHAPE))
    assert set(index["weight_map"].values()) == set(names)
