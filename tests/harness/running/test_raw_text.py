"""Time from raw texts to ids: measured once for a dataset and a tokenizer, in the batches and on the threads of the run."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from harness.api import Run
from harness.core import clock
from harness.encoder.backbone import Backbone
from harness.results.run_folder import RunFolder
from harness.running.grid import Grid
from harness.running.measuring import raw_text
from harness.running.measuring.raw_text import time_tokenising
from harness.running.measuring.timing import TimingSettings
from harness.running.run_settings import Settings


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, str | None]]:
    """Texts, limit and tokenizer threads of every call of a tokenizer that is timed."""
    seen: list[tuple[int, int, str | None]] = []
    encode = Backbone.encode

    def recorded(self: Backbone, texts: Sequence[str], *rest: Any, max_length: int = 128) -> Any:
        if "RAYON_NUM_THREADS" in os.environ:
            seen.append((len(texts), max_length, os.environ["RAYON_NUM_THREADS"]))
        return encode(self, texts, *rest, max_length=max_length)

    monkeypatch.delenv("RAYON_NUM_THREADS", raising=False)
    monkeypatch.setattr(Backbone, "encode", recorded)
    return seen


def test_timed_cells_share_one_measurement(
    stage: Any, grid_settings: Settings, calls: list[tuple[int, int, str | None]]
) -> None:
    """All timed cells of a dataset hold the same seconds, from passes in batches of the run; cells without a time hold none."""
    timing = TimingSettings(seeds=[0], untimed=["three"])
    profile = grid_settings.profile.model_copy(update={"timing": timing, "seeds": [0, 1]})
    Grid(replace(grid_settings, profile=profile)).execute()
    results = RunFolder.open(grid_settings.out).results()
    for dataset in ("ag_news", "lcqmc"):
        found = {one.tokenising for one in results if one.cell.dataset == dataset and one.speed is not None}
        assert len(found) == 1
        (one,) = found
        assert one is not None and one.seconds > 0
        assert (one.passes, one.batch_size, one.threads) == (raw_text.PASSES, 5, torch.get_num_threads())
    assert all((one.tokenising is None) == (one.speed is None) for one in results)
    # 12 test rows: a warm-up, then batches of 5, 5 and 2 in every pass; of each dataset once.
    threads = str(torch.get_num_threads())
    once = [(5, 16, threads), *[(size, 16, threads) for size in (5, 5, 2)] * raw_text.PASSES]
    assert calls == once * 2
    table = Run(grid_settings.out).results()
    timed = table["samples_per_s"].notna()
    assert (table["samples_per_s_from_text"] < table["samples_per_s"])[timed].all()
    assert table["samples_per_s_from_text"].isna().equals(~timed)


def test_the_median_pass_counts(
    make_backbone: Callable[..., Backbone], calls: list[tuple[int, int, str | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Single passes of 0.5, 0.1 and 0.2 s give 0.2 s; passes beyond the budget are not begun; second texts are tokenised, too."""
    backbone, texts = make_backbone(), ["good", "not bad", "good or bad"]

    def timed(*seconds: float, pairs: Sequence[str] | None = None) -> tuple[float, int]:
        ticks = iter([tick for one in seconds for tick in (0.0, one)])
        monkeypatch.setattr(clock, "now", lambda: next(ticks))
        found = time_tokenising(backbone, texts, pairs, max_length=9, batch_size=2, threads=1)
        return found.seconds, found.passes

    assert timed(0.5, 0.1, 0.2) == (0.2, 3)
    assert timed(4.0) == (4.0, 1)
    assert timed(0.5, 0.1, 0.2, pairs=texts[::-1]) == (0.2, 3)
    assert set(calls) == {(2, 9, "1"), (1, 9, "1")}


def test_settings_of_the_process_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of the tokenizer are set inside only."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "other")
    monkeypatch.delenv("RAYON_NUM_THREADS", raising=False)
    for count, parallel in ((1, "false"), (3, "true")):
        with raw_text.tokenizer_threads(count):
            assert (os.environ["TOKENIZERS_PARALLELISM"], os.environ["RAYON_NUM_THREADS"]) == (parallel, str(count))
        assert os.environ["TOKENIZERS_PARALLELISM"] == "other" and "RAYON_NUM_THREADS" not in os.environ
