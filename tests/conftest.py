"""One small trained world that tests of several rooms share: a task with signal, a backbone, methods fitted on it.

Everything here is made once; tests look at it and change nothing.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from baselines.full_depth.bert import Bert
from geep.exit_table import ExitTable
from geep.method import FittedGeep, Geep
from harness.contracts import Execution, Fitted, Foresees, OperatingPoint, Predictions
from harness.core.tokens import Split, Task, TokenSet
from harness.encoder.backbone import Backbone
from harness.encoder.model import Encoder
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.shape import EncoderShape
from harness.toolkit.fitted import FullDepth

LABELS = 3

# For a process that has not imported huggingface_hub yet: no test may wait for a network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` are skipped, visibly, where there is no device."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Tiny tensors are slower on many threads than on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("GEEP_BENCH_CACHE", str(tmp_path / "geep-bench-cache"))


def _quietly(act: Callable[..., None], args: tuple[Any, ...]) -> None:
    faulthandler.disable()  # a planted bug may well crash
    try:
        act(*args)
    except (AssertionError, RuntimeError, IndexError):
        raise SystemExit(1) from None


@pytest.fixture(scope="session")
def fails_apart() -> Callable[..., bool]:
    """Whether a function fails (or crashes, or hangs) in a process of its own: for bugs that are planted."""

    def run(act: Callable[..., None], *args: Any) -> bool:
        process = multiprocessing.get_context("fork").Process(target=_quietly, args=(act, args))
        process.start()
        process.join(60)
        if process.exitcode is None:
            process.kill()
            process.join()
        return process.exitcode != 0

    return run


def _signal(count: int, seed: int) -> Split:
    """Four topics with eight words each (ids 5 to 36). The topic is the label; in the fourth, the first word decides.

    No two rows are alike.
    """
    draw = torch.Generator().manual_seed(seed)
    rows: dict[tuple[int, ...], int] = {}
    while len(rows) < count:
        topic, length = int(torch.randint(4, (1,), generator=draw)), int(torch.randint(2, 12, (1,), generator=draw))
        words = (5 + 8 * topic + torch.randint(8, (length,), generator=draw)).tolist()
        rows[(*words, 2)] = topic if topic < LABELS else words[0] % LABELS
    segments = [[0] * (len(row) // 2) + [1] * (len(row) - len(row) // 2) for row in rows]
    return Split(TokenSet.from_lists(list(rows), segments, (0, 1, 2)), torch.tensor(list(rows.values())))


@pytest.fixture(scope="session")
def signal_task() -> Task:
    """96 rows to train on, 48 to choose on, three labels; easy and hard samples."""
    return Task("signal", "en", LABELS, 16, _signal(96, 1), _signal(48, 2))


@pytest.fixture(scope="session")
def unseen() -> Split:
    """40 rows that no method was fitted on."""
    return _signal(40, 3)


@pytest.fixture(scope="session")
def small_backbone() -> Backbone:
    """Five layers of width 16, weights drawn large enough for layers to differ; no dropout."""
    torch.manual_seed(0)
    shape = EncoderShape(layers=5, width=16, heads=2, intermediate=24, vocab_size=40, max_positions=16, dropout=0.0)
    encoder = Encoder(shape)
    for parameter in encoder.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)  # BERT's 0.02 would make all hidden states alike
    torch.nn.init.normal_(encoder.word.weight)
    return Backbone("small", shape, {k: v.clone() for k, v in encoder.state_dict().items()}, tokenizer=None)


@pytest.fixture(scope="session")
def quick() -> Mapping[str, Any]:
    """Training settings that learn something in a second."""
    return {"epochs": 4, "learning_rate": 1e-2, "batch_size": 8, "head": "linear"}


@pytest.fixture(scope="session")
def trained_bert(signal_task: Task, small_backbone: Backbone, quick: Mapping[str, Any]) -> FullDepth:
    """The fine-tuned teacher."""
    return Bert().fit(signal_task, small_backbone, {}, config=quick, seed=0)


@pytest.fixture(scope="session")
def trained_geep(signal_task: Task, small_backbone: Backbone, quick: Mapping[str, Any]) -> FittedGeep:
    """GEEP as its ``fit`` makes it, with two speeds."""
    return Geep().fit(signal_task, small_backbone, {}, config={**quick, "speeds": [0.75, 0.85]}, seed=0)


@pytest.fixture(scope="session")
def scattered_geep(signal_task: Task, small_backbone: Backbone) -> FittedGeep:
    """GEEP with large random heads: it knows nothing, but samples leave everywhere and no entropy is like another.

    Its tables were filled by topic, so that predictions differ, too.
    """
    torch.manual_seed(4)
    model = MultiExitModel(small_backbone.encoder(), LABELS, range(3))
    for name, parameter in model.named_parameters():
        if not name.startswith("encoder") and parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.9)
    fitted = FittedGeep(model.eval())
    tokens = signal_task.train.tokens
    topics = (tokens.ids[tokens.offsets[:-1]] - 5) // 8
    for speed, quantile in ((0.3, 400), (0.6, 700)):
        table = fitted.tables[speed] = ExitTable(model.depth, ngram=2)
        table.insert(tokens, torch.tensor(model.answers)[topics])
        table.freeze(smoothing=1)
        for answer in ("student", "shared"):
            params = {"speed": speed, "quantile": quantile, "answer": answer}
            fitted.points.append(OperatingPoint(f"speed={speed:g}" + "/shared" * (answer == "shared"), params))
    return fitted


@pytest.fixture(scope="session")
def executions() -> st.SearchStrategy[Execution]:
    """Every way to run that must not make a difference."""
    return st.builds(
        Execution,
        batch_size=st.integers(1, 50),
        protocol=st.sampled_from(["modern", "paper"]),
        order=st.sampled_from(["arrival", "length"]),
        window=st.sampled_from([0, 1, 7, 16, 64]),
        executor=st.sampled_from(["ladder", "exact-k"]),
        max_length=st.integers(12, 16),
    )


@pytest.fixture(scope="session")
def same_however_run(unseen: Split) -> Callable[[Fitted, OperatingPoint, Execution, Sequence[int]], None]:
    """Assert that every sample gets the same answer one by one as it arrives, and in another order and execution."""
    alone: dict[tuple[int, str], Predictions] = {}

    def predict(fitted: Fitted, at: OperatingPoint, tokens: TokenSet) -> Predictions:
        if isinstance(fitted, Foresees):
            at = replace(at, foresight=fitted.foresee(tokens, at=at))
        return fitted.predict(tokens, at=at)

    def check(fitted: Fitted, at: OperatingPoint, execution: Execution, order: Sequence[int]) -> None:
        key = (id(fitted), at.name)
        if key not in alone:
            one = Execution(batch_size=1, order="arrival", max_length=16)
            alone[key] = predict(fitted, replace(at, execution=one), unseen.tokens)
        expected = alone[key]
        found = predict(fitted, replace(at, execution=execution), unseen.tokens.select(order))
        np.testing.assert_array_equal(found.exit_layer, expected.exit_layer[order])
        np.testing.assert_allclose(found.logits, expected.logits[order], atol=1e-4, rtol=1e-4)
        np.testing.assert_array_equal(found.logits.argmax(1), expected.logits[order].argmax(1))
        for kind in ("layer", "head"):
            assert found.work.rows(kind) == expected.work.rows(kind)

    return check
