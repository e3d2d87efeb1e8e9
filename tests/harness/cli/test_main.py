"""The command line: help, rejected input, and one complete run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from harness.cli import main as cli
from harness.cli.main import main
from harness.cli.run_options import parser
from harness.encoder import checkpoint
from harness.encoder.backbone import Backbone
from harness.encoder.device_kernels.packed_linear import can_pack
from harness.results.schema import SCHEMA
from harness.running import profile

PROFILE = """
title = "tiny"
source = "local"
datasets = ["mine"]
methods = ["bert", "fastbert"]
rounds = 2
max_length = 16
speeds = [0.5]
[execution]
batch_size = 8
[training]
epochs = 1
learning_rate = 1e-3
batch_size = 16
[method.fastbert]
distill_epochs = 1
"""


def write_splits(folder: Path, **tables: pd.DataFrame) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split, table in tables.items():
        table.to_parquet(folder / f"{split}.parquet")


def table(rows: int) -> pd.DataFrame:
    words = ["good", "bad"]
    return pd.DataFrame({"text": [f"{words[i % 2]} number {i} 🙂" for i in range(rows)], "label": np.arange(rows) % 2})


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_backbone: Callable[..., Backbone]) -> Path:
    """Change to a folder with a profile, data and a backbone, without the hub."""
    (tmp_path / "tiny.toml").write_text(PROFILE)
    write_splits(tmp_path / "data" / "mine", train=table(24), dev=table(8), test=table(6))
    made = make_backbone()
    (tmp_path / "backbone").mkdir()
    checkpoint.write_folder(tmp_path / "backbone", made.shape, made.state)
    made.tokenizer.save_pretrained(tmp_path / "backbone")
    monkeypatch.chdir(tmp_path)

    from huggingface_hub.errors import LocalEntryNotFoundError

    def unreachable(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("several\nlines")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    return tmp_path


GOOD = {"--profile": "tiny.toml", "--data": "data", "--backbone": "en=backbone", "--device": "cpu", "--out": "out"}


def run(**change: str | None) -> list[str]:
    """Call ``geep-bench run`` with valid options, except for those given (``None``: left out)."""
    options = {**GOOD, **{f"--{name.replace('_', '-')}": value for name, value in change.items()}}
    return ["run", *(part for name, value in options.items() if value is not None for part in (name, value))]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], *words: str) -> None:
    """Check exit code 2 and one line that contains the words."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("geep-bench: ")
    assert captured.out == ""
    for word in words:
        assert word in lines[0]


REFUSED: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "no command": ([], ("COMMAND", "--help")),
    "unknown command": (["rum"], ("rum",)),
    "unknown option": (["run", "--profil", "quick", "--wat"], ("--wat",)),
    "unknown method": (run(methods="fastbrt"), ("unknown method 'fastbrt'", "did you mean fastbert")),
    "unknown dataset": (run(datasets="main"), ("unknown dataset 'main'", "did you mean mine")),
    "unknown embedded dataset": (["run", "--datasets", "ag_new"], ("did you mean ag_news",)),
    "unknown profile": (["run", "--profile", "qick"], ("unknown profile 'qick'", "did you mean quick")),
    "profile file missing": (["run", "--profile", "none.toml"], ("no profile file none.toml",)),
    "unknown backbone": (run(backbone="en=bert-base-uncasd"), ("bert-base-uncasd", "did you mean bert-base-uncased")),
    "backbone missing": (run(backbone=None), ("--backbone en=DIR_OR_ID",)),
    "backbone of another language": (run(backbone="zh=backbone"), ("--backbone en=DIR_OR_ID",)),
    "backbone without language": (run(backbone="fr=backbone"), ("fr=backbone", "en=DIR_OR_ID")),
    "backbone empty": (run(backbone="en="), ("en=",)),
    "embedded backbone for real data": (run(backbone="en=embedded"), ("only knows the embedded language",)),
    "data folder missing": (run(data="nowhere"), ("data folder nowhere does not exist",)),
    "data not given": (run(data=None), ("--data DIR",)),
    "unknown device": (run(device="tpu"), ("tpu", "cpu")),
    "no method": (run(methods=","), ("at least one name",)),
    "no dataset": (run(datasets=""), ("at least one name",)),
    "graphs without a device": (run(device="cpu", compute="graphs"), ("needs --device cuda", "auto, eager")),
    "unknown compute mode": (run(compute="fast"), ("fast", "compiled-graphs")),
    "batch size zero": (run(batch_size="0"), ("'0'", "at least 1")),
    "seed not a number": (run(seeds="0,x"), ("0,x", "whole numbers")),
    "seed negative": (run(seeds="-1"), ("whole numbers",)),
    "max-train zero": (run(max_train="0"), ("'0'", "at least 1")),
    "max-test not a number": (run(max_test="many"), ("'many'",)),
    "max-unlabelled negative": (run(max_unlabelled="-1"), ("--max-unlabelled", "at least 0")),
    "max-train leaves one class": (run(max_train="1"), ("--max-train 1", "one class")),
    "setting without a value": (run(set="bert.epochs"), ("bert.epochs", "METHOD.SETTING=VALUE")),
    "setting of an unknown method": (run(set="brt.epochs=3"), ("unknown method 'brt'", "did you mean bert")),
    "unknown setting": (run(set="bert.epoch=3"), ("--set bert.epoch: unknown key 'epoch'", "did you mean epochs")),
    "setting of another type": (run(set="bert.epochs=many"), ("epochs",)),
    "out below a file": (run(out="tiny.toml/out"), ("cannot write the run folder", "--out")),
    "out is a file": (run(out="tiny.toml"), ("cannot write the run folder", "--out")),
    "unknown list": (["list", "cheese"], ("cheese", "methods")),
    "report without run": (["report"], ("RUN",)),
    "report of a missing run": (["report", "nowhere"], ("no run at nowhere", "geep-bench run")),
    "flops without a backbone": (["flops"], ("--backbone",)),
    "flops of an unknown backbone": (["flops", "--backbone", "bert-bas-uncased"], ("did you mean bert-base-uncased",)),
    "flops beyond the last layer": (["flops", "--backbone", "bert-base-uncased", "--exit", "13"], ("1..12",)),
    "flops of too long a text": (["flops", "--backbone", "bert-base-uncased", "--seq-len", "513"], ("1..512",)),
    "flops of one label": (["flops", "--backbone", "bert-base-uncased", "--labels", "1"], ("at least 2",)),
}


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_line(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A mistake in names, options, devices or folders gives exit code 2 and one line on stderr, without a traceback."""
    arguments, words = REFUSED[case]
    refused(arguments, capsys, *words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what the test must not have")
@pytest.mark.usefixtures("place")
def test_cuda_without_a_device(capsys: pytest.CaptureFixture[str]) -> None:
    """The message names the alternatives."""
    refused(run(device="cuda"), capsys, "no usable CUDA device", "--device cpu")


DAMAGE: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "split missing": (lambda f: (f / "test.parquet").unlink(), ("no test file",)),
    "column missing": (lambda f: write_splits(f, train=table(9).drop(columns="label")), ("no column 'label'",)),
    "labels are names in one file": (
        lambda f: write_splits(f, train=table(9).assign(label="good")),
        ("dev.parquet", "use numbers only, or names only"),
    ),
    "labels leave gaps": (lambda f: write_splits(f, train=table(8).assign(label=[0, 2] * 4)), ("leaves gaps",)),
    "labels are constant": (lambda f: write_splits(f, train=table(8).assign(label=0)), ("cannot be learned",)),
    "labels unknown to train": (lambda f: write_splits(f, test=table(4).assign(label=7)), ("7", "train has labels")),
    "empty texts": (lambda f: write_splits(f, test=table(4).assign(text=" ")), ("no text", "row")),
    "no rows": (lambda f: write_splits(f, train=table(0)), ("no rows",)),
    "broken Parquet": (lambda f: (f / "train.parquet").write_bytes(b"PAR1 and so on"), ("cannot be read",)),
    "empty file": (lambda f: ((f / "dev.parquet").unlink(), (f / "dev.csv").write_text("")), ("empty",)),
    "two files of a split": (lambda f: (f / "dev.csv").write_text("text,label\na,0\n"), ("keep one file",)),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_bad_data_is_one_line(place: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Damage to a data folder gives exit code 2 and one line that names file or column; nothing is fitted."""
    damage, words = DAMAGE[case]
    damage(place / "data" / "mine")
    refused(run(), capsys, *words)
    assert not list(place.rglob("model.json"))


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("gone", [True, False])
def test_bad_backbones_are_one_line(place: Path, file: str, gone: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """A missing or broken file of a checkpoint gives one line, however many lines the libraries' errors have."""
    path = place / "backbone" / file
    path.unlink() if gone else path.write_text("{broken")
    refused(run(), capsys, "backbone")


@pytest.mark.parametrize("change", ["[method.bert]\nepoch = 3\n", "[method.bert]\nepochs = 0\n"])
def test_bad_settings_are_one_line(place: Path, change: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown or invalid hyper-parameter stops the run with one line."""
    (place / "tiny.toml").write_text(PROFILE + change)
    refused(run(methods="bert"), capsys, "epoch")


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("text", "table", "key", "value"),
    [
        ("bert.epochs=3", "bert", "epochs", 3),
        ("bert.learning_rate = 2e-4", "bert", "learning_rate", 2e-4),
        ("bert.head=linear", "bert", "head", "linear"),
        ('bert.head="linear"', "bert", "head", "linear"),
        ("longer-0.5.like=bert", "longer-0.5", "like", "bert"),
        ("distilbert.student=some/where=1", "distilbert", "student", "some/where=1"),
        ("distilbert.student=2026-01-01", "distilbert", "student", "2026-01-01"),
        ('distilbert.student={en = "a", zh = "b"}', "distilbert", "student", {"en": "a", "zh": "b"}),
        ("righttool.layers=[0, 2]", "righttool", "layers", [0, 2]),
    ],
)
def test_settings_on_the_command_line(text: str, table: str, key: str, value: object) -> None:
    """--set has the effect of the same key in the profile; everything else stays."""
    chosen = cli.settings_of(parser().parse_args(run(set=text))).profile
    assert chosen.method[table][key] == value
    assert chosen.method["fastbert"] == {"distill_epochs": 1}
    assert chosen.training == {"epochs": 1, "learning_rate": 1e-3, "batch_size": 16}


@pytest.mark.usefixtures("place")
def test_settings_for_all_and_repeated_settings() -> None:
    """The last of equal keys counts; ``training`` applies to all methods; a variant is a row of its own."""
    settings = ["training.epochs=2", "long.like=bert", "long.epochs=3", "long.epochs=4"]
    arguments = [word for text in settings for word in ("--set", text)]
    chosen = cli.settings_of(parser().parse_args([*run(methods="long"), *arguments])).profile
    assert chosen.config("fastbert")["epochs"] == 2
    assert chosen.config("long")["epochs"] == 4
    assert chosen.variants == ["long"]


@pytest.mark.usefixtures("place")
def test_a_variant_made_on_the_command_line_is_run() -> None:
    """A variant made by --set is run after the profile's methods; --methods runs only what it names."""
    options = ["--set", "long.like=bert", "--set", "longer.like=long", "--set", "bert.epochs=2"]
    assert cli.settings_of(parser().parse_args(["run", "--profile", "tiny.toml", *options])).profile.methods == [
        *profile.load("tiny.toml").methods,
        "long",
        "longer",
    ]
    assert cli.settings_of(parser().parse_args([*run(methods="bert,long"), *options])).profile.methods == [
        "bert",
        "long",
    ]


def test_help_texts(capsys: pytest.CaptureFixture[str]) -> None:
    """--help shows the commands, examples and exit codes; every command has its own help."""
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for words in ("examples:", "geep-bench run --profile quick", "Exit codes", "report", "flops", "list"):
        assert words in text
    for command, option in (("run", "--max-train"), ("report", "RUN"), ("list", "backbones"), ("flops", "--seq-len")):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert option in capsys.readouterr().out


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("methods", ("bert", "distilbert", "tinybert", "fastbert", "geep", "geep-verified", "oracle")),
        ("datasets", ("ag_news", "lcqmc", "thucnews", "yelp_full")),
        ("backbones", ("embedded", "bert-base-uncased", "bert-base-chinese")),
        ("profiles", ("quick", "mini", "paper")),
    ],
)
def test_lists(what: str, names: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """Each list has one line per entry, the name first."""
    assert main(["list", what]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert set(names) <= {line.split("  ")[0] for line in lines}
    assert all(line == line.rstrip() for line in lines)
    if what == "datasets":
        assert len(lines) == 12


def test_an_interrupt_gives_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C ends with a line that says how to resume."""

    def stopped(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "list", stopped)
    assert main(["list", "methods"]) == 130
    assert "run the same command again" in capsys.readouterr().err


def test_a_complete_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run with a data folder and a backbone folder fits, measures and reports; the next run keeps all cells."""
    assert main(run()) == 0
    out = capsys.readouterr().out
    assert "cells: 2 measured, 0 kept from before, 0 failed" in out
    report = place / "out" / "report"
    for file in ("index.html", "report.md"):
        assert (report / file).stat().st_size > 0
    assert list((report / "tables").iterdir())
    assert list((report / "figures").iterdir())
    results = [json.loads(path.read_text()) for path in sorted((place / "out" / "results").iterdir())]
    assert {result["schema"] for result in results} == {SCHEMA}
    assert [result["cell"]["method"] for result in results] == ["bert", "fastbert"]
    assert {result["cell"]["backbone"] for result in results} == {"backbone"}
    assert str(place) not in json.dumps(results) + (place / "out" / "run.json").read_text()

    assert main(run()) == 0
    assert "cells: 0 measured, 2 kept from before, 0 failed" in capsys.readouterr().out
    (report / "report.md").unlink()
    assert main(["report", "out"]) == 0
    assert (report / "report.md").is_file()

    assert main(["publish", "out", "--out", "copy"]) == 0
    assert "published: copy (2 cells, " in capsys.readouterr().out
    assert main(["publish", "out", "--out", "copy"]) == 2
    assert "copy is not an empty folder" in capsys.readouterr().err
    assert main(run(out="copy")) == 0
    assert "cells: 0 measured, 2 kept from before, 0 failed" in capsys.readouterr().out


def test_results_of_another_schema_are_one_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither a run nor a report changes results of another schema."""
    folder = place / "out" / "results"
    folder.mkdir(parents=True)
    (folder / "old.json").write_text(json.dumps({"schema": SCHEMA + 1}))
    for arguments in (run(), ["report", "out"]):
        refused(arguments, capsys, "schema")
    assert (folder / "old.json").is_file()


def test_failed_cells_give_exit_code_one(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other cells are measured and reported; exit code 1 shows that cells are missing."""
    from baselines.early_exit.fastbert import FastBert

    def bug(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(FastBert, "learn", bug)
    assert main(run()) == 1
    captured = capsys.readouterr()
    assert "cells: 1 measured, 0 kept from before, 1 failed" in captured.out
    assert "RuntimeError: a bug" in captured.err
    assert (place / "out" / "report" / "index.html").is_file()


@pytest.mark.usefixtures("place")
def test_execution_options_on_the_command_line() -> None:
    """Batch size, type and compute come from the profile unless they are given; other settings do not change."""
    given = [*run(batch_size="5", batch_tokens="99", dtype="bfloat16", compute="compiled"), "--device", "cpu"]
    chosen = cli.settings_of(cli.parser().parse_args(given)).execution
    assert (chosen.batch_size, chosen.batch_tokens, chosen.dtype, chosen.compute) == (5, 99, "bfloat16", "compiled")
    plain = cli.settings_of(cli.parser().parse_args([*run(), "--device", "cpu"])).execution
    compute = "packed" if can_pack(torch.float32) else "eager"
    assert (plain.batch_size, plain.batch_tokens, plain.dtype, plain.compute) == (8, 0, "float32", compute)
    assert plain.max_length == chosen.max_length == 16


def test_a_closed_pipe_is_not_an_error() -> None:
    """Piped into ``head``, a command ends without a message."""
    command = f"{sys.executable} -m harness.cli list datasets | head -1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 1
