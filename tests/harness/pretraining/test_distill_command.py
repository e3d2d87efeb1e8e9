"""``geep-bench distill``: students of both methods from raw text, resumed exactly; bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForMaskedLM, BertConfig, BertForMaskedLM, BertTokenizer

from baselines.distilled.distilbert import DistilBert
from baselines.distilled.tinybert import TinyBert
from harness.cli import main as cli
from harness.core.errors import BackboneError, ConfigError, DataError, UnknownNameError
from harness.encoder.backbone import Backbone, load_backbone
from harness.encoder.masked_words import ABSENT
from harness.pretraining import distill_command, snapshot
from harness.pretraining.general_distillation import EncoderDistillation
from harness.pretraining.text import batches, vocabulary
from harness.pretraining.text.batches import Batch
from harness.pretraining.text.shards import Shards

ENGLISH = [
    "old",
    "river",
    "stone",
    "house",
    "green",
    "light",
    "winter",
    "summer",
    "garden",
    "story",
    "answer",
    "letter",
]
# As in BERT's own vocabulary, special tokens are neither first nor together.
VOCABULARY = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", *ENGLISH, "[MASK]", "##s"]
METHODS = ("distilbert", "tinybert")
Distil = Callable[..., int]


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


@pytest.fixture
def distil(corpora: dict[str, Path], teachers: dict[str, Path], tmp_path: Path) -> Distil:
    """Run the command on the small English corpus with rows of 16 tokens; all calls share the shards."""

    def run(method: str, out: Path, *options: str, teacher: str = "whole") -> int:
        given = ["distill", method, "--teacher", str(teachers[teacher]), "--corpus", str(corpora["en"]), "--lang", "en"]
        given += ["--length", "16", "--rows", "8", "--save-every", "0", "--precision", "float32", "--device", "cpu"]
        given += ["--shards", str(tmp_path / "shards"), "--out", str(out)]
        return distill_command.run(cli.parser().parse_args([*given, *options]))

    return run


def curve(out: Path) -> list[float]:
    return [
        json.loads(line)["loss"] for line in (out / "training" / "curve.jsonl").read_text(encoding="utf-8").splitlines()
    ]


@pytest.mark.parametrize("method", METHODS)
def test_a_student_is_written(
    method: str, distil: Distil, whole: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The loss falls, the folder is a backbone with the teacher's vocabulary, and the card describes it."""
    out = tmp_path / "s"
    options = ["--steps", "120", "--learning-rate", "5e-3", "--about", "Made-up words.", "--layers", "2"]
    assert distil(method, out, *options) == 0
    losses = curve(out)
    assert len(losses) == 120 and sum(losses[-10:]) < 0.9 * sum(losses[:10])
    said = capsys.readouterr()
    assert "held-out loss: " in said.out and "student: " in said.out
    found = load_backbone(str(out), "en")
    assert found.shape.layers == 2 and found.tokenizer.get_vocab() == whole.tokenizer.get_vocab()
    assert found.encode(["The RIVERS, stones"]).ids.tolist() == whole.encode(["The RIVERS, stones"]).ids.tolist()
    assert (found.head is not None) == (method == "distilbert")
    text = (out / "README.md").read_text(encoding="utf-8")
    for part in (
        f"{method} student of `whole`, 2 x {found.shape.width}",
        "Made-up words.",
        "120 steps",
        "Not fine-tuned",
    ):
        assert part in text
    facts = json.loads((out / "distillation.json").read_text(encoding="utf-8"))
    assert facts["evaluation"]["loss"] > 0 and facts["run"]["step"] == 120
    assert facts["shape"]["dropout"] == whole.shape.dropout


def test_transformers_reads_the_student(distil: Distil, tmp_path: Path) -> None:
    """transformers loads every tensor with the masked-word head; the two segments are those of the teacher."""
    assert distil("distilbert", tmp_path / "s", "--steps", "3") == 0
    model, info = AutoModelForMaskedLM.from_pretrained(tmp_path / "s", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    kinds = model.bert.embeddings.token_type_embeddings.weight
    assert not torch.equal(kinds[0], kinds[1])


@pytest.mark.parametrize("method", METHODS)
def test_a_stopped_run_resumes_exactly(method: str, distil: Distil, tmp_path: Path) -> None:
    """A run that is stopped after every step has the same losses and the same folder, bit for bit."""
    whole, parts = tmp_path / "whole-run", tmp_path / "parts"
    options = ["--steps", "4", "--dropout", "0.1"]
    assert distil(method, whole, *options) == 0
    stopped = [distil(method, parts, *options, "--stop-after", "1e-9") for _ in range(4)]
    assert stopped == [3, 3, 3, 0]
    assert distil(method, parts, *options) == 0  # nothing is left to do
    assert curve(parts) == curve(whole)
    for name in ("model.safetensors",):
        assert (parts / name).read_bytes() == (whole / name).read_bytes()
    first, second = (load_file(snapshot.files(out / "training")[-1]) for out in (whole, parts))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_plan_is_refused(distil: Distil, tmp_path: Path) -> None:
    """Other settings or another method in the same folder are refused with the difference."""
    assert distil("distilbert", tmp_path / "s", "--steps", "1") == 0
    with pytest.raises(ConfigError, match="method: alpha_ce = None, but 1.0 was asked for: name another folder"):
        distil("distilbert", tmp_path / "s", "--steps", "1", "--alpha-ce", "1")
    with pytest.raises(ConfigError, match="has a run with"):
        distil("tinybert", tmp_path / "s", "--steps", "1")


def test_no_steps_write_the_start(distil: Distil, whole: Backbone, tmp_path: Path) -> None:
    """With 0 steps, DistilBERT's student has layers, embeddings and head of the teacher (in half precision)."""
    assert distil("distilbert", tmp_path / "s", "--steps", "0") == 0
    found = load_backbone(str(tmp_path / "s"), "en")
    for ours, theirs in (("layers.0", "layers.0"), ("layers.1", "layers.3")):
        torch.testing.assert_close(
            found.state[f"{ours}.up.weight"], whole.state[f"{theirs}.up.weight"], atol=2e-3, rtol=1e-3
        )
    assert found.head is not None and whole.head is not None
    torch.testing.assert_close(found.head["bias"], whole.head["bias"], atol=2e-3, rtol=1e-3)
    assert "Untrained" in (tmp_path / "s" / "README.md").read_text(encoding="utf-8")


def test_tinybert_takes_shapes(distil: Distil, tmp_path: Path) -> None:
    """With the teacher's width the inner width is the teacher's; a smaller width has the published ratio."""
    assert distil("tinybert", tmp_path / "a", "--steps", "0", "--layers", "2", "--width", "16") == 0
    assert distil("tinybert", tmp_path / "b", "--steps", "0", "--layers", "1", "--width", "8") == 0
    shapes = [load_backbone(str(tmp_path / name), "en").shape for name in "ab"]
    assert [(s.layers, s.width, s.intermediate) for s in shapes] == [(2, 16, 24), (1, 8, 31)]


def a_batch(shards: Shards, share: float = 0.3) -> Batch:
    """Rows of one piece and of several, some padded."""
    rows = np.concatenate([shards.rows("full")[0][:3], shards.rows("shared")[0][-3:]])
    made = batches.make(rows, shards.kinds, share, np.random.default_rng(0), torch.device("cpu"), shards.special)
    assert made.pieces is not None and (made.pieces == 0).any()
    return made


@pytest.fixture
def rows(distil: Distil, tmp_path: Path) -> Batch:
    assert distil("distilbert", tmp_path / "s", "--steps", "0") == 0
    shards = Shards.open(tmp_path / "shards")
    assert shards.special.cls == 3 and shards.special.mask == len(VOCABULARY) - 2
    made = a_batch(shards)
    assert (made.ids == shards.special.mask).any()
    return made


def answers(model: Any, batch: Batch) -> tuple[list[list[torch.Tensor]], list[torch.Tensor]]:
    """Return states h^0 .. h^L and word scores of every piece, each run alone, as lists by piece."""
    from harness.core.tokens import TokenSet
    from harness.encoder.layout import Layout

    assert batch.pieces is not None
    states, words = [], []
    for ids, pieces in zip(batch.ids, batch.pieces, strict=True):
        for number in range(1, int(pieces.max()) + 1):
            one = TokenSet.from_lists([ids[pieces == number].tolist()])
            with torch.no_grad():
                states.append(list(model.encoder.states(one, Layout(one.lengths.numpy(), None, "cpu"))))
                words.append(model.scores(states[-1][-1]))
    return states, words


@pytest.mark.parametrize("soft_on", ["all", "masked"])
def test_distilberts_loss_on_text(rows: Batch, whole: Backbone, soft_on: str) -> None:
    """The loss is 5 T^2 KLDivLoss(batchmean) + 2 cross-entropy of masked words + 1 cosine, as for pieces run one by one."""
    model = DistilBert().general_distillation(whole, config={"soft_on": soft_on}, dropout=0.0).eval()
    assert model.words is not None
    torch.manual_seed(1)
    nn.init.normal_(model.words.bias)
    own_states, own = answers(model.words, rows)
    taught_states, taught = answers(model.teacher, rows)
    s, t = torch.cat(own), torch.cat(taught)
    assert rows.pieces is not None
    place = torch.full((rows.ids.numel(),), -1)
    place[rows.pieces.reshape(-1) > 0] = torch.arange(len(s))
    masked, labels = place[rows.where[rows.labels != ABSENT]], rows.labels[rows.labels != ABSENT]
    chosen = masked if soft_on == "masked" else torch.arange(len(s))
    kl = nn.KLDivLoss(reduction="batchmean")((s[chosen] / 2).log_softmax(-1), (t[chosen] / 2).softmax(-1)) * 4
    words = nn.CrossEntropyLoss()(s[masked], labels)
    last = [torch.cat([states[-1] for states in run]) for run in (own_states, taught_states)]
    cosine = nn.CosineEmbeddingLoss()(*last, torch.ones(len(s)))
    found = model(*rows.inputs)
    assert found.item() == pytest.approx((5 * kl + 2 * words + cosine).item(), rel=1e-4)


def test_compactberts_loss_on_text(rows: Batch, whole: Backbone) -> None:
    """Its released formula, as for pieces run one by one; attention is averaged over all keys of a row, padding included."""
    model: Any = DistilBert().general_distillation(whole, config={"objective": "compactbert"}, dropout=0.0).eval()
    torch.manual_seed(1)
    nn.init.normal_(model.words.bias)
    with torch.no_grad():
        for parameter in model.encoder.layers.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    own_states, own = answers(model.words, rows)
    taught_states, taught = answers(model.teacher, rows)
    s, t = torch.cat(own), torch.cat(taught)
    assert rows.pieces is not None
    place = torch.full((rows.ids.numel(),), -1)
    place[rows.pieces.reshape(-1) > 0] = torch.arange(len(s))
    masked, labels = place[rows.where[rows.labels != ABSENT]], rows.labels[rows.labels != ABSENT]
    expected = nn.CrossEntropyLoss()(s[masked], labels)
    expected += 5 * nn.KLDivLoss(reduction="batchmean")(s[masked].log_softmax(-1), t[masked].softmax(-1))
    length = rows.ids.shape[1]
    for m in (1, 2):  # of 4 layers, 2 and 4 teach
        h, wanted = (torch.cat([run[n] for run in runs]) for runs, n in ((own_states, m), (taught_states, 2 * m)))
        expected += 3 * nn.CosineEmbeddingLoss()(h, wanted, torch.ones(len(h)))
        divergence = torch.zeros(())
        for run, other in zip(own_states, taught_states, strict=True):
            a = _scores(model.encoder, m - 1, run[m - 1]).softmax(-1)
            b = _scores(model.teacher.encoder, 2 * m - 1, other[2 * m - 1]).softmax(-1)
            divergence += nn.KLDivLoss(reduction="sum")(a.log(), b)
        expected += 3 * divergence / (len(h) * 2 * length)  # two heads
    assert model(*rows.inputs).item() == pytest.approx(expected.item(), rel=1e-4)


def test_compactberts_student(distil: Distil, whole: Backbone, tmp_path: Path) -> None:
    """It starts from layers 1, 3, .. with the teacher's head, has the released recipe, and resumes as that objective only."""
    options = ["--objective", "compactbert"]
    assert distil("distilbert", tmp_path / "start", *options, "--steps", "0") == 0
    found = load_backbone(str(tmp_path / "start"), "en")
    for ours, theirs in (("layers.0", "layers.1"), ("layers.1", "layers.3")):
        torch.testing.assert_close(
            found.state[f"{ours}.up.weight"], whole.state[f"{theirs}.up.weight"], atol=2e-3, rtol=1e-3
        )
    assert distil("distilbert", tmp_path / "s", *options, "--steps", "30", "--learning-rate", "5e-3") == 0
    losses = curve(tmp_path / "s")
    assert sum(losses[-5:]) < sum(losses[:5])
    facts = json.loads((tmp_path / "s" / "distillation.json").read_text(encoding="utf-8"))
    assert (facts["recipe"]["weight_decay"], facts["recipe"]["clip"], facts["recipe"]["warmup"]) == (1e-4, 1.0, 0.05)
    assert "attention + cosine of states" in (tmp_path / "s" / "README.md").read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match="has a run with"):
        distil("distilbert", tmp_path / "s", "--steps", "30")


def test_tinyberts_loss_on_text(rows: Batch, whole: Backbone) -> None:
    """The loss compares embeddings, states, and attention scores within a piece, as for pieces run one by one."""
    torch.manual_seed(0)
    model: Any = TinyBert().general_distillation(whole, config={"layers": 2, "width": 8}, dropout=0.0).eval()
    student, teacher = model.encoder, model.teacher.encoder
    squares: dict[str, list[torch.Tensor]] = {}
    for run in _pieces(rows):
        own, his = (_states(encoder, run) for encoder in (student, teacher))
        squares.setdefault("e", []).append((own[0] @ model.imitation.embedding.weight.T - his[0]).square())
        for m in (1, 2):
            difference = own[m] @ model.imitation.hidden.weight.T - his[2 * m]
            squares.setdefault(f"h{m}", []).append(difference.square())
            a, b = _scores(student, m - 1, own[m - 1]), _scores(teacher, 2 * m - 1, his[2 * m - 1])
            squares.setdefault(f"a{m}", []).append((a - b).square().reshape(-1))
    expected = sum(torch.cat(parts).mean().item() for parts in squares.values())
    found = model(*rows.inputs)
    assert found.item() == pytest.approx(expected, rel=1e-4)


def _pieces(batch: Batch) -> list[list[int]]:
    assert batch.pieces is not None
    return [
        ids[pieces == number].tolist()
        for ids, pieces in zip(batch.ids, batch.pieces, strict=True)
        for number in range(1, int(pieces.max()) + 1)
    ]


def _states(encoder: Any, ids: list[int]) -> list[torch.Tensor]:
    from harness.core.tokens import TokenSet
    from harness.encoder.layout import Layout

    with torch.no_grad():
        return list(encoder.states(TokenSet.from_lists([ids]), Layout(np.array([len(ids)]), None, "cpu")))


def _scores(encoder: Any, layer: int, hidden: torch.Tensor) -> torch.Tensor:
    width, heads = encoder.shape.width, encoder.shape.heads
    with torch.no_grad():
        q, k, _ = encoder.layers[layer].qkv(hidden).view(len(hidden), 3, heads, width // heads).unbind(1)
        return torch.einsum("ihd,jhd->hij", q, k) / (width // heads) ** 0.5


@pytest.mark.parametrize("method", [DistilBert(), TinyBert()], ids=METHODS)
def test_only_the_student_learns(method: Any, rows: Batch, whole: Backbone) -> None:
    """Gradients reach all weights of the student that are not frozen; the teacher gets none and is not saved."""
    model: EncoderDistillation = method.general_distillation(whole, config={"layers": 2}, dropout=0.1).train()
    model(*rows.inputs).sum().backward()
    without = {
        name.split("encoder.")[-1].split("student.")[-1] for name, p in model.named_parameters() if p.grad is None
    }
    frozen = {"segment.weight", "position.weight"} if method.name == "distilbert" else {"segment.weight"}
    assert without == frozen
    assert all(p.grad is None for p in model.teacher.parameters()) and not model.teacher.training
    assert not any("teacher" in name for name in model.state_dict())
    assert model.training_flops(rows=2, length=16, share=0.15, every=False) > 0


def test_a_teacher_without_a_head(distil: Distil, tmp_path: Path) -> None:
    """DistilBERT's soft words need a head, masked words get a new one, and TinyBERT needs none."""
    for objective in ("distilbert", "compactbert"):
        with pytest.raises(ConfigError, match=r"'headless' has no masked-word head.*--alpha-ce 0"):
            distil("distilbert", tmp_path / "a", "--steps", "1", "--objective", objective, teacher="headless")
    assert distil("distilbert", tmp_path / "b", "--steps", "1", "--alpha-ce", "0", teacher="headless") == 0
    assert load_backbone(str(tmp_path / "b"), "en").head is not None
    assert distil("tinybert", tmp_path / "c", "--steps", "1", teacher="headless") == 0


@pytest.mark.parametrize(
    ("method", "options", "error", "said"),
    [
        ("distilbert", ["--layers", "5"], ConfigError, "5 layers cannot start from a teacher of 4"),
        ("distilbert", ["--temperature", "0"], ConfigError, "temperature = 0.0 is not allowed"),
        (
            "distilbert",
            ["--alpha-mlm", "-1"],
            ConfigError,
            "alpha_mlm = -1.0 is not allowed: give a number of at least 0",
        ),
        (
            "distilbert",
            ["--alpha-ce", "0", "--alpha-mlm", "0", "--alpha-cos", "0"],
            ConfigError,
            "give one a value above 0",
        ),
        ("distilbert", ["--width", "8"], ConfigError, "unknown key 'width'"),
        ("tinybert", ["--layers", "3"], ConfigError, r"do not divide the teacher's 4: choose one of \[1, 2, 4\]"),
        ("tinybert", ["--width", "32"], ConfigError, "width 32 does not fit"),
        ("tinybert", ["--alpha-ce", "1"], ConfigError, "unknown key 'alpha_ce'"),
        ("tinybert", ["--objective", "compactbert"], ConfigError, "unknown key 'objective'"),
        ("distilbert", ["--alpha-layers", "1"], ConfigError, "unknown key 'alpha_layers'"),
        (
            "distilbert",
            ["--objective", "compactbert", "--layers", "3"],
            ConfigError,
            r"do not divide the teacher's 4: choose one of \[1, 2, 4\]",
        ),
        ("tinybert", ["--length", "64"], ConfigError, "has only 40 positions"),
        (
            "tinybert",
            ["--learning-rate", "7"],
            ConfigError,
            "learning_rate = 7.0 is not allowed: give a number above 0",
        ),
        ("tinybert", ["--corpus", "nowhere.txt"], DataError, "no such file"),
        ("tinybert", ["--teacher", "/no/where"], BackboneError, "neither a folder"),
        ("fastbert", [], ConfigError, "no general distillation: choose one of cmow-hybrid, distilbert, tinybert"),
        ("tinybrt", [], UnknownNameError, "did you mean tinybert"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    method: str, options: list[str], error: type[Exception], said: str, distil: Distil, tmp_path: Path
) -> None:
    """An error is one line with what, where and how to correct it, and nothing is written."""
    with pytest.raises(error, match=said) as caught:
        distil(method, tmp_path / "s", "--steps", "1", *options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "s").exists()


def test_shards_of_another_vocabulary_are_refused(
    shard_folders: dict[str, Path], distil: Distil, tmp_path: Path
) -> None:
    """Shards with another vocabulary are refused."""
    with pytest.raises(ConfigError, match="another vocabulary than the teacher"):
        distil("tinybert", tmp_path / "s", "--steps", "1", "--shards", str(shard_folders["en"]))


def test_special_tokens_may_have_any_ids(whole: Backbone) -> None:
    """Special tokens have the ids of the vocabulary; a vocabulary with gaps is refused."""
    tokenizer = vocabulary.of_backbone(whole)
    assert vocabulary.Specials.of(tokenizer) == vocabulary.Specials(0, 2, 3, 4, len(VOCABULARY) - 2)
    holes = BertTokenizer(vocab={word: 2 * i for i, word in enumerate(VOCABULARY)})
    with pytest.raises(BackboneError, match="whole has .* entries or gaps"):
        vocabulary.of_backbone(replace(whole, tokenizer=holes))


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    """The help has an example and the method's options."""
    with pytest.raises(SystemExit):
        cli.parser().parse_args(["distill", "--help"])
    said = capsys.readouterr().out
    assert "geep-bench distill tinybert --teacher" in said and "--alpha-ce" in said
    assert cli.main(["distill", "distilbert", "--teacher", "x", "--lang", "en"]) == 2
    assert "--out DIR" in capsys.readouterr().err
