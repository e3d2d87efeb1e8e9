"""Rows without labels: who gets them, what depends on them, and that they cost nothing where nobody does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from harness.core.tokens import Task, TokenSet
from harness.data.embedded import vocabulary
from harness.data.splits import RawDataset, RawSplit, limit_dataset
from harness.data.unlabelled import UnlabelledTexts
from harness.encoder.backbone import Backbone
from harness.results.run_folder import RunFolder
from harness.running.binding import binding_of
from harness.running.content_keys import ContentKeys
from harness.running.grid import Grid
from harness.running.measuring import cell_groups
from harness.running.run_settings import Settings
from harness.running.session import Session
from harness.running.task import prepare
from tests.harness.running.conftest import change

WORDS = [word for word in vocabulary("en") if word.isalpha()][:6]


def reader(stage: Any, name: str, *needs: str, declares: bool) -> list[int | None]:
    """Make a fake that reads rows without labels, and return a list of how many it got in each fit."""
    fake, got = stage.add(name, *needs), list[int | None]()
    plain = fake.fit

    def fit(task: Task, *parts: Any, **named: Any) -> Any:
        got.append(None if task.unlabelled is None else len(task.unlabelled))
        return plain(task, *parts, **named)

    fake.fit = fit
    if declares:
        fake.uses_unlabelled = lambda config: config.get("source", "unlabelled") == "unlabelled"
    return got


@pytest.fixture
def settings(stage: Any, grid_settings: Settings) -> Settings:
    """One dataset with 20 of its 30 train rows, for two fakes."""
    return change(grid_settings, datasets=["ag_news"], methods=["one", "two"], max_train=20)


def run(settings: Settings) -> tuple[int, int, int]:
    outcome = Grid(settings).execute()
    return outcome.measured, outcome.kept, outcome.failed


def notes(settings: Settings) -> dict[str, list[str]]:
    """Return the notes of each method's results that are about rows without labels."""
    results = RunFolder.open(settings.out).results()
    return {result.cell.method: [note for note in result.notes if "without labels" in note] for result in results}


def rows_of(tokens: TokenSet) -> set[tuple[tuple[int, ...], tuple[int, ...]]]:
    samples = [tokens.sample(number) for number in range(len(tokens))]
    return {(tuple(one.ids.tolist()), tuple(one.segments.tolist())) for one in samples}


@st.composite
def datasets(draw: st.DrawFn) -> tuple[RawDataset, int]:
    """Draw short texts of few words, in varying case and longer than the model reads, and a limit for train."""
    text = st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(" ".join)
    paired = draw(st.booleans())

    def part(least: int) -> tuple[list[str], list[str] | None]:
        texts = draw(st.lists(text, min_size=least, max_size=12))
        return texts, [draw(text) for _ in texts] if paired else None

    splits = [RawSplit(texts, pairs, np.arange(len(texts)) % 2) for texts, pairs in (part(4) for _ in range(3))]
    own = part(1)
    unlabelled = UnlabelledTexts([f"{one}  " for one in own[0]], own[1], "", len(own[0]))
    return RawDataset("toy", "en", 2, ["a", "b"], "local", *splits, unlabelled=unlabelled), draw(st.integers(4, 12))


@given(drawn=datasets())
@examples(max_examples=40)
def test_no_unlabelled_row_is_in_another_split(
    drawn: tuple[RawDataset, int], make_backbone: Callable[..., Backbone]
) -> None:
    """Texts that differ only in what the model does not see count as equal, and every other text is there."""
    full, most = drawn
    limited = limit_dataset(full, max_train=most, max_dev=2)
    found = prepare(limited, make_backbone(), 5)
    task = found.task
    known = rows_of(task.train.tokens) | rows_of(task.dev.tokens) | rows_of(found.test.tokens)
    rows = set() if task.unlabelled is None else rows_of(task.unlabelled)
    assert not rows & known
    if limited.unlabelled is not None:
        texts = limited.unlabelled
        assert rows == rows_of(make_backbone().encode(texts.texts, texts.pairs, max_length=5)) - known
        assert task.unlabelled is None or len(task.unlabelled) == len(rows)


def test_who_declares_it_gets_them(stage: Any, settings: Settings) -> None:
    """A method that declares it reads the rows beyond the limit; its results, and those of methods that need it, say so."""
    got = reader(stage, "two", declares=True)
    stage.add("pupil", "two")
    some = change(settings, methods=["one", "two", "pupil"])
    assert run(some) == (6, 0, 0)
    assert got == [10]
    (note,) = notes(some)["two"]
    assert note.startswith(
        "learns from 10 rows without labels, drawn from 10 rows of train beyond its limit (seed 0); 0 more"
    )
    assert notes(some) == {"one": [], "two": [note], "pupil": [note]}


def test_without_such_rows_there_are_none(stage: Any, settings: Settings) -> None:
    """With all of train, or a limit of 0, the task has none, which the method sees."""
    got = reader(stage, "two", declares=True)
    assert run(change(settings, methods=["two"], max_train=None)) == (2, 0, 0)
    assert run(change(settings, methods=["two"], max_unlabelled=0)) == (2, 0, 0)
    assert got == [None, None]
    assert notes(settings) == {"two": []}


def test_who_does_not_declare_it_is_refused(stage: Any, settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    """Its cached fits would not follow the rows: its cells fail with the reason, also where a setting turns them off."""
    reader(stage, "two", declares=False)
    assert run(settings) == (2, 0, 1)
    assert (
        "method 'two' reads task.unlabelled without saying so: give it a function uses_unlabelled"
        in capsys.readouterr().err
    )
    reader(stage, "two", declares=True)
    assert run(change(settings, method={"two": {"source": "train"}})) == (0, 2, 1)


def test_nothing_is_tokenised_for_nobody(stage: Any, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """If no method uses the rows, only the three splits are tokenised."""
    encoded, encode = list[int](), Backbone.encode

    def count(self: Backbone, texts: list[str], *parts: Any, **named: Any) -> TokenSet:
        encoded.append(len(texts))
        return encode(self, texts, *parts, **named)

    monkeypatch.setattr(Backbone, "encode", count)
    monkeypatch.setattr(cell_groups, "tokenising_of", lambda session: None)  # tokenises the test texts to take its time
    run(settings)
    assert encoded == [20, 10, 12]
    reader(stage, "two", declares=True)
    run(change(settings, methods=["one", "two"]))
    assert encoded == [20, 10, 12] * 2 + [10]


def keys(settings: Settings, name: str) -> tuple[str, str, str]:
    """Return the keys of a method's fit and cells, and the recipe of its binding."""
    session = Session(settings, settings.profile.datasets[0], 0)
    cell = ContentKeys(settings).of(session.dataset, name)
    return session.fit_key(name), cell, binding_of(session, name, None).fits[name]


def test_keys_follow_the_rows_of_those_who_use_them(stage: Any, settings: Settings) -> None:
    """Another limit changes the keys of a method that uses the rows, and no others; neither does the setting that turns it off."""
    reader(stage, "two", declares=True)
    fewer, off = change(settings, max_unlabelled=5), change(settings, method={"two": {"source": "train"}})
    assert not set(keys(settings, "two")) & set(keys(fewer, "two"))
    assert keys(settings, "one") == keys(fewer, "one")
    assert keys(off, "two") == keys(change(off, max_unlabelled=5), "two")
    assert (
        Session(fewer, "ag_news", 0).prepared.task.fingerprint
        == Session(settings, "ag_news", 0).prepared.task.fingerprint
    )


def test_a_changed_file_concerns_those_who_use_it(
    stage: Any, settings: Settings, tmp_path: Path, make_backbone: Callable[..., Backbone], saved_backbone: Path
) -> None:
    """A file that is added or changed is measured again by the methods that use it, and by no others."""
    place = tmp_path / "data" / "mine"
    place.mkdir(parents=True)
    for split in ("train", "dev", "test"):
        texts = [f"{split} {word}" for word in WORDS]
        pd.DataFrame({"text": texts, "label": np.arange(6) % 2}).to_csv(place / f"{split}.csv", index=False)
    got = reader(stage, "two", declares=True)
    some = change(settings, datasets=["mine"], backbones={"en": str(saved_backbone)}, max_train=None)
    some = replace(some, data=tmp_path / "data")
    assert run(some) == (4, 0, 0)
    for texts in ([WORDS[0], WORDS[1]], [WORDS[0], WORDS[2]]):
        (place / "unlabelled.csv").write_text("\n".join(["text", *texts, "test " + WORDS[0], ""]))
        assert run(some) == (2, 2, 0)
        assert run(some) == (0, 4, 0)
    assert got == [None, 2, 2]
    (note,) = notes(some)["two"]
    assert "drawn from 3 rows of unlabelled.csv (seed 0); 1 more were dropped" in note
