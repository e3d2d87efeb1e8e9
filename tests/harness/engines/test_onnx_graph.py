"""ONNX Runtime: a fit's answers from a graph. Skipped if the extra ``onnx`` is not installed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.contracts import Execution, OperatingPoint
from harness.core.errors import MethodError
from harness.core.tokens import Split
from harness.encoder.backbone import Backbone
from harness.encoder.model import Encoder
from harness.encoder.multi_exit import MultiExitModel
from harness.engines.choice import check_engine
from harness.engines.onnx_graph import GRAPH, OnnxGraph
from harness.measure.resources import SavedState
from harness.toolkit.fitted import FullDepth

Check = Callable[[FullDepth, OperatingPoint, Execution, list[int]], None]
FULL = OperatingPoint("full")


@pytest.fixture(scope="module")
def exported(trained_bert: FullDepth) -> OnnxGraph:
    for name in ("onnxruntime", "onnx", "onnxscript"):
        pytest.importorskip(name)
    return OnnxGraph.of(trained_bert)


def test_answers_equal_berts(exported: OnnxGraph, trained_bert: FullDepth, unseen: Split) -> None:
    """Logits are bert's up to rounding, from as many layers and heads."""
    ours, theirs = (fitted.predict(unseen.tokens, at=FULL) for fitted in (exported, trained_bert))
    np.testing.assert_allclose(ours.logits, theirs.logits, rtol=1e-4, atol=1e-5)
    assert (ours.work.rows("layer"), ours.work.rows("head")) == (5 * 40, 40)
    assert ours.exit_layer.tolist() == theirs.exit_layer.tolist()


def test_the_published_head_is_exported_too(small_backbone: Backbone, unseen: Split) -> None:
    """The graph with FastBERT's head, which attends from the first token, gives the model's answers.

    The encoder has one segment, as in DistilBERT: both texts of a pair use it, in the graph as in the model.
    """
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.manual_seed(3)
    encoder = Encoder(replace(small_backbone.shape, layers=2, type_vocab=1))
    bert = FullDepth(MultiExitModel(encoder, 3, (), "fastbert").eval())
    ours = OnnxGraph.of(bert)
    pairs = replace(unseen.tokens, segments=torch.arange(len(unseen.tokens.ids)).to(torch.int8) % 2)
    np.testing.assert_allclose(
        ours.predict(pairs, at=FULL).logits, bert.predict(pairs, at=FULL).logits, rtol=1e-4, atol=1e-5
    )


@pytest.mark.slow
def test_structures_unlike_berts_are_exported(small_backbone: Backbone, unseen: Split) -> None:
    """Narrow embeddings, rotary positions, windows and gates give the model's answers, padding or not."""
    structure: dict[str, Any] = {
        "embedding": 8,
        "norm_first": True,
        "gated": True,
        "biases": False,
        "rotary": (1e5, 1e2),
    }
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.manual_seed(3)
    encoder = Encoder(replace(small_backbone.shape, **structure, windows=(0, 2, 3, 0, 2)))
    for parameter in encoder.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    bert = FullDepth(MultiExitModel(encoder, 3, (), "linear").eval())
    ours = OnnxGraph.of(bert)
    at = replace(FULL, execution=Execution(batch_size=9, protocol="paper", max_length=16))
    for point in (FULL, at):
        found, expected = (fitted.predict(unseen.tokens, at=point) for fitted in (ours, bert))
        np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-3, atol=1e-4)
    assert found.work == expected.work


def test_work_includes_padding_to_the_longest(exported: OnnxGraph, trained_bert: FullDepth, unseen: Split) -> None:
    """Packed rows are padded to the longest of their batch; with padding to the limit, the work is bert's."""
    paper = replace(FULL, execution=Execution(batch_size=8, protocol="paper", max_length=16))
    assert exported.predict(unseen.tokens, at=paper).work == trained_bert.predict(unseen.tokens, at=paper).work
    modern = exported.predict(unseen.tokens, at=replace(FULL, execution=Execution(batch_size=8))).work
    lengths = np.sort(unseen.tokens.lengths.numpy())
    executed = sum(8 * int(lengths[i : i + 8].max()) for i in range(0, 40, 8))
    assert modern.blocks["layer.0"].tokens == modern.blocks["head.4"].tokens == executed
    assert modern.blocks["layer.0"].valid == lengths.sum()


@given(data=st.data())
@settings(max_examples=8)
def test_batches_equal_batch_1(
    data: st.DataObject, exported: OnnxGraph, executions: Any, same_however_run: Check
) -> None:
    """Answers in batches of any size, order and padding equal those of samples run one by one."""
    same_however_run(exported, FULL, data.draw(executions), data.draw(st.permutations(range(40))))


def test_a_stored_graph_has_about_the_size_of_its_fit(
    exported: OnnxGraph, trained_bert: FullDepth, tmp_path: Path
) -> None:
    """As stored, the graph has about the size of the fit, and holds no path of this machine."""
    exported.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [GRAPH]
    state = SavedState.of(exported)
    assert state.weights and 4 * exported.cost.params < state.size < 4 * exported.cost.params + 100_000
    (graph,) = exported.files.values()
    assert b"site-packages" not in graph and str(Path.cwd()).encode() not in graph
    assert (exported.cost, exported.training) == (trained_bert.cost, trained_bert.training)


def test_attention_and_norms_are_fused(exported: OnnxGraph) -> None:
    """The graph has ONNX Runtime's own attention in every layer, and no softmax of its own is left."""
    nodes = [node.op_type for node in pytest.importorskip("onnx").load_from_string(exported.files[GRAPH]).graph.node]
    assert nodes.count("MultiHeadAttention") == exported.model.depth
    assert "Softmax" not in nodes


def test_threads_equal_torchs(exported: OnnxGraph) -> None:
    """ONNX Runtime uses as many threads as torch."""
    assert exported._session.get_session_options().intra_op_num_threads == torch.get_num_threads()


@pytest.mark.parametrize("name", ["onnxruntime", "onnx", "onnxscript"])
def test_a_missing_library_names_the_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing library is a MethodError that names the extra, so that only this method's cells fail."""
    for other in ("onnxruntime", "onnx", "onnxscript"):
        monkeypatch.setitem(sys.modules, other, None if other == name else sys)
    words = rf"^bert-onnx: engine 'onnx': it needs {name} .*pip install 'geep-bench\[onnx\]'"
    with pytest.raises(MethodError, match=words):
        check_engine("onnx", "bert-onnx", "cpu", FullDepth)
