"""The script that pretrains on a GPU machine, run on a CPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from harness.encoder.backbone import load_backbone
from harness.pretraining.text import corpus, shards

ROOT = Path(__file__).parents[2]
SCRIPT = Path("suites", "pretrain_gpu.sh")
WORDS = ["old", "river", "stone", "house", "green", "light", "winter", "summer"]


@pytest.fixture(scope="module")
def shard_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Shards of a little text in each language."""
    place = tmp_path_factory.mktemp("shards")
    signs = "山水花鸟天地人风"
    for language, units, between in (("en", WORDS, " "), ("zh", signs, "")):
        texts = [between.join(units[(i + j) % 8] for j in range(5 + i % 20)) for i in range(160)]
        (place / f"{language}.txt").write_text("\n".join(texts), encoding="utf-8")
        source = corpus.corpus_file(place / f"{language}.txt")
        vocab = 50 if language == "en" else 13
        shards.make([source], place / language, language=language, vocab=vocab, length=16)
    return {language: str(place / language) for language in ("en", "zh")}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources: the script builds the distribution there, and tests run in parallel."""
    place = tmp_path_factory.mktemp("checkout")
    for name in ("harness", "geep", "baselines", "suites", "reports"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("published"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, place)
    return place


def call(checkout: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script with the Python that runs the tests."""
    here = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    given = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PATH": here, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        ["bash", str(checkout / SCRIPT), *arguments],
        env=given | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_bad_input_is_one_line(shard_folders: dict[str, str], tmp_path: Path) -> None:
    """Without shards or without a device, there is one line and exit code 2 before anything is written."""
    out = tmp_path / "out"
    for arguments, said in (
        ([str(out), shard_folders["en"], str(tmp_path)], "no shards in"),
        ([str(out), shard_folders["en"], shard_folders["zh"]], "no usable CUDA device"),
    ):
        done = call(ROOT, *arguments)
        assert done.returncode == 2
        assert said in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not out.exists()


@pytest.mark.slow
def test_several_calls_make_both_backbones(checkout: Path, shard_folders: dict[str, str], tmp_path: Path) -> None:
    """A call whose time is used up ends with 3; the last one leaves backbones with cards and accuracies beside a control."""
    out, data = tmp_path / "out", tmp_path / "data" / "toy"
    data.mkdir(parents=True)
    texts = [f"{'river' if i % 2 else 'stone'} {WORDS[i % 7]} house" for i in range(60)]
    for name, rows in (("train", range(40)), ("test", range(40, 60))):
        table = pd.DataFrame({"text": [texts[i] for i in rows], "label": [i % 2 for i in rows]})
        table.to_csv(data / f"{name}.csv", index=False)
    settings = {"DEVICE": "cpu", "STEPS": "3", "LAYERS": "3", "WIDTH": "16", "ROWS": "4", "MORE": "--save-every 0"}
    settings |= {"DATA": str(data.parent), "EN_SETS": "toy", "ZH_SETS": "", "WORK": str(tmp_path / "work")}
    arguments = [str(out), shard_folders["en"], shard_folders["zh"]]
    assert call(checkout, *arguments, **settings, SLICE="0").returncode == 3
    done = call(checkout, *arguments, **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    for language in ("en", "zh"):
        assert load_backbone(str(out / language), language).shape.layers == 3
        facts = json.loads((out / language / "pretraining.json").read_text(encoding="utf-8"))
        assert facts["run"]["step"] == 3
        assert [(row["dataset"], row["control"]["backbone"]) for row in facts["accuracy"]] == (
            [("toy", "en-untrained")] if language == "en" else []
        )
    assert "license: cc-by-sa-4.0" in (out / "zh" / "README.md").read_text(encoding="utf-8")
