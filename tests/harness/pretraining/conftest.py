"""A small corpus in each language, its shards, and the command on them."""

from __future__ import annotations

import json
import random
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForMaskedLM, BertTokenizer

from harness.cli.main import parser
from harness.encoder.backbone import Backbone, load_backbone
from harness.pretraining import distill_command, loop, pretrain_command, snapshot
from harness.pretraining.text import corpus, shards
from harness.pretraining.text.shards import Shards

VOCAB, LENGTH = 90, 16
ENGLISH = (
    *("old", "river", "stone", "house", "green", "light", "winter", "summer"),
    *("garden", "mountain", "story", "answer", "question", "letter", "morning", "evening"),
)
WORDS = ENGLISH[:8] + ("garden", "story", "answer", "letter")
# As in BERT's own vocabulary, special tokens are neither first nor together.
VOCABULARY = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", *WORDS, "[MASK]", "##s"]
STUDENTS = ("distilbert", "tinybert")
Distil = Callable[..., int]
CHINESE = "山水花鸟天地人风雨春秋冬夏书画诗酒茶"


def _text(language: str, count: int) -> list[str]:
    """Return texts of words in a fixed cyclic order, so that every word follows from its neighbours."""
    draw = random.Random(language)
    words, between = (ENGLISH, " ") if language == "en" else (CHINESE, "")
    texts = []
    for _ in range(count):
        first = draw.randrange(len(words))
        texts.append(between.join(words[(first + i) % len(words)] for i in range(draw.randint(3, 60))))
    return texts


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return 300 documents per language, separated by blank lines."""
    folder = tmp_path_factory.mktemp("corpora")
    files = {}
    for language in ("en", "zh"):
        files[language] = folder / f"{language}.txt"
        files[language].write_text("\n\n".join(_text(language, 300)) + "\n", encoding="utf-8")
    return files


@pytest.fixture(scope="session")
def shard_folders(corpora: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Rows of 16 tokens, 90 WordPieces (Chinese: the 18 characters and the special tokens)."""
    folders = {}
    for language, vocab in (("en", VOCAB), ("zh", 23)):
        folders[language] = tmp_path_factory.mktemp("shards") / language
        shards.make(
            [corpus.corpus_file(corpora[language])], folders[language], language=language, vocab=vocab, length=LENGTH
        )
    return folders


@pytest.fixture(scope="session")
def english(shard_folders: dict[str, Path]) -> Shards:
    return Shards.open(shard_folders["en"])


@pytest.fixture(scope="session")
def chinese(shard_folders: dict[str, Path]) -> Shards:
    return Shards.open(shard_folders["zh"])


def write_teacher(folder: Path, head: bool = True) -> Path:
    """Four layers of width 16 with large random weights."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 24}
    model = BertForMaskedLM(BertConfig(vocab_size=len(VOCABULARY), max_position_embeddings=40, **sizes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "LayerNorm" not in name:
                parameter.normal_(std=0.4)
    (model if head else model.bert).save_pretrained(folder)
    BertTokenizer(vocab={word: i for i, word in enumerate(VOCABULARY)}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same teacher with its masked-word head, and without."""
    folder = tmp_path_factory.mktemp("teachers")
    return {name: write_teacher(folder / name, name == "whole") for name in ("whole", "headless")}


@pytest.fixture(scope="session")
def whole(teachers: dict[str, Path]) -> Backbone:
    return load_backbone(str(teachers["whole"]), "en")


@pytest.fixture(scope="session")
def its_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first call of the command writes the shards that all others read."""
    return tmp_path_factory.mktemp("distillation") / "shards"


@pytest.fixture(scope="session")
def distil(corpora: dict[str, Path], teachers: dict[str, Path], its_shards: Path) -> Distil:
    """Run the command on the small English corpus with rows of 16 tokens; all calls share the shards."""

    def run(method: str, out: Path, *options: str, teacher: str = "whole") -> int:
        given = ["distill", method, "--teacher", str(teachers[teacher]), "--corpus", str(corpora["en"]), "--lang", "en"]
        given += ["--length", "16", "--rows", "8", "--save-every", "0", "--precision", "float32", "--device", "cpu"]
        given += ["--shards", str(its_shards), "--out", str(out)]
        return distill_command.run(parser().parse_args([*given, *options]))

    return run


@pytest.fixture
def pretrain(shard_folders: dict[str, Path]) -> Callable[..., int]:
    """Return the command with a model of 3 x 16 on the English shards; it saves after every step."""

    def run(out: Path, *options: str, shards_from: str | None = "en") -> int:
        given = ["pretrain", "--layers", "3", "--width", "16", "--heads", "2", "--rows", "8", "--save-every", "0"]
        given += ["--precision", "float32", "--device", "cpu", "--learning-rate", "3e-3", "--out", str(out)]
        if shards_from:
            given += ["--shards", str(shard_folders[shards_from])]
        return pretrain_command.run(parser().parse_args([*given, *options]))

    return run


@pytest.fixture(autouse=True)
def _known_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring the rate of a matrix product takes longer than most runs here."""
    monkeypatch.setattr(loop, "matrix_rate", lambda *_: 1e9)


@contextmanager
def _no_space() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


@pytest.fixture
def full_disk() -> Callable[[], AbstractContextManager[None]]:
    """Limit files to 100 bytes, so that writes fail in the middle as on a full disk."""
    return _no_space


Pretrain = Callable[..., int]


def curve(out: Path) -> list[dict[str, float]]:
    lines = (out / "training" / "curve.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def weights(out: Path) -> dict[str, torch.Tensor]:
    """Return the newest state, with moments, in float32."""
    return load_file(snapshot.files(out / "training")[-1])


def assert_same(one: Path, other: Path) -> None:
    assert curve(one) == curve(other)
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
