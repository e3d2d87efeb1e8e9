"""CMOW/CBOW-Hybrid: products and their order, padding, pairs, sizes and costs by hand, bad settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from baselines.small_models.cmow_hybrid import CmowClassifier, CmowHybrid, FittedCmow, Pairs
from baselines.small_models.cmow_tables import MatrixTables
from baselines.small_models.matrix_products import whole_product
from harness.contracts import Execution, Fitted, OperatingPoint
from harness.core.errors import ConfigError
from harness.core.tokens import Split, Task, TokenSet
from harness.encoder.backbone import Backbone
from harness.encoder.layout import Layout
from harness.toolkit.fitted import FullDepth
from harness.toolkit.text_models.table_optimizer import sparse_tables
from harness.toolkit.text_models.text_model import TextLimits

LIMITS = TextLimits(vocab_size=60, max_positions=32, special=(0, 1, 2))
FULL = OperatingPoint("full")
SMALL = {"matrix": 4, "width": 12, "hidden": 16, "batch_size": 8, "precision": "float32"}
SIAMESE: list[Pairs] = ["hadamard", "concat", "diffcat"]


def model_of(pairs: Pairs = "joint", hidden: int = 5, matrix: int = 3, width: int = 4) -> CmowClassifier:
    """Return a model whose tables are far from the identity."""
    torch.manual_seed(0)
    model = CmowClassifier(LIMITS, 3, matrix, width, hidden, pairs=pairs).eval()
    for table in model.words.children():
        torch.nn.init.normal_(table.weight, std=0.6)
    return model


def layout_of(tokens: TokenSet, pad_to: int | None = None) -> Layout:
    return Layout(tokens.lengths.numpy(), pad_to, "cpu")


@torch.no_grad()
def read(model: CmowClassifier, tokens: TokenSet, pad_to: int | None = None) -> Tensor:
    return model.representation(tokens, layout_of(tokens, pad_to))


@torch.no_grad()
def by_hand(model: CmowClassifier, ids: Sequence[int]) -> Tensor:
    """Return [sum; M_1 .. M_n; M'_n .. M'_1] of one text, token by token."""
    size, words = model.matrix, model.words
    ahead = back = torch.eye(size)
    total = torch.zeros(model.width)
    for one in ids:
        ahead = ahead @ words.ahead.weight[one].view(size, size)
        back = words.back.weight[one].view(size, size) @ back
        total = total + words.vectors.weight[one]
    return torch.cat([total, ahead.flatten(), back.flatten()])


@examples(max_examples=15)
@given(
    length=st.integers(1, 20),
    size=st.integers(1, 5),
    padding=st.integers(0, 40),
    backwards=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_tree_is_the_sequential_product(length: int, size: int, padding: int, backwards: bool, seed: int) -> None:
    """Any number of matrices has the product that one after another has; identities at the end change no bit of it."""
    draw = torch.Generator().manual_seed(seed)
    matrices = torch.eye(size) + 0.3 * torch.randn(2, length, size, size, generator=draw)
    expected = torch.eye(size, dtype=torch.float64).expand(2, size, size)
    for place in range(length):
        one = matrices[:, place].double()
        expected = one @ expected if backwards else expected @ one
    found = whole_product(matrices, backwards=backwards)
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-3)
    padded = torch.cat([matrices, torch.eye(size).expand(2, padding, size, size)], 1)
    assert torch.equal(whole_product(padded, backwards=backwards), found)


@examples(max_examples=12)
@given(data=st.data())
def test_representations_are_those_by_hand(data: st.DataObject) -> None:
    """Joint and siamese, any lengths, an empty second text, padded or not: the formulas of the release, token by token."""
    words = st.lists(st.integers(0, 59), min_size=1, max_size=6)
    pairs = data.draw(st.lists(st.tuples(words, st.lists(st.integers(0, 59), max_size=6)), min_size=1, max_size=4))
    segments = [[0] * len(a) + [1] * len(b) for a, b in pairs]
    tokens = TokenSet.from_lists([a + b for a, b in pairs], segments)
    pad_to = data.draw(st.sampled_from([None, 13]))
    joint = model_of()
    expected = torch.stack([by_hand(joint, a + b) for a, b in pairs])
    torch.testing.assert_close(read(joint, tokens, pad_to), expected, atol=1e-5, rtol=1e-4)
    model = model_of(data.draw(st.sampled_from(SIAMESE)))
    u, v = (torch.stack([by_hand(model, text) for text in texts]) for texts in zip(*pairs, strict=True))
    combined = {"hadamard": u * v, "concat": torch.cat([u, v], 1), "diffcat": torch.cat([u, v, (u - v).abs()], 1)}
    torch.testing.assert_close(read(model, tokens, pad_to), combined[model.pairs], atol=1e-5, rtol=1e-4)


def test_the_sum_ignores_order_and_products_do_not() -> None:
    """Words in another order have the same sum of vectors and other products."""
    model = model_of()
    one, other = read(model, TokenSet.from_lists([[1, 10, 11, 12, 2], [1, 12, 10, 11, 2]]))
    torch.testing.assert_close(one[:4], other[:4])
    assert not torch.allclose(one[4:13], other[4:13]) and not torch.allclose(one[13:], other[13:])


def test_reversal_swaps_directions_of_equal_tables_only() -> None:
    """A text read from its end has the backward product as its forward one, if both directions have the same matrices."""
    model, texts = model_of(), TokenSet.from_lists([[10, 11, 12, 13], [13, 12, 11, 10]])
    one, other = read(model, texts)
    assert not torch.allclose(one[4:13], other[13:], atol=1e-3)
    model.words.back.load_state_dict(model.words.ahead.state_dict())
    one, other = read(model, texts)
    torch.testing.assert_close(one[4:13], other[13:])
    torch.testing.assert_close(one[13:], other[4:13])


@pytest.mark.parametrize("pairs", ["joint", "diffcat"])
def test_padding_changes_no_bit(pairs: Pairs) -> None:
    """A text in a longer layout has the same representation, to the last bit, and its padding no gradient."""
    model = model_of(pairs)
    tokens = TokenSet.from_lists([[1, 10, 2, 11, 12, 2], [1, 13, 2]], [[0, 0, 0, 1, 1, 1], [0, 0, 0]])
    found = read(model, tokens)
    assert torch.equal(read(model, tokens, 24), found)
    model.train()(tokens, layout_of(tokens, 24)).sum().backward()
    for table in sparse_tables(model):
        touched = table.grad.coalesce()  # type: ignore[union-attr]
        assert set(touched.indices()[0].tolist()) == {1, 2, 10, 11, 12, 13}


def test_tables_start_near_the_identity() -> None:
    """Matrices are the identity plus N(0, 0.01), vectors N(0, 0.01); so a product of 128 of them stays finite and small."""
    torch.manual_seed(0)
    tables = MatrixTables(300, 20, 400)
    for table in (tables.ahead, tables.back):
        noise = table.weight.detach() - torch.eye(20).view(-1)
        assert abs(noise.mean()) < 1e-3 and noise.std() == pytest.approx(0.01, rel=0.02)
    assert tables.vectors.weight.detach().std() == pytest.approx(0.01, rel=0.02)
    assert not torch.equal(tables.ahead.weight, tables.back.weight)
    with torch.no_grad():
        made = torch.cat(tables.products(torch.randint(300, (4, 128)), None), 1)
    assert made.abs().max() < 10


def test_published_size() -> None:
    """30,522 tokens x 1,200 numbers are 36,626,400 parameters, all of them looked up."""
    with torch.device("meta"):
        whole = TextLimits(30_522, 128)
        model = CmowClassifier(whole, 2)
    assert model.cost().looked_up == MatrixTables.parameters_for(30_522, 20, 400) == 36_626_400
    assert model.cost().params == 36_626_400 + (1200 * 512 + 512) + (512 * 2 + 2)


@pytest.mark.parametrize("hidden", [0, 5])
@pytest.mark.parametrize(("pairs", "texts", "parts"), [("joint", 1, 1), ("hadamard", 2, 1), ("diffcat", 2, 3)])
def test_work_by_hand(hidden: int, pairs: Pairs, texts: int, parts: int) -> None:
    """Two directions, one product less than tokens of a text, padding included, 2 d^3 FLOPs each; sums count in full only."""
    model, d, width = model_of(pairs, hidden), 3, 4
    rows = [[1, 10, 2, 11, 12, 2], [1, 13, 2], [1]]
    tokens = TokenSet.from_lists(rows, [[0, 0, 0, 1, 1, 1], [0, 0, 0], [0]])
    found = FittedCmow(model).predict(tokens, at=replace(FULL, execution=Execution(batch_size=3)))
    read_by = parts * (2 * d * d + width)
    label = 2 * (read_by * hidden + hidden * 3 if hidden else read_by * 3)
    linear = 3 * label + texts * 3 * (6 - 1) * 2 * 2 * d**3
    assert model.cost().flops(found.work, "linear") == linear
    assert model.cost().flops(found.work, "full") == linear + (6 + 3 + 1) * width
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(tokens, layout_of(tokens))
    assert counter.get_total_flops() == linear


@pytest.fixture(scope="module")
def cmow(signal_task: Task, small_backbone: Backbone, trained_bert: FullDepth) -> FittedCmow:
    """Taught, on rows that have two segments, as a pair."""
    config = {**SMALL, "learning_rate": 1e-2}
    return CmowHybrid().fit(signal_task, small_backbone, {"bert": trained_bert}, config=config, seed=0)


def test_it_learns_from_the_teacher_and_labels(cmow: FittedCmow, unseen: Split) -> None:
    """Test rows are answered better than by the most common label; pairs are read as such."""
    found = cmow.predict(unseen.tokens, at=FULL)
    common = torch.bincount(unseen.labels).max() / len(unseen)
    assert (torch.from_numpy(found.logits.argmax(1)) == unseen.labels).float().mean() > common + 0.2
    assert isinstance(cmow.model, CmowClassifier) and cmow.model.pairs == "diffcat"


@examples(max_examples=6)
@given(data=st.data())
def test_answers_do_not_depend_on_order_and_batch(
    data: st.DataObject,
    cmow: FittedCmow,
    unseen: Split,
    executions: st.SearchStrategy[Execution],
    same_however_run: Callable[[Fitted, OperatingPoint, Execution, Sequence[int]], None],
) -> None:
    """Every order, batch size, window and protocol gives the answers of samples one by one."""
    order = data.draw(st.permutations(range(len(unseen))))
    same_however_run(cmow, FULL, data.draw(executions), order)


def test_saved_and_loaded_it_answers_the_same(cmow: FittedCmow, unseen: Split, tmp_path: Path) -> None:
    """Tables, sizes and how pairs are read come back."""
    cmow.save(tmp_path)
    loaded = FittedCmow.load(tmp_path, "cpu")
    np.testing.assert_array_equal(*(one.predict(unseen.tokens, at=FULL).logits for one in (cmow, loaded)))


def test_single_texts_are_one_sequence(signal_task: Task, small_backbone: Backbone) -> None:
    """A task without second segments has no siamese reading, whatever the setting."""
    tokens = signal_task.train.tokens
    single = replace(signal_task.train, tokens=replace(tokens, segments=torch.zeros_like(tokens.segments)))
    config = {**SMALL, "epochs": 1, "loss": "ce", "pairs": "hadamard"}
    made = CmowHybrid().fit(replace(signal_task, train=single), small_backbone, {}, config=config, seed=0)
    assert isinstance(made.model, CmowClassifier) and made.model.pairs == "joint"


def test_products_stay_float32_in_half_precision() -> None:
    """Where training runs in bfloat16, the products do not."""
    model, tokens = model_of(hidden=0), TokenSet.from_lists([[1, 10, 11, 12, 2]])
    with torch.autocast("cpu", torch.bfloat16):
        found = read(model, tokens)
    assert found.dtype == torch.float32 and torch.equal(found, read(model, tokens))


def test_tables_larger_than_memory_are_refused(
    signal_task: Task, small_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is made of them, and the message says what they need and what to lower."""
    monkeypatch.setattr("harness.toolkit.text_models.table_optimizer.memory_left", lambda device: 2**19)
    message = (
        r"cmow-hybrid: training 48,000 parameters \(matrix = 20, width = 400\) needs 0\.0 GiB.*lower matrix or width"
    )
    with pytest.raises(ConfigError, match=message):
        CmowHybrid().fit(signal_task, small_backbone, {}, config={"loss": "ce"}, seed=0)


@pytest.mark.parametrize("config", [{"matrix": 0}, {"pairs": "cosine"}, {"dropout": 1}, {"hidden": -1}])
def test_wrong_settings_are_refused(config: Mapping[str, Any], signal_task: Task, small_backbone: Backbone) -> None:
    """One line names the setting."""
    with pytest.raises(ConfigError, match=next(iter(config))):
        CmowHybrid().fit(signal_task, small_backbone, {}, config=config, seed=0)
