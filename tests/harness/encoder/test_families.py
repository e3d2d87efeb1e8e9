"""Every family of encoders equals transformers layer by layer, and runs through all executors, students and engines."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import ElectraForPreTraining

from baselines.distilled.axes.initialisation import projected_encoder
from baselines.distilled.tinybert import Imitation, student_shape
from baselines.full_depth.bert_truncated import first_layers
from harness import registry
from harness.contracts import Execution, OperatingPoint
from harness.core.errors import BackboneError
from harness.core.tokens import Split, Task, TokenSet
from harness.encoder import checkpoint
from harness.encoder.backbone import Backbone
from harness.encoder.families.known_families import FAMILIES
from harness.encoder.layout import Layout
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.shape import EncoderShape
from harness.engines.int8 import quantised
from harness.execution.executors import run_full
from harness.toolkit.distillation import take_layers
from suites.workloads.family_models import (
    FAMILY_MODELS,
    both_states,
    encoder_of,
    family_model,
    fitting,
    read_family,
)

UNLIKE_BERT = ("electra", "albert", "modernbert")  # in structure
LENGTHS = [5, 1, 16, 9, 16, 2]


@pytest.fixture(scope="module")
def made() -> Callable[[str], Any]:
    """Return a function that makes a model of transformers with random weights, the same one every time."""
    return cache(family_model)


@pytest.fixture(scope="module")
def found(
    made: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], checkpoint.Checkpoint]:
    """Return a function that reads such a model from a folder."""
    return cache(lambda name: read_family(made(name), tmp_path_factory.mktemp("family")))


@pytest.fixture
def tokens(make_tokens: Callable[..., TokenSet]) -> TokenSet:
    """Samples up to the positions of the encoders, without the id that RoBERTa takes for padding."""
    some = make_tokens(LENGTHS)
    return replace(some, ids=some.ids.clamp(min=3))


def test_every_family_is_tested() -> None:
    """No family is known whose states are not compared here."""
    assert {name.split(",")[0] for name in FAMILY_MODELS} == set(FAMILIES)


@pytest.mark.parametrize("pad_to", [None, 16])
@pytest.mark.parametrize("name", FAMILY_MODELS)
def test_states_equal_those_of_transformers(
    name: str,
    pad_to: int | None,
    made: Callable[[str], Any],
    found: Callable[[str], checkpoint.Checkpoint],
    tokens: TokenSet,
) -> None:
    """Embeddings, every layer, and the scores of masked words differ by less than 1e-4, packed or padded."""
    one = found(name)
    *states, (scores, expected) = zip(*both_states(made(name), one, fitting(tokens, one.shape), pad_to), strict=True)
    assert len(states) == one.shape.layers + 1
    assert max(float((ours - theirs).abs().max()) for ours, theirs in states) < 1e-4
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-3)


PLANTED: dict[str, tuple[str, Mapping[str, Any]]] = {
    "no windows": ("modernbert", {"windows": (0, 0, 0, 0)}),
    "windows one token wider": ("modernbert", {"windows": (0, 3, 3, 0)}),
    "other angles": ("modernbert", {"rotary": (160000.0, 10.0)}),
}


@pytest.mark.parametrize("case", PLANTED)
def test_differences_are_seen(case: str, found: Callable[[str], checkpoint.Checkpoint], tokens: TokenSet) -> None:
    """What the comparison with transformers must find, were it wrong, changes states by more than its tolerance."""
    name, change = PLANTED[case]
    one = found(name)
    layout = Layout(np.array(LENGTHS), None, "cpu")
    with torch.no_grad():
        right, wrong = (
            list(encoder_of(each).states(fitting(tokens, one.shape), layout))[-1]
            for each in (one, replace(one, shape=replace(one.shape, **change)))
        )
    assert (right - wrong).abs().max() > 1e-2


@pytest.mark.parametrize("name", FAMILY_MODELS)
def test_shapes_and_states_survive_storage(
    name: str, found: Callable[[str], checkpoint.Checkpoint], tmp_path: Path, tokens: TokenSet
) -> None:
    """A model with exits that was saved and loaded again gives the same logits; shared weights are stored once."""
    one = found(name)
    model = MultiExitModel(encoder_of(one), 3, (1,), "linear").eval()
    model.save(tmp_path)
    again = MultiExitModel.load(tmp_path)
    assert again.encoder.shape == one.shape
    given = fitting(tokens, one.shape)
    assert np.array_equal(run_full(model, given, Execution()).logits, run_full(again, given, Execution()).logits)
    assert sum(key.endswith("qkv.weight") for key in again.state_dict()) == (1 if name == "albert" else 4)


def backbone_of(one: checkpoint.Checkpoint, name: str) -> Backbone:
    return Backbone(name, replace(one.shape, dropout=0.0), one.state, tokenizer=None)


@pytest.mark.parametrize("name", UNLIKE_BERT)
def test_students_are_made_of_every_structure(
    name: str, found: Callable[[str], checkpoint.Checkpoint], tokens: TokenSet
) -> None:
    """The first layers give the backbone's states, chosen layers keep their windows, and TinyBERT's student starts finite."""
    whole = backbone_of(found(name), name)
    layout = Layout(np.array(LENGTHS), None, "cpu")
    given = fitting(tokens, whole.shape)
    expected = list(whole.encoder().eval().states(given, layout))
    for student in (first_layers(whole, 3).encoder(), take_layers(whole.encoder(), range(3))):
        states = list(student.eval().states(given, layout))
        assert len(states) == 4
        assert all(torch.equal(a, b) for a, b in zip(states, expected, strict=False))
        assert len({*student.layers}) == (1 if name == "albert" else 3)
    spread = take_layers(whole.encoder(), [0, 2, 3]).shape
    assert spread.windows == tuple(whole.shape.windows[i] for i in (0, 2, 3) if whole.shape.windows)
    for width in (8, 16):
        small, basis = projected_encoder(whole.encoder(), student_shape(whole.shape, 2, width, None))
        loss = Imitation(small, whole.encoder(), basis).loss(given, layout, torch.zeros(0))
        loss.backward()
        assert torch.isfinite(loss)


@pytest.mark.parametrize("name", UNLIKE_BERT)
def test_int8_of_every_structure(name: str, found: Callable[[str], checkpoint.Checkpoint], tokens: TokenSet) -> None:
    """All linear layers of layers are quantised, those without biases and gated ones, too; answers are close to float32."""
    one = found(name)
    given = fitting(tokens, one.shape)
    model = MultiExitModel(encoder_of(one), 3, (), "linear").eval()
    low = quantised(model)
    assert not [part for part in low.encoder.layers.modules() if isinstance(part, torch.nn.Linear)]
    plain, rounded = (run_full(each, given, Execution()).logits for each in (model, low))
    assert 0 < np.abs(plain - rounded).max() < 0.2 * np.abs(plain).max()


FITS: Mapping[str, Mapping[str, Any]] = {
    "bert": {"epochs": 1, "batch_size": 16},
    "fastbert": {"epochs": 1, "batch_size": 16},
    "geep": {"epochs": 1, "batch_size": 16, "speeds": [0.6]},
}


@pytest.mark.parametrize("name", [name for name in FAMILY_MODELS if name not in ("electra, wide", "xlm-roberta")])
def test_fits_run_from_training_to_answers(
    name: str, found: Callable[[str], checkpoint.Checkpoint], signal_task: Task, unseen: Any
) -> None:
    """Full depth, FastBERT under its rule, and GEEP with sorted exits learn and answer on each family; batches change nothing."""
    backbone = backbone_of(found(name), name)
    train, dev = (
        Split(fitting(part.tokens.select(range(24)), backbone.shape), part.labels[:24])
        for part in (signal_task.train, signal_task.dev)
    )
    task = replace(signal_task, train=train, dev=dev)
    test = fitting(unseen.tokens.select(range(20)), backbone.shape)
    fitted: dict[str, Any] = {}
    for method, config in FITS.items():
        teachers = {need: fitted[need] for need in registry.get(method).needs}
        fitted[method] = one = registry.get(method).fit(task, backbone, teachers, config=config, seed=0)
        at = list(one.operating_points(task.dev))[0]
        answers = []
        for execution in (
            Execution(batch_size=7, max_length=16),
            Execution(batch_size=1, protocol="paper", max_length=16),
        ):
            point: OperatingPoint = replace(at, execution=execution)
            if hasattr(one, "foresee"):
                point = replace(point, foresight=one.foresee(test, at=point))
            answers.append(one.predict(test, at=point))
        batch, alone = answers
        np.testing.assert_allclose(batch.logits, alone.logits, atol=1e-3, rtol=1e-3)
        assert np.array_equal(batch.exit_layer, alone.exit_layer)
        assert one.cost.flops(batch.work, "full") < one.cost.flops(alone.work, "full")  # no padding
        assert ("projection.0" in batch.work.blocks) == bool(backbone.shape.embedding)


def config(folder: Path, **change: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


REFUSED: dict[str, tuple[str, Mapping[str, object], str]] = {
    "unknown family": ("bert", {"model_type": "deberta-v2"}, "'deberta-v2', which is not known.*bert, roberta, xlm-"),
    "positions of another config": (
        "roberta",
        {"max_position_embeddings": 16},
        r"\(18, 16\), config.json says \(16, 16\)",
    ),
    "other padding": ("roberta", {"pad_token_id": 0}, "counts its positions"),
    "no positions left": ("roberta", {"max_position_embeddings": 2}, "below 1"),
    "BERT called ELECTRA": ("bert", {"model_type": "electra"}, "weights are those of BERT: use the config"),
    "RoBERTa called BERT": ("roberta", {"model_type": "bert"}, "weights are those of RoBERTa or XLM-R: use the config"),
    "ModernBERT called ALBERT": ("modernbert", {"model_type": "albert"}, "those of ModernBERT: use the config"),
    "embeddings of another width": ("electra", {"embedding_size": 16}, r"\(50, 8\), config.json says \(50, 16\)"),
    "two groups": ("albert", {"num_hidden_groups": 2}, "num_hidden_groups 2; only"),
    "biases": ("modernbert", {"mlp_bias": True}, "mlp_bias True, which is not supported"),
    "other angles": (
        "modernbert",
        {"rope_parameters": {"full_attention": {"rope_type": "yarn", "rope_theta": 1.0}, "sliding_attention": {}}},
        "rope_parameters",
    ),
    "too few kinds of layers": ("modernbert", {"layer_types": ["full_attention"]}, "layer_types"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_configs_that_do_not_fit_are_refused(case: str, made: Callable[[str], Any], tmp_path: Path) -> None:
    """One line names what is wrong."""
    name, change, words = REFUSED[case]
    made(name).save_pretrained(tmp_path)
    config(tmp_path, **change)
    with pytest.raises(BackboneError, match=words) as caught:
        checkpoint.read(tmp_path)
    assert "\n" not in str(caught.value)


def test_old_names_of_modernberts_attention(made: Callable[[str], Any], tmp_path: Path) -> None:
    """A config of the time when ModernBERT was published gives the same shape."""
    made("modernbert").save_pretrained(tmp_path)
    shape = checkpoint.read_shape(tmp_path)
    config(tmp_path, layer_types=None, rope_parameters=None, global_attn_every_n_layers=3, global_rope_theta=160000.0)
    config(tmp_path, local_rope_theta=10000.0, local_attention=4)
    assert checkpoint.read_shape(tmp_path) == shape
    assert shape.windows == (0, 2, 2, 0)


def test_discriminators_have_no_masked_word_head(tmp_path: Path) -> None:
    """ELECTRA's usual checkpoint is read without a head."""
    ElectraForPreTraining(family_model("electra").config).save_pretrained(tmp_path)
    one = checkpoint.read(tmp_path)
    assert (one.head, one.shape.embedding, one.family.name) == (None, 8, "ELECTRA")


def test_shapes_without_differences_look_as_before() -> None:
    """Keys of earlier results hold the representation of BERT's shapes, and models stored then are read."""
    shape = EncoderShape(2, 8, 2, 16, 50)
    assert repr(shape) == (
        "EncoderShape(layers=2, width=8, heads=2, intermediate=16, vocab_size=50, max_positions=512, type_vocab=2, "
        "norm_eps=1e-12, activation='gelu', dropout=0.1)"
    )
    assert EncoderShape(**shape.to_dict()) == shape
    assert "shared=True" in repr(replace(shape, shared=True))
    assert len(shape.to_dict()) == 10
