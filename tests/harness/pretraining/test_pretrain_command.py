"""``geep-bench pretrain``: runs, kills and resumed runs."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from harness.cli import main as cli
from harness.core.errors import ConfigError
from harness.encoder.checkpoint import read
from harness.encoder.masked_words import MaskedWordModel
from harness.pretraining import loop, model_card, plan, snapshot, start
from harness.pretraining.recipe import PretrainRecipe
from harness.pretraining.text.batches import Stream
from harness.pretraining.text.shards import Shards
from tests.harness.pretraining.conftest import Pretrain, assert_same, curve


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
    options = ["--steps", "24", "--dropout", "0.1", "--accumulate", "2", "--multi-exit"]
    pretrain(tmp_path / "whole", *options)
    broken, draw = tmp_path / "broken", random.Random(0)
    for kill_at in (1, 2, 9, 19):
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
