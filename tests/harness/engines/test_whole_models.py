"""Whole-model engines: a fit's answers from another library. Those whose library is not installed are skipped."""

from __future__ import annotations

import copy
import gc
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.contracts import EngineName, Execution, OperatingPoint, WholeModelEngine
from harness.core.errors import MethodError
from harness.core.tokens import Split, Task, TokenSet
from harness.encoder.backbone import Backbone
from harness.encoder.model import Encoder
from harness.encoder.multi_exit import MultiExitModel
from harness.encoder.shape import EncoderShape
from harness.engines.choice import CALIBRATION, WHOLE, calibration_rows, check_engine, on_engine
from harness.engines.likeness import likeness
from harness.engines.whole_model import WholeModel
from harness.measure.resources import SavedState
from harness.toolkit.fitted import FullDepth

Check = Callable[[FullDepth, OperatingPoint, Execution, list[int]], None]
FULL = OperatingPoint("full")
ENGINES: tuple[EngineName, ...] = get_args(WholeModelEngine)
FLOAT = tuple(name for name in ENGINES if not name.endswith("int8"))
INT8 = tuple(name for name in ENGINES if name.endswith("int8"))


def converted(engine: EngineName, fitted: FullDepth, rows: TokenSet) -> WholeModel:
    """Return a fit on an engine; skip the test if its libraries are not installed."""
    for module in WHOLE[engine].modules:
        pytest.importorskip(module)
    check_engine(engine, "bert", "cpu", FullDepth)
    found = on_engine(engine, fitted, rows)
    assert isinstance(found, WholeModel)
    return found


def logits(fitted: FullDepth, tokens: TokenSet, **execution: Any) -> np.ndarray:
    with torch.inference_mode():
        return fitted.predict(tokens, at=replace(FULL, execution=Execution(**execution))).logits


@pytest.fixture(scope="module")
def on(trained_bert: FullDepth, signal_task: Task) -> Callable[[EngineName], WholeModel]:
    """Return a function that gives the trained fit on an engine."""
    made: dict[EngineName, WholeModel] = {}

    def get(engine: EngineName) -> WholeModel:
        if engine not in made:
            made[engine] = converted(engine, trained_bert, signal_task.train.tokens)
        return made[engine]

    return get


@pytest.mark.parametrize("engine", FLOAT)
def test_float_engines_give_berts_answers(
    engine: EngineName, on: Callable[[EngineName], WholeModel], trained_bert: FullDepth, unseen: Split
) -> None:
    """Logits are bert's up to rounding, from as many layers and heads; cost and training are bert's."""
    fitted = on(engine)
    ours, theirs = (one.predict(unseen.tokens, at=FULL) for one in (fitted, trained_bert))
    np.testing.assert_allclose(ours.logits, theirs.logits, rtol=1e-4, atol=1e-4)
    assert (ours.work.rows("layer"), ours.work.rows("head")) == (5 * 40, 40)
    assert ours.exit_layer.tolist() == theirs.exit_layer.tolist()
    assert (fitted.cost, fitted.training) == (trained_bert.cost, trained_bert.training)
    layer = ours.work.blocks["layer.0"]
    assert (layer.tokens == layer.valid) == fitted.skips_padding == (engine == "ctranslate2")


@pytest.mark.parametrize("engine", ["ctranslate2-int8"])
def test_converting_leaves_the_model_as_it_is(engine: EngineName, trained_bert: FullDepth) -> None:
    """A library that scales weights in place gets a copy."""
    mine = FullDepth(copy.deepcopy(trained_bert.model))
    before = SavedState.of(mine).digest
    converted(engine, mine, TokenSet.from_lists([[1]]))
    assert SavedState.of(mine).digest == before


@pytest.mark.parametrize("engine", INT8)
def test_int8_engines_nearly_do(
    engine: EngineName, on: Callable[[EngineName], WholeModel], trained_bert: FullDepth, unseen: Split
) -> None:
    """Most labels are bert's, the logits are not, and the files are smaller than those in float32."""
    found, theirs = logits(on(engine), unseen.tokens), logits(trained_bert, unseen.tokens)
    assert (found.argmax(1) == theirs.argmax(1)).mean() >= 0.9
    assert not np.allclose(found, theirs, atol=1e-4)


@pytest.mark.parametrize("engine", ["openvino", "ctranslate2"])
def test_the_published_head_and_one_segment(engine: EngineName, small_backbone: Backbone, unseen: Split) -> None:
    """FastBERT's head attends from the first token; with one segment, as in DistilBERT, both texts of a pair use it."""
    torch.manual_seed(3)
    model = MultiExitModel(Encoder(replace(small_backbone.shape, type_vocab=1)), 3, (), "fastbert").eval()
    for weight in model.parameters():
        weight.data.add_(0.05 * torch.randn(weight.shape))
    bert = FullDepth(model)
    pairs = replace(unseen.tokens, segments=torch.arange(len(unseen.tokens.ids)).to(torch.int8) % 2)
    found = logits(converted(engine, bert, unseen.tokens), pairs, batch_size=7)
    np.testing.assert_allclose(found, logits(bert, pairs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("activation", "segments"), [("gelu_new", 2), ("relu", 1), ("gelu", 2)])
def test_ctranslate2_reads_every_activation_and_segments(activation: str, segments: int) -> None:
    """Its specification has the model's activation, norms, and segments of both texts."""
    torch.manual_seed(5)
    shape = EncoderShape(2, 16, 2, 24, 50, max_positions=16, type_vocab=segments, norm_eps=1e-3, activation=activation)
    model = MultiExitModel(Encoder(shape), 3, (), "linear").eval()
    for weight in model.parameters():
        weight.data.add_(0.3 * torch.randn(weight.shape))
    rows = [[1, *range(3, 3 + size)] for size in (1, 7, 15, 4)]
    tokens = TokenSet.from_lists(rows, [[0] + [1] * (len(row) - 1) for row in rows])
    bert = FullDepth(model)
    found = logits(converted("ctranslate2", bert, tokens), tokens, batch_size=3)
    np.testing.assert_allclose(found, logits(bert, tokens), rtol=1e-3, atol=1e-4)


def test_ctranslate2_refuses_other_structures(tiny_shape: EncoderShape) -> None:
    """Its specification is BERT's: gated layers would be run wrongly."""
    pytest.importorskip("ctranslate2")
    model = MultiExitModel(Encoder(replace(tiny_shape, gated=True)), 3, (), "linear").eval()
    with pytest.raises(MethodError, match="runs encoders of BERT's structure only: use onnx or openvino"):
        WHOLE["ctranslate2"].of(FullDepth(model))


@given(data=st.data())
@settings(max_examples=6)
@pytest.mark.parametrize("engine", ["ctranslate2", "ctranslate2-int8", "openvino"])
def test_batches_equal_batch_1(
    engine: EngineName,
    data: st.DataObject,
    on: Callable[[EngineName], WholeModel],
    executions: Any,
    same_however_run: Check,
) -> None:
    """Answers in batches of any size, order and padding equal those of samples run one by one."""
    same_however_run(on(engine), FULL, data.draw(executions), data.draw(st.permutations(range(40))))


@pytest.mark.parametrize("engine", ["ctranslate2", "ctranslate2-int8", "openvino", "openvino-int8", "onnx-int8"])
def test_a_stored_model_has_about_the_size_of_its_weights(
    engine: EngineName, on: Callable[[EngineName], WholeModel], tmp_path: Path
) -> None:
    """As stored, a converted model has about the size of its weights, and no path of this machine."""
    fitted = on(engine)
    fitted.save(tmp_path)
    state = SavedState.of(fitted)
    description = sum(len(content) for name, content in fitted.files.items() if name.endswith(".xml"))
    assert state.weights and state.size - description < 4 * fitted.cost.params + 100_000
    for content in fitted.files.values():
        assert b"site-packages" not in content and str(Path.cwd()).encode() not in content


@pytest.mark.parametrize("engine", ENGINES)
def test_a_missing_library_names_the_extra(engine: EngineName, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing library is a MethodError with the command that installs it, so that only these cells fail."""
    kind = WHOLE[engine]
    for module in kind.modules:
        monkeypatch.setitem(sys.modules, module, None if module == kind.modules[-1] else sys)
    words = rf"^b: engine '{engine}': it needs {kind.modules[-1]} .*pip install 'geep-bench\[{kind.extra}\]'"
    with pytest.raises(MethodError, match=words):
        check_engine(engine, "b", "cpu", FullDepth)


def test_a_cpu_without_the_instructions_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """CTranslate2 says what this CPU can do; what it cannot is refused before anything is converted."""
    library = pytest.importorskip("ctranslate2")
    monkeypatch.setattr(library, "get_supported_compute_types", lambda device: {"float32"})
    with pytest.raises(MethodError, match="no int8_float32 on this CPU, only float32"):
        check_engine("ctranslate2-int8", "b", "cpu", FullDepth)
    check_engine("ctranslate2", "b", "cpu", FullDepth)


class _Counted(WholeModel):
    """An engine that answers 0 and counts conversions."""

    executor, extra, modules = "counted", "none", ()
    conversions = 0

    @classmethod
    def convert(cls, model: MultiExitModel, rows: TokenSet | None) -> dict[str, bytes]:
        cls.conversions += 1
        return {"all.bin": b"weights"}

    def _start(self) -> None:
        if self.model.labels == 7:
            raise RuntimeError("first line\nno such instruction")

    def _logits(self, ids: np.ndarray, segments: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        return np.zeros((len(ids), self.model.labels), np.float32)


def test_a_model_is_converted_once_and_not_kept_alive(tiny_shape: EncoderShape) -> None:
    """Two uses of a fit share its files; when the fit goes, they go, too."""
    fitted = FullDepth(MultiExitModel(Encoder(tiny_shape), 3).eval())
    one, two = _Counted.of(fitted), _Counted.of(fitted)
    assert _Counted.conversions == 1 and one.files is two.files
    gone = weakref.ref(fitted.model)
    del fitted, one, two
    gc.collect()
    assert gone() is None


def test_a_library_that_fails_is_named_in_one_line(tiny_shape: EncoderShape) -> None:
    """Its last line says why."""
    fitted = FullDepth(MultiExitModel(Encoder(tiny_shape), 7).eval())
    with pytest.raises(MethodError, match=r"^counted cannot run this model here \(no such instruction\): use another"):
        _Counted.of(fitted)


def test_calibration_rows_are_few_and_always_the_same(signal_task: Task) -> None:
    """Scales do not depend on the run, and no row is taken twice."""
    train = signal_task.train.tokens
    one, two = calibration_rows(train), calibration_rows(train)
    assert len(one) == min(CALIBRATION, len(train))
    assert one.ids.tolist() == two.ids.tolist()
    assert one.offsets.tolist() != train.select(np.arange(len(one))).offsets.tolist()


def test_likeness_finds_other_answers(trained_bert: FullDepth, unseen: Split) -> None:
    """It is 1 and 0 for the fit itself, whatever the point's data type, and falls with every label that changes."""
    point = replace(FULL, execution=Execution(dtype="bfloat16"))
    found = trained_bert.predict(unseen.tokens, at=FULL)
    same = likeness(found, trained_bert, point, unseen.tokens)
    assert same.agree == 1 and same.difference is not None and same.difference < 1e-6
    found.logits[:10] = -found.logits[:10]
    other = likeness(found, trained_bert, point, unseen.tokens)
    assert other.agree == 0.75 and other.difference is not None and other.difference > 0.1
    found.exit_layer[:10] -= 1
    moved = likeness(found, trained_bert, point, unseen.tokens)
    assert moved.agree == 0.75 and moved.difference is not None and moved.difference < 1e-6
