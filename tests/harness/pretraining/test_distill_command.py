"""``geep-bench distill``: students of both methods from raw text, resumed exactly; bad input."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, BertTokenizer

from harness.cli import main as cli
from harness.core.errors import BackboneError, ConfigError, DataError, UnknownNameError
from harness.encoder.backbone import Backbone, load_backbone
from harness.pretraining import snapshot
from harness.pretraining.text import vocabulary
from tests.harness.pretraining.conftest import STUDENTS, VOCABULARY, Distil


def curve(out: Path) -> list[float]:
    return [
        json.loads(line)["loss"] for line in (out / "training" / "curve.jsonl").read_text(encoding="utf-8").splitlines()
    ]


@pytest.mark.parametrize("method", STUDENTS)
def test_a_student_is_written(
    method: str, distil: Distil, whole: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The loss falls, the folder is a backbone with the teacher's vocabulary, and the card describes it."""
    out = tmp_path / "s"
    options = ["--steps", "60", "--learning-rate", "1e-2", "--about", "Made-up words.", "--layers", "2"]
    assert distil(method, out, *options) == 0
    losses = curve(out)
    assert len(losses) == 60 and sum(losses[-10:]) < 0.9 * sum(losses[:10])
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
        "60 steps",
        "Not fine-tuned",
    ):
        assert part in text
    facts = json.loads((out / "distillation.json").read_text(encoding="utf-8"))
    assert facts["evaluation"]["loss"] > 0 and facts["run"]["step"] == 60
    assert facts["shape"]["dropout"] == whole.shape.dropout


def test_transformers_reads_the_student(distil: Distil, tmp_path: Path) -> None:
    """transformers loads every tensor with the masked-word head; the two segments are those of the teacher."""
    assert distil("distilbert", tmp_path / "s", "--steps", "3") == 0
    model, info = AutoModelForMaskedLM.from_pretrained(tmp_path / "s", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    kinds = model.bert.embeddings.token_type_embeddings.weight
    assert not torch.equal(kinds[0], kinds[1])


@pytest.mark.parametrize("method", STUDENTS)
def test_a_stopped_run_resumes_exactly(method: str, distil: Distil, tmp_path: Path) -> None:
    """A run that is stopped after every step has the same losses and the same folder, bit for bit."""
    whole, parts = tmp_path / "whole-run", tmp_path / "parts"
    options = ["--steps", "3", "--dropout", "0.1"]
    assert distil(method, whole, *options) == 0
    stopped = [distil(method, parts, *options, "--stop-after", "1e-9") for _ in range(3)]
    assert stopped == [3, 3, 0]
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


def test_compactberts_student(distil: Distil, whole: Backbone, tmp_path: Path) -> None:
    """It starts from layers 1, 3, .. with the teacher's head, has the released recipe, and resumes as that objective only."""
    options = ["--objective", "compactbert"]
    assert distil("distilbert", tmp_path / "start", *options, "--steps", "0") == 0
    found = load_backbone(str(tmp_path / "start"), "en")
    for ours, theirs in (("layers.0", "layers.1"), ("layers.1", "layers.3")):
        torch.testing.assert_close(
            found.state[f"{ours}.up.weight"], whole.state[f"{theirs}.up.weight"], atol=2e-3, rtol=1e-3
        )
    assert distil("distilbert", tmp_path / "s", *options, "--steps", "20", "--learning-rate", "1e-2") == 0
    losses = curve(tmp_path / "s")
    assert sum(losses[-5:]) < sum(losses[:5])
    facts = json.loads((tmp_path / "s" / "distillation.json").read_text(encoding="utf-8"))
    assert (facts["recipe"]["weight_decay"], facts["recipe"]["clip"], facts["recipe"]["warmup"]) == (1e-4, 1.0, 0.05)
    assert "attention + cosine of states" in (tmp_path / "s" / "README.md").read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match="has a run with"):
        distil("distilbert", tmp_path / "s", "--steps", "20")


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
        distil(method, tmp_path / "s", "--steps", "1", "--shards", str(tmp_path / "shards"), *options)
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
