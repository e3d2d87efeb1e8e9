"""Fixtures shared by tests of several rooms: a small task that can be learned, a backbone, and methods fitted on it.

Each is made once per session (per worker of pytest-xdist). Tests read them and never change them.
"""

from __future__ import annotations

import faulthandler
import gc
import getpass
import multiprocessing
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st

from baselines.full_depth.bert import Bert
from geep.exit_table import ExitTable
from geep.method import FittedGeep, Geep
from geep.predictor import DevView, budget_points
from geep.rule_choices import with_quantiles
from harness.contracts import Execution, Fitted, Foresees, OperatingPoint, Predictions
from harness.core.tokens import Split, Task, TokenSet
from harness.encoder.backbone import Backbone
from harness.encoder.model import Encoder
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.shape import EncoderShape
from harness.execution.executors import exit_logits
from harness.measure import diagnostics
from harness.toolkit.budgets import BUDGETS
from harness.toolkit.fitted import FullDepth

LABELS = 3

# A slow machine is no error: the default is 200 ms per example.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

# For processes that tests start: no access to a network, and one thread each, because tests already run in several workers.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # torch.compile starts no pool of processes
# torch's own default, so that what one session of tests compiled serves the next.
os.environ.setdefault(
    "TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}")
)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Keep imported modules and collected tests out of garbage collections, which take half a second each with them."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``gpu`` where there is no CUDA device."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Run torch on one thread, which is faster for tiny tensors."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def _caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield a new path each time; making a folder for each of thousands of tests takes longer than many of them do."""
    folder = tmp_path_factory.mktemp("caches")
    return (folder / str(number) for number in count())


@pytest.fixture(autouse=True)
def _own_cache(request: pytest.FixtureRequest, _caches: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every test its own cache, never the user's: in its temporary folder if it has one."""
    folder = request.getfixturevalue("tmp_path") if "tmp_path" in request.fixturenames else next(_caches)
    monkeypatch.setenv("GEEP_BENCH_CACHE", str(folder / "geep-bench-cache"))


@pytest.fixture
def few_single_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run three samples of each cell alone, where a run would take a hundred: of test rows as few as here, all of them."""
    monkeypatch.setattr(diagnostics, "CALLS", 3)


def _exit_with_1_on_failure(act: Callable[..., None], args: tuple[Any, ...]) -> None:
    faulthandler.disable()  # a planted bug may crash
    try:
        act(*args)
    except (AssertionError, RuntimeError, IndexError):
        raise SystemExit(1) from None


@pytest.fixture(scope="session")
def fails_apart() -> Callable[..., bool]:
    """Return a function that runs another in its own process and returns whether it failed, crashed or hung.

    It serves tests with planted bugs.
    """

    def run(act: Callable[..., None], *args: Any) -> bool:
        process = multiprocessing.get_context("fork").Process(target=_exit_with_1_on_failure, args=(act, args))
        process.start()
        process.join(60)
        if process.exitcode is None:
            process.kill()
            process.join()
        return process.exitcode != 0

    return run


def _signal(count: int, seed: int) -> Split:
    """Return distinct rows about four topics with eight words each (ids 5 to 36).

    The topic is the label; in the fourth topic, the first word decides.
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
    """A task with three labels, 96 training and 48 dev rows, and easy and hard samples."""
    return Task("signal", "en", LABELS, 16, _signal(96, 1), _signal(48, 2))


@pytest.fixture(scope="session")
def unseen() -> Split:
    """40 test rows."""
    return _signal(40, 3)


@pytest.fixture(scope="session")
def small_backbone() -> Backbone:
    """An untrained backbone with five layers of width 16 and no dropout."""
    torch.manual_seed(0)
    shape = EncoderShape(layers=5, width=16, heads=2, intermediate=24, vocab_size=40, max_positions=16, dropout=0.0)
    encoder = Encoder(shape)
    for parameter in encoder.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)  # with BERT's 0.02 all hidden states would be alike
    torch.nn.init.normal_(encoder.word.weight)
    return Backbone("small", shape, {k: v.clone() for k, v in encoder.state_dict().items()}, tokenizer=None)


@pytest.fixture(scope="session")
def quick() -> Mapping[str, Any]:
    """Training settings with which a method learns within a second."""
    return {"epochs": 4, "learning_rate": 1e-2, "batch_size": 8, "head": "linear"}


@pytest.fixture(scope="session")
def trained_bert(signal_task: Task, small_backbone: Backbone, quick: Mapping[str, Any]) -> FullDepth:
    """The fine-tuned teacher."""
    return Bert().fit(signal_task, small_backbone, {}, config=quick, seed=0)


@pytest.fixture(scope="session")
def trained_geep(signal_task: Task, small_backbone: Backbone, quick: Mapping[str, Any]) -> FittedGeep:
    """GEEP, fitted with two speeds."""
    return Geep().fit(signal_task, small_backbone, {}, config={**quick, "speeds": [0.75, 0.85]}, seed=0)


@pytest.fixture(scope="session")
def scattered_geep(signal_task: Task, small_backbone: Backbone) -> FittedGeep:
    """GEEP with large random heads: samples exit at every layer, and no two entropies are equal.

    Its tables are filled by topic, so predicted exits differ as well.
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
    dev = signal_task.dev
    view = DevView.of(exit_logits(model, dev.tokens, Execution()), dev.labels, model.answers, model.depth)
    able = {speed: with_quantiles(table, dev.tokens) for speed, table in fitted.tables.items()}
    fitted.points += budget_points(able, view, BUDGETS)
    return fitted


@pytest.fixture(scope="session")
def executions() -> st.SearchStrategy[Execution]:
    """Execution settings that must not change any answer."""
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
def same_however_run(unseen: Split) -> Callable[..., None]:
    """Return a check that samples get the same answers in any order and execution as one by one on arrival.

    With ``rounded``, logits of one row in ten may differ by more than noise, by a tenth of their spread: where activations are
    rounded, noise of another batch shape now and then changes an integer.
    """
    alone: dict[tuple[int, str], Predictions] = {}

    def predict(fitted: Fitted, at: OperatingPoint, tokens: TokenSet) -> Predictions:
        if isinstance(fitted, Foresees):
            at = replace(at, foresight=fitted.foresee(tokens, at=at))
        return fitted.predict(tokens, at=at)

    def check(
        fitted: Fitted, at: OperatingPoint, execution: Execution, order: Sequence[int], *, rounded: bool = False
    ) -> None:
        key = (id(fitted), at.name)
        if key not in alone:
            one = Execution(batch_size=1, order="arrival", max_length=16)
            alone[key] = predict(fitted, replace(at, execution=one), unseen.tokens)
        expected = alone[key]
        found = predict(fitted, replace(at, execution=execution), unseen.tokens.select(order))
        np.testing.assert_array_equal(found.exit_layer, expected.exit_layer[order])
        same = np.isclose(found.logits, expected.logits[order], atol=1e-4, rtol=1e-4).all(axis=1)
        assert same.mean() >= (0.9 if rounded else 1)
        np.testing.assert_allclose(found.logits, expected.logits[order], atol=0.1 * expected.logits.std())
        np.testing.assert_array_equal(found.logits.argmax(1), expected.logits[order].argmax(1))
        for kind in ("layer", "head"):
            assert found.work.rows(kind) == expected.work.rows(kind)

    return check


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print how many faults there were (tests/faults), how many the program survived, and what they cost.

    It is here because pytest-xdist loads no conftest below the folder that it is given.
    """
    tried, survived, lost, seeds = Counter[str](), Counter[str](), Counter[str](), set()
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(outcome, []):
            properties = getattr(report, "user_properties", [])
            if getattr(report, "when", "") != "call":
                continue
            faults = [value for name, value in properties if name == "fault"]
            for fault, seed in faults:
                tried[fault] += 1
                survived[fault] += outcome == "passed"
                seeds.add(seed)
            lost[faults[0][0] if faults else ""] += sum(value for name, value in properties if name == "lost")
    if not tried:
        return
    terminalreporter.section("faults")
    rows = [("fault", "tried", "survived", "cells lost")]
    rows += [(name, str(tried[name]), str(survived[name]), str(lost[name])) for name in tried]
    rows.append(("all", *(str(sum(counts.values())) for counts in (tried, survived, lost))))
    for name, *numbers in rows:
        terminalreporter.write_line(f"{name:<44}" + "".join(f"{number:>12}" for number in numbers))
    for seed in seeds:
        terminalreporter.write_line(f"seed {seed}; to repeat these faults: FAULT_SEED={seed} tox -e slow")
