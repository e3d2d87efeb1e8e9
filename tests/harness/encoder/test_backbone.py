"""Backbones are loaded from a folder or by name from the hub, or are the embedded one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from harness.core.errors import BackboneError
from harness.core.files import cache_root
from harness.encoder import backbone as module
from harness.encoder import checkpoint, miniature
from harness.encoder.backbone import Backbone, embedded_folder, load_backbone, shape_of
from harness.encoder.shape import KNOWN_SHAPES


@pytest.fixture
def folder(saved_backbone: Path) -> Path:
    """Return a folder with a backbone in save_pretrained layout."""
    return saved_backbone


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the hub unreachable."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    def unreachable(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)


def test_a_folder_is_loaded(folder: Path, make_backbone: Callable[..., Backbone]) -> None:
    """Shape, weights and tokenizer are loaded as saved; the display name is the folder's name, not its path."""
    found, made = load_backbone(str(folder), "en"), make_backbone()
    assert (found.name, found.shape, shape_of(str(folder))) == ("my-backbone", made.shape, made.shape)
    assert found.fingerprint == made.fingerprint
    assert found.encode(["hello there"]).ids.tolist() == made.encode(["hello there"]).ids.tolist()


def test_copies_of_the_encoder_are_independent(make_backbone: Callable[..., Backbone]) -> None:
    """Training one copy does not touch the next; the fingerprint distinguishes weights."""
    made = make_backbone()
    one, other = made.encoder(), made.encoder()
    with torch.no_grad():
        one.word.weight.zero_()
    assert other.word.weight.abs().sum() > 0
    changed = Backbone("x", made.shape, one.state_dict(), None)
    assert changed.fingerprint != made.fingerprint


@pytest.mark.parametrize(
    "text",
    ["good " * 20_000, "x" * 100_000, "很好" * 50_000, " " * 99_999 + "x", "🙂 mixed 中文 \u202e text\u0000", "\u200b"],
)
def test_unusual_texts_are_tokenised(make_backbone: Callable[..., Backbone], text: str) -> None:
    """A hundred thousand characters, emoji and mixed scripts give at most max_length tokens between [CLS] and [SEP]."""
    made = make_backbone()
    tokens = made.encode([text, "good"], max_length=16)
    assert len(tokens) == 2
    assert 2 <= int(tokens.lengths[0]) <= 16
    ends = tokens.offsets.tolist()
    for start, stop in zip(ends[:-1], ends[1:], strict=True):
        assert int(tokens.ids[start]) == made.tokenizer.cls_token_id
        assert int(tokens.ids[stop - 1]) == made.tokenizer.sep_token_id
    assert made.tokenizer.pad_token_id in tokens.special


def test_pairs_are_cut_to_fit_and_keep_both_texts(make_backbone: Callable[..., Backbone]) -> None:
    """The longer text is cut first; segments mark the two texts."""
    tokens = make_backbone().encode(["good " * 50], ["bad good"], max_length=12)
    assert int(tokens.lengths[0]) == 12
    assert tokens.segments.tolist() == [0] * 9 + [1] * 3


def test_the_models_positions_are_the_limit(make_backbone: Callable[..., Backbone]) -> None:
    """No sample is longer than the position embeddings, whatever length is requested."""
    assert int(make_backbone().encode(["good " * 500], max_length=400).lengths[0]) == 128


def _tokenizer_config(folder: Path, **change: object) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


def _more_words(folder: Path) -> None:
    path = folder / "tokenizer.json"
    facts = json.loads(path.read_text(encoding="utf-8"))
    size = len(facts["model"]["vocab"])
    facts["model"]["vocab"].update({f"extra{i}": size + i for i in range(5)})
    path.write_text(json.dumps(facts), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "tokenizer.json").write_text("{broken"), "tokenizer"),
        (lambda f: (f / "tokenizer.json").write_text('{"model": {"type": "Nonsense"}}'), "tokenizer"),
        (lambda f: [p.unlink() for p in f.glob("tokenizer*")] and None, "tokenizer"),
        (_more_words, "tokens, the embeddings .*use the tokenizer of this checkpoint"),
        (lambda f: (f / "config.json").unlink(), "no config.json"),
    ],
)
def test_unusable_folders_are_rejected(folder: Path, damage: Callable[[Path], None], words: str) -> None:
    """A broken, missing or unsuitable tokenizer gives one error that names the problem."""
    damage(folder)
    with pytest.raises(BackboneError, match=words):
        load_backbone(str(folder), "en")


@pytest.mark.usefixtures("offline")
def test_unknown_names_suggest_the_nearest() -> None:
    """An unknown name that cannot be downloaded gives a message with alternatives."""
    for ask in (lambda: load_backbone("bert-base-uncasd", "en"), lambda: shape_of("bert-base-uncasd")):
        with pytest.raises(BackboneError, match="did you mean bert-base-uncased"):
            ask()


def test_known_shapes_need_no_network(offline: None) -> None:
    """The shape of BERT-base is known by name."""
    assert shape_of("bert-base-uncased") == KNOWN_SHAPES["bert-base-uncased"]
    assert shape_of("embedded") == miniature.SHAPE


def test_the_embedded_backbone_is_pretrained_once(
    monkeypatch: pytest.MonkeyPatch, make_backbone: Callable[..., Backbone]
) -> None:
    """The first use of either language writes both backbones; later uses read them."""
    calls, made = [], make_backbone()

    def pretrain(*, progress: bool) -> tuple:
        calls.append(progress)
        return made.shape, made.state

    monkeypatch.setattr(miniature, "pretrain_miniature", pretrain)
    for language in ("zh", "en", "zh"):
        place = embedded_folder(language, progress=False)
        assert place.is_relative_to(cache_root())
        assert checkpoint.read(place).shape == made.shape
    assert calls == [False]
    found = load_backbone(module.EMBEDDED, "en")
    assert (found.name, found.fingerprint) == ("embedded", made.fingerprint)


def test_a_damaged_embedded_backbone_is_made_again(
    monkeypatch: pytest.MonkeyPatch, make_backbone: Callable[..., Backbone], capsys: pytest.CaptureFixture[str]
) -> None:
    """A flipped bit in any file is found, named in one line, and the backbone is pretrained again, with the same weights."""
    made = make_backbone()
    monkeypatch.setattr(miniature, "pretrain_miniature", lambda *, progress: (made.shape, made.state))
    place = embedded_folder("en", progress=False)
    for name in ("model.safetensors", "tokenizer.json"):
        content = (place / name).read_bytes()
        (place / name).write_bytes(content[:-4] + bytes([content[-4] ^ 1]) + content[-3:])
        assert load_backbone(module.EMBEDDED, "en", progress=False).fingerprint == made.fingerprint
        (line,) = capsys.readouterr().err.splitlines()
        assert str(place / name) in line and line.endswith("pretraining the embedded miniature again")
        assert (place / name).read_bytes() == content
