"""``geep-bench pretrain``: runs, kills, resumed runs, bad input."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from harness.cli import main as cli
from harness.core.errors import ConfigError, DeviceError, GeepBenchError, ResultError
from harness.encoder.checkpoint import read
from harness.encoder.masked_words import MaskedWordModel
from harness.pretraining import loop, model_card, plan, snapshot, start
from harness.pretraining.recipe import PretrainRecipe
from harness.pretraining.text.batches import Stream
from harness.pretraining.text.shards import Shards

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


def test_it_learns_words_from_their_neighbours(
    pretrain: Pretrain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Perplexity is far below that of frequencies, the card has the facts of the run, and the folder is a backbone."""
    out = tmp_path / "b"
    recipe = ["--steps", "300", "--learning-rate", "1e-2", "--rows", "32", "--save-every", "1000"]
    assert pretrain(out, *recipe, "--about", "Made-up words.", "--licence", "cc-by-sa-4.0") == 0
    losses = [row["loss"] for row in curve(out)]
    assert [row["step"] for row in curve(out)] == list(range(1, 301))
    assert sum(losses[-20:]) < 0.6 * sum(losses[:20])
    said = capsys.readouterr()
    assert "held-out perplexity: " in said.out and "backbone: " in said.out
    facts = json.loads((out / "pretraining.json").read_text(encoding="utf-8"))
    held = facts["evaluation"]
    assert held["perplexity"] < held["by_frequency"] / 3
    assert facts["run"]["step"] == 300 and facts["run"]["tokens"] > 0
    text = (out / "README.md").read_text(encoding="utf-8")
    for part in ("license: cc-by-sa-4.0", "Made-up words.", "ShareAlike 4.0", f"{held['perplexity']:.2f}"):
        assert part in text
    assert read(out).shape.layers == 3


def test_a_killed_run_ends_with_the_same_weights(pretrain: Pretrain, tmp_path: Path) -> None:
    """After SIGKILL at random times, losses, weights and moments are the same, bit for bit.

    All features with random numbers or state are on: dropout, accumulation, several epochs.
    """
    options = ["--steps", "40", "--dropout", "0.1", "--accumulate", "2", "--multi-exit"]
    pretrain(tmp_path / "whole", *options)
    broken, draw = tmp_path / "broken", random.Random(0)
    for kill_at in (1, 2, 9, 23, 37):
        process = multiprocessing.get_context("fork").Process(target=pretrain, args=(broken, *options))
        process.start()
        target = broken / "training" / f"state-{kill_at:09d}.safetensors"
        while process.exitcode is None and not any(path >= target for path in snapshot.files(broken / "training")):
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.02))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL, "the run ended before it was killed"
        assert not (broken / "model.safetensors").exists()
    pretrain(broken, *options)
    assert_same(tmp_path / "whole", broken)


def test_stop_after_changes_nothing(pretrain: Pretrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--stop-after gives exit code 3 until training is finished, without a state at every step."""
    options = ["--steps", "10", "--save-every", "1000"]
    pretrain(tmp_path / "whole", *options)
    ticks = iter(range(10**6))
    monkeypatch.setattr(loop.clock, "now", lambda: float(next(ticks)))  # every query of the clock takes a second
    codes = []
    while not codes or codes[-1]:
        codes.append(pretrain(tmp_path / "parts", *options, "--stop-after", "0.1"))
        assert len(codes) < 20
    assert len(codes) > 2 and set(codes[:-1]) == {plan.UNFINISHED}
    assert_same(tmp_path / "whole", tmp_path / "parts")


def test_a_finished_run_is_not_run_again(pretrain: Pretrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished run only rewrites its card, which keeps added accuracies."""
    out = tmp_path / "b"
    pretrain(out, "--steps", "2")
    facts = json.loads((out / "pretraining.json").read_text(encoding="utf-8"))
    row = {"dataset": "d", "method": "geep", "layers": [1, 3], "train_rows": 1200, "test_rows": 90}
    for name, last in (("depth.json", 0.75), ("control.json", 0.51)):
        rows = [{**row, "accuracy": [0.5, last], "gain_points": 100 * (last - 0.5)}]
        (tmp_path / name).write_text(json.dumps({"rows": rows}), encoding="utf-8")
    added = ["--accuracy", str(tmp_path / "depth.json"), "--control", str(tmp_path / "control.json")]
    assert model_card.main([str(out), *added]) == 0
    monkeypatch.setattr(loop.Trainer, "train", None)
    pretrain(out, "--steps", "2", "--about", "Said later.")
    again = json.loads((out / "pretraining.json").read_text(encoding="utf-8"))
    assert again["evaluation"] == facts["evaluation"] and again["run"] == {**facts["run"], "compiled": False}
    text = (out / "README.md").read_text(encoding="utf-8")
    assert "Said later." in text
    assert "| d | 1,200 / 90 | geep | 75.0 | 50.0 | +25.0 | 51.0 | +1.0 | 1: 50.0 3: 75.0 |" in text


def test_invalid_accuracies_are_refused(pretrain: Pretrain, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong file and a folder without a card give an error in one line, and the card is unchanged."""
    out = tmp_path / "b"
    pretrain(out, "--steps", "1")
    before = (out / "README.md").read_bytes()
    capsys.readouterr()
    for name, content in (("a.json", "[]"), ("b.json", '{"rows": [{}]}')):
        (tmp_path / name).write_text(content, encoding="utf-8")
        assert model_card.main([str(out), "--accuracy", str(tmp_path / name)]) == 2
    assert model_card.main([str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 3
    assert (out / "README.md").read_bytes() == before


def test_zero_steps_give_an_untrained_control(pretrain: Pretrain, tmp_path: Path) -> None:
    """With 0 steps, the backbone has the shape and vocabulary of the trained one, and its card says that it is untrained."""
    assert pretrain(tmp_path / "u", "--steps", "0") == 0
    assert pretrain(tmp_path / "t", "--steps", "1") == 0
    assert read(tmp_path / "u").shape == read(tmp_path / "t").shape
    assert (tmp_path / "u" / "vocab.txt").read_bytes() == (tmp_path / "t" / "vocab.txt").read_bytes()
    assert "**Untrained**" in (tmp_path / "u" / "README.md").read_text(encoding="utf-8")


def test_a_start_from_a_teacher(pretrain: Pretrain, tmp_path: Path) -> None:
    """Training starts from layers of another backbone and, with the same vocabulary, from its embeddings."""
    pretrain(tmp_path / "teacher", "--steps", "3")
    assert pretrain(tmp_path / "s", "--steps", "0", "--layers", "2", "--init-from", str(tmp_path / "teacher")) == 0
    theirs, ours = read(tmp_path / "teacher").state, read(tmp_path / "s").state
    assert torch.equal(ours["layers.1.up.weight"], theirs["layers.2.up.weight"])
    assert torch.equal(ours["word.weight"], theirs["word.weight"])
    text = (tmp_path / "s" / "README.md").read_text(encoding="utf-8")
    assert "layers 1, 3 of `teacher`, its embeddings too" in text


def test_from_chinese_text_by_time(
    corpora: dict[str, Path], pretrain: Pretrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards are made if needed; --minutes plans the steps from the measured rate and keeps the plan."""
    table = tmp_path / "train.parquet"
    pd.DataFrame({"text": ["山水花鸟天地人风雨", "春秋冬夏书画诗酒茶"] * 20, "label": [0, 1] * 20}).to_parquet(table)
    corpus = f"{corpora['zh']},{table}"
    out = tmp_path / "z"
    options = ["--corpus", corpus, "--lang", "zh", "--vocab", "23", "--length", "16", "--minutes", "0.01"]
    monkeypatch.setattr(loop, "_MEASURED_SECONDS", 0.1)
    assert pretrain(out, *options, shards_from=None) == 0
    plan = json.loads((out / "training" / "plan.json").read_text(encoding="utf-8"))
    assert plan["steps"] == len(curve(out)) >= 1
    assert pretrain(out, *options, shards_from=None) == 0
    assert plan == json.loads((out / "training" / "plan.json").read_text(encoding="utf-8"))
    assert f"`{tmp_path.name}/train.parquet`" in (out / "README.md").read_text(encoding="utf-8")


def test_measuring_the_rate_changes_nothing(english: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring the time of a step leaves weights and optimiser unchanged."""
    monkeypatch.setattr(loop, "_MEASURED_SECONDS", 0.05)
    model = start.fresh(start.shape_for(2, 16, 2, None, 90, 16), 0.0, 0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    stream = Stream(english, size=4, share=0.15, seed=0, device="cpu")
    trainer = loop.Trainer(model, stream, PretrainRecipe(steps=5, rows=4, precision="float32"), tmp_path)
    assert trainer.seconds_per_step() > 0
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not trainer.optimizer.state


def test_a_loss_that_is_not_finite_stops_the_run(
    pretrain: Pretrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the step of the first infinite loss, and the last valid state is kept."""
    out = tmp_path / "b"
    pretrain(out, "--steps", "30", "--stop-after", "0.0001")
    monkeypatch.setattr(loop.Trainer, "save", lambda self: None)  # as if no state had been due before
    began = snapshot.files(out / "training")[-1]
    forward, calls = MaskedWordModel.forward, iter(range(10**6))

    def poisoned(self: MaskedWordModel, *args: object) -> torch.Tensor:
        found = forward(self, *args)  # type: ignore[arg-type]
        return found * float("nan") if next(calls) == 6 else found

    monkeypatch.setattr(MaskedWordModel, "forward", poisoned)
    first = int(began.stem.split("-")[1])
    with pytest.raises(ConfigError, match=f"not finite at step {first + 7} of 30; the state in {began.name} is kept"):
        pretrain(out, "--steps", "30", "--save-every", "1000")
    assert snapshot.files(out / "training")[-1] == began


def test_a_full_disk_stops_the_run_without_a_loss(
    pretrain: Pretrain,
    tmp_path: Path,
    full_disk: Callable[[], AbstractContextManager[None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A full disk gives an error in one line; older states are complete, and the run can be resumed exactly."""
    monkeypatch.setattr(plan, "_progress", lambda *_: None)  # pytest writes captured output to a file, too
    options = ["--steps", "6"]
    pretrain(tmp_path / "whole", *options)
    pretrain(tmp_path / "b", *options, "--stop-after", "0.00001")
    before = snapshot.files(tmp_path / "b" / "training")
    with full_disk(), pytest.raises(ResultError, match="cannot write .*free space"):
        pretrain(tmp_path / "b", *options)
    assert snapshot.files(tmp_path / "b" / "training") == before
    pretrain(tmp_path / "b", *options)
    assert_same(tmp_path / "whole", tmp_path / "b")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--layers", "4"], "shape: layers = 3, but 4 was asked for"),
        (["--width", "32"], "shape: width = 16, but 32 was asked for"),
        (["--learning-rate", "1e-4"], "recipe: learning_rate"),
        (["--steps", "5"], "amount: steps = 3, but 5 was asked for"),
        (["--multi-exit"], "recipe: multi_exit"),
    ],
)
def test_another_run_in_the_same_folder_is_refused(
    options: list[str], said: str, pretrain: Pretrain, tmp_path: Path
) -> None:
    """The error names the difference; --fresh starts again."""
    out = tmp_path / "b"
    pretrain(out, "--steps", "3")
    with pytest.raises(ConfigError, match=said):
        pretrain(out, "--steps", "3", *options)
    assert pretrain(out, "--steps", "3", *options, "--fresh") == 0


def test_a_start_from_other_weights_of_the_same_name_is_refused(pretrain: Pretrain, tmp_path: Path) -> None:
    """A run resumes only with the weights that it began with, wherever their folder is."""
    for steps in ("2", "3"):
        pretrain(tmp_path / steps / "teacher", "--steps", steps)
    options = ["--steps", "1", "--layers", "2", "--init-from"]
    assert pretrain(tmp_path / "s", *options, str(tmp_path / "2" / "teacher")) == 0
    moved = shutil.copytree(tmp_path / "2" / "teacher", tmp_path / "moved" / "teacher")
    assert pretrain(tmp_path / "s", *options, str(moved)) == 0
    with pytest.raises(ConfigError, match=r"has a run with init_from = teacher \(\w+\), but teacher \(\w+\) was asked"):
        pretrain(tmp_path / "s", *options, str(tmp_path / "3" / "teacher"))


def test_shards_of_another_vocabulary_are_refused(
    pretrain: Pretrain, chinese: Shards, english: Shards, tmp_path: Path
) -> None:
    """--vocab-from must name the vocabulary that the shards were made with."""
    assert pretrain(tmp_path / "b", "--steps", "0", "--vocab-from", str(english.folder)) == 0
    with pytest.raises(ConfigError, match=f"another vocabulary than --vocab-from {chinese.folder}"):
        pretrain(tmp_path / "c", "--steps", "0", "--vocab-from", str(chinese.folder))


def test_states_of_another_shape_without_a_plan_are_refused(pretrain: Pretrain, tmp_path: Path) -> None:
    """States without a plan are refused, and for another model's state the error names the tensor that does not fit."""
    pretrain(tmp_path / "a", "--steps", "2")
    pretrain(tmp_path / "b", "--steps", "2", "--width", "32")
    for path in snapshot.files(tmp_path / "b" / "training"):
        shutil.copy(path, tmp_path / "a" / "training")
    with pytest.raises(ResultError, match="state of a model of another shape"):
        pretrain(tmp_path / "a", "--steps", "2")
    (tmp_path / "a" / "training" / "plan.json").unlink()
    with pytest.raises(ResultError, match="no plan.json"):
        pretrain(tmp_path / "a", "--steps", "2")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--width", "18", "--heads", "4"], "not divisible by --heads 4"),
        (["--steps", "-1"], "--steps: steps = -1 is not allowed: give an integer of at least 0"),
        (["--rows", "0"], "--rows: rows = 0 is not allowed: give an integer of at least 1"),
        (["--learning-rate", "nan"], "--learning-rate: learning_rate = NaN is not allowed"),
        (["--mask-share", "1"], "--mask-share: mask_share = 1.0 is not allowed: give a number above 0 and below 1"),
        (["--lang", "zh"], "--lang zh, but the shards"),
        (["--steps", "1", "--tokens", "5"], "not allowed with"),
        (["--length", "4"], "at least 8 tokens"),
        (["--init-from", "nowhere"], "no config.json in nowhere"),
    ],
)
def test_invalid_options_are_one_line(options: list[str], said: str, pretrain: Pretrain, tmp_path: Path) -> None:
    """Invalid options are reported before training."""
    with pytest.raises(GeepBenchError, match=said) as caught:
        pretrain(tmp_path / "b", *options)
    assert len(str(caught.value).splitlines()) == 1
    assert not list(tmp_path.rglob("state-*"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--lang", "en", "--out", "o"], "no shards in o/training/shards: give text with --corpus"),
        (["--corpus", "c.txt", "--out", "o"], "--corpus needs --lang"),
        (["--corpus", "c.txt", "--lang", "en"], "--out DIR"),
        (["--corpus", "empty.txt", "--lang", "en", "--out", "o"], "has no text"),
        (["--corpus", "latin.txt", "--lang", "en", "--out", "o"], "line 1: not UTF-8"),
        (["--corpus", "c.txt", "--lang", "en", "--out", "o", "--vocab", "9999"], "gives only [0-9]+ pieces"),
        (["--corpus", "test.parquet", "--lang", "en", "--out", "o"], "dev or test split"),
        (["--corpus", "c.txt", "--shards-only", "--lang", "en"], "--shards DIR"),
    ],
)
def test_unusable_corpora_are_one_line(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An unusable corpus gives exit code 2, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    Path("c.txt").write_text("some words here\n\nand others there\n", encoding="utf-8")
    Path("empty.txt").write_text(" \n", encoding="utf-8")
    Path("latin.txt").write_bytes("naïve".encode("latin-1"))
    assert cli.main(["pretrain", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert pd.Series([lines[-1]]).str.contains(said).all()
    assert all(line.startswith(("pretrain: ", "geep-bench: ")) for line in lines)
    assert not list(tmp_path.rglob("shards.json"))


def test_shards_can_be_made_separately_and_are_checked(
    corpora: dict[str, Path], pretrain: Pretrain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Shards are refused if they were made from other files."""
    shards = tmp_path / "s"
    made = ["pretrain", "--corpus", str(corpora["en"]), "--lang", "en", "--vocab", "90", "--length", "16"]
    assert cli.main([*made, "--shards", str(shards), "--shards-only"]) == 0
    assert "tokens of" in capsys.readouterr().out
    assert pretrain(tmp_path / "b", "--shards", str(shards), "--steps", "1", shards_from=None) == 0
    with pytest.raises(ConfigError, match="made from other files"):
        pretrain(tmp_path / "c", "--shards", str(shards), "--corpus", str(corpora["zh"]), shards_from=None)


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    """The help has examples and explains exit code 3."""
    with pytest.raises(SystemExit):
        cli.main(["pretrain", "--help"])
    assert "exit code 3" in capsys.readouterr().out.lower()


@pytest.mark.parametrize("reason", ["no compiler", None])
def test_compiled_or_not_it_learns_the_same(
    reason: str | None,
    pretrain: Pretrain,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Both kinds of batches are compiled; if compiling fails, a message is printed and the run continues."""
    seen: list[bool] = []

    def compiler(model: MaskedWordModel, **_: object) -> Callable[..., torch.Tensor]:
        def compiled(*args: torch.Tensor) -> torch.Tensor:
            if reason:
                raise RuntimeError(reason)
            seen.append(args[2] is None)
            return model(*args)

        return compiled

    monkeypatch.setattr(torch, "compile", compiler)
    pretrain(tmp_path / "plain", "--steps", "4")
    pretrain(tmp_path / "compiled", "--steps", "4", "--compile", "on")
    assert_same(tmp_path / "plain", tmp_path / "compiled")
    assert ("torch.compile failed, continuing without it: no compiler" in capsys.readouterr().err) == bool(reason)
    assert set(seen[:2]) == (set() if reason else {True, False})


def test_too_little_memory_is_reported_with_advice(
    pretrain: Pretrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full device memory gives an error with advice."""

    def full(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(MaskedWordModel, "forward", full)
    with pytest.raises(DeviceError, match="memory is full with --rows 8: halve it and double --accumulate"):
        pretrain(tmp_path / "b", "--steps", "2")
