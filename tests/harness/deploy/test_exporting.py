"""Exported models answer as their cells did, hold what they need, and bad input is refused."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from harness import load_classifier
from harness.cli.main import main
from harness.core.errors import ConfigError, DeviceError, GeepBenchError, ResultError, WriteError
from harness.deploy.cell_choice import choose_cell
from harness.deploy.exporting import export
from harness.results.run_folder import RunFolder, stem

METHODS = ("bert", "bert-int8", "fastbert", "geep", "geep-verified", "geep-look1", "geep-zero")
MORE = (
    *("bert", "bert-onnx", "distilbert", "fastbert-int8", "berxit", "hashee", "cascadebert", "exit-rule", "deebert"),
    *("edgebert", "geep-int8", "zero-on-look1", "control-sequential"),
)


VARIED = ("geep", "geep-zero")  # samples of these small fits leave at several layers


def check_stored_answers(run: Any, made: Any, method: str) -> None:
    """Check that a model, loaded from its folder alone, gives the labels, exits and probabilities of its cell."""
    rows = RunFolder.open(run.path).samples(run.of(method).cell)
    texts = pd.read_parquet(run.data / "mine" / "test.parquet")["text"].tolist()
    found = load_classifier(made.folder, device="cpu")(texts)
    np.testing.assert_array_equal(found.probabilities.argmax(1), rows["prediction"])
    np.testing.assert_array_equal(found.exit_layers, rows["exit_layer"])
    np.testing.assert_array_equal(found.probabilities.max(1), rows["confidence"])
    assert method not in VARIED or len(set(found.exit_layers)) > 1
    assert found.labels == [("no", "maybe", "yes")[label] for label in rows["prediction"]]
    assert made.agreement.same and made.agreement.largest == 0 and not made.facts.refitted


@pytest.mark.parametrize("method", METHODS)
def test_an_export_gives_the_stored_answers(method: str, measured: Any, exported: Callable[[str], Any]) -> None:
    """Each kind of method, bit for bit."""
    check_stored_answers(measured, exported(method), method)


@pytest.mark.slow
@pytest.mark.parametrize("method", MORE)
def test_other_exports_give_the_stored_answers(
    method: str, more_measured: Any, more_exported: Callable[[str], Any]
) -> None:
    """Other kinds of fits, rules, tables and engines, bit for bit."""
    if method not in {name for name, _ in more_measured.cells}:
        pytest.skip("its engine is not installed")
    check_stored_answers(more_measured, more_exported(method), method)


@pytest.mark.slow
def test_a_teacher_that_only_served_training_is_left_out(more_exported: Callable[[str], Any]) -> None:
    """A distilled student needs no teacher; a table on a method that borrows weights needs both."""
    for method, fits in (("distilbert", {"distilbert"}), ("zero-on-look1", {"geep", "geep-look1", "zero-on-look1"})):
        assert {path.name for path in (more_exported(method).folder / "fits").iterdir()} == fits


def test_an_export_holds_what_it_needs(measured: Any, exported: Callable[[str], Any]) -> None:
    """Weights in safetensors, tables of those that have them, and the weights that it borrows."""

    def fits(method: str) -> dict[str, set[str]]:
        place = exported(method).folder / "fits"
        return {one.name: {path.name for path in one.iterdir()} for one in sorted(place.iterdir())}

    assert fits("bert-int8") == {"bert": {"model.json", "model.safetensors", "training.json"}}
    assert set(fits("geep-zero")) == {"geep", "geep-zero"} and set(fits("geep-look1")) == {"geep", "geep-look1"}
    assert "labels" in fits("geep-zero")["geep-zero"] and "table-0.9" in fits("geep-verified")["geep"]
    every = {path.suffix for path in exported("geep").folder.rglob("*") if path.is_file()}
    assert every <= {".json", ".safetensors", ".md", ".txt"}


@pytest.mark.slow
def test_methods_at_full_depth_get_a_graph(more_exported: Callable[[str], Any]) -> None:
    """The ONNX graph of a static method gives the same answers; methods that exit early have none."""
    runtime = pytest.importorskip("onnxruntime")
    assert (more_exported("bert").folder / "onnx" / "graph.onnx").is_file() and more_exported("bert").onnx == ""
    assert not list(more_exported("geep").folder.rglob("*.onnx"))
    assert [path.parent.name for path in more_exported("bert-onnx").folder.rglob("*.onnx")] == ["engine"]
    session = runtime.InferenceSession(more_exported("bert").folder / "onnx" / "graph.onnx")
    classify = load_classifier(more_exported("bert").folder, device="cpu")
    texts = ["good film plot", "plot good film", "film plot good"]  # of equal numbers of tokens
    tokens = classify._backbone.encode(texts, max_length=24)
    ids, segments = (value.numpy().reshape(3, -1).astype(np.int32) for value in (tokens.ids, tokens.segments))
    logits = session.run(None, {"ids": ids, "segments": segments, "mask": np.ones(ids.shape, bool)})[0]
    likely = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(likely, classify(texts).probabilities, atol=1e-5)


def test_without_the_library_there_is_no_graph(
    measured: Any, same_cache: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The export is complete without it, and says why it has none."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    made = measured.export("bert", tmp_path / "model")
    assert "geep-bench[onnx]" in made.onnx and made.agreement.same
    assert not list(made.folder.rglob("*.onnx"))


def test_the_card_has_the_measured_figures(measured: Any, exported: Callable[[str], Any]) -> None:
    """Accuracy with its interval, layers, times and machine of the cell; nothing of this machine's folders."""
    made, result = exported("fastbert"), measured.of("fastbert")
    card = (made.folder / "README.md").read_text()
    assert f"| accuracy | {100 * result.quality.accuracy:.1f} % (95 % interval" in card
    assert f"| layers per sample | {result.cost.mean_layers:.2f} of 5 |" in card
    assert result.fingerprint["cpu"] in card and f"{result.speed.samples_per_s:,.0f} samples/s" in card
    assert "all 40 labels and exits" in card and "no, maybe, yes" in card and "Fitted again" not in card
    texts = [path.read_text() for path in made.folder.rglob("*") if path.suffix in (".md", ".json")]
    assert not [text for text in texts if str(measured.path.parent) in text]


def test_a_fit_that_is_gone_is_made_again(
    measured: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With an empty cache, the method and those it needs are fitted again, and the command says so; here, it is the same fit."""
    monkeypatch.setenv("GEEP_BENCH_CACHE", str(tmp_path / "empty"))
    made = measured.export("geep-verified", tmp_path / "model")
    assert "no longer in the cache, fitted again now: geep, geep-verified" in capsys.readouterr().err
    assert made.facts.refitted and made.agreement.same
    assert "**Fitted again for this export**" in (made.folder / "README.md").read_text()


def test_other_answers_are_said(
    measured: Any, same_cache: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that answers otherwise than its cell says so in its card."""
    rows = RunFolder.samples

    def other(self: RunFolder, cell: Any) -> pd.DataFrame:
        return rows(self, cell).assign(prediction=lambda table: (table["prediction"] + (table["index"] == 3)) % 3)

    monkeypatch.setattr(RunFolder, "samples", other)
    made = measured.export("fastbert", tmp_path / "model")
    assert (made.agreement.rows, made.agreement.labels, made.agreement.exits) == (40, 39, 40)
    assert "39 of 40 labels" in (made.folder / "README.md").read_text()


@pytest.mark.slow
def test_pairs(make_run: Callable[..., Any], same_cache: None, tmp_path: Path) -> None:
    """A model of pairs needs both texts, and tells them apart."""
    run = make_run("fastbert", pairs=True)
    classify = load_classifier(run.export("fastbert", tmp_path / "model").folder, device="cpu")
    test = pd.read_parquet(run.data / "mine" / "test.parquet")
    found = classify(test["text"].tolist(), test["text_pair"].tolist())
    np.testing.assert_array_equal(
        found.probabilities.max(1), RunFolder.open(run.path).samples(run.of("fastbert").cell)["confidence"]
    )
    with pytest.raises(ConfigError, match="reads pairs of texts: give both"):
        classify(["good"])
    with pytest.raises(ConfigError, match="2 texts and 1 second texts"):
        classify(["good", "bad"], ["fine"])


def test_calls(exported: Callable[[str], Any]) -> None:
    """Any number of texts, in any batches, gives the same labels and exits; texts must be there."""
    folder = exported("geep").folder
    classify, single = load_classifier(folder, device="cpu"), load_classifier(str(folder), device="cpu", batch_size=1)
    texts = ["good film", "bad plot long story", "fine", "poor actor music film plot"] * 5
    whole, apart = classify(texts), single(texts)
    assert whole.labels == apart.labels and whole.exit_layers.tolist() == apart.exit_layers.tolist()
    np.testing.assert_allclose(whole.probabilities, apart.probabilities, atol=1e-5)
    assert len(classify([])) == 0 and classify([]).probabilities.shape == (0, 3)
    assert "geep" in repr(classify) and "maybe" in repr(classify)
    for wrong in ("good film", ["good", ""], ["good", None], ["good", 3]):
        with pytest.raises(GeepBenchError, match="give a (list|text)"):
            classify(wrong)
    with pytest.raises(ConfigError, match="reads single texts"):
        classify(["good"], ["film"])
    with pytest.raises(ConfigError, match="batch_size = 0"):
        load_classifier(folder, batch_size=0)


@pytest.mark.gpu
def test_on_cuda(exported: Callable[[str], Any]) -> None:
    """A model that was measured on a CPU gives the same labels and exits on CUDA; a CPU engine is refused there."""
    texts = ["good film", "bad plot long story", "fine", "poor actor music film plot"] * 5
    for method in ("bert", "fastbert", "geep", "geep-look1", "geep-zero"):
        folder = exported(method).folder
        here, there = (load_classifier(folder, device=device)(texts) for device in ("cpu", "cuda"))
        assert here.labels == there.labels and here.exit_layers.tolist() == there.exit_layers.tolist()
        np.testing.assert_allclose(here.probabilities, there.probabilities, atol=1e-3)
    with pytest.raises(ConfigError, match="runs on the CPU only"):
        load_classifier(exported("bert-int8").folder, device="cuda")


def test_cells_that_cannot_be_exported(measured: Any, same_cache: None, tmp_path: Path) -> None:
    """Bounds and controls that look ahead are refused, unknown cells get near names, and nothing is written."""

    def refused(cell: str, *words: str, **more: Any) -> None:
        given = {"data": measured.data, "backbones": {"en": str(measured.backbone)}, **more}
        with pytest.raises(GeepBenchError) as caught:
            export(measured.path, cell, tmp_path / "model", **given)
        assert all(word in str(caught.value) for word in words), caught.value
        assert not (tmp_path / "model").exists()

    def name(method: str) -> str:
        return stem(measured.of(method).cell)

    refused(name("oracle"), "cannot be exported: it is a bound")
    refused(name("control-constant"), "looks at all samples before it answers the first")
    wrong = name("fastbert").replace("fastbert", "fasbert")
    refused(wrong, "no cell 'mine--fasbert", "did you mean", name("fastbert"))
    refused("geep", "no cell 'geep'", "did you mean mine--geep--")
    refused(f"{name('geep')[:-1]}x", name("geep"))
    for unrelated in ("none", "1a2b3c4d", name("geep").replace("geep", "zebra"), name("geep").replace("mine", "yelp")):
        with pytest.raises(GeepBenchError) as caught:
            export(measured.path, unrelated, tmp_path / "model")
        assert "did you mean" not in str(caught.value), caught.value
    refused(name("geep"), "give its folder with --data DIR", data=None)
    refused(name("geep"), "neither a folder here", backbones={"en": str(measured.backbone.parent / "other")})
    refused(name("fastbert"), "other training.epochs (1 and 2)", overrides=[("training", "epochs", 2)])
    refused(name("geep"), "other settings of geep", overrides=[("geep", "smoothing", 3)])
    (tmp_path / "model").mkdir()
    with pytest.raises(WriteError, match="exists already"):
        measured.export("geep", tmp_path / "model")


def test_a_point_of_the_same_name_is_not_exported(measured: Any, same_cache: None, tmp_path: Path) -> None:
    """With other speeds, a budget may use another table: refused, with both lists, if the point is another one."""
    cell = measured.cells["geep", "budget=0.5"].cell
    given = {"data": measured.data, "backbones": {"en": str(measured.backbone)}}
    with pytest.raises(ResultError) as caught:
        export(measured.path, stem(cell), tmp_path / "model", overrides=[("geep", "speeds", [0.999])], **given)
    assert "the point 'budget=0.5' of geep is not the measured one" in str(caught.value)
    assert '"speeds": [0.9, 0.98, 0.997]' in str(caught.value) and '"speeds": [0.999]' in str(caught.value)
    assert not (tmp_path / "model").exists()
    same = measured.cells["geep-look1", "budget=0.5"].cell  # its points do not depend on the other ones
    made = export(measured.path, stem(same), tmp_path / "model", overrides=[("geep-look1", "speeds", [0.2])], **given)
    assert made.agreement.same


def test_short_ids(measured: Any) -> None:
    """The hash at the end of a cell's ID, and the name of its file, also name the cell."""
    whole = stem(measured.of("geep").cell)
    for name in (whole, f"{whole}.json", whole[-8:]):
        assert choose_cell(RunFolder.open(measured.path), name).name == whole


def test_exports_that_are_not_loaded(exported: Callable[[str], Any], tmp_path: Path) -> None:
    """No export, another version of the format or of a method, a damaged or missing file, a method that is not installed."""
    folder = tmp_path / "model"
    shutil.copytree(exported("fastbert").folder, folder)
    facts = json.loads((folder / "export.json").read_text())

    def refused(message: str, **change: Any) -> None:
        (folder / "export.json").write_text(json.dumps({**facts, **change}))
        with pytest.raises(GeepBenchError, match=message):
            load_classifier(folder, device="cpu")

    fit = facts["fits"]["fastbert"]
    refused("export format 2, this program reads 1: export the cell again, or use geep-bench 0", format=2)
    refused("version 0.1 of method 'fastbert'", fits={"fastbert": {**fit, "version": "0.1"}})
    refused("unknown method 'fasterbert'", fits={"fastbert": {**fit, "method": "fasterbert"}})
    refused("cannot be read", label_names=3)
    refused("is missing or was changed", files={**facts["files"], "more.json": "0"})
    (folder / "README.md").write_text("an edited card")
    (folder / ".gitattributes").write_text("of the hub")
    (folder / "export.json").write_text(json.dumps(facts))
    load_classifier(folder, device="cpu")
    with (folder / "fits" / "fastbert" / "model.safetensors").open("r+b") as handle:
        handle.seek(-1, 2)
        handle.write(b"\x01")
    refused("model.safetensors is missing or was changed")
    with pytest.raises(ResultError, match="is no exported model"):
        load_classifier(tmp_path)
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="no usable CUDA device"):
            load_classifier(folder, device="cuda")


def test_command_line(
    measured: Any, same_cache: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Export a cell, answer a file with the model, and once more; refusals are one line with exit code 2."""
    result, model, answers = measured.of("fastbert"), tmp_path / "model", tmp_path / "answers.csv"
    folders = ["--data", str(measured.data), "--backbone", f"en={measured.backbone}"]
    wanted = ["export", str(measured.path), "--out", str(model), *folders, "--cell"]
    assert main([*wanted, stem(result.cell)]) == 0
    assert "stored answers: all 40 labels and exits; probabilities differ by at most 0\n" in capsys.readouterr().out
    pd.read_parquet(measured.data / "mine" / "test.parquet")[["text"]].to_csv(tmp_path / "texts.csv", index=False)
    asked = ["predict", str(model), "--in", str(tmp_path / "texts.csv"), "--out", str(answers), "--device", "cpu"]
    assert main(asked) == main(asked) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.partition("answers.csv ")[2] for line in said] == [
        "(40 rows, 40 of them now)",
        "(40 rows, 0 of them now)",
    ]
    rows, found = RunFolder.open(measured.path).samples(result.cell), pd.read_csv(answers)
    assert found["label"].tolist() == [("no", "maybe", "yes")[label] for label in rows["prediction"]]
    assert found["exit_layer"].tolist() == rows["exit_layer"].tolist()
    assert found["probability"].astype(np.float32).tolist() == rows["confidence"].tolist()
    assert main([*asked[:2], "--in", str(tmp_path / "none.csv"), *asked[4:]]) == 2
    assert main([*wanted, "none"]) == 2
    assert [line.partition(":")[0] for line in capsys.readouterr().err.splitlines()] == ["geep-bench"] * 2
    pushed: list[Any] = []
    monkeypatch.setattr("harness.deploy.hub_upload.push_to_hub", lambda *given, **more: pushed.append((given, more)))
    wanted[3] = str(tmp_path / "again")
    assert main([*wanted, stem(result.cell), "--push-to-hub", "me/it", "--public"]) == 0
    assert pushed == [((tmp_path / "again", "me/it"), {"private": False})]
