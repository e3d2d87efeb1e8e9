"""BERT with compiled blocks: bert's answers, and cells that name how they were run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import baselines.full_depth.bert_compiled as module
from baselines.full_depth.bert_compiled import BertCompiled, Compiled
from harness.contracts import Execution, OperatingPoint
from harness.core.errors import ConfigError
from harness.core.tokens import Split, Task
from harness.encoder.backbone import Backbone
from harness.running.profile import load
from harness.running.run_settings import Settings
from harness.running.session import Session
from harness.toolkit.fitted import FullDepth

FULL = OperatingPoint("full")


@pytest.fixture(scope="module")
def compiled(trained_bert: FullDepth, signal_task: Task, small_backbone: Backbone) -> Compiled:
    return BertCompiled().fit(signal_task, small_backbone, {"bert": trained_bert}, config={}, seed=0)


@pytest.mark.parametrize("batch_size", [1, 7, 40])
def test_answers_equal_berts(compiled: Compiled, trained_bert: FullDepth, unseen: Split, batch_size: int) -> None:
    """Logits and work are the same at every batch size, a single sample included, in any order of samples."""
    order: Sequence[int] = np.random.default_rng(batch_size).permutation(40).tolist()
    at = replace(FULL, execution=Execution(batch_size=batch_size, max_length=16))
    ours = compiled.predict(unseen.tokens.select(order), at=at)
    theirs = trained_bert.predict(unseen.tokens, at=FULL)
    np.testing.assert_allclose(ours.logits, theirs.logits[order], rtol=1e-4, atol=1e-5)
    assert ours.work.rows("layer") == theirs.work.rows("layer")


def test_blocks_are_compiled_in_every_run(compiled: Compiled, unseen: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is compiled also in an eager run."""
    asked: list[Execution] = []
    monkeypatch.setattr(module, "run_full", lambda model, tokens, execution: asked.append(execution))
    compiled.predict(unseen.tokens, at=replace(FULL, execution=Execution(batch_size=3)))
    assert asked == [Execution(batch_size=3, compute="compiled")]


def test_cells_are_marked_as_compiled(compiled: Compiled, small_backbone: Backbone, tmp_path: Path) -> None:
    """Its cells are marked as compiled, those of other methods are not."""
    session = Session(Settings(load("quick"), tmp_path), "ag_news", 0)
    session.__dict__["backbone"] = small_backbone
    assert session.cell("bert", FULL).compute == "eager"
    assert session.cell("bert-compiled", FULL, compiled).compute == "compiled"


def test_everything_belongs_to_bert(
    compiled: Compiled, trained_bert: FullDepth, signal_task: Task, small_backbone: Backbone, tmp_path: Path
) -> None:
    """Model and cost are bert's; nothing is stored, and loading works."""
    compiled.save(tmp_path)
    assert not list(tmp_path.iterdir())
    again = BertCompiled().load(tmp_path, signal_task, small_backbone, {"bert": trained_bert})
    assert again.model is compiled.model is trained_bert.model
    assert again.training is None
    assert BertCompiled().point_names({}) == ["full"]


@pytest.mark.parametrize(
    ("config", "teachers", "message"), [({"layers": 2}, None, "unknown key 'layers'"), ({}, {}, "teacher 'bert'")]
)
def test_invalid_input_is_refused(
    config: dict[str, Any],
    teachers: Any,
    message: str,
    trained_bert: FullDepth,
    signal_task: Task,
    small_backbone: Backbone,
) -> None:
    """An unknown setting and a teacher of another kind are refused."""
    given = {"bert": trained_bert} if teachers is None else teachers
    with pytest.raises(ConfigError, match=message):
        BertCompiled().fit(signal_task, small_backbone, given, config=config, seed=0)
