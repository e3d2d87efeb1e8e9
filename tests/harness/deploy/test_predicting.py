"""Files of texts: the answers of the classifier, in constant memory, resumed without a row lost or doubled, and refusals."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.core.errors import ConfigError, DataError, GeepBenchError, ResultError
from harness.core.names import from_csv
from harness.deploy import predicting
from harness.deploy.answer_file import AnswerFile
from harness.deploy.classifier import Classified
from harness.deploy.predicting import COLUMNS, predict_file


class Lengths:
    """A classifier whose answer is the length of a text, so that no model is needed.

    Attributes:
        stop: it is "killed" after so many groups.
    """

    def __init__(self, model: str = "a", paired: bool = False, stop: int = -1) -> None:
        self.facts: Any = SimpleNamespace(fingerprint=model, paired=paired)
        self.stop = stop

    def __call__(self, texts: list[str], pairs: list[str] | None = None) -> Classified:
        if self.stop == 0:
            raise KeyboardInterrupt
        self.stop -= 1
        lengths = [len(text) + len(pair) for text, pair in zip(texts, pairs or [""] * len(texts), strict=True)]
        share = np.array([[length / (length + 3), 3 / (length + 3)] for length in lengths], np.float32).reshape(-1, 2)
        return Classified([f"{length} signs" for length in lengths], share, np.array(lengths, np.int16))


def write(path: Path, texts: list[str]) -> Path:
    with path.open("w", newline="") as handle:
        csv.writer(handle).writerows([["text"], *([text] for text in texts)])
    return path


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))


@pytest.fixture(autouse=True)
def _small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make groups of three rows, and do not wait for the disk, since no test cuts the power."""
    monkeypatch.setattr(predicting, "GROUP", 3)
    monkeypatch.setattr(os, "fsync", lambda _: None)


def test_answers_are_those_of_the_classifier(tmp_path: Path) -> None:
    """Every row has its number, label, probability and exit layer, in order; running again answers nothing anew."""
    texts = write(tmp_path / "in.csv", ["a", "bb", "c\nc", "dddd", "é" * 5, "f" * 6, "g"])
    done = predict_file(Lengths(), texts, tmp_path / "out.csv")  # type: ignore[arg-type]
    assert (done.rows, done.new) == (7, 7)
    found = read(tmp_path / "out.csv")
    assert tuple(found[0]) == COLUMNS
    assert [row["row"] for row in found] == [str(number) for number in range(1, 8)]
    assert [row["exit_layer"] for row in found] == ["1", "2", "3", "4", "5", "6", "1"]
    assert found[3]["label"] == "4 signs" and np.float32(found[3]["probability"]) == np.float32(4 / 7)
    before = (tmp_path / "out.csv").read_bytes()
    assert predict_file(Lengths(stop=0), texts, tmp_path / "out.csv").new == 0  # type: ignore[arg-type]
    assert (tmp_path / "out.csv").read_bytes() == before


def test_labels_come_back(tmp_path: Path) -> None:
    """Exactly with ``exact_labels``, else with an apostrophe before formulas that is undone; the two are not mixed in a file."""
    names = ["-", "=)", "@home", "'-x", "-1", "+0.5", "plain", "-1+2"]

    class Named(Lengths):
        def __call__(self, texts: list[str], pairs: list[str] | None = None) -> Classified:
            return replace(super().__call__(texts, pairs), labels=[names[len(text) - 1] for text in texts])

    def labels(out: Path, **more: bool) -> list[str]:
        predict_file(Named(), texts, out, **more)  # type: ignore[arg-type]
        return [row["label"] for row in read(out)]

    texts = write(tmp_path / "in.csv", ["x" * number for number in range(1, 9)])
    assert labels(tmp_path / "exact.csv", exact_labels=True) == names
    safe = labels(tmp_path / "safe.csv")
    assert safe == ["'-", "'=)", "'@home", "''-x", "-1", "+0.5", "plain", "'-1+2"]
    assert list(map(from_csv, safe)) == names
    for out, exact in (("exact.csv", False), ("safe.csv", True)):
        with pytest.raises(ResultError, match="--exact-labels: do the same, or choose another --out"):
            labels(tmp_path / out, exact_labels=exact)
    assert labels(tmp_path / "exact.csv", exact_labels=True) == names


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(st.integers(0, 14), st.lists(st.integers(0, 4), max_size=4), st.integers(0, 60))
def test_killed_and_resumed(tmp_path: Path, count: int, stops: list[int], torn: int) -> None:
    """However often it is killed, also while a group is half written, the answers end up as those of one undisturbed call."""
    for left in tmp_path.glob("*out*"):
        left.unlink()
    texts, out = write(tmp_path / "in.csv", [f"{'x' * number}!" for number in range(count)]), tmp_path / "out.csv"
    predict_file(Lengths(), texts, tmp_path / "whole-out.csv")  # type: ignore[arg-type]
    expected = (tmp_path / "whole-out.csv").read_bytes()
    for stop in stops:
        try:
            predict_file(Lengths(stop=stop), texts, out)  # type: ignore[arg-type]
        except KeyboardInterrupt:
            rest = expected[out.stat().st_size :]
            with out.open("ab") as handle:
                handle.write(rest[:torn])  # written, but not noted
    predict_file(Lengths(), texts, out)  # type: ignore[arg-type]
    assert out.read_bytes() == expected


def test_a_kill_between_rows_and_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that dies before its note, even before the first one, leaves nothing that the next call cannot use."""
    texts, out = write(tmp_path / "in.csv", ["a"] * 7), tmp_path / "out.csv"
    note = AnswerFile._write_note
    for allowed in range(6):  # one at the start, of the header, of three groups, and at the end
        left = [allowed]

        def dying(self: AnswerFile, *args: Any, left: list[int] = left, **more: Any) -> None:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            note(self, *args, **more)

        monkeypatch.setattr(AnswerFile, "_write_note", dying)
        with pytest.raises(KeyboardInterrupt):
            predict_file(Lengths(), texts, out)  # type: ignore[arg-type]
        monkeypatch.setattr(AnswerFile, "_write_note", note)
        predict_file(Lengths(), texts, out)  # type: ignore[arg-type]
        assert [row["row"] for row in read(out)] == [str(number) for number in range(1, 8)]
        out.unlink()
        out.with_name("out.csv.progress.json").unlink()


def test_a_file_that_grows_is_answered_in_two_calls(tmp_path: Path) -> None:
    """A call answers what was there at its start and says so; the next one answers the rest."""
    texts, out = write(tmp_path / "in.csv", ["a", "bb", "ccc", "dddd"]), tmp_path / "out.csv"
    classify = Lengths()

    def growing(*given: Any) -> Classified:
        with texts.open("a") as handle:
            handle.write("eeeee\r\n")
        return classify(*given)

    with pytest.raises(DataError, match="its first 4 rows are answered; run the same command again"):
        predict_file(Called(classify.facts, growing), texts, out)  # type: ignore[arg-type]
    done = predict_file(classify, texts, out)  # type: ignore[arg-type]
    assert (done.rows, done.new) == (6, 2)
    assert [row["exit_layer"] for row in read(out)] == ["1", "2", "3", "4", "5", "5"]


class Called:
    """A classifier made of a function."""

    def __init__(self, facts: Any, call: Callable[..., Classified]) -> None:
        self.facts, self._call = facts, call

    def __call__(self, *given: Any) -> Classified:
        return self._call(*given)


def test_other_answers_are_never_appended_to(tmp_path: Path) -> None:
    """A file of another model, of other texts, of another program, or edited by hand is refused and stays as it is."""
    texts, out = write(tmp_path / "in.csv", ["a", "bb", "ccc"]), tmp_path / "out.csv"
    note = tmp_path / "out.csv.progress.json"
    predict_file(Lengths(), texts, out)  # type: ignore[arg-type]
    whole, noted = out.read_bytes(), note.read_bytes()

    def refused(message: str, texts: Path = texts, model: str = "a") -> None:
        kept = out.read_bytes()
        with pytest.raises(ResultError, match=message):
            predict_file(Lengths(model), texts, out)  # type: ignore[arg-type]
        assert out.read_bytes() == kept

    refused("answers of another model", model="b")
    refused("answers to other texts", write(tmp_path / "other.csv", ["a", "bc", "ccc"]))
    refused("answers to other texts", write(tmp_path / "short.csv", ["a"]))
    out.write_bytes(whole.replace(b"2 signs", b"9 signs"))
    refused("not as this program left it")
    out.write_bytes(whole[:-4])
    refused("not as this program left it")
    note.write_text("{}")
    refused("cannot be read")
    note.write_text(json.dumps({**json.loads(noted), "format": 2}))
    refused("another version")
    note.unlink()
    refused("no out.csv.progress.json says what it holds")


@pytest.mark.parametrize("empty", ["", "  "])
def test_rows_without_text(tmp_path: Path, empty: str) -> None:
    """A missing text ends the call with its row; after it is filled, or with ``skip_empty``, the answers go on."""
    texts, out = write(tmp_path / "in.csv", ["a", "bb", "ccc", "dddd", empty, "f"]), tmp_path / "out.csv"
    with pytest.raises(DataError, match="row 5 has no text"):
        predict_file(Lengths(), texts, out)  # type: ignore[arg-type]
    assert len(read(out)) == 3  # the group before
    shutil.copy(out, tmp_path / "filled.csv")
    shutil.copy(tmp_path / "out.csv.progress.json", tmp_path / "filled.csv.progress.json")
    assert predict_file(Lengths(), texts, out, skip_empty=True).new == 3  # type: ignore[arg-type]
    assert [row["exit_layer"] for row in read(out)] == ["1", "2", "3", "4", "", "1"]
    write(texts, ["a", "bb", "ccc", "dddd", "eeeee", "f"])
    assert predict_file(Lengths(), texts, tmp_path / "filled.csv").new == 3  # type: ignore[arg-type]
    assert [row["exit_layer"] for row in read(tmp_path / "filled.csv")] == ["1", "2", "3", "4", "5", "1"]


def test_pairs(tmp_path: Path) -> None:
    """A model of pairs reads both columns; a missing second text counts as none."""
    pd.DataFrame({"text_pair": ["xx", "y"], "label": [0, 1], "text": ["a", "b"]}).to_csv(
        tmp_path / "in.csv", index=False
    )
    predict_file(Lengths(paired=True), tmp_path / "in.csv", tmp_path / "out.csv")  # type: ignore[arg-type]
    assert [row["exit_layer"] for row in read(tmp_path / "out.csv")] == ["3", "2"]
    (tmp_path / "null.csv").write_text("text,text_pair\na,\n")
    with pytest.raises(DataError, match="row 1 has no text"):
        predict_file(Lengths(paired=True), tmp_path / "null.csv", tmp_path / "null-out.csv")  # type: ignore[arg-type]


def test_refused_places(tmp_path: Path) -> None:
    """One file for both, a folder that does not exist, and a file that another process writes."""
    texts = write(tmp_path / "in.csv", ["a"])
    with pytest.raises(ConfigError, match="are one file"):
        predict_file(Lengths(), texts, tmp_path / "." / "in.csv")  # type: ignore[arg-type]
    with pytest.raises(GeepBenchError, match="choose another --out"):
        predict_file(Lengths(), texts, texts / "out.csv")  # type: ignore[arg-type]
    with predicting.only_writer(tmp_path / "out.csv"), pytest.raises(ResultError, match="written by another process"):
        predict_file(Lengths(), texts, tmp_path / "out.csv")  # type: ignore[arg-type]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first tenth of a large file to its end, the memory that Python holds stays the same."""
    import tracemalloc

    monkeypatch.setattr(predicting, "GROUP", 2048)
    texts = write(tmp_path / "in.csv", ["some words of a text, as long as a headline"] * 200_000)
    peaks: list[int] = []
    classify = Lengths()

    def watched(*given: Any) -> Classified:
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.reset_peak()
        return classify(*given)

    tracemalloc.start()
    try:
        predict_file(Called(classify.facts, watched), texts, tmp_path / "out.csv")  # type: ignore[arg-type]
    finally:
        tracemalloc.stop()
    assert len(read(tmp_path / "out.csv")) == 200_000
    assert max(peaks[10:]) < 1.1 * max(peaks[1:10])


CHILD = """
import sys
from pathlib import Path
from harness.cli.main import main
code = main(sys.argv[1:])
print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
sys.exit(code)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peak memory is read from /proc")
def test_ten_times_as_many_rows_killed_and_resumed(exported: Callable[[str], Any], tmp_path: Path) -> None:
    """A process of a real model that is killed halfway is resumed: each row once, in the memory that a tenth of them takes."""
    model = exported("fastbert").folder

    def start(rows: int, out: Path) -> subprocess.Popen[str]:
        texts = write(tmp_path / f"{rows}.csv", [f"good film {number % 7}" for number in range(rows)])
        command = [sys.executable, "-c", CHILD, "predict", str(model), "--in", str(texts), "--out", str(out)]
        return subprocess.Popen([*command, "--device", "cpu"], stdout=subprocess.PIPE, text=True)

    def peak(process: subprocess.Popen[str]) -> int:
        said, _ = process.communicate()
        assert process.returncode == 0
        return int(said.split()[-1])

    few, many = 5_000, 50_000
    small = peak(start(few, tmp_path / "few.csv"))
    out, note = tmp_path / "many.csv", tmp_path / "many.csv.progress.json"
    killed = start(many, out)
    while killed.poll() is None and not (note.is_file() and json.loads(note.read_text())["input"]["rows"] > many // 2):
        time.sleep(0.02)
    killed.kill()
    killed.communicate()
    assert many // 2 < len(read(out)) < many, "it ended before it was killed"
    large = peak(start(many, out))
    assert [int(row["row"]) for row in read(out)] == list(range(1, many + 1))
    assert large < 1.1 * small
